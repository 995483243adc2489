"""How much evidence counts is chosen by labels, where there are enough."""

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest

from dataflow.profiles.amounts import AmountPrior
from dataflow.scoring.tiers import BOLD_EVIDENCE, CAREFUL, FEEDBACK, Weights, needed
from training.fitting.tiers import FEWEST_FRAUDS, FOREST_FEATURES, fit

pytestmark = pytest.mark.slow

ROWS = 6_000
NAMES = needed(["isolation_forest", "evidence", FEEDBACK], FOREST_FEATURES, ())
PLACE = {name: place for place, name in enumerate(NAMES)}


def history(frauds: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Rows of people with a past, of whom so many transactions are frauds, which look like all others."""
    random = np.random.default_rng(4)
    rows = random.exponential(1.0, (ROWS, len(NAMES))).astype(np.float32)
    rows[:, PLACE["history"]] = 50.0
    rows[:, [PLACE["merchant_compromised"], PLACE["run_frauds"]]] = 0.0
    fraud = np.zeros(ROWS, np.bool_)
    fraud[random.choice(ROWS, frauds, replace=False)] = True
    return rows, fraud, random


def chosen(rows: np.ndarray, fraud: np.ndarray, labelled: np.ndarray | None = None) -> Weights:
    known = np.ones(ROWS, np.bool_) if labelled is None else labelled
    artifact = fit(["isolation_forest", "evidence", FEEDBACK], rows, NAMES, fraud, known, AmountPrior(), 1, 0.01)
    assert isinstance(artifact["forest"], IsolationForest)
    return Weights(*artifact["weights"])


def breach(rows: np.ndarray, places: np.ndarray) -> None:
    """Puts transactions at merchants with one fraud before."""
    rows[places, PLACE["merchant_compromised"]] = 0.6
    rows[places, PLACE["run_frauds"]] = 1.0


def test_where_one_fraud_at_a_merchant_means_a_breach_it_counts_in_full() -> None:
    rows, fraud, _ = history(frauds=200)
    breach(rows, np.flatnonzero(fraud))
    assert chosen(rows, fraud).few_frauds == 0.0


def test_where_most_that_follows_one_fraud_is_genuine_it_counts_for_less() -> None:
    rows, fraud, random = history(frauds=200)
    breach(rows, random.choice(np.flatnonzero(~fraud), 600, replace=False))
    rows[fraud, PLACE["amount_z"]] += 3.0
    assert chosen(rows, fraud).few_frauds == 3.0


def test_where_rare_amounts_tell_frauds_apart_they_count() -> None:
    rows, fraud, _ = history(frauds=200)
    rows[fraud, PLACE["amount"]] += 6.0
    assert chosen(rows, fraud).rare == BOLD_EVIDENCE.rare


def test_where_rarity_says_nothing_of_frauds_the_careful_weights_stand() -> None:
    rows, fraud, _ = history(frauds=200)
    rows[~fraud, PLACE["amount"]] += np.where(np.arange(ROWS - 200) % 20 == 0, 6.0, 0.0).astype(np.float32)
    assert chosen(rows, fraud).rare == CAREFUL.rare


def test_with_too_few_labels_or_none_that_are_known_in_time_the_careful_weights_stand() -> None:
    rows, fraud, _ = history(frauds=FEWEST_FRAUDS - 1)
    breach(rows, np.flatnonzero(fraud))
    assert chosen(rows, fraud) == CAREFUL
    rows, fraud, _ = history(frauds=200)
    breach(rows, np.flatnonzero(fraud))
    assert chosen(rows, fraud, np.zeros(ROWS, np.bool_)) == CAREFUL
