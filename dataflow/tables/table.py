"""A table: rows of a NumPy structured array, found by key, and what changed since it was last asked."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FIRST_CAPACITY = 1024
"""Rows of a new table: memory that is not touched is not taken."""
GROWTH = 2.0
"""A full table is copied into one of so many times its rows: seldom, as what is not touched takes no memory..."""
RESERVED_BYTES = 256_000_000
"""... and at the first time of so many bytes: to copy 100,000 profiles stops all decisions for 50 ms."""

Rows = NDArray[np.void]
Numbers = NDArray[np.int64]


class Layout(NamedTuple):
    """What the tables of a step's lanes are: the first is the one whose rows the step's keys stand for.

    Args:
        tables: the row of each table, by the table's name.
        references: fields of a table that hold row numbers of another table of the same lane, as of a text that is
            kept once: `{("profiles", "last_location"): "texts"}`. 0 stands for none; row 0 of a table with keys that is
            referred to has the key "".
        unkeyed: tables whose rows are found by references only.
        followers: tables in which a key of the first may have a row, too; that goes when the key goes.
    """

    tables: Mapping[str, np.dtype[np.void]]
    references: Mapping[tuple[str, str], str] = {}
    unkeyed: Sequence[str] = ()
    followers: Sequence[str] = ()

    def described(self) -> dict[str, Any]:
        """The layout as JSON can hold it; equal for layouts whose rows are the same bytes."""
        return {
            "tables": {name: describe(dtype) for name, dtype in self.tables.items()},
            "references": {f"{table}.{field}": to for (table, field), to in sorted(self.references.items())},
            "unkeyed": list(self.unkeyed),
            "followers": list(self.followers),
        }


def describe(dtype: np.dtype[Any]) -> list[list[Any]]:
    """Name, type, shape and offset of each field, and at the end the bytes of a row."""
    if dtype.fields is None:
        msg = f"a table's rows have named fields, {dtype} has none"
        raise TypeError(msg)
    fields: list[list[Any]] = []
    for name, (field, offset, *_) in dtype.fields.items():
        if field.hasobject or field.base.fields is not None:
            msg = f"field {name} of a table is {field}: only numbers and fixed bytes can be kept"
            raise TypeError(msg)
        fields.append([name, field.base.str, list(field.shape), offset])
    return [*fields, ["", "", [], dtype.itemsize]]


def undescribe(fields: Sequence[Sequence[Any]]) -> np.dtype[np.void]:
    """The type of a row, from what `describe` made of it."""
    *named, (_, _, _, size) = fields
    return np.dtype(
        {
            "names": [name for name, *_ in named],
            "formats": [(kind, tuple(shape)) for _, kind, shape, _ in named],
            "offsets": [offset for *_, offset in named],
            "itemsize": size,
        }
    )


class TableChanges(NamedTuple):
    """What changed in a table since it was last asked: the rows of `changed` got a key or lost theirs."""

    numbers: Numbers  # of the rows that were written
    rows: Rows  # these rows
    changed: Sequence[int] = ()
    keys: Sequence[str | None] = ()  # None: the row was freed


class Table:
    """Rows of one type, each under a key; or without keys, if it is `unkeyed`.

    A row that is new is `blank`, or all zeros. Whoever writes to `rows` marks what they wrote; `rows` is another array
    after a call of `find`, which may have to make room.

    Args:
        dtype: of a row.
        rows: its rows, with room for more behind them; the table takes the array over.
        keys: the key of each row that was ever used, None where it was freed.
        unkeyed: how many rows are used, of a table without keys; -1 for one with keys.

    Attributes:
        blank: an array of the one row that a new row is; None: all zeros.
    """

    __slots__ = ("_dirty", "_free", "_keys_changed", "_numbers", "_unkeyed", "blank", "dtype", "keys", "rows")

    def __init__(
        self,
        dtype: np.dtype[np.void],
        rows: Rows | None = None,
        keys: Sequence[str | None] = (),
        unkeyed: int = -1,
    ):
        self.dtype = dtype
        self.blank: Rows | None = None
        self._unkeyed = unkeyed
        self.keys: list[str | None] = list(keys)
        self.rows: Rows = np.zeros(FIRST_CAPACITY, dtype) if rows is None else rows
        self._free = [row for row, key in enumerate(self.keys) if key is None] if None in self.keys else []
        # At once: one by one, this took as long as reading a million rows and their checksums.
        numbers: dict[Any, int] = dict(zip(self.keys, range(len(self.keys)), strict=True))
        numbers.pop(None, None)
        self._numbers: dict[str, int] = numbers
        self._dirty = np.zeros(len(self.rows), np.uint8)
        self._keys_changed: dict[int, None] = {}  # rows, in the order of their change

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, key: str) -> bool:
        return key in self._numbers

    @property
    def used(self) -> int:
        """How many rows were ever used: those from there on are all zeros."""
        return self._unkeyed if self._unkeyed >= 0 else len(self.keys)

    @property
    def keyed(self) -> bool:
        """Whether its rows have keys."""
        return self._unkeyed < 0

    def use(self, rows: int) -> None:
        """Sees to it that a table without keys has so many rows in use; the new ones are all zeros."""
        self._reserve(rows)
        self._unkeyed = max(self._unkeyed, rows)

    @property
    def row_of(self) -> Mapping[str, int]:
        """The number of each key's row."""
        return self._numbers

    def row(self, key: str) -> int | None:
        """The number of the key's row, None if it has none."""
        return self._numbers.get(key)

    def held(self, keys: Sequence[str]) -> Numbers:
        """The row numbers of keys that all have one; .1 µs a key, .5 where a million are kept.

        Raises:
            KeyError: one of them has none.
        """
        return np.fromiter(map(self._numbers.__getitem__, keys), np.int64, len(keys))

    def numbers_of(self, keys: Sequence[str]) -> Numbers:
        """The row numbers of keys, -1 for who has none."""
        return np.fromiter(map(self._numbers.get, keys, repeat(-1)), np.int64, len(keys))

    def find(self, keys: Sequence[str]) -> Numbers:
        """The row numbers of keys; who has none gets a new one, which is marked."""
        added = [self._add(key) for key in dict.fromkeys(keys) if key not in self._numbers]
        if added and self.blank is not None:
            self.rows[added] = self.blank
        return self.held(keys)

    def mark(self, numbers: Numbers | Sequence[int] | int) -> None:
        """Says that these rows were written."""
        self._dirty[numbers] = 1

    def free(self, keys: Iterable[str]) -> None:
        """Forgets keys; their rows become zeros, and another's."""
        for key in keys:
            number = self._numbers.pop(key)
            self.keys[number] = None
            self.rows[number] = np.zeros((), self.dtype)
            self._dirty[number] = 0
            self._keys_changed[number] = None
            self._free.append(number)

    def oldest(self, field: str, count: int) -> list[str]:
        """The keys of the rows with the smallest values of a field; of equals, those with the lower numbers."""
        held = np.fromiter(self._numbers.values(), np.int64, len(self._numbers))
        held.sort()
        values = self.rows[field][held]
        if count < len(held):  # to sort all of a million takes three times as long
            few = np.flatnonzero(values <= np.partition(values, count)[count])
            held, values = held[few], values[few]
        order = np.argsort(values, kind="stable")[:count]
        return [key for number in held[order].tolist() if (key := self.keys[number]) is not None]

    def below(self, field: str, limit: float, first: int, count: int) -> list[str]:
        """The keys of the rows whose value of a field is less than the limit; of `count` rows from `first` on."""
        small = first + np.flatnonzero(self.rows[field][first : min(first + count, self.used)] < limit)
        return [key for number in small.tolist() if (key := self.keys[number]) is not None]

    def take_changes(self) -> TableChanges:
        """The rows that were written, and those whose key changed, since the last call: from now on none have."""
        written = np.flatnonzero(self._dirty[: self.used]).astype(np.int64, copy=False)
        self._dirty[written] = 0
        changed = list(self._keys_changed)
        self._keys_changed.clear()
        return TableChanges(written, self.rows.take(written), changed, [self.keys[number] for number in changed])

    def put_keys(self, numbers: Sequence[int], keys: Sequence[str | None]) -> None:
        """Gives rows other keys, or none, as a chunk of the log has them; the rows become zeros."""
        if not numbers:
            return
        most = max(numbers) + 1
        self._reserve(most)
        self.keys += [None] * (most - len(self.keys))
        for number in numbers:
            old = self.keys[number]
            if old is not None:
                del self._numbers[old]
        for number, key in zip(numbers, keys, strict=True):
            self.keys[number] = key
            if key is not None:
                self._numbers[key] = number
        self.rows[np.array(numbers, np.int64)] = np.zeros((), self.dtype)

    def loaded(self) -> None:
        """To be called once all chunks were put in: counts the free rows anew."""
        self._free = [row for row, key in enumerate(self.keys) if key is None] if None in self.keys else []

    def put_rows(self, numbers: Numbers, rows: Rows) -> None:
        """Puts rows in their places, as a chunk of the log has them.

        Raises:
            ValueError: one of them has no key.
        """
        if not len(numbers):
            return
        last = int(numbers.max())
        if not self.keyed:
            self.use(last + 1)
        elif last >= self.used:
            msg = f"it writes row {last} of a table of {self.used}"
            raise ValueError(msg)
        self.rows[numbers] = rows

    def bytes_held(self) -> int:
        """Bytes of the rows that were ever used."""
        return self.used * self.dtype.itemsize

    def _add(self, key: str) -> int:
        if self._free:
            number = self._free.pop()
            self.keys[number] = key
        else:
            number = self.used
            self._reserve(number + 1)
            self.keys.append(key)
        self._numbers[key] = number
        self._dirty[number] = 1
        self._keys_changed[number] = None
        return number

    def _reserve(self, rows: int) -> None:
        if rows > len(self.rows):
            reserved = RESERVED_BYTES // self.dtype.itemsize
            capacity = max(rows, int(len(self.rows) * GROWTH), reserved, FIRST_CAPACITY)
            larger = np.zeros(capacity, self.dtype)
            larger[: self.used] = self.rows[: self.used]
            dirty = np.zeros(capacity, np.uint8)
            dirty[: self.used] = self._dirty[: self.used]
            self.rows, self._dirty = larger, dirty


Tables = dict[str, Table]


def first_table(tables: Tables) -> Table:
    """The one whose rows the step's keys stand for."""
    return next(iter(tables.values()))


def new_tables(layout: Layout) -> Tables:
    """Empty tables of a lane."""
    tables = {name: Table(dtype, unkeyed=0 if name in layout.unkeyed else -1) for name, dtype in layout.tables.items()}
    for name in dict.fromkeys(layout.references.values()):
        if tables[name].keyed:
            tables[name].find([""])
    return tables
