"""A table of profiles: a row a key, which grows, and whose rows are freed and used again."""

from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int32]

EVICTED_AT_ONCE: Final = 64
"""The share of the cap that is evicted at once: to find the oldest means to look at all."""


class Table:
    """Rows of one layout, which must have a field `active_day`: the day of the newest event of the row.

    `cap` bounds the keys: beyond it the ones idle for longest are evicted, and counted. Whom that meets depends on how
    events came in batches, too, so a replay in other batches may evict others; the age limit does not.
    """

    def __init__(self, dtype: np.dtype[Any], blank: dict[str, float], release: Callable[[Rows], None], cap: int):
        """`blank`: the fields of a new row that are not 0. `release(numbers)` makes rows blank that are freed."""
        self.blank = np.zeros(1, dtype)
        for name, value in blank.items():
            self.blank[name] = value
        self.rows = np.empty(0, dtype)
        self.row_of: dict[str, int] = {}
        self.keys: list[str | None] = []  # by row; None: free
        self.evicted = 0
        self._free: list[int] = []
        self._release = release
        self._cap = cap

    def __len__(self) -> int:
        return len(self.row_of)

    def rows_of(self, keys: Sequence[str]) -> Rows:
        """The row of each key; a new key gets a blank one.

        Keys of one call are never evicted by it, so the cap may be exceeded by as many as these are.
        """
        found = np.fromiter(map(self.row_of.get, keys, repeat(-1)), np.int32, len(keys))
        absent = np.flatnonzero(found < 0).tolist()
        if absent:
            new = dict.fromkeys([keys[place] for place in absent])
            self._make_room(len(new), found[found >= 0])
            for key in new:
                self._add(key)
            found[absent] = [self.row_of[keys[place]] for place in absent]
        return found

    def _add(self, key: str) -> None:
        if self._free:
            row = self._free.pop()
            self.keys[row] = key
        else:
            row = len(self.keys)
            self.keys.append(key)
        self.row_of[key] = row

    def _make_room(self, needed: int, in_use: Rows) -> None:
        """Evicts beyond the cap, but for the rows in use, and sees to it that so many rows are there."""
        beyond = len(self.row_of) + needed - self._cap
        if beyond > 0:
            self._evict(max(beyond, self._cap // EVICTED_AT_ONCE), in_use)
        used = len(self.keys)
        missing = needed - len(self._free) - (len(self.rows) - used)
        if missing > 0:
            # An eighth more than there are: what is not used yet was never touched, and takes no memory.
            grown = np.empty(len(self.rows) + max(missing, len(self.rows) // 8), self.rows.dtype)
            grown[:used] = self.rows[:used]
            grown[used:] = self.blank
            self.rows = grown

    def _evict(self, number: int, in_use: Rows) -> None:
        """Frees the rows idle for longest."""
        days = self.rows["active_day"][: len(self.keys)].copy()
        days[in_use] = np.inf
        days[self._free] = np.inf
        number = min(number, int(np.isfinite(days).sum()))
        if number > 0:
            oldest = np.argpartition(days, number - 1)[:number] if number < len(days) else np.arange(len(days))
            self.free(oldest.astype(np.int32))
            self.evicted += number

    def free(self, numbers: Rows) -> None:
        """Frees rows, to be used again."""
        self._release(numbers)
        for row in numbers.tolist():
            key = self.keys[row]
            if key is not None:
                del self.row_of[key]
                self.keys[row] = None
                self._free.append(row)

    def idle(self, before_day: float) -> Rows:
        """The rows whose newest event lies before that day."""
        days = self.rows["active_day"][: len(self.keys)]
        idle = np.flatnonzero(days < before_day)
        return idle[[self.keys[row] is not None for row in idle.tolist()]].astype(np.int32)


class Names:
    """Texts by number, from 1 on; 0 stands for none. Those that are not in use any more give their number back."""

    def __init__(self, *nobody: str):
        """`nobody`: texts that stand for none."""
        self._nobody = nobody
        self._number_of: dict[str, int] = dict.fromkeys(nobody, 0)
        self.texts: list[str] = [""]
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self.texts) - 1 - len(self._free)

    def numbers_of(self, texts: Sequence[str]) -> Rows:
        """The number of each; a new text gets one."""
        numbers = np.fromiter(map(self._number_of.get, texts, repeat(-1)), np.int32, len(texts))
        for place in np.flatnonzero(numbers < 0).tolist():
            text = texts[place]
            number = self._number_of.get(text)
            if number is None:
                number = self._add(text)
            numbers[place] = number
        return numbers

    def _add(self, text: str) -> int:
        if self._free:
            number = self._free.pop()
            self.texts[number] = text
        else:
            number = len(self.texts)
            self.texts.append(text)
        self._number_of[text] = number
        return number

    def keep(self, used: Iterable[NDArray[Any]]) -> None:
        """Gives back all numbers but those in these columns."""
        in_use = np.zeros(len(self.texts), np.bool_)
        for numbers in used:
            in_use[numbers] = True
        in_use[0] = True
        in_use[self._free] = True
        for number in np.flatnonzero(~in_use).tolist():
            del self._number_of[self.texts[number]]
            self.texts[number] = ""
            self._free.append(number)
