"""A decision tree of scikit-learn as arrays, and the types of what trees are given and give."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Tree(NamedTuple):
    """A decision tree as arrays, one element a node, node 0 the root.

    A row goes left where `row[feature] <= threshold`, and where that value is NaN and `nan_left` holds. A leaf has
    `left == -1` and is worth its `value`.
    """

    feature: Indices
    threshold: Floats
    left: Indices
    right: Indices
    nan_left: Bools
    value: Floats


def round_down(threshold: Floats) -> Rows:
    """The largest float32 that is not above the threshold.

    scikit-learn compares float32 values with float64 thresholds; here float32 is on both sides. For a float32 x,
    `x <= threshold` and `x <= round_down(threshold)` are the same; rounded to nearest they are not.
    """
    with np.errstate(over="ignore"):
        nearest = threshold.astype(np.float32)
    return np.where(nearest > threshold, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def remapped(tree: Tree, columns: NDArray[Any]) -> Tree:
    """The tree with its features as columns of the whole row."""
    return tree._replace(feature=columns[np.where(tree.left < 0, 0, tree.feature)])
