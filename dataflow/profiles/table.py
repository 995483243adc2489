"""Rows of profiles by key, of which the ones idle for longest go beyond a cap; and names by number."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dataflow.tables.table import Table

Rows = NDArray[np.int64]
"""Numbers of rows, or of names."""

EVICTED_AT_ONCE: Final = 64
"""The share of the cap that is evicted at once: to find the oldest means to look at all."""

NAME: Final = np.dtype([("reserved", "u1")])
"""What the dictionary of names keeps beside each name: nothing. A row of a table must have a field."""


class ProfileTable:
    """Rows of one layout, which must have a field `active_day`: the day of the newest event of the row.

    `cap` bounds the keys: beyond it the ones idle for longest are evicted, and counted. Whom that meets depends on how
    events came in batches, too, so a replay in other batches may evict others; the age limit does not.
    """

    def __init__(
        self,
        dtype: np.dtype[Any],
        blank: dict[str, float],
        release: Callable[[Rows], None],
        cap: int,
        table: Table | None = None,
    ):
        """`blank`: the fields of a new row that are not 0.

        `release(numbers)` makes rows blank that are freed. `table`: where the rows are kept.
        """
        self.blank = np.zeros(1, dtype)
        for name, value in blank.items():
            self.blank[name] = value
        self.table = Table(dtype) if table is None else table
        self.table.blank = self.blank
        self.evicted = 0
        self._release = release
        self._cap = cap

    def __len__(self) -> int:
        return len(self.table)

    @property
    def rows(self) -> NDArray[Any]:
        """All rows, as kernels take them; another array once a key was added."""
        return self.table.rows

    @property
    def keys(self) -> list[str | None]:
        """The key of each row that was ever used; None: free."""
        return self.table.keys

    @property
    def row_of(self) -> Mapping[str, int]:
        """The row of each key."""
        return self.table.row_of

    def rows_of(self, keys: Sequence[str]) -> Rows:
        """The row of each key, which counts as written; a new key gets a blank one.

        Keys of one call are never evicted by it, so the cap may be exceeded by as many as these are.
        """
        try:
            found = self.table.held(keys)
        except KeyError:
            new = set(keys).difference(self.row_of)
            beyond = len(self.table) + len(new) - self._cap
            if beyond > 0:
                held = self.table.numbers_of(keys)
                self._evict(max(beyond, self._cap // EVICTED_AT_ONCE), held[held >= 0])
            found = self.table.find(keys)
        self.table.mark(found)
        return found

    def _evict(self, number: int, in_use: Rows) -> None:
        """Frees the rows idle for longest."""
        spared = set(in_use.tolist())
        oldest = [self.row_of[key] for key in self.table.oldest("active_day", number + len(spared))]
        evicted = [row for row in oldest if row not in spared][:number]
        self.free(np.array(evicted, np.int64))
        self.evicted += len(evicted)

    def free(self, numbers: Rows) -> None:
        """Frees rows, to be used again."""
        keys = [key for row in numbers.tolist() if (key := self.keys[row]) is not None]
        if keys:
            self._release(numbers)
            self.table.free(keys)

    def idle(self, before_day: float, first: int = 0, count: int | None = None) -> Rows:
        """The rows whose newest event lies before that day; of `count` rows from `first` on."""
        keys = self.table.below("active_day", before_day, first, len(self.keys) if count is None else count)
        return np.array([self.row_of[key] for key in keys], np.int64)


class Names:
    """Texts by number, from 1 on; 0 stands for none. Those that are not in use any more give their number back."""

    def __init__(self, *nobody: str, table: Table | None = None):
        """`nobody`: texts that stand for none. `table`: where the names are kept, by key."""
        self._table = Table(NAME) if table is None else table
        if not self._table.used:
            self._table.find([""])
        self._number_of: dict[str, int] = {
            text: number for number, text in enumerate(self._table.keys) if text is not None
        }
        self._number_of.update(dict.fromkeys(nobody, 0))

    def __len__(self) -> int:
        return len(self._table) - 1

    @property
    def texts(self) -> list[str | None]:
        """The text of each number, "" of 0; None of a number that is nobody's."""
        return self._table.keys

    def numbers_of(self, texts: Sequence[str]) -> Rows:
        """The number of each; a new text gets one."""
        try:
            return np.fromiter(map(self._number_of.__getitem__, texts), np.int64, len(texts))
        except KeyError:
            new = [text for text in texts if text not in self._number_of]
            self._number_of.update(zip(new, self._table.find(new).tolist(), strict=True))
            return np.fromiter(map(self._number_of.__getitem__, texts), np.int64, len(texts))

    def keep(self, used: Iterable[NDArray[Any]]) -> None:
        """Gives back all numbers but those in these columns."""
        in_use = np.zeros(self._table.used, np.bool_)
        for numbers in used:
            in_use[numbers] = True
        in_use[0] = True
        gone = [text for number in np.flatnonzero(~in_use).tolist() if (text := self.texts[number]) is not None]
        self._table.free(gone)
        for text in gone:
            del self._number_of[text]
