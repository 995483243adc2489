"""Which of a user's transactions were of an unusual amount: the last `UNUSUAL`, remembered until their labels come.

Only users who had one have a row of this table. 32 bits of each id's hash are kept.
"""

from typing import Any, Final

import numpy as np

from dataflow.profiles.compilation import compiled, int64
from dataflow.profiles.side_table import SIDE_FIELDS, give_back, take_row

UNUSUAL: Final = 32

FIELDS: Final = [("unusual", "i4")]
UNUSUAL_FIELDS: Final = [*SIDE_FIELDS, ("n", "i4"), ("ids", "u4", UNUSUAL)]


@compiled
def read(p: Any, unusual: Any, id_hash: int) -> bool:
    """Whether the transaction with this id is remembered."""
    if p["unusual"] == 0:
        return False
    u = unusual[p["unusual"]]
    n = min(int64(u["n"]), UNUSUAL)
    for i in range(n):  # noqa: SIM110 (Numba compiles no any())
        if u["ids"][i] == np.uint32(id_hash & 0xFFFFFFFF):
            return True
    return False


@compiled
def update(p: Any, unusual: Any, id_hash: int) -> None:
    """Remembers the transaction with this id; the oldest goes. There must be room for one row."""
    if p["unusual"] == 0:
        p["unusual"] = take_row(unusual)
    u = unusual[p["unusual"]]
    n = int64(u["n"])
    u["ids"][n % UNUSUAL] = np.uint32(id_hash & 0xFFFFFFFF)
    u["written"] = 1
    u["n"] = n + 1 if n < 2 * UNUSUAL - 1 else UNUSUAL  # goes on in a circle, and never overflows


@compiled
def release(p: Any, unusual: Any) -> None:
    """Gives the row back, if the user has one."""
    if p["unusual"] > 0:
        give_back(unusual, p["unusual"])
        p["unusual"] = 0
