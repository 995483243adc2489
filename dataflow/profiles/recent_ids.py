"""A user's last `RECENT` transactions, to count a repeat once and to see that an id is used for another payment.

A transaction is a word of 64 bits: the upper 40 of its id's hash, then 24 of a hash of all that makes it the same (id,
amount, merchant and the time that its timestamp says). Another id is taken for a known one once in 7e10 transactions.
"""

from typing import Any, Final

from dataflow.profiles.compilation import compiled, int64

RECENT: Final = 16
PAYMENT_BITS: Final = 24

FIELDS: Final = [("recent", "i8", RECENT), ("recent_next", "u1")]
NEW, REPEAT, REUSED = range(3)


@compiled
def read(p: Any, word: int) -> int:
    """Whether a transaction is `NEW`, a `REPEAT` of a recent one, or another under the id of one (`REUSED`)."""
    found = NEW
    for recent in p["recent"]:
        if recent == word:
            return REPEAT
        if (recent ^ word) >> PAYMENT_BITS == 0 and recent != 0:
            found = REUSED
    return found


@compiled
def has_id(p: Any, id_hash: int) -> bool:
    """Whether one of the recent transactions has this id."""
    for recent in p["recent"]:  # noqa: SIM110 (Numba compiles no any())
        if (recent ^ id_hash) >> PAYMENT_BITS == 0 and recent != 0:
            return True
    return False


@compiled
def update(p: Any, word: int) -> None:
    """Takes a transaction in; the oldest goes."""
    p["recent"][p["recent_next"]] = word
    p["recent_next"] = (int64(p["recent_next"]) + 1) % RECENT
