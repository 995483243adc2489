"""The features of a batch of transactions by column, as the model and the rules read them."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflow.events.transaction import Transaction
from dataflow.features.catalogue import FLAGS, LAST_LOCATION, NUMBERS, TEXTS

Column = NDArray[Any] | list[str]
"""A field's values: numbers an array of float64, flags one of bool, texts a list."""

OnDemand = Callable[[], Column]
"""Works a column out, once it is read."""

_PLACES = {name: place for place, name in enumerate(NUMBERS)}


@lru_cache(maxsize=16)
def _places(names: tuple[str, ...]) -> NDArray[np.intp]:
    return np.array([_PLACES[name] for name in names], np.intp)


class FeatureBatch:
    """Transactions with what the profiles knew before each, and what the model says of them."""

    def __init__(self, transactions: list[Transaction], last_locations: list[str], numbers: NDArray[np.float64]):
        """`numbers`: of shape (transactions, `NUMBERS`); the batch takes it over."""
        self.transactions = transactions
        self._last_locations = last_locations
        self._numbers = numbers
        self._columns: dict[str, Column | OnDemand] = {}  # that were made, or are the model's

    def __len__(self) -> int:
        return len(self.transactions)

    def put(self, columns: Mapping[str, Column | OnDemand]) -> None:
        """Puts columns there that are not of the profiles: the model's. One on demand is not made before it is read."""
        self._columns.update(columns)

    def column(self, name: str) -> Column:
        """A column by the name of the field: of numbers or flags an array, of texts a list."""
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = self._make(name)
        elif callable(column):
            column = self._columns[name] = column()
        return column

    def _make(self, name: str) -> Column:
        if name == LAST_LOCATION:
            return self._last_locations
        place = _PLACES.get(name)
        if place is None:
            return list(map(TEXTS[name], self.transactions))
        values = self._numbers[:, place]
        return values.astype(np.bool_) if name in FLAGS else values

    def floats(self, names: Sequence[str]) -> NDArray[np.float32]:
        """Columns of numbers and flags, shape (transactions, names); what is beyond float32 becomes infinite."""
        with np.errstate(over="ignore"):
            return self._numbers.take(_places(tuple(names)), axis=1).astype(np.float32)

    def numbers(self) -> NDArray[np.float64]:
        """All features that are no texts, shape (transactions, `NUMBERS`), flags as 0 and 1."""
        return self._numbers

    def part(self, places: Sequence[int]) -> "FeatureBatch":
        """These transactions by themselves, with what is known of them."""
        part = FeatureBatch(
            [self.transactions[place] for place in places],
            [self._last_locations[place] for place in places],
            self._numbers[list(places)],
        )
        part._columns = {
            name: partial(self._some, name, places) if callable(column) else _at(column, places)
            for name, column in self._columns.items()
        }
        return part

    def _some(self, name: str, places: Sequence[int]) -> Column:
        """These places of a column."""
        return _at(self.column(name), places)


def _at(column: Column, places: Sequence[int]) -> Column:
    return [column[place] for place in places] if isinstance(column, list) else column[list(places)]
