"""What feedback says of a user's transactions, and what each label teaches the merchant that it names.

What labels leave is a function of the transactions that came and of the last label of each, not of the order in which
the two were read. A label that comes before its transaction waits for it, one that is contradicted is taken back, one
that is sent again counts once. This is exact as far as a profile remembers: the labels of the user's `LABELLED` newest
transactions, the last 16 ids (`recent_ids`) and the last 32 unusual amounts (`unusual_ids`).

A fraud with an amount that was unusual for the user when it was scored speaks against the card ("explained"); one
without, against the merchant.

A user with labels has a row of the table `labelled`, and of the table `blocks` one for each 8 labels, chained. Labels
stand in the order of their transactions: by time, then by the id's hash.
"""

import math
from typing import Any, Final

import numpy as np

from dataflow.profiles import recent_ids, unusual_ids
from dataflow.profiles.compilation import compiled, float64, int64
from dataflow.profiles.side_table import SIDE_FIELDS, give_back, take_row

DAY: Final = 86_400.0
NEVER: Final = 365.0
"""Days that a "days since" says at most, and when it never was."""
LABELLED: Final = 64
"""Labels that are remembered, those of the newest transactions; one that waits when it is forgotten counts then."""
LABEL_WAIT: Final = 30 * DAY
"""Seconds by which the user's newest label may be younger than one that still waits; older ones count from then on."""
BLOCK: Final = 8
NOT_FOUND: Final = -1

FRAUD: Final = 1
EXPLAINED: Final = 2  # the transaction is known to be of an unusual amount
WAITING: Final = 4  # the transaction has not come, and the label counts nowhere yet

FIELDS: Final = [("labelled", "i4")]
FRAUD_FIELDS: Final = ("frauds", "fraud_day", "card_frauds", "card_fraud_day")
"""Frauds and the day of the newest; both for those that their amounts explain. A day below 0 stands for none."""
LABELLED_FIELDS: Final = [
    *SIDE_FIELDS, ("block", "i4"), ("n", "i4"),
    *((name, "f4") for name in FRAUD_FIELDS),
    *((f"before_{name}", "f4") for name in FRAUD_FIELDS),  # those among them whose labels were forgotten
    ("user", "i8"),  # hash of the user's name
    ("first_waiting", "f8"),  # event time of the oldest transaction whose label waits
]  # fmt: skip
LABELLED_BLANK: Final = {
    "first_waiting": math.inf, "fraud_day": -1.0, "card_fraud_day": -1.0,
    "before_fraud_day": -1.0, "before_card_fraud_day": -1.0,
}  # fmt: skip
BLOCK_FIELDS: Final = [
    *SIDE_FIELDS, ("at", "f8", BLOCK), ("labelled_at", "f8", BLOCK), ("id", "i8", BLOCK),
    ("merchant", "i4", BLOCK),  # the number of its name in the table's dictionary
    ("flags", "u1", BLOCK),
]  # fmt: skip

WAITED, EXPIRED, EVICTED, REPEATED, CORRECTED, LESSONS, EVENT, BEGUN_ANEW = range(8)
"""Places among the counts of a batch: what became of labels beyond being applied; lessons so far; the place of the
event under way; profiles that began anew."""
OUTCOMES: Final = ("waiting", "expired", "evicted", "repeated", "corrected")
COUNTS: Final = 8
MOST_LESSONS: Final = LABELLED + 2
"""Lessons that one event gives at most: each label that waited, and that of the event."""


LESSON: Final = np.dtype([
    ("event", "i8"),  # the place of the event that gives it; one that comes with a payment follows it
    ("merchant", "i4"),  # the number of its name
    ("key", "i8"),  # stands for the user and the transaction
    ("at", "f8"),  # event time of the transaction, as its first label says
    ("labelled_at", "f8"),
    ("fraud", "?"), ("explained", "?"),
    # Of the label that it replaces: when it came (NaN where it replaces none), and what it said.
    ("before", "f8"), ("before_fraud", "?"), ("before_explained", "?"),
])  # fmt: skip
"""What a label teaches a merchant; times in seconds since 1970 UTC."""


@compiled
def days_since(day: float, now: float) -> float:
    """Days since that day, 0 to `NEVER`; `NEVER` where there was none."""
    return min(max(now - day, 0.0), NEVER) if day >= 0.0 else NEVER


