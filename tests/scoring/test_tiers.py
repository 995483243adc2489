"""The tiers of a model: compiled they are scikit-learn's, and how each tier reads a transaction."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

from dataflow.errors import UserError
from dataflow.events.transaction import Transaction
from dataflow.features.batch import FeatureBatch
from dataflow.profiles.amounts import AmountPrior
from dataflow.scoring.loading import load_model
from dataflow.scoring.metadata import fingerprint
from dataflow.scoring.operating_point import OperatingPoint
from dataflow.scoring.tier_parts import TierAnswers, TierParts
from dataflow.scoring.tiers import BOLD_EVIDENCE, CAREFUL, ColdStart, Normal, Tail, TieredModel
from tests.support.replaying import replayed_rows
from training.fitting.tiers import amount_prior, calibrate
from training.histories.history import Past, after, read_history
from training.train import main as train

pytestmark = pytest.mark.slow

DAY = 86_400.0
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(supervised_file: Path) -> TieredModel:
    loaded = load_model(supervised_file)
    assert isinstance(loaded, TieredModel)
    return loaded


@pytest.fixture(scope="module")
def rows(model: TieredModel) -> np.ndarray:
    past = read_history(None, seed=9, users=150, days=14)
    return replayed_rows(past, model.features, model.amount_prior, after(3 * DAY))


def picked(model: TieredModel, rows: np.ndarray, names: list[str]) -> np.ndarray:
    return rows[:, [model.features.index(name) for name in names]]


def warm(model: TieredModel, rows: np.ndarray) -> np.ndarray:
    return rows[:, model.features.index("history")] >= 5


def test_after_the_warm_up_nothing_is_compiled_while_a_flow_decides(supervised_file: Path) -> None:
    command = [sys.executable, "-m", "tests.support.compiled_late", str(supervised_file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_the_compiled_tiers_are_scikit_learns(supervised_file: Path, model: TieredModel, rows: np.ndarray) -> None:
    artifact = joblib.load(supervised_file)
    finite = np.nan_to_num(rows, posinf=1e9)[warm(model, rows)]
    names = artifact["supervised_features"]
    boosted = artifact["boosting"].predict_proba(picked(model, finite, names))[:, 1]
    risk, anomaly = model.score(finite)
    calibrated = np.interp(boosted, *artifact["calibration"])
    # A score may be off by a float32's rounding, and a steep piece of the calibration makes more of that.
    scores, probabilities = artifact["calibration"]
    assert np.all(np.abs(risk - calibrated) < 1e-6 * (1 + np.max(np.diff(probabilities) / np.diff(scores))))
    isolation = artifact["forest"]
    assert np.array_equal(anomaly, isolation.predict(picked(model, finite, artifact["forest_features"])) == -1)
    assert risk.min() >= 0.0
    assert risk.max() <= 1.0
    assert model.agrees(TierAnswers.of(artifact, model.features, supervised=True))


def test_from_what_was_kept_of_it_the_model_is_the_same(
    supervised_file: Path, model: TieredModel, rows: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_model(supervised_file, tmp_path)
    monkeypatch.setattr(joblib, "load", None)
    kept = load_model(supervised_file, tmp_path)
    assert isinstance(kept, TieredModel)
    assert (kept.amount_prior, kept.threshold, kept.importance, kept._weights) == (
        model.amount_prior, model.threshold, model.importance, model._weights,
    )  # fmt: skip
    for found, expected in zip(kept.score(rows), model.score(rows), strict=True):
        np.testing.assert_array_equal(found, expected)
    for tier, risk in model.tiers(rows).items():
        np.testing.assert_array_equal(kept.tiers(rows)[tier], risk)


def test_calibration_makes_probabilities_of_scores_and_keeps_their_order() -> None:
    random = np.random.default_rng(5)
    raw = random.beta(0.3, 6.0, 60_000)
    truth = random.random(60_000) < raw**2
    learn, test = slice(None, 30_000), slice(30_000, None)
    for frauds in (None, 60):  # all of them: isotonic; few: Platt's
        kept = np.ones(30_000, np.bool_)
        if frauds is not None:
            kept[np.flatnonzero(truth[learn])[frauds:]] = False
        calibration = calibrate(raw[learn][kept], truth[learn][kept])
        assert np.all(np.diff(calibration.scores) > 0)
        assert np.all(np.diff(calibration.probabilities) > 0)
        found = calibration(raw[test])
        order = np.argsort(raw[test], kind="stable")
        assert np.array_equal(order, np.argsort(found, kind="stable"))
        if frauds is None:
            top = raw[test] > 0.3
            assert found[top].mean() == pytest.approx(truth[test][top].mean(), abs=0.03)
            assert abs(raw[test][top].mean() - truth[test][top].mean()) > 0.1  # uncalibrated they said something else


def test_scores_that_no_fraud_can_calibrate_stay_as_they_are() -> None:
    raw = np.linspace(0.0, 1.0, 50)
    assert np.array_equal(calibrate(raw, np.zeros(50, np.bool_))(raw), raw)
    assert np.array_equal(calibrate(raw, np.arange(50) < 9)(raw), raw)


@pytest.mark.parametrize("name", ["amount_to_largest", "new_device", "new_location", "centre_ratio", "unusual_day"])
def test_what_needs_history_says_nothing_without_it(model: TieredModel, rows: np.ndarray, name: str) -> None:
    column, history = model.features.index(name), model.features.index("history")
    some = rows[warm(model, rows)][:200].copy()
    raised = some.copy()
    raised[:, column] = rows[:, column].max()
    assert not np.array_equal(model.score(raised)[0], model.score(some)[0])
    for seen in (0.0, 1.0, 4.0):
        some[:, history] = raised[:, history] = seen
        assert np.array_equal(model.score(raised)[0], model.score(some)[0])
        assert np.array_equal(model.score(raised)[1], model.score(some)[1])


def test_a_newcomers_amount_is_measured_by_all_users_amounts(supervised_file: Path, model: TieredModel) -> None:
    normal = Normal(*joblib.load(supervised_file)["normal"])
    cold_start = ColdStart(model.features, normal)
    row = np.zeros((2, len(model.features)), np.float32)
    places = {name: place for place, name in enumerate(model.features)}
    row[:, places["amount"]] = normal.amount + 2 * normal.spread
    row[:, places["amount_z"]] = 9.0
    row[:, places["history"]] = [4.0, 5.0]
    read = cold_start(row)
    assert read[0, places["amount_z"]] == pytest.approx(2.0, abs=1e-4)
    assert read[0, places["amount_z_above"]] == pytest.approx(2.0, abs=1e-4)
    assert read[1, places["amount_z"]] == 9.0
    assert row[0, places["amount_z"]] == 9.0  # what the rules read stays


def test_newcomers_are_not_alerted_more_often_than_others_by_more_than_three_times(model: TieredModel) -> None:
    past = read_history(None, seed=21, users=600, days=20)
    rows = replayed_rows(past, model.features, model.amount_prior, after(3 * DAY))
    new = ~warm(model, rows)
    assert new.sum() > 2_000
    for tier, risk in model.tiers(rows).items():
        alerts = risk >= np.sort(risk)[-len(risk) // 100]
        assert alerts[new].mean() <= 3 * alerts[~new].mean(), tier
    _, anomaly = model.score(rows)
    assert anomaly[new].mean() <= 3 * anomaly[~new].mean()


def test_a_model_of_before_weights_were_chosen_has_the_careful_ones(supervised_file: Path, model: TieredModel) -> None:
    artifact = joblib.load(supervised_file)
    del artifact["weights"]
    assert TieredModel(model.metadata, TierParts.of(artifact, supervised=True))._weights == CAREFUL


def test_each_tier_has_its_own_weights_and_an_earlier_model_the_same_for_both(
    supervised_file: Path, model: TieredModel, rows: np.ndarray
) -> None:
    artifact = joblib.load(supervised_file)
    bold = tuple(BOLD_EVIDENCE._replace(few_frauds=0.0))

    def tiers(weights: tuple[Any, ...], feedback_weights: tuple[Any, ...] | None) -> dict[str, np.ndarray]:
        artifact["weights"] = weights
        artifact["feedback_weights"] = feedback_weights
        return TieredModel(model.metadata, TierParts.of(artifact, supervised=True)).tiers(rows)

    careful, both, earlier = tiers(tuple(CAREFUL), tuple(CAREFUL)), tiers(tuple(CAREFUL), bold), tiers(bold, None)
    assert np.array_equal(both["evidence"], careful["evidence"])
    assert not np.array_equal(both["evidence"], earlier["evidence"])
    assert np.array_equal(both["feedback"], earlier["feedback"])
    assert not np.array_equal(both["feedback"], careful["feedback"])


def test_a_score_does_not_depend_on_its_batch(model: TieredModel, rows: np.ndarray) -> None:
    rows = rows[:1000]
    together, _ = model.score(rows)
    for size in (1, 7, 128):
        apart = np.concatenate([model.score(rows[begin : begin + size])[0] for begin in range(0, 1000, size)])
        assert np.array_equal(apart, together)
    tiers = model.tiers(rows)
    for name in tiers:
        one = np.concatenate([model.tiers(rows[n : n + 1])[name] for n in range(200)])
        assert np.array_equal(one, tiers[name][:200])


def test_each_tier_adds_to_the_one_before(model: TieredModel, rows: np.ndarray) -> None:
    tiers = model.tiers(rows)
    assert list(tiers) == ["isolation_forest", "evidence", "feedback", "supervised"]
    assert np.all(tiers["feedback"] >= tiers["evidence"] - 1e-12)
    for risk in tiers.values():
        assert 0.0 <= risk.min() <= risk.max() <= 1.0


def test_rarity_is_graded_by_the_share_of_the_training_window_that_reaches_it() -> None:
    tail = Tail.of(np.arange(100_000.0))
    assert tail.evidence(np.array([0.0, 50_000.0, 96_000.0])).tolist() == [0.0, 0.0, 0.0]
    graded = tail.evidence(np.array([97_500.0, 99_000.0, 99_900.0, 99_999.0, 1e12]))
    assert np.all(np.diff(graded) >= 0)
    assert graded[1] == pytest.approx((2.0 - 1.5) / 2.0, abs=1e-3)  # one in a hundred
    assert graded[-1] == 1.0
    scaled = Tail.of(np.arange(100_000.0) * 7).evidence(np.array([99_000.0 * 7]))
    assert scaled[0] == graded[1]  # the unit does not matter


def test_what_amounts_are_like_among_all_is_told_by_the_median_user(model: TieredModel) -> None:
    def paid(user: str, *amounts: float) -> Iterator[Past]:
        for amount in amounts:
            yield Past(Transaction(user=user, amount=amount, location="US", device="d", merchant="m", txn_type="t",
                                   timestamp="", transaction_id="x"), None, "")  # fmt: skip

    past = [*paid("a", *[10.0] * 5, *[20.0] * 5), *paid("b", *[100.0] * 10), *paid("c", 1e9)]
    found = amount_prior(past)
    mean, spread = np.median([15.0, 100.0]), np.median([np.std([10.0] * 5 + [20.0] * 5, ddof=1) / 15.0, 0.0])
    assert found == AmountPrior(pytest.approx(mean), pytest.approx(spread))
    assert model.amount_prior.amount > 0
    assert amount_prior([]) == AmountPrior()


def test_too_few_labels_are_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--tiers", "supervised", "--users", "20", "--days", "10", "--out", str(tmp_path / "m.pkl")]
    assert train(arguments) == 2
    assert "frauds among" in capsys.readouterr().err
    assert not (tmp_path / "m.pkl").exists()


def test_a_tampered_tiered_model_is_refused(supervised_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "fraud_model.pkl"
    path.write_bytes(supervised_file.read_bytes() + b"x")
    path.with_suffix(".json").write_bytes(supervised_file.with_suffix(".json").read_bytes())
    with pytest.raises(UserError, match="SHA-256 differs"):
        load_model(path)


def test_tiers_of_an_earlier_release_are_refused_in_one_line(supervised_file: Path, tmp_path: Path) -> None:
    artifact = joblib.load(supervised_file)
    del artifact["normal"]
    path = tmp_path / "old.pkl"
    joblib.dump(artifact, path)
    meta = json.loads(supervised_file.with_suffix(".json").read_text())
    meta["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    meta["fingerprint"] = fingerprint(meta["tiers"], meta["features"], meta["sha256"])
    path.with_suffix(".json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"old\.pkl holds tiers of an earlier release.*train again"):
        load_model(path)


def test_the_forest_is_asked_only_where_something_reads_its_verdict(
    model: TieredModel, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = rows
    risk, anomaly = model.score(some)
    asked = []
    forest = model._isolation
    monkeypatch.setattr(model, "_isolation", lambda rows: asked.append(len(rows)) or forest(rows))

    def batch(point: OperatingPoint) -> FeatureBatch:
        made = FeatureBatch([], [], np.empty((len(some), 0)))
        made.put(point.columns(*model.risk_first(some)))
        return made

    by_risk = batch(OperatingPoint(alert=0.5))
    assert np.array_equal(by_risk.column("model_score"), risk)
    assert np.array_equal(by_risk.column("model_alert"), risk >= 0.5)
    assert asked == []
    assert np.array_equal(by_risk.column("model_anomaly"), anomaly)
    assert np.array_equal(by_risk.column("model_anomaly"), anomaly)
    assert asked == [len(some)]  # once
    by_forest = batch(OperatingPoint(alert=0.5, of_forest=True))
    assert np.array_equal(by_forest.column("model_alert"), anomaly)
    assert 0 < anomaly.sum() < len(some)
