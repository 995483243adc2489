"""The curves of the evaluation, whose points are scikit-learn's, and how far scores are from probabilities."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from training.evaluation.measures import FIRST, POINTS, calibration_errors, curves, isotonic_deviation, reliability


def test_the_first_alerts_each_have_a_point_and_the_others_are_thinned_on_a_log_scale() -> None:
    random = np.random.default_rng(3)
    count = 60_000
    fraud = random.random(count) < 0.01
    risk = random.permutation(count) / count + 0.3 * fraud
    precision, roc = curves(risk, fraud)

    ordered = fraud[np.argsort(-risk)]
    hits = np.cumsum(ordered)
    expected = [(hits[n] / fraud.sum(), hits[n] / (n + 1)) for n in range(FIRST)]
    np.testing.assert_allclose(precision[:FIRST], expected)
    assert len(precision) <= FIRST + POINTS
    # Half of them lie among the first thousand of sixty.
    alerts = np.array([round(reached * fraud.sum() / share) for reached, share in precision if share])
    assert np.sum(alerts <= 1_000) > len(precision) / 2
    steps = alerts[alerts > 1_000]
    assert np.max(steps[1:] / steps[:-1]) < 1.05
    assert precision[-1] == (1.0, pytest.approx(fraud.mean()))
    assert (roc[0], roc[-1]) == ((0.0, 0.0), (1.0, 1.0))


def test_all_points_are_those_of_scikit_learn_also_where_scores_are_equal() -> None:
    random = np.random.default_rng(4)
    fraud = random.random(3_000) < 0.05
    risk = np.round(random.random(3_000) * 0.7 + 0.3 * fraud, 2)
    precision, roc = curves(risk, fraud)
    shares, reached, _ = precision_recall_curve(fraud, risk)
    theirs = {(round(r, 9), round(p, 9)) for r, p in zip(reached, shares, strict=True)}
    assert {(round(r, 9), round(p, 9)) for r, p in precision} <= theirs
    rate, recall, _ = roc_curve(fraud, risk, drop_intermediate=False)
    assert {(round(x, 9), round(y, 9)) for x, y in roc} <= {
        (round(x, 9), round(y, 9)) for x, y in zip(rate, recall, strict=True)
    }
    assert len(precision) == len(np.unique(risk))  # all thresholds: these are few


def test_the_calibration_error_of_true_chances_is_near_0_and_of_others_their_distance() -> None:
    random = np.random.default_rng(5)
    risk = random.beta(0.2, 5, 200_000)
    fraud = random.random(len(risk)) < risk
    assert all(error < 0.002 for error in calibration_errors(risk, fraud).values())
    off = np.clip(risk + 0.05, 0, 1)
    for error in calibration_errors(off, fraud).values():
        assert error == pytest.approx(0.05, abs=0.003)


def test_the_bins_are_tenths_of_the_scale_or_of_the_transactions() -> None:
    risk = np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.95, 1.0])
    fraud = np.arange(10) >= 7
    widths = reliability(risk, fraud, equal_counts=False)
    assert [(each.size, each.fraud_share) for each in widths] == [(8, 1 / 8), (2, 1.0)]
    counts = reliability(risk, fraud, equal_counts=True)
    assert [each.size for each in counts] == [1] * 10
    assert [each.mean_score for each in counts] == risk.tolist()
    errors = calibration_errors(risk, fraud)
    assert errors["calibration_error"] == pytest.approx(0.8 * abs(0.045 - 0.125) + 0.2 * 0.025)
    assert errors["calibration_error_equal_counts"] == pytest.approx((0.28 + 0.92 + 0.05) / 10)


def test_precision_that_rises_with_the_score_deviates_from_no_isotonic_regression() -> None:
    random = np.random.default_rng(6)
    risk = random.random(20_000)
    rising = random.random(20_000) < risk**8
    assert isotonic_deviation(risk, rising) < 0.01
    # The riskiest hundred are genuine after all, as with a piece of evidence that says too much.
    dip = rising & (risk < np.sort(risk)[-100])
    assert isotonic_deviation(risk, dip) > 0.1
