"""What a rule may read: the features of a transaction, and what the model says of it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dataflow.features import FIELDS, NUMBERS, Facts
from dataflow.operating_point import MODEL_FIELD_NAMES, MODEL_FIELDS, NO_MODEL
from dataflow.rules.functions import Kind

ALL_FIELDS = (*FIELDS, *MODEL_FIELDS)
"""All fields, the model's last."""
KINDS: dict[str, Kind] = {field.name: field.kind for field in ALL_FIELDS}
"""The kind of each field, in the order of `ALL_FIELDS`."""
NUMBER_OF: dict[str, int] = {field.name: number for number, field in enumerate(ALL_FIELDS)}
"""Where each field stands in `ALL_FIELDS`."""
OF_MODEL = frozenset(MODEL_FIELD_NAMES)
OF_FEEDBACK = frozenset(
    (
        *("confirmed_frauds", "days_since_fraud", "card_frauds", "days_since_card_fraud"),
        *("merchant_labels_week", "merchant_labels_month"),
        *("merchant_frauds_day", "merchant_frauds_week", "merchant_frauds_month"),
        *("merchant_risk_day", "merchant_risk_week", "merchant_risk_month"),
        *("merchant_compromised", "run_days", "run_frauds", "run_genuine", "genuine_since"),
        *("days_since_merchant_fraud", "days_since_merchant_genuine"),
    )
)
"""The features that come of feedback: where no labels are known, rules that read them cannot be tried."""

Column = NDArray[Any] | list[str]
"""A field's values: numbers an array of float64, flags one of bool, texts a list."""

_PLACES = {field.name: place for place, field in enumerate(FIELDS)}
_DTYPES = {"number": np.float64, "flag": np.bool_}


class Batch(Protocol):
    """Transactions whose fields rules can read."""

    def __len__(self) -> int:
        """How many transactions there are."""

    def column(self, name: str) -> Column:
        """A field's value of each transaction; of the fields, those must be there that the rules read."""

    def numbers(self) -> NDArray[np.float64]:
        """The features that are no texts, of shape (transactions, features), flags as 0 and 1.

        They are in the order of `features.NUMBERS`; basic profiles give the first of them.
        """


class FeatureRows:
    """Transactions as rows of their features, as a replay gives them, and the model's columns beside them."""

    def __init__(self, rows: Sequence[Facts], of_model: Mapping[str, Column] | None = None):
        """Takes rows in the order of `FIELDS`, of which basic profiles give the first.

        `of_model` has the model's fields; None where no model says anything.
        """
        self._rows = rows
        if of_model is None:
            of_model = {
                name: np.full(len(rows), value) for name, value in zip(MODEL_FIELD_NAMES, NO_MODEL, strict=True)
            }
        self._columns = dict(of_model)

    def __len__(self) -> int:
        return len(self._rows)

    def column(self, name: str) -> Column:
        """As of any `Batch`."""
        column = self._columns.get(name)
        if column is None:
            place, kind = _PLACES[name], KINDS[name]
            values: list[Any] = [row[place] for row in self._rows]
            column = self._columns[name] = values if kind == "text" else np.array(values, _DTYPES[kind])
        return column

    def numbers(self) -> NDArray[np.float64]:
        """As of any `Batch`."""
        width = len(self._rows[0]) if self._rows else 0
        places = [_PLACES[name] for name in NUMBERS if _PLACES[name] < width]
        return np.array([[row[place] for place in places] for row in self._rows], np.float64)


def value_of(batch: Batch, name: str, place: int) -> float | str | bool:
    """A field's value of one transaction."""
    column = batch.column(name)
    value: float | str | bool = column[place] if isinstance(column, list) else column.item(place)
    return value
