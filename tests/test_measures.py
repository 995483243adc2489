"""The curves of the evaluation: each of the first alerts is a point, and the points are scikit-learn's."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from training.measures import FIRST, POINTS, curves


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