@compiled
def read(p: Any, tables: Any, at: float) -> tuple[float, float, float, float]:
    """Frauds by feedback, days since the newest took place; both for those that their amounts explain."""
    if p["labelled"] == 0:
        return 0.0, NEVER, 0.0, NEVER
    user, now = tables.labelled[p["labelled"]], at / DAY
    return (
        float64(user["frauds"]), days_since(float64(user["fraud_day"]), now),
        float64(user["card_frauds"]), days_since(float64(user["card_fraud_day"]), now),
    )  # fmt: skip


# ------------------------------------------------------------------------------------- labels by their place, 0 to n-1


@compiled
def _block_of(user: Any, tables: Any, place: int) -> int:
    """The row of the block that holds the label at a place; the label is at `place % BLOCK` in it.

    The number, and not the record: Numba would hand back a copy of that.
    """
    block = user["block"]
    for _ in range(place // BLOCK):
        block = tables.blocks[block]["next"]
    return int64(block)


@compiled
def _find(user: Any, tables: Any, id_hash: int) -> int:
    """The place of the label with that id, `NOT_FOUND` without one."""
    block, begin, n = user["block"], 0, int64(user["n"])
    while block > 0:
        ids = tables.blocks[block]["id"]
        for i in range(min(n - begin, BLOCK)):
            if ids[i] == id_hash:
                return begin + i
        block, begin = tables.blocks[block]["next"], begin + BLOCK
    return NOT_FOUND


@compiled
def _copy(a: Any, i: int, b: Any, j: int) -> None:
    """Copies label `i` of one block to place `j` of another."""
    b["at"][j], b["labelled_at"][j], b["id"][j] = a["at"][i], a["labelled_at"][i], a["id"][i]
    b["merchant"][j], b["flags"][j] = a["merchant"][i], a["flags"][i]


@compiled
def _remove_first(user: Any, tables: Any) -> None:
    """Removes the label at place 0, and the last block if that is empty then."""
    block = tables.blocks[user["block"]]
    for place in range(1, int64(user["n"])):
        i = place % BLOCK
        if i > 0:
            _copy(block, i, block, i - 1)
        else:
            following = tables.blocks[block["next"]]
            _copy(following, 0, block, BLOCK - 1)
            block = following
    user["n"] -= 1
    if user["n"] % BLOCK == 0:
        _drop_last_block(user, tables)


@compiled
def _add_block(user: Any, tables: Any) -> None:
    """Chains one more block to the user's."""
    new = take_row(tables.blocks)
    if user["block"] == 0:
        user["block"] = new
        return
    last = user["block"]
    while tables.blocks[last]["next"] > 0:
        last = tables.blocks[last]["next"]
    tables.blocks[last]["next"] = new


@compiled
def _drop_last_block(user: Any, tables: Any) -> None:
    """Gives back the last block of the user's, which is not the first."""
    before, last = user["block"], tables.blocks[user["block"]]["next"]
    while tables.blocks[last]["next"] > 0:
        before, last = last, tables.blocks[last]["next"]
    tables.blocks[before]["next"] = 0
    give_back(tables.blocks, last)


@compiled
def release(p: Any, tables: Any) -> None:
    """Gives all rows of a user's labels back."""
    if p["labelled"] == 0:
        return
    block = tables.labelled[p["labelled"]]["block"]
    while block > 0:
        following = tables.blocks[block]["next"]
        give_back(tables.blocks, block)
        block = following
    give_back(tables.labelled, p["labelled"])
    p["labelled"] = 0


@compiled
def _mark(p: Any, tables: Any) -> None:
    """Says that the rows of a user's labels were written."""
    user = tables.labelled[p["labelled"]]
    user["written"] = 1
    block = user["block"]
    while block > 0:
        tables.blocks[block]["written"] = 1
        block = tables.blocks[block]["next"]


# ------------------------------------------------------------------------------------------------------ what they count


@compiled
def _count_frauds(user: Any, tables: Any) -> None:
    """Counts the frauds anew, those that were forgotten and those that are remembered."""
    frauds, newest = float64(user["before_frauds"]), float64(user["before_fraud_day"])
    card_frauds, card_newest = float64(user["before_card_frauds"]), float64(user["before_card_fraud_day"])
    for place in range(int64(user["n"])):
        block = tables.blocks[_block_of(user, tables, place)]
        flags = int64(block["flags"][place % BLOCK])
        if flags & (FRAUD | WAITING) == FRAUD:
            day = block["at"][place % BLOCK] / DAY
            frauds, newest = frauds + 1.0, max(newest, day)
            if flags & EXPLAINED:
                card_frauds, card_newest = card_frauds + 1.0, max(card_newest, day)
    user["frauds"], user["fraud_day"] = frauds, newest
    user["card_frauds"], user["card_fraud_day"] = card_frauds, card_newest


@compiled
def _find_first_waiting(user: Any, tables: Any) -> None:
    """Finds the oldest transaction whose label waits."""
    user["first_waiting"] = math.inf
    for place in range(int64(user["n"])):
        block = tables.blocks[_block_of(user, tables, place)]
        if int64(block["flags"][place % BLOCK]) & WAITING:  # labels stand in the order of their transactions
            user["first_waiting"] = block["at"][place % BLOCK]
            return


@compiled
def _teach(
    user: Any,
    tables: Any,
    lessons: Any,
    counts: Any,
    place: int,
    before: float,
    before_fraud: bool,
    before_explained: bool,
) -> None:
    """Hands over what the label at that place teaches the merchant that it names; `before` NaN: it replaces none."""
    block, i = tables.blocks[_block_of(user, tables, place)], place % BLOCK
    flags = int64(block["flags"][i])
    lesson = lessons[counts[LESSONS]]
    lesson["event"] = counts[EVENT]
    lesson["merchant"] = block["merchant"][i]
    lesson["key"] = block["id"][i] ^ user["user"]
    lesson["at"], lesson["labelled_at"] = block["at"][i], block["labelled_at"][i]
    lesson["fraud"], lesson["explained"] = flags & FRAUD != 0, flags & EXPLAINED != 0
    lesson["before"], lesson["before_fraud"], lesson["before_explained"] = before, before_fraud, before_explained
    counts[LESSONS] += 1


@compiled
def _apply(p: Any, user: Any, tables: Any, lessons: Any, counts: Any, place: int) -> None:
    """Lets a label count that waited."""
    block, i = tables.blocks[_block_of(user, tables, place)], place % BLOCK
    flags = int64(block["flags"][i]) & (FRAUD | EXPLAINED)
    if unusual_ids.read(p, tables.unusual, block["id"][i]):
        flags |= EXPLAINED
    block["flags"][i] = flags
    _teach(user, tables, lessons, counts, place, math.nan, False, False)


@compiled
def _settle(
    p: Any, user: Any, tables: Any, lessons: Any, counts: Any, id_hash: int, is_here: bool, before: float
) -> None:
    """Lets labels count that need wait no longer.

    That of the transaction with this id, if `is_here`; those of transactions that the user's newest has overtaken; and
    those that came before `before`.
    """
    for place in range(int64(user["n"])):
        block, i = tables.blocks[_block_of(user, tables, place)], place % BLOCK
        if int64(block["flags"][i]) & WAITING == 0:
            continue
        if is_here and block["id"][i] == id_hash:
            _apply(p, user, tables, lessons, counts, place)
        elif block["at"][i] <= p["last_at"] or block["labelled_at"][i] < before:
            counts[EXPIRED] += 1
            _apply(p, user, tables, lessons, counts, place)
    _count_frauds(user, tables)
    _find_first_waiting(user, tables)


@compiled
def _explain(user: Any, tables: Any, lessons: Any, counts: Any, id_hash: int) -> None:
    """Mends the label that counts already of a transaction that came only now, and is of an unusual amount."""
    place = _find(user, tables, id_hash)
    if place < 0:
        return
    block, i = tables.blocks[_block_of(user, tables, place)], place % BLOCK
    flags = int64(block["flags"][i])
    if flags & (EXPLAINED | WAITING):
        return
    block["flags"][i] = flags | EXPLAINED
    if flags & FRAUD:
        _count_frauds(user, tables)
        _teach(user, tables, lessons, counts, place, block["labelled_at"][i], True, False)


@compiled
def _forget_oldest(p: Any, user: Any, tables: Any, lessons: Any, counts: Any) -> None:
    """Forgets the label of the oldest transaction; what it counts stays."""
    block = tables.blocks[_block_of(user, tables, 0)]
    waited = int64(block["flags"][0]) & WAITING != 0
    if waited:
        counts[EVICTED] += 1
        _apply(p, user, tables, lessons, counts, int64(0))
    flags = int64(block["flags"][0])
    if flags & FRAUD:
        day = block["at"][0] / DAY
        user["before_frauds"] = float64(user["before_frauds"]) + 1.0
        user["before_fraud_day"] = max(float64(user["before_fraud_day"]), day)
        if flags & EXPLAINED:
            user["before_card_frauds"] = float64(user["before_card_frauds"]) + 1.0
            user["before_card_fraud_day"] = max(float64(user["before_card_fraud_day"]), day)
    _remove_first(user, tables)
    if waited:
        _count_frauds(user, tables)
        _find_first_waiting(user, tables)


@compiled
def _remember(p: Any, user: Any, tables: Any, lessons: Any, counts: Any, label: Any) -> None:
    """Takes in the first label of a transaction."""
    at, id_hash = label["at"], label["id"]
    flags = FRAUD if label["fraud"] else 0
    if unusual_ids.read(p, tables.unusual, id_hash):
        flags |= EXPLAINED
    if at > p["last_at"] and not recent_ids.has_id(p, id_hash):
        flags |= WAITING
        counts[WAITED] += 1
        user["first_waiting"] = min(at, user["first_waiting"])
    place = int64(user["n"])
    if place % BLOCK == 0:
        _add_block(user, tables)
    user["n"] = place + 1
    while place > 0:
        block, i = tables.blocks[_block_of(user, tables, place - 1)], (place - 1) % BLOCK
        if block["at"][i] < at or (block["at"][i] == at and block["id"][i] < id_hash):
            break
        _copy(block, i, tables.blocks[_block_of(user, tables, place)], place % BLOCK)
        place -= 1
    block, i = tables.blocks[_block_of(user, tables, place)], place % BLOCK
    block["at"][i], block["labelled_at"][i], block["id"][i] = at, label["labelled_at"], id_hash
    block["merchant"][i], block["flags"][i] = label["merchant_name"], flags
    if flags & WAITING == 0:
        _teach(user, tables, lessons, counts, place, math.nan, False, False)
        if flags & FRAUD:
            _count_frauds(user, tables)
    if user["n"] > LABELLED:
        _forget_oldest(p, user, tables, lessons, counts)


@compiled
def _update(p: Any, tables: Any, lessons: Any, counts: Any, label: Any) -> None:
    """Takes a label in of a user who has a row of labels."""
    user = tables.labelled[p["labelled"]]
    labelled_at = label["labelled_at"]
    if user["first_waiting"] < math.inf:
        _settle(p, user, tables, lessons, counts, int64(0), False, labelled_at - LABEL_WAIT)
    place = _find(user, tables, label["id"])
    if place < 0:
        _remember(p, user, tables, lessons, counts, label)
        return
    block, i = tables.blocks[_block_of(user, tables, place)], place % BLOCK
    flags, before = int64(block["flags"][i]), block["labelled_at"][i]
    if label["fraud"] == (flags & FRAUD != 0) or labelled_at < before:
        counts[REPEATED] += 1
        return
    counts[CORRECTED] += 1
    block["flags"][i] = flags ^ FRAUD
    block["labelled_at"][i] = labelled_at
    if flags & WAITING == 0:
        _count_frauds(user, tables)
        _teach(user, tables, lessons, counts, place, before, flags & FRAUD != 0, flags & EXPLAINED != 0)


@compiled
def update(p: Any, tables: Any, lessons: Any, counts: Any, label: Any) -> None:
    """Takes a label in; what it teaches, and what labels do that have waited for too long.

    A label waits, and counts nowhere, while its transaction has not come: neither is the id among the recent ones, nor
    does its time lie at or before the user's newest (`last_at`). It counts as soon as either holds.

    Of two labels of one transaction the one with the later `labelled_at` counts, and where these are equal the one that
    came last; the merchant and the time of the transaction stay those of the first. A label that says the same as what
    counts is a repeat, and changes nothing.
    """
    if p["labelled"] == 0:
        p["labelled"] = take_row(tables.labelled)
        tables.labelled[p["labelled"]]["user"] = label["user"]
    _update(p, tables, lessons, counts, label)
    _mark(p, tables)


@compiled
def transaction_came(p: Any, tables: Any, lessons: Any, counts: Any, id_hash: int, unusual: bool) -> None:
    """What labels do now that a transaction has come that is not a repeat; the profile's `last_at` counts it in."""
    if p["labelled"] == 0:
        return
    user = tables.labelled[p["labelled"]]
    if not unusual and user["first_waiting"] == math.inf:
        return
    if unusual:
        _explain(user, tables, lessons, counts, id_hash)
    if user["first_waiting"] < math.inf:
        _settle(p, user, tables, lessons, counts, id_hash, True, -math.inf)
    _mark(p, tables)
