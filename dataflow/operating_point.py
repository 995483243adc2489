"""Where a model raises an alert: the thresholds of its risk, how they were chosen, and what was to be had for others.

The operating point stands in the JSON beside the model, apart from what its fingerprint binds: it is moved without
training anew (`python -m training.threshold`), and a running flow takes it up between two batches.
"""

import math
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MODEL_FIELD_NAMES = (
    "model_anomaly",
    "model_score",
    "model_alert",
    "alert_threshold",
    "model_block",
    "block_threshold",
)
"""What `OperatingPoint.columns` makes, in this order."""


class Interval(msgspec.Struct, frozen=True):
    """An estimate with the 95 % interval in which the true value is thought to lie."""

    value: float
    low: float
    high: float


class CurvePoint(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one threshold of the model's risk would give, measured on time that lies after what was learned."""

    threshold: float
    alerts_a_day: Interval
    precision: Interval | None = None  # these three only where labels are known
    recall: Interval | None = None
    money_caught: Interval | None = None  # share of the amounts of all frauds
    model_precision: Interval | None = None  # of the model's own alerts; the figures above are of all, the rules' too


class OperatingPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The thresholds of a model's risk, and where they come from."""

    alert: float  # risk, 0 to 1, from which `model_alert` holds
    block: float | None = None  # risk, 0 to 1, from which `model_block` holds; None: from none
    of_forest: bool = False
    """The alert is the Isolation Forest's own verdict, `predict == -1`; `alert` then only says where that lies."""
    chosen_by: str = ""  # the option that chose it, as "--alerts-per-day 85"
    measured_on: str = ""  # which transactions the curve was measured on
    expected: CurvePoint | None = None  # what the alert threshold promises
    curve: list[CurvePoint] = []

    @classmethod
    def of_the_forest(cls, threshold: float) -> "OperatingPoint":
        """That of a model which has none of its own: the Isolation Forest's verdict. `threshold`: the forest's."""
        return cls(alert=threshold, of_forest=True, chosen_by="the Isolation Forest's own threshold")

    def alerts(self, risk: Floats, anomaly: Bools) -> Bools:
        """Which rows the model raises an alert on: risk and the forest's verdict, each of shape (n,)."""
        return anomaly if self.of_forest else risk >= self.alert

    def blocks(self, risk: Floats) -> Bools:
        """Which rows the model would block; risk of shape (n,)."""
        return risk >= (math.inf if self.block is None else self.block)

    def columns(self, risk: Floats, anomaly: Bools) -> dict[str, list[Any]]:
        """The model's fields, as rules read them, in the order of `MODEL_FIELD_NAMES`; each of n values."""
        count = len(risk)
        block = math.inf if self.block is None else self.block
        columns: tuple[list[Any], ...] = (
            anomaly.tolist(),
            risk.tolist(),
            self.alerts(risk, anomaly).tolist(),
            [self.alert] * count,
            self.blocks(risk).tolist(),
            [block] * count,
        )
        return dict(zip(MODEL_FIELD_NAMES, columns, strict=True))
