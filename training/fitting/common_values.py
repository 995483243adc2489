"""What explanations say of values by the training window: which are common, and which came with frauds."""

from collections.abc import Sequence

import numpy as np

from dataflow.scoring.common_values import BinnedFrauds, CommonValues
from dataflow.scoring.decision_tree import Bools, Floats, Rows

QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
"""Where the bins of a feature end, by the values of all labelled transactions: fine where frauds are."""


def common_values(rows: Rows, features: Sequence[str], fraud: Bools, known: Bools) -> CommonValues:
    """The median of each feature, and its frauds by value.

    rows: (n, len(features)), n >= 1; fraud: (n,); known: (n,), of which the label had come in time. Of no other label
    anything is learned. Without both kinds of label there are no fraud factors.
    """
    typical = {name: float(np.median(column)) for name, column in zip(features, rows.T, strict=True)}
    typical = {name: value for name, value in typical.items() if np.isfinite(value)}
    frauds = int((fraud & known).sum())
    if not 0 < frauds < known.sum():
        return CommonValues(typical)
    return CommonValues(
        typical,
        {
            name: binned(column[known].astype(np.float64), fraud[known])
            for name, column in zip(features, rows.T, strict=True)
        },
    )


def binned(values: Floats, fraud: Bools) -> BinnedFrauds:
    """The frauds among the values, each of shape (n,), by quantile of these; equal values share a bin."""
    # A quantile that is a value itself, none between two of them: one value of a flag must not make a third bin.
    edges = np.unique(np.quantile(values, QUANTILES, method="lower"))
    edges = edges[np.isfinite(edges)]
    bins = np.searchsorted(edges, values, side="left")
    count = len(edges) + 1
    return BinnedFrauds(
        edges.tolist(),
        np.bincount(bins, minlength=count).tolist(),
        np.bincount(bins[fraud], minlength=count).tolist(),
    )
