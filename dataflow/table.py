"""The features of a batch by column, as the model and the rules read them: only what they read is made."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dataflow.features import FLAGS, LAST_LOCATION, NUMBERS, TEXTS, Facts, row
from dataflow.rules.fields import Column
from dataflow.transaction import Transaction

_PLACES = {name: place for place, name in enumerate(NUMBERS)}


class Table:
    """Transactions with what the profiles knew before each, and what the model says of them."""

    def __init__(self, txns: list[Transaction], last_locations: list[str], numbers: list[bytes]):
        """`numbers`: of each transaction, packed, all of the same profiles: see `dataflow.features`."""
        self.txns = txns
        self._last_locations = last_locations
        self._packed = numbers
        width = len(numbers[0]) // 8 if numbers else len(NUMBERS)
        self._numbers: NDArray[np.float64] = np.frombuffer(b"".join(numbers)).reshape(len(txns), width)
        self._columns: dict[str, Column] = {}

    def __len__(self) -> int:
        return len(self.txns)

    def take(self, name: str, values: Column) -> None:
        """Takes a column that is not of the profiles: the model's."""
        self._columns[name] = values

    def column(self, name: str) -> Column:
        """A column by the name of the field: of numbers or flags an array, of texts a list."""
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = self._make(name)
        return column

    def _make(self, name: str) -> Column:
        if name == LAST_LOCATION:
            return self._last_locations
        place = _PLACES.get(name)
        if place is None:
            return list(map(TEXTS[name], self.txns))
        values = self._numbers[:, place]
        return values.astype(np.bool_) if name in FLAGS else values

    def floats(self, names: Sequence[str]) -> NDArray[np.float32]:
        """Columns of numbers and flags, shape (rows, names); what is beyond float32 becomes infinite."""
        with np.errstate(over="ignore"):
            return self._numbers[:, [_PLACES[name] for name in names]].astype(np.float32, order="C")

    def numbers(self) -> NDArray[np.float64]:
        """All features that are no texts, shape (rows, features), in the order of `features.NUMBERS`."""
        return self._numbers

    def part(self, places: Sequence[int]) -> "Table":
        """These transactions by themselves, with what is known of them."""
        part = Table(
            [self.txns[place] for place in places],
            [self._last_locations[place] for place in places],
            [self._packed[place] for place in places],
        )
        part._columns = {
            name: [values[place] for place in places] if isinstance(values, list) else values[list(places)]
            for name, values in self._columns.items()
        }
        return part

    def rows(self) -> list[Facts]:
        """Each transaction's facts as a row, in the order of `features.FIELDS`; without the model's."""
        return [row(*each) for each in zip(self.txns, self._last_locations, self._packed, strict=True)]
