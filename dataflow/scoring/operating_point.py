"""Where a model raises an alert: the thresholds of its risk, how they were chosen, and what was to be had for others.

The operating point stands in the JSON beside the model, apart from what its fingerprint binds: it is moved without
training anew (`python -m training.threshold`), and a running flow takes it up between two batches.
"""

import math
from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

from dataflow.features.batch import Column, OnDemand
from dataflow.features.catalogue import Field

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MODEL_FIELDS = (
    Field("model_anomaly", "flag", "the Isolation Forest calls it an outlier, as its predict == -1 does"),
    Field("model_score", "number", "the model's risk, 0 to 1"),
    Field("model_alert", "flag", "the risk reaches the model's operating point: it raises an alert"),
    Field("alert_threshold", "number", "that operating point, a risk from 0 to 1"),
    Field("model_block", "flag", "the risk reaches the point from which the model would block"),
    Field("block_threshold", "number", "that point; infinite where the model has none"),
)
"""What the scoring step adds to the features: `OperatingPoint.columns` makes it, in this order."""
MODEL_FIELD_NAMES = tuple(field.name for field in MODEL_FIELDS)
NO_MODEL = (False, 0.0, False, 1.0, False, math.inf)
"""The same where no model says anything: a risk of 0, and so no alert."""


def columns_without_model(count: int) -> dict[str, Floats | Bools]:
    """The model's fields of so many transactions where no model says anything."""
    return {name: np.full(count, value) for name, value in zip(MODEL_FIELD_NAMES, NO_MODEL, strict=True)}


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

    def alerts(self, risk: Floats, anomaly: Callable[[], Bools]) -> Bools:
        """Which rows the model raises an alert on, of shape (n,): by their risk, or by the forest, then asked."""
        return anomaly() if self.of_forest else risk >= self.alert

    def blocks(self, risk: Floats) -> Bools:
        """Which rows the model would block; risk of shape (n,)."""
        return risk >= (math.inf if self.block is None else self.block)

    def mistake(self) -> str | None:
        """What is wrong with the thresholds, as "alert is 1.5, no number from 0 to 1"; None where nothing is."""
        for name, threshold in (("alert", self.alert), ("block", self.block)):
            if threshold is not None and not 0.0 <= threshold <= 1.0:
                return f"{name} is {threshold:g}, no number from 0 to 1"
        return None

    def in_words(self) -> str:
        """The thresholds, how they were chosen, and what the alert's promises, in one line."""
        words = [f"alert from {self.alert:.6g}"]
        if self.block is not None:
            words.append(f"block from {self.block:.6g}")
        line = f"{', '.join(words)} ({self.chosen_by or 'not said how chosen'})"
        if self.of_forest or self.expected is None:
            return line
        promised = self.expected
        figures = [f"{promised.alerts_a_day.value:.4g} alerts a day ({_from_to(promised.alerts_a_day)})"]
        for name, share in (
            ("precision", promised.precision),
            ("recall", promised.recall),
            ("money caught", promised.money_caught),
        ):
            if share is not None:
                figures.append(f"{name} {share.value:.2f} ({_from_to(share)})")
        measured = f", measured on {self.measured_on}" if self.measured_on else ""
        return f"{line}; it promises {', '.join(figures)}{measured}"

    def columns(self, risk: Floats, anomaly: Callable[[], Bools]) -> dict[str, Column | OnDemand]:
        """The model's fields, as rules read them, in the order of `MODEL_FIELD_NAMES`; each of n values.

        `anomaly` is called only if the alert is the forest's verdict, or a rule reads that.
        """
        count = len(risk)
        block = math.inf if self.block is None else self.block
        columns: tuple[Column | OnDemand, ...] = (
            anomaly,
            risk,
            self.alerts(risk, anomaly),
            np.full(count, self.alert),
            self.blocks(risk),
            np.full(count, block),
        )
        return dict(zip(MODEL_FIELD_NAMES, columns, strict=True))


def _from_to(interval: Interval) -> str:
    return f"{interval.low:.3g} to {interval.high:.3g}"
