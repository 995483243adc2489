"""Fraud factors: bins by quantile, only labels known in time, and shrinkage where few were seen."""

import math

import numpy as np
import pytest

from dataflow.scoring.common_values import BinnedFrauds
from training.fitting.common_values import binned, common_values


def test_where_few_were_seen_the_factor_stays_near_one_and_with_many_it_is_the_ratio() -> None:
    few = BinnedFrauds([0.0], seen=[9_999, 1], frauds=[99, 1])
    many = BinnedFrauds([0.0], seen=[900_000, 100_000], frauds=[5_000, 5_000])
    assert few.factor(1.0) == pytest.approx((1 + 1) / (0.01 + 1))  # seen alone it would be 100
    assert many.factor(1.0) == pytest.approx(5.0, rel=0.01)
    assert many.factor(0.0) == pytest.approx(5_000 / 9_000, rel=0.01)


def test_a_bin_in_which_nothing_was_seen_says_nothing() -> None:
    assert BinnedFrauds([0.0], seen=[100, 0], frauds=[5, 0]).factor(7.0) == 1.0
    assert BinnedFrauds([0.0], seen=[0, 0], frauds=[0, 0]).factor(7.0) is None


def test_a_value_on_an_edge_is_in_the_bin_below_it_and_infinity_in_the_last() -> None:
    table = BinnedFrauds([1.0, 2.0], seen=[1_000, 1_000, 1_000], frauds=[10, 20, 60])
    low, middle, high = (table.factor(value) for value in (1.0, 2.0, math.inf))
    assert (low, middle, high) == (
        pytest.approx(11 / 31), pytest.approx(21 / 31), pytest.approx(61 / 31)
    )  # fmt: skip
    assert table.factor(1.5) == middle
    assert table.factor(-math.inf) == low


def test_every_labelled_transaction_is_in_one_bin_as_counted_by_hand() -> None:
    random = np.random.default_rng(3)
    values = np.concatenate([random.lognormal(size=5_000), np.full(50, np.inf)]).astype(np.float32).astype(np.float64)
    fraud = random.random(len(values)) < np.where(values > 5.0, 0.3, 0.01)
    table = binned(values, fraud)
    below = -math.inf
    for edge, seen, frauds in zip([*table.edges, math.inf], table.seen, table.frauds, strict=True):
        inside = (values > below) & (values <= edge)
        assert (seen, frauds) == (inside.sum(), (inside & fraud).sum())
        below = edge
    assert sum(table.seen) == len(values)


def test_the_two_values_of_a_flag_are_two_bins_however_rare_one_is() -> None:
    for rare in (1, 5, 900):
        flag = np.array([0.0] * (10_000 - rare) + [1.0] * rare)
        table = binned(flag, flag == 1.0)
        seen = [count for count in table.seen if count]
        assert seen == [10_000 - rare, rare]
        assert table.factor(1.0) > 1.0 > table.factor(0.0)


def test_only_labels_known_in_time_are_learned_from() -> None:
    rows = np.arange(1_000, dtype=np.float32).reshape(-1, 1)
    fraud = rows[:, 0] >= 900
    known = rows[:, 0] < 950
    learned = common_values(rows, ["amount"], fraud, known)
    assert sum(learned.fraud_factors["amount"].seen) == 950
    assert sum(learned.fraud_factors["amount"].frauds) == 50
    assert learned.typical == {"amount": 499.5}
    assert learned.fraud_factors["amount"].factor(930.0) > 10.0


@pytest.mark.parametrize("frauds", [[False] * 4, [True] * 4])
def test_labels_of_one_kind_give_no_factors_but_what_is_typical(frauds: list[bool]) -> None:
    rows = np.array([[1.0, np.inf], [2.0, np.inf], [3.0, np.inf], [9.0, 1.0]], np.float32)
    learned = common_values(rows, ["amount", "speed"], np.array(frauds), np.ones(4, np.bool_))
    assert learned.fraud_factors == {}
    assert learned.typical == {"amount": 2.5}  # an infinite median is none
