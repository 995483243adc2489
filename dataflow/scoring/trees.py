"""The sum of the leaves that a row falls in, over the decision trees of scikit-learn, bit for bit, by compiled kernels.

Trees are walked: eight rows go down a tree in step, or one row down sixteen trees, so that the processor has as many
loads under way where a walk node by node waits for each; a node takes 8 bytes, so that all trees lie in its second
cache. Numbers of nodes are unsigned: to look for negative ones at each takes a third of the time.

Small trees, as those of gradient boosting, are not walked where rows are many: see `leaf_masks`.
`python -m benchmarks.trees` measures both beside ONNX Runtime.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dataflow.profiles.compilation import compiled
from dataflow.scoring.decision_tree import Bools, Floats, Rows, Tree, round_down
from dataflow.scoring.leaf_masks import LeafMasks

NODE: Final = np.dtype([
    ("threshold", "f4"),  # a row goes left where its value is not above; infinite in a leaf
    ("feature", "u2"),  # the column
    ("left", "u2"),  # the node to the left, counted from the tree's root; the right one follows it; a leaf's own number
])  # fmt: skip
MOST_NODES: Final = 2**16 - 1
TOGETHER: Final = 8
"""Rows that go down a tree in step."""
TREES_TOGETHER: Final = 16
"""Trees that a row goes down in step, where there are too few rows."""
FEW_ROWS: Final = 5
"""So many rows go down the trees one after the other: that takes less than eight in step, of which most are in vain."""
FEW_FOR_MASKS: Final = 8
"""So many rows are walked with in any case: masks take as long for one row as for sixteen, 27 µs for 400 trees."""
_WORTH = 128
"""Rows of which half are scored beside: handing them over takes 40 µs."""
_WORTH_BY_MASKS = 512
"""The same for trees that are not walked."""


class TreeSum:
    """Sums of the leaves that rows fall in, over all trees of an ensemble.

    Args:
        trees: of at most `MOST_NODES` nodes each.
        start: what the sum begins with.

    Raises:
        ValueError: a tree is too large, or reads a column beyond 65,535.
    """

    def __init__(self, trees: Sequence[Tree], start: float = 0.0):
        laid_out = [_laid_out(tree) for tree in trees]
        laid_out += [_NOTHING] * (-len(laid_out) % TREES_TOGETHER)
        sizes = [len(nodes) for nodes, *_ in laid_out]
        self._roots = np.cumsum([0, *sizes[:-1]]).astype(np.uint64)
        self._nodes = np.concatenate([nodes for nodes, *_ in laid_out])
        self._values = np.concatenate([values for _, values, *_ in laid_out])
        self._nan_left = np.concatenate([nan_left for _, _, nan_left, _ in laid_out])
        self._depths = np.array([depth for *_, depth in laid_out], np.int64)
        self._depths_together = self._depths.reshape(-1, TREES_TOGETHER).max(axis=1)
        self._start = start
        self._masks = LeafMasks(trees) if LeafMasks.hold(trees) else None
        self._worth = _WORTH if self._masks is None else _WORTH_BY_MASKS
        self._beside = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="redflag-score")

    def __call__(self, rows: Rows) -> Floats:
        """The sums of rows of shape (n, k), float32; shape (n,).

        They are added in float64, tree after tree as scikit-learn does, so a row's sum does not depend on its batch.
        Infinite values lie beyond every split; NaN goes at each split where scikit-learn sends it.
        """
        rows = np.ascontiguousarray(rows, np.float32)
        sums = np.empty(len(rows))
        half = len(rows) // 2 if len(rows) >= self._worth else 0
        # The kernel lets go of the interpreter's lock, and a flow leaves a core or more idle: in half the time.
        other = self._beside.submit(self._add, rows[:half], sums[:half]) if half else None
        self._add(rows[half:], sums[half:])
        if other is not None:
            other.result()
        if _any_nan(rows):
            with_nan = np.flatnonzero(np.isnan(rows).any(axis=1))
            careful = np.full(len(with_nan), self._start)
            _add_with_nan(rows[with_nan], self._nodes, self._nan_left, self._roots, self._values, careful)
            sums[with_nan] = careful
        return sums

    def _add(self, rows: Rows, sums: Floats) -> None:
        sums[:] = self._start
        if self._masks is not None and len(rows) > FEW_FOR_MASKS:
            self._masks.add(rows, sums)
        elif len(rows) > FEW_ROWS:
            _add_in_step(rows, self._nodes, self._roots, self._depths, self._values, sums)
        else:
            _add_by_row(rows, self._nodes, self._roots, self._depths_together, self._values, sums)


def _laid_out(tree: Tree) -> tuple[NDArray[Any], Floats, Bools, int]:
    """A tree's nodes with the right one behind the left one, their values, where NaN goes, and how deep it is."""
    count = len(tree.left)
    if count > MOST_NODES or (count and int(tree.feature.max(initial=0)) > MOST_NODES):
        msg = f"a tree has {count} nodes, or reads a column beyond {MOST_NODES}: that is more than can be walked"
        raise ValueError(msg)
    thresholds = round_down(tree.threshold)
    nodes, values, nan_left = np.zeros(count, NODE), np.zeros(count), np.zeros(count, np.bool_)
    free, deepest = 1, 0
    left = [(0, 0, 0)]  # nodes to lay out: their number in the tree, here, and how deep they lie
    while left:
        old, new, depth = left.pop()
        deepest = max(deepest, depth)
        if tree.left[old] < 0:
            nodes[new] = np.inf, 0, new
            values[new] = tree.value[old]
            nan_left[new] = True
        else:
            nodes[new] = thresholds[old], tree.feature[old], free
            nan_left[new] = tree.nan_left[old]
            left += [(int(tree.left[old]), free, depth + 1), (int(tree.right[old]), free + 1, depth + 1)]
            free += 2
    return nodes, values, nan_left, deepest


