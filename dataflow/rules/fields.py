"""What a rule may read: the features of a transaction, and what the model says of it."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dataflow.features.batch import Column
from dataflow.features.catalogue import FIELDS
from dataflow.rules.functions import Kind
from dataflow.scoring.operating_point import MODEL_FIELD_NAMES, MODEL_FIELDS

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


class Batch(Protocol):
    """Transactions whose fields rules can read."""

    def __len__(self) -> int:
        """How many transactions there are."""

    def column(self, name: str) -> Column:
        """A field's value of each transaction; of the fields, those must be there that the rules read."""

    def numbers(self) -> NDArray[np.float64]:
        """The features that are no texts, of shape (transactions, features), flags as 0 and 1.

        They are in the order of `features.catalogue.NUMBERS`.
        """


def value_of(batch: Batch, name: str, place: int) -> float | str | bool:
    """A field's value of one transaction."""
    column = batch.column(name)
    value: float | str | bool = column[place] if isinstance(column, list) else column.item(place)
    return value
