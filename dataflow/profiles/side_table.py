"""Rows that only some profiles have, beside the table of all: kernels take them and give them back.

Row 0 is no profile's: it is what a row is when it is taken, and its field `next` leads to the chain of free rows. So 0
stands for no row. Numba cannot grow an array: whoever calls a kernel sees to it that there is room, and a kernel that
finds none returns at which event it stopped, and is called again from there.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dataflow.profiles.compilation import compiled, int64
from dataflow.tables.table import Table

GROWTH: Final = 16
"""Rows that a table grows by at least; else by a quarter..."""
MOST_GROWTH: Final = 1024
"""... and by no more than this, as all of them are written to the log."""

SIDE_FIELDS: Final = [("next", "i4"), ("written", "u1")]
"""The first fields of each row: the next of a chain; whether it was written since it was last in the log."""


class SideTable:
    """Rows of one layout, which begins with `SIDE_FIELDS`."""

    def __init__(self, dtype: np.dtype[Any], blank: dict[str, float], table: Table | None = None):
        """`blank`: the fields of a row just taken that are not 0. `table`: where the rows are kept, without keys."""
        self._table = Table(dtype, unkeyed=0) if table is None else table
        if not self._table.used:
            self._table.use(1)
            for name, value in blank.items():
                self._table.rows[name][0] = value
            self._table.mark(0)

    @property
    def reserved(self) -> NDArray[Any]:
        """All rows and those that are reserved, as kernels take them; another array once room was made."""
        return self._table.rows

    @property
    def rows(self) -> NDArray[Any]:
        """All rows."""
        return self._table.rows[: self._table.used]

    @property
    def taken(self) -> int:
        """How many rows profiles have now; it looks through the free ones."""
        rows = self.rows
        free, row = 0, rows["next"][0]
        while row:
            free, row = free + 1, rows["next"][row]
        return len(rows) - 1 - free

    def make_room(self) -> None:
        """Sees to it that a row can be taken."""
        table = self._table
        if table.rows["next"][0]:
            return
        there = table.used
        table.use(there + min(max(GROWTH, there // 4), MOST_GROWTH))
        following = table.rows["next"]
        following[there : table.used] = np.arange(there + 1, table.used + 1)
        following[table.used - 1], following[0] = 0, there
        table.rows["written"][there : table.used] = table.rows["written"][0] = 1

    def mark_written(self) -> None:
        """Tells the table which rows were written since the last time."""
        written = self.rows["written"]
        numbers = np.flatnonzero(written)
        if len(numbers):
            written[numbers] = 0
            self._table.mark(numbers)


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
    rows[row]["written"] = rows[0]["written"] = 1
    return row


@compiled
def give_back(rows: Any, row: int) -> None:
    """Frees a row, to be taken again."""
    rows[row]["next"] = rows[0]["next"]
    rows[0]["next"] = row
    rows[row]["written"] = rows[0]["written"] = 1