_NOTHING = (np.array([(np.inf, 0, 0)], NODE), np.zeros(1), np.ones(1, np.bool_), 0)
"""A tree laid out whose one leaf adds nothing: with these the trees are so many sixteens."""


@compiled
def _add_in_step(rows: Any, nodes: Any, roots: Any, depths: Any, values: Any, sums: Any) -> None:
    """Adds each row's leaves, tree after tree; eight rows go down a tree together, the last one repeated."""
    at = np.empty(TOGETHER, np.uint64)
    number = np.empty(TOGETHER, np.uint64)
    for first in range(0, len(rows), TOGETHER):
        here = min(TOGETHER, len(rows) - first)
        for j in range(TOGETHER):
            number[j] = first + min(j, here - 1)
        for t in range(len(roots)):
            root = roots[t]
            for j in range(TOGETHER):
                at[j] = root
            for _ in range(depths[t]):
                for j in range(TOGETHER):
                    node = nodes[at[j]]
                    right = rows[number[j], node["feature"]] > node["threshold"]
                    at[j] = root + np.uint64(node["left"]) + np.uint64(right)
            for j in range(here):
                sums[first + j] += values[at[j]]


@compiled
def _add_by_row(rows: Any, nodes: Any, roots: Any, depths: Any, values: Any, sums: Any) -> None:
    """The same a row at a time, which goes down sixteen trees together; `depths`: of the deepest of each sixteen."""
    at = np.empty(TREES_TOGETHER, np.uint64)
    for i in range(len(rows)):
        row = rows[i]
        for together in range(len(depths)):
            these = roots[together * TREES_TOGETHER : (together + 1) * TREES_TOGETHER]
            for j in range(TREES_TOGETHER):
                at[j] = these[j]
            for _ in range(depths[together]):
                for j in range(TREES_TOGETHER):
                    node = nodes[at[j]]
                    right = row[node["feature"]] > node["threshold"]
                    at[j] = these[j] + np.uint64(node["left"]) + np.uint64(right)
            for j in range(TREES_TOGETHER):
                sums[i] += values[at[j]]


@compiled
def _any_nan(rows: Any) -> bool:
    for i in range(len(rows)):
        for value in rows[i]:
            if value != value:  # noqa: PLR0124 (which holds of NaN alone)
                return True
    return False


@compiled
def _add_with_nan(rows: Any, nodes: Any, nan_left: Any, roots: Any, values: Any, sums: Any) -> None:
    """The same for rows some of whose values are NaN."""
    for i in range(len(rows)):
        for t in range(len(roots)):
            at = roots[t]
            while True:
                node = nodes[at]
                value = rows[i, node["feature"]]
                right = value > node["threshold"] or (np.isnan(value) and not nan_left[at])
                below = roots[t] + np.uint64(node["left"]) + np.uint64(right)
                if below == at:
                    break
                at = below
            sums[i] += values[at]
