"""Infinite values of features, in rows that a model is fitted to: the one treatment of training and of evaluation.

`seconds_since_last` is infinite where a user has no earlier transaction. A tree cannot split between a number and
infinity, so in fitting each infinite value stands at its column's largest finite one, or its smallest. What is scored
keeps its infinite values, in service, in training's figures and in the evaluation alike: every split lies below the
largest value of its column, so an infinite value goes the same way as that.
"""

from collections.abc import Sequence

import numpy as np

from dataflow.scoring.decision_tree import Rows
from dataflow.scoring.metadata import ISOLATION_FOREST
from dataflow.scoring.tiers import needed
from training.fitting.tiers import FOREST_FEATURES, SUPERVISED_FEATURES, all_tiers


class CannotFitError(Exception):
    """A history that a model cannot be fitted to: why, and what the user can do about it."""

    def __init__(self, why: str, advice: str):
        super().__init__(why)
        self.advice = advice


def bounded(rows: Rows, features: Sequence[str], tiers: Sequence[str]) -> Rows:
    """The rows with each infinite value put at its column's largest or smallest finite one.

    rows: (n, len(features)), those that a model is fitted to; tiers: of the model, by which the message advises.

    Raises:
        CannotFitError: a column has no finite value.
    """
    infinite = np.isinf(rows)
    if not infinite.any():
        return rows
    rows = rows.copy()
    for column, where, name in zip(rows.T, infinite.T, features, strict=True):
        if where.any():
            finite = column[np.isfinite(column)]
            if not len(finite):
                why = f"the feature {name} has no finite value in this history"
                raise CannotFitError(why, _without(name, tiers))
            column[where] = np.where(column[where] > 0, finite.max(), finite.min())
    return rows


def _without(feature: str, tiers: Sequence[str]) -> str:
    """Which option makes a model that does not read the feature."""
    if tiers == [ISOLATION_FOREST]:
        return "choose --features without it"
    for last in reversed(tiers[1:-1]):
        if feature not in needed(all_tiers(last), FOREST_FEATURES, SUPERVISED_FEATURES):
            return f"take --tiers {last}, which does not read it"
    return f"take --tiers {ISOLATION_FOREST}, with --features that leave it out"
