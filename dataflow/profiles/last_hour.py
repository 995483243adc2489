"""How many transactions a user made in the hour before another, and of how much, to the second.

Times and amounts of the last two hours are kept in event-time order: an event up to `LATE` seconds late finds its hour
complete. `RING` of them stand in the user's row; a user with more has a row of the busy table, which holds
`MAX_PER_HOUR`, and gives it back once half a ring is enough. A user with more counts as having the newest so many.

Amounts are float32, so a sum is off by 6e-8 of it at most; times are float64 and exact.
"""

from typing import Any, Final

from dataflow.profiles.compilation import compiled, float64, int64
from dataflow.profiles.side_table import SIDE_FIELDS, give_back, take_row

HOUR: Final = 3600.0
LATE: Final = 3600.0
"""How late an event may be and still find the hour before it complete, seconds."""
RING: Final = 8
"""Places in the user's row. 16 take 96 bytes more of every user, for the few who have more than 8 in two hours."""
MAX_PER_HOUR: Final = 1024

FIELDS: Final = [
    ("hour_at", "f8", RING),
    ("hour_amount", "f4", RING),
    ("hour_start", "u1"),
    ("hour_n", "u1"),
    ("busy", "i4"),
]
BUSY_FIELDS: Final = [
    *SIDE_FIELDS, ("start", "i4"), ("n", "i4"), ("at", "f8", MAX_PER_HOUR), ("amount", "f4", MAX_PER_HOUR),
]  # fmt: skip


@compiled
def _read(times: Any, amounts: Any, start: int, n: int, at: float) -> tuple[float, float]:
    """Count and sum of a ring over at - HOUR < t <= at, the oldest first."""
    size = len(times)
    first = n
    while first > 0 and times[(start + first - 1) % size] > at - HOUR:
        first -= 1
    count, total = 0.0, 0.0
    for i in range(first, n):
        place = (start + i) % size
        if times[place] > at:
            break
        count += 1.0
        total += float64(amounts[place])
    return count, total


@compiled
def read(p: Any, busy: Any, at: float) -> tuple[float, float]:
    """Count and sum of the user's transactions in the hour before: at - HOUR < t <= at."""
    if p["busy"] > 0:
        b = busy[p["busy"]]
        return _read(b["at"], b["amount"], int64(b["start"]), int64(b["n"]), at)
    return _read(p["hour_at"], p["hour_amount"], int64(p["hour_start"]), int64(p["hour_n"]), at)


@compiled
def _past(times: Any, start: int, n: int, until: float) -> int:
    """How many of a ring's times lie at or before `until`."""
    gone = 0
    while gone < n and times[(start + gone) % len(times)] <= until:
        gone += 1
    return gone


@compiled
def _insert(times: Any, amounts: Any, start: int, n: int, at: float, amount: float) -> None:
    """Puts an event in its place in a ring that has room, after those of the same time."""
    size = len(times)
    i = n
    while i > 0 and times[(start + i - 1) % size] > at:
        times[(start + i) % size] = times[(start + i - 1) % size]
        amounts[(start + i) % size] = amounts[(start + i - 1) % size]
        i -= 1
    times[(start + i) % size] = at
    amounts[(start + i) % size] = amount


@compiled
def _move_to_busy(p: Any, busy: Any) -> None:
    """Gives the user a long ring, with what stands in the short one."""
    row = take_row(busy)
    b = busy[row]
    for i in range(RING):
        place = (int64(p["hour_start"]) + i) % RING
        b["at"][i] = p["hour_at"][place]
        b["amount"][i] = p["hour_amount"][place]
    b["start"] = 0
    b["n"] = RING
    p["busy"] = row


@compiled
def _move_from_busy(p: Any, busy: Any) -> None:
    """Takes what stands in the long ring back to the short one."""
    b = busy[p["busy"]]
    for i in range(int64(b["n"])):
        place = (int64(b["start"]) + i) % MAX_PER_HOUR
        p["hour_at"][i] = b["at"][place]
        p["hour_amount"][i] = b["amount"][place]
    p["hour_start"] = 0
    p["hour_n"] = b["n"]
    release(p, busy)


@compiled
def update(p: Any, busy: Any, at: float, amount: float, last_at: float) -> None:
    """Takes an event in; `last_at` is the newest before it. The busy table must have room for one row."""
    if at < last_at:
        if at <= last_at - HOUR - LATE:
            return
    elif p["busy"] > 0:
        b = busy[p["busy"]]
        gone = _past(b["at"], int64(b["start"]), int64(b["n"]), at - HOUR - LATE)
        b["start"] = (int64(b["start"]) + gone) % MAX_PER_HOUR
        b["n"] = int64(b["n"]) - gone
        if b["n"] <= RING // 2:
            _move_from_busy(p, busy)
    else:
        gone = _past(p["hour_at"], int64(p["hour_start"]), int64(p["hour_n"]), at - HOUR - LATE)
        p["hour_start"] = (int64(p["hour_start"]) + gone) % RING
        p["hour_n"] = int64(p["hour_n"]) - gone
    if p["busy"] == 0 and p["hour_n"] == RING:
        _move_to_busy(p, busy)
    if p["busy"] == 0:
        _insert(p["hour_at"], p["hour_amount"], int64(p["hour_start"]), int64(p["hour_n"]), at, amount)
        p["hour_n"] = int64(p["hour_n"]) + 1
        return
    b = busy[p["busy"]]
    if b["n"] == MAX_PER_HOUR:
        if at < b["at"][b["start"]]:
            return  # older than all that are kept
        b["start"] = (int64(b["start"]) + 1) % MAX_PER_HOUR
        b["n"] = MAX_PER_HOUR - 1
    _insert(b["at"], b["amount"], int64(b["start"]), int64(b["n"]), at, amount)
    b["n"] = int64(b["n"]) + 1
    b["written"] = 1


@compiled
def release(p: Any, busy: Any) -> None:
    """Gives the long ring back, if the user has one."""
    if p["busy"] > 0:
        give_back(busy, p["busy"])
        p["busy"] = 0
