"""What the tiers' models are fitted to, and that less work gives the same forest and honest probabilities."""

from collections.abc import Iterator

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, IsolationForest
from threadpoolctl import threadpool_limits

from training.fitting import boosting
from training.fitting.boosting import MOST_VALUES, few_values, fit_boosting, learned_from, log_odds
from training.fitting.tiers import MAX_SAMPLES, TREES, fit_forest

SEED = 3


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keeps scikit-learn from threads that wait for each other by spinning, beside other work."""
    with threadpool_limits(1, user_api="openmp"):
        yield


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few thousand rows are more than are learned from."""
    monkeypatch.setattr(boosting, "LIKE_FRAUD", 400)
    monkeypatch.setattr(boosting, "OTHERS", 600)
    monkeypatch.setattr(boosting, "SKETCHED_ON", 500)


def labelled_rows(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose first column says how likely a fraud is, some two in a hundred."""
    random = np.random.default_rng(SEED)
    rows = random.standard_normal((count, 4)).astype(np.float32)
    return rows, random.random(count) < 1.0 / (1.0 + np.exp(6.0 - 2.0 * rows[:, 0]))


@pytest.mark.usefixtures("small")
def test_all_frauds_and_what_looks_most_like_them_are_learned_from_and_the_rest_stands_for_those_left_out() -> None:
    random = np.random.default_rng(SEED)
    like_fraud, fraud = random.standard_normal(5_000), random.random(5_000) < 0.02
    chosen, weights = learned_from(like_fraud, fraud, SEED)
    assert np.all(np.diff(chosen) > 0)
    assert len(chosen) == fraud.sum() + 400 + 600
    hardest = np.sort(np.where(fraud, -np.inf, like_fraud))[-400:]
    alone = fraud | np.isin(like_fraud, hardest)
    assert set(np.flatnonzero(alone)) <= set(chosen)
    assert np.all(weights[alone[chosen]] == 1.0)
    others = weights[~alone[chosen]]
    assert np.all(others == others[0])
    assert weights.sum() == pytest.approx(5_000)


def test_what_is_learned_of_a_choice_of_rows_is_the_share_of_frauds_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boosting, "LIKE_FRAUD", 2_000)
    monkeypatch.setattr(boosting, "OTHERS", 3_000)
    monkeypatch.setattr(boosting, "SKETCHED_ON", 3_000)
    rows, fraud = labelled_rows(60_000)
    probability = 1.0 / (1.0 + np.exp(-log_odds(fit_boosting(rows, fraud, SEED), rows)))
    # Of those learned from, one in seven is a fraud: ten times as many.
    assert 0.5 * fraud.mean() < probability.mean() < 2.0 * fraud.mean()


def test_where_few_transactions_are_known_all_are_learned_from() -> None:
    rows, fraud = labelled_rows(3_000)
    found = fit_boosting(rows, fraud, SEED)
    assert found._baseline_prediction == pytest.approx(np.log(fraud.mean() / (1.0 - fraud.mean())))


def test_the_kernels_say_what_scikit_learn_says() -> None:
    rows, fraud = labelled_rows(2_000)
    rows[::7, 1] = np.nan
    found = fit_boosting(rows, fraud, SEED)
    assert np.abs(log_odds(found, rows) - found.decision_function(rows)).max() < 1e-9


def test_of_few_values_a_row_goes_the_same_way_at_each_split() -> None:
    random = np.random.default_rng(SEED)
    rows = random.lognormal(0.0, 2.0, (6_000, 3)).astype(np.float32)
    rows[:, 1] = random.integers(0, 40, 6_000)
    rows[::5, 2] = np.nan
    few = few_values(rows)
    assert [len(np.unique(column[~np.isnan(column)])) <= MOST_VALUES for column in few.T] == [True] * 3
    np.testing.assert_array_equal(few[:, 1], rows[:, 1])
    np.testing.assert_array_equal(np.isnan(few), np.isnan(rows))
    target = random.random(6_000) < 1.0 / (1.0 + np.exp(2.0 - np.nan_to_num(rows[:, 0]) + 0.1 * rows[:, 1]))
    model = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=31, random_state=SEED).fit(few, target)
    np.testing.assert_array_equal(model.decision_function(rows), model.decision_function(few))


@pytest.mark.parametrize("contamination", [0.01, 0.2, "auto"])
def test_the_forest_is_scikit_learns_with_its_threshold(contamination: float | str) -> None:
    rows = np.random.default_rng(SEED).exponential(1.0, (3_000, 4)).astype(np.float32)
    found, risk = fit_forest(rows, SEED, contamination)
    expected = IsolationForest(
        n_estimators=TREES, max_samples=MAX_SAMPLES, contamination=contamination, random_state=SEED
    ).fit(rows)
    assert found.get_params() == expected.get_params()
    assert found.offset_ == expected.offset_
    np.testing.assert_array_equal(found.predict(rows), expected.predict(rows))
    np.testing.assert_array_equal(risk, -expected.score_samples(rows))
