"""Infinite values in rows that a model is fitted to: one treatment, the same in training and in the evaluation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.progress import Progress

from dataflow.profiles.profiles import NO_PRIOR
from dataflow.rules import load_rules
from tests.support.builders import DAY, NOON, iso
from training.evaluation import evaluation
from training.evaluation.options import parse
from training.fitting.infinities import CannotFitError, bounded
from training.histories.history import after, read_history

INF = np.inf
SINCE = evaluation.FEATURES.index("seconds_since_last")


def floats(*rows: tuple[float, ...]) -> Any:
    return np.array(rows, np.float32)


def test_an_infinite_value_stands_at_its_columns_largest_or_smallest_finite_one() -> None:
    rows = floats((1, INF), (INF, 7), (-5, 3), (-INF, 4))
    given = rows.copy()
    np.testing.assert_array_equal(
        bounded(rows, ("a", "b"), ["isolation_forest"]), floats((1, 7), (1, 7), (-5, 3), (-5, 4))
    )
    np.testing.assert_array_equal(rows, given)  # what is scored keeps its infinite values


def test_a_feature_without_a_finite_value_is_told_with_what_to_do() -> None:
    with pytest.raises(CannotFitError, match="the feature b has no finite value") as refused:
        bounded(floats((1, INF), (2, INF)), ("a", "b"), ["isolation_forest"])
    assert refused.value.advice == "choose --features without it"


def test_the_evaluation_fits_to_what_training_fits_to_and_scores_what_the_flow_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "history.csv"
    times = [("ann", 0.0), ("bob", 1.0), ("ann", 40.0), ("bob", 42.0), ("eve", 43.0)]  # one gap of 40 d, one of 41 d
    lines = [f"{iso(NOON + day * DAY)},{user},shop,5.0,0" for user, day in times]
    path.write_text("timestamp,user,merchant,amount,fraud\n" + "\n".join(lines) + "\n")
    moments = ["--train-from", iso(NOON), "--test-from", iso(NOON + 44 * DAY), "--test-until", iso(NOON + 45 * DAY)]
    options = parse(["--history", str(path), *moments, "--out", str(tmp_path)])
    history = read_history(path, label_column="fraud")
    with Progress(disable=True) as progress:
        replayed = evaluation.collect(history, options, NO_PRIOR, after(DAY), load_rules(options.rules), progress)
    np.testing.assert_array_equal(replayed.rows[:, SINCE], np.float32([INF, INF, 40 * DAY, 41 * DAY, INF]))

    fitted_to: list[Any] = []
    monkeypatch.setattr(evaluation, "fit", lambda tiers, rows, *others: fitted_to.append(rows))
    monkeypatch.setattr(evaluation.TierParts, "of", lambda artifact, supervised: None)
    monkeypatch.setattr(evaluation, "TieredModel", lambda metadata, parts: None)
    evaluation.fitted(replayed, options, NO_PRIOR, NOON, NOON + 44 * DAY, seed=1)
    np.testing.assert_array_equal(fitted_to[0], bounded(replayed.rows, evaluation.FEATURES, options.tiers))
    np.testing.assert_array_equal(fitted_to[0][:, SINCE], np.float32([41, 41, 40, 41, 41]) * np.float32(DAY))
