"""What labels say of a merchant: how many came and how many were frauds, and its last run of unexplained frauds.

A run says that the merchant may be compromised: frauds there that no amount explains (see `labels`). It is summed up in
the order of the transactions, whatever the order in which their labels came, as far as the last `LESSONS` reach.

A merchant with labels has a row of this table.
"""

import math
from typing import Any, Final

from dataflow.profiles import windows
from dataflow.profiles.compilation import compiled, int64
from dataflow.profiles.labels import DAY, NEVER, days_since
from dataflow.profiles.side_table import SIDE_FIELDS, give_back, take_row

LESSONS: Final = 128
"""Lessons that a merchant remembers, those of the newest transactions, to sum them up in the order of these and to take
one back. Frauds that their amounts explain are not among them, as they say nothing of the merchant."""
RUN_OVER: Final = 0.02
"""A run of frauds is over when so many genuine ones in a row would be less likely than this, had it gone on."""
RUN_GAP: Final = 14.0
"""Days without a fraud after which the next one starts a run of its own."""
RUN_LIFE: Final = 60.0
"""Days in which the belief that a compromise still lasts fades to 1/e: sooner or later each is found out."""
MOST: Final = 2**32 - 1

FIELDS: Final = [("labelled", "i4")]
RUN: Final = ("first", "last", "frauds", "genuine", "since", "genuine_day")
"""Days of the first and of the last fraud; frauds; genuine ones between them; genuine ones since; day of the newest
genuine one. A day below 0 stands for none."""
LABELLED_FIELDS: Final = [
    *SIDE_FIELDS,
    *windows.fields("u4", "f4"),  # labels by when they came, and frauds among them as sums
    *((name, "f8") for name in RUN),
    *((f"before_{name}", "f8") for name in RUN),  # as the lessons left it that were forgotten
    ("n", "i4"), ("at", "f8", LESSONS + 1), ("key", "i8", LESSONS + 1), ("fraud", "u1", LESSONS + 1),
]  # fmt: skip
LABELLED_BLANK: Final = windows.BLANK | {
    "first": -1.0, "last": -1.0, "genuine_day": -1.0,
    "before_first": -1.0, "before_last": -1.0, "before_genuine_day": -1.0,
}  # fmt: skip

Run = tuple[float, float, float, float, float, float]


@compiled
def _alive(frauds: float, genuine: float, since: float) -> float:
    """Chance of a genuine streak so long, had the run of frauds gone on."""
    return float((1.0 - (frauds + 0.5) / (frauds + genuine + 1.0)) ** since)


