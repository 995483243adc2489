"""The kernels that sum up leaves, against a walk in plain Python: trees of any shape, rows at splits, in any batch."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.scoring import leaf_masks, trees
from dataflow.scoring.decision_tree import Floats, Rows, Tree
from dataflow.scoring.leaf_masks import MOST_LEAVES, LeafMasks
from dataflow.scoring.trees import FEW_FOR_MASKS, TreeSum

COLUMNS = 3
SPLITS = (-1.5, 0.0, 0.1, 1 / 3, 2.0, 1e38)  # few, so that rows meet them
VALUES = (*SPLITS, -2.0, 1.0, 5.0, math.inf, -math.inf, math.nan)
COUNTS = (0, 1, FEW_FOR_MASKS, FEW_FOR_MASKS + 1, 16, 17, 63, 64, 65, 130)


def grown(draw: np.random.Generator, leaves: int) -> Tree:
    """A tree of so many leaves, of any shape: one leaf after the other becomes a node."""
    feature, threshold, left, right, nan_left, value = [0], [0.0], [-1], [-1], [False], [draw.normal()]
    while len(left) < 2 * leaves - 1:
        node = draw.choice([n for n, below in enumerate(left) if below < 0])
        feature[node], threshold[node] = int(draw.integers(COLUMNS)), float(draw.choice(SPLITS))
        nan_left[node] = bool(draw.integers(2))
        left[node], right[node] = len(left), len(left) + 1
        for column, blank in ((feature, 0), (threshold, 0.0), (left, -1), (right, -1), (nan_left, False)):
            column += [blank, blank]  # type: ignore[operator]
        value += [draw.normal(), draw.normal()]
    return Tree(*map(np.array, (feature, threshold, left, right, nan_left, value)))


def walked(tree: Tree, row: Rows) -> float:
    at = 0
    while tree.left[at] >= 0:
        value = float(row[tree.feature[at]])
        goes_left = bool(tree.nan_left[at]) if math.isnan(value) else value <= float(tree.threshold[at])
        at = int((tree.left if goes_left else tree.right)[at])
    return float(tree.value[at])


def sums_of(ensemble: list[Tree], rows: Rows, start: float) -> Floats:
    sums = np.full(len(rows), start)
    for number, row in enumerate(rows):
        for tree in ensemble:
            sums[number] += walked(tree, row)
    return sums


def drawn(seed: int, sizes: list[int]) -> tuple[list[Tree], Rows]:
    draw = np.random.default_rng(seed)
    rows = draw.choice(np.array(VALUES), (max(COUNTS), COLUMNS)).astype(np.float32)
    return [grown(draw, leaves) for leaves in sizes], rows


@given(st.integers(0, 2**32), st.lists(st.integers(1, MOST_LEAVES), min_size=1, max_size=20), st.sampled_from(COUNTS))
def test_small_trees_are_what_a_walk_finds(seed: int, sizes: list[int], count: int) -> None:
    ensemble, rows = drawn(seed, sizes)
    assert LeafMasks.hold(ensemble)
    assert TreeSum(ensemble, 0.25)(rows[:count]).tolist() == sums_of(ensemble, rows[:count], 0.25).tolist()


@given(st.integers(0, 2**32), st.lists(st.integers(1, 60), max_size=20), st.sampled_from(COUNTS))
def test_large_trees_are_what_a_walk_finds(seed: int, sizes: list[int], count: int) -> None:
    ensemble, rows = drawn(seed, [*sizes, MOST_LEAVES + 1])
    assert not LeafMasks.hold(ensemble)
    assert TreeSum(ensemble, 0.25)(rows[:count]).tolist() == sums_of(ensemble, rows[:count], 0.25).tolist()


@pytest.mark.parametrize("leaves", [MOST_LEAVES, 60])
def test_half_of_many_rows_is_scored_beside(leaves: int) -> None:
    ensemble, rows = drawn(1, [leaves] * 5)
    many = np.tile(rows, (5, 1))
    assert len(many) > max(trees._WORTH, trees._WORTH_BY_MASKS)
    assert TreeSum(ensemble)(many).tolist() == sums_of(ensemble, rows, 0.0).tolist() * 5


def test_each_leaf_has_a_place_of_its_own() -> None:
    assert sorted(map(leaf_masks._place, range(MOST_LEAVES))) == list(range(MOST_LEAVES))
