"""Histories as models read them."""

from collections.abc import Iterable, Sequence

import numpy as np

from dataflow.profiles.amounts import AmountPrior
from dataflow.profiles.profiles import NO_PRIOR
from dataflow.scoring.decision_tree import Rows
from training.histories.history import LabelTime, Past
from training.histories.replay import replay


def replayed_rows(
    past: Iterable[Past],
    features: Sequence[str],
    prior: AmountPrior = NO_PRIOR,
    label_time: LabelTime | None = None,
) -> Rows:
    """These features of each transaction, replayed; shape (transactions, features)."""
    return np.concatenate([batch.floats(features) for _, batch in replay(past, prior, label_time)])
