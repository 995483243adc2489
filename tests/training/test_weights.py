"""How much evidence counts is chosen by labels, where there are enough."""

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest

from dataflow.profiles.amounts import AmountPrior
from dataflow.scoring.tiers import BOLD_EVIDENCE, CAREFUL, FEEDBACK, GRADED, Evidence, Tail, Weights, needed
from training.fitting.tiers import FEWEST_FRAUDS, FOREST_FEATURES, fit, fit_feedback_weights, fit_weights

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


def chosen(rows: np.ndarray, fraud: np.ndarray, labelled: np.ndarray | None = None) -> tuple[Weights, Weights]:
    """The weights of rarity by itself, and those beside what confirmed frauds say."""
    known = np.ones(ROWS, np.bool_) if labelled is None else labelled
    artifact = fit(["isolation_forest", "evidence", FEEDBACK], rows, NAMES, fraud, known, AmountPrior(), 1, 0.01)
    assert isinstance(artifact["forest"], IsolationForest)
    return Weights(*artifact["weights"]), Weights(*artifact["feedback_weights"])


def breach(rows: np.ndarray, places: np.ndarray) -> None:
    """Puts transactions at merchants with one fraud before."""
    rows[places, PLACE["merchant_compromised"]] = 0.6
    rows[places, PLACE["run_frauds"]] = 1.0


def test_where_one_fraud_at_a_merchant_means_a_breach_it_counts_in_full() -> None:
    rows, fraud, _ = history(frauds=200)
    breach(rows, np.flatnonzero(fraud))
    _, beside = chosen(rows, fraud)
    assert beside.few_frauds == 0.0


def test_where_most_that_follows_one_fraud_is_genuine_it_counts_for_less() -> None:
    rows, fraud, random = history(frauds=200)
    breach(rows, random.choice(np.flatnonzero(~fraud), 600, replace=False))
    rows[fraud, PLACE["amount_z"]] += 3.0
    _, beside = chosen(rows, fraud)
    assert beside.few_frauds == 3.0


def test_where_rare_amounts_tell_frauds_apart_they_count() -> None:
    rows, fraud, _ = history(frauds=200)
    rows[fraud, PLACE["amount"]] += 6.0
    alone, beside = chosen(rows, fraud)
    assert alone.rare == beside.rare == BOLD_EVIDENCE.rare


def test_where_rarity_says_nothing_of_frauds_the_careful_weights_stand() -> None:
    rows, fraud, _ = history(frauds=200)
    rows[~fraud, PLACE["amount"]] += np.where(np.arange(ROWS - 200) % 20 == 0, 6.0, 0.0).astype(np.float32)
    alone, _ = chosen(rows, fraud)
    assert alone.rare == CAREFUL.rare


def test_with_too_few_labels_or_none_that_are_known_in_time_the_careful_weights_stand() -> None:
    rows, fraud, _ = history(frauds=FEWEST_FRAUDS - 1)
    breach(rows, np.flatnonzero(fraud))
    assert chosen(rows, fraud) == (CAREFUL, CAREFUL)
    rows, fraud, _ = history(frauds=200)
    breach(rows, np.flatnonzero(fraud))
    assert chosen(rows, fraud, np.zeros(ROWS, np.bool_)) == (CAREFUL, CAREFUL)


def test_rarity_that_orders_no_better_by_itself_counts_where_it_tells_frauds_apart_beside_those_confirmed() -> None:
    """Of the rare amounts as many are frauds as of all, but most frauds are at merchants with confirmed ones."""
    rows, fraud, random = history(frauds=333)
    frauds, genuine = np.flatnonzero(fraud), np.flatnonzero(~fraud)
    breach(rows, frauds[10:])
    rows[[*frauds[:10], *random.choice(genuine, 170, replace=False)], PLACE["amount"]] += 6.0
    tails = {name: Tail.of(rows[:, PLACE[name]]) for name in GRADED}
    isolation = np.zeros(ROWS)  # a forest that says nothing
    seen = Evidence(NAMES, Tail.of(isolation), tails), isolation, rows, fraud
    assert fit_weights(*seen).rare == CAREFUL.rare
    assert fit_feedback_weights(*seen).rare == BOLD_EVIDENCE.rare
