"""Rows that only some profiles have, beside the table of all: kernels take them and give them back.

Row 0 is no profile's: it is what a row is when it is taken, and its field `next` leads to the chain of free rows. So 0
stands for no row. Numba cannot grow an array: whoever calls a kernel sees to it that there is room, and a kernel that
finds none returns at which event it stopped, and is called again from there.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dataflow.profiles.compilation import compiled, int64

GROWTH: Final = 16
"""Rows that a table grows by at least; else by a quarter."""


class SideTable:
    """Rows of one layout, which must have a field `next`, of type i4."""

    def __init__(self, dtype: np.dtype[Any], blank: dict[str, float]):
        """`blank`: the fields of a row just taken that are not 0."""
        self.rows: NDArray[Any] = np.zeros(1, dtype)
        for name, value in blank.items():
            self.rows[name] = value

    @property
    def taken(self) -> int:
        """How many rows profiles have now; it looks through the free ones."""
        free, row = 0, self.rows["next"][0]
        while row:
            free, row = free + 1, self.rows["next"][row]
        return len(self.rows) - 1 - free

    def make_room(self) -> None:
        """Sees to it that a row can be taken."""
        if self.rows["next"][0]:
            return
        there = len(self.rows)
        grown = np.empty(there + max(GROWTH, there // 4), self.rows.dtype)
        grown[:there] = self.rows
        following = grown["next"]
        following[there:] = np.arange(there + 1, len(grown) + 1)
        following[-1], following[0] = 0, there
        self.rows = grown


@compiled
def has_room(rows: Any) -> bool:
    """Whether a row can be taken."""
    return bool(rows[0]["next"] != 0)


@compiled
def take_row(rows: Any) -> int:
    """The number of a row that is now the profile's, blank; there must be room."""
    row = int64(rows[0]["next"])
    following = rows[row]["next"]
    rows[row] = rows[0]
    rows[row]["next"] = 0
    rows[0]["next"] = following
    return row


@compiled
def give_back(rows: Any, row: int) -> None:
    """Frees a row, to be taken again."""
    rows[row]["next"] = rows[0]["next"]
    rows[0]["next"] = row