@compiled
def read_labels(p: Any, side: Any, at: float) -> tuple[float, float, float, float, float, float]:
    """Labels that came, and frauds among them, over 24 h, 7 d and 30 d."""
    if p["labelled"] == 0:
        return 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    return windows.totals(side[p["labelled"]], int64(at // windows.BUCKET))


@compiled
def read_run(p: Any, side: Any, at: float) -> tuple[float, float, float, float, float, float, float]:
    """What the last run of unexplained frauds says.

    The chance that a transaction there is fraudulent now (0 to 1, reckoned, not fitted); days since the run's first
    fraud; frauds; genuine ones between them; genuine ones since; days since the last fraud and since the newest genuine
    one.
    """
    if p["labelled"] == 0:
        return 0.0, NEVER, 0.0, 0.0, 0.0, NEVER, NEVER
    run, day = side[p["labelled"]], at / DAY
    frauds, genuine, since = run["frauds"], run["genuine"], run["since"]
    since_genuine = days_since(run["genuine_day"], day)
    if frauds == 0.0:
        return 0.0, NEVER, 0.0, 0.0, 0.0, NEVER, since_genuine
    age = days_since(run["first"], day)
    # Share of frauds (Beta prior), times the chance of the genuine streak had it gone on, times time's.
    risk = frauds / (frauds + genuine + 0.5) * _alive(frauds, genuine, since) * math.exp(-age / RUN_LIFE)
    return risk, age, frauds, genuine, since, days_since(run["last"], day), since_genuine


@compiled
def _after(run: Run, day: float, fraud: bool) -> Run:
    """The last run, after one more transaction of that day that is genuine, or a fraud that is not explained."""
    first, last, frauds, genuine, since, genuine_day = run
    if not fraud:
        if frauds > 0.0 and day >= first:
            if day > last:
                since += 1.0
            else:
                genuine += 1.0
        return first, last, frauds, genuine, since, max(genuine_day, day)
    if frauds > 0.0 and _alive(frauds, genuine, since) >= RUN_OVER and day - last <= RUN_GAP:
        return min(first, day), max(last, day), frauds + 1.0, genuine + since, 0.0, genuine_day
    if day < first:
        return run  # a late label of a run before this one
    return day, max(last, day), 1.0, 0.0, 0.0, genuine_day


@compiled
def _without(run: Run, day: float, fraud: bool) -> Run:
    """The run without a label of that day that is summed up in it: its counts, as far as they can be told apart."""
    first, last, frauds, genuine, since, genuine_day = run
    if frauds == 0.0 or day < first:
        return run
    if fraud:
        if day > last:
            return run
        if frauds > 1.0:
            return first, last, frauds - 1.0, genuine, since, genuine_day
        return -1.0, -1.0, 0.0, 0.0, 0.0, genuine_day
    if day > last:
        return first, last, frauds, genuine, max(since - 1.0, 0.0), genuine_day
    return first, last, frauds, max(genuine - 1.0, 0.0), since, genuine_day


@compiled
def _run(m: Any) -> Run:
    return m["first"], m["last"], m["frauds"], m["genuine"], m["since"], m["genuine_day"]


@compiled
def _set_run(m: Any, run: Run) -> None:
    m["first"], m["last"], m["frauds"], m["genuine"], m["since"], m["genuine_day"] = run


@compiled
def _forgotten(m: Any) -> Run:
    """The run as the lessons left it that were forgotten."""
    return (
        m["before_first"], m["before_last"], m["before_frauds"], m["before_genuine"], m["before_since"],
        m["before_genuine_day"],
    )  # fmt: skip


@compiled
def _set_forgotten(m: Any, run: Run) -> None:
    (
        m["before_first"], m["before_last"], m["before_frauds"], m["before_genuine"], m["before_since"],
        m["before_genuine_day"],
    ) = run  # fmt: skip


@compiled
def _place(m: Any, at: float, key: int) -> int:
    """Where a lesson stands, or would stand: in the order of the transactions, then of the keys."""
    place = int64(m["n"])
    while place > 0 and (m["at"][place - 1] > at or (m["at"][place - 1] == at and m["key"][place - 1] >= key)):
        place -= 1
    return place


@compiled
def _remove(m: Any, place: int) -> None:
    m["n"] = int64(m["n"]) - 1
    for i in range(place, int64(m["n"])):
        m["at"][i], m["key"][i], m["fraud"][i] = m["at"][i + 1], m["key"][i + 1], m["fraud"][i + 1]


@compiled
def _insert(m: Any, place: int, at: float, key: int, fraud: bool) -> None:
    for i in range(int64(m["n"]), place, -1):
        m["at"][i], m["key"][i], m["fraud"][i] = m["at"][i - 1], m["key"][i - 1], m["fraud"][i - 1]
    m["at"][place], m["key"][place], m["fraud"][place] = at, key, fraud
    m["n"] = int64(m["n"]) + 1


@compiled
def _update_windows(m: Any, lesson: Any) -> None:
    """Counts a label, and takes back what it replaces, as far as the windows reach there."""
    bucket = int64(lesson["labelled_at"] // windows.BUCKET)
    fraud = lesson["fraud"]
    if not math.isnan(lesson["before"]):
        counted = int64(lesson["before"] // windows.BUCKET)
        was_fraud = lesson["before_fraud"]
        if was_fraud == fraud and counted == bucket:
            return
        if counted <= int64(m["bucket"]):
            windows.update(m, counted, -1, -1.0 if was_fraud else 0.0, MOST)
    windows.update(m, bucket, 1, 1.0 if fraud else 0.0, MOST)


@compiled
def update(p: Any, side: Any, lesson: Any) -> None:
    """Takes a lesson in, and takes back what it replaces; there must be room for one row.

    What is taken back of the windows is exact as long as they reach there. Of the run of frauds it is exact while the
    transaction is among the newest `LESSONS`; one that is older leaves the counts of the run that was under way then,
    but not its first and last day, nor does it bring back a run that was given up because of it.
    """
    if p["labelled"] == 0:
        p["labelled"] = take_row(side)
    m = side[p["labelled"]]
    m["written"] = 1
    _update_windows(m, lesson)
    at, key, fraud = lesson["at"], lesson["key"], lesson["fraud"]
    replaces = not math.isnan(lesson["before"])
    spoke = replaces and not (lesson["before_fraud"] and lesson["before_explained"])
    speaks = not (fraud and lesson["explained"])
    if not (spoke or speaks):
        return
    place = _place(m, at, key)
    if speaks and not spoke and place == m["n"]:  # the newest, as most are: the run need not be summed up anew
        _insert(m, place, at, key, fraud)
        _set_run(m, _after(_run(m), at / DAY, fraud))
    else:
        if place < m["n"] and m["at"][place] == at and m["key"][place] == key:
            _remove(m, place)
        elif spoke:
            _set_forgotten(m, _without(_forgotten(m), at / DAY, lesson["before_fraud"]))
        if speaks:
            _insert(m, place, at, key, fraud)
        run = _forgotten(m)
        for k in range(m["n"]):
            run = _after(run, m["at"][k] / DAY, m["fraud"][k] != 0)
        _set_run(m, run)
    if m["n"] > LESSONS:
        _set_forgotten(m, _after(_forgotten(m), m["at"][0] / DAY, m["fraud"][0] != 0))
        _remove(m, 0)


@compiled
def release(p: Any, side: Any) -> None:
    """Gives the row back, if the merchant has one."""
    if p["labelled"] > 0:
        give_back(side, p["labelled"])
        p["labelled"] = 0
