"""Training: from a history to a model that the flow can load, the same again for the same seed."""

import json
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
from builders import NOON, iso

from dataflow.scoring import Columns, load_model
from training import train
from training.history import read_history, replay
from training.train import bounded, main

SMALL = ("--users", "60", "--days", "3", "--trees", "20")


def trained(folder: Path, *arguments: str) -> Path:
    out = folder / "fraud_model.pkl"
    assert main(["--out", str(out), *arguments]) == 0
    return out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("redflag: ")
    assert told.err.count("\n") == 1
    return told.err


def history(folder: Path, rows: int = 400, fraud: bool = True) -> Path:
    random = np.random.default_rng(0)
    lines = ["timestamp,user,merchant,amount" + ",fraud" * fraud]
    for i in range(rows):
        bad = i % 50 == 7
        amount = random.uniform(1, 50) + 500 * bad
        lines.append(f"{iso(NOON + 60 * i)},u{i % 9},m,{amount:.2f}" + f",{int(bad)}" * fraud)
    path = folder / "past.csv"
    path.write_text("\n".join(lines))
    return path


def test_the_simulated_history_makes_a_model_that_loads_and_tells_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = trained(tmp_path, *SMALL, "--seed", "3")
    said = capsys.readouterr().out
    assert "20 isolation trees" in said
    assert "amount, txn_per_hour" in said
    model = load_model(out)
    meta = json.loads(out.with_suffix(".json").read_text())
    assert meta["features"] == list(model.features) == ["amount", "txn_per_hour"]
    assert meta["tiers"] == ["isolation_forest"]
    assert meta["seed"] == 3
    assert meta["hyperparameters"]["trees"] == 20
    assert {"python", "scikit-learn", "numpy", "onnxruntime"} <= set(meta["versions"])
    assert meta["window"]["rows"] > 300
    assert meta["window"]["first"] < meta["window"]["last"]
    assert meta["metrics"]["threshold"] == model.threshold
    assert meta["metrics"]["share_flagged"] == pytest.approx(0.01, abs=0.005)
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"fraud_model.{end}" for end in ("json", "pkl", "png")]


def test_the_rows_that_it_trains_on_are_those_that_serving_scores(tmp_path: Path) -> None:
    out = trained(tmp_path, "--history", str(history(tmp_path)), "--trees", "30")
    facts = [facts for _, facts in replay(read_history(tmp_path / "past.csv"))]
    rows = Columns(["amount", "txn_per_hour"])(facts)
    assert rows[:, 1].max() > 3
    assert joblib.load(out).fit(rows).offset_ == -load_model(out).threshold


def test_the_same_seed_gives_the_same_model_and_another_seed_another(tmp_path: Path) -> None:
    models = []
    for name, seed in [("a", "1"), ("b", "1"), ("c", "2")]:
        (tmp_path / name).mkdir()
        models.append(load_model(trained(tmp_path / name, *SMALL, "--seed", seed)))
    first, again, other = models
    assert first.metadata.sha256 == again.metadata.sha256
    assert first.version == again.version != other.version


def test_labels_of_a_history_are_measured_but_never_learned(tmp_path: Path) -> None:
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    labelled = load_model(trained(tmp_path / "with", "--history", str(history(tmp_path))))
    unlabelled = load_model(trained(tmp_path / "without", "--history", str(history(tmp_path, fraud=False))))
    assert labelled.metadata.metrics["labelled"]["roc_auc"] > 0.9
    assert labelled.metadata.metrics["labelled"]["fraud_share"] == pytest.approx(0.02)
    assert "labelled" not in unlabelled.metadata.metrics
    assert labelled.version == unlabelled.version


def test_the_tutorials_population_trains_on_the_tutorials_features(tmp_path: Path) -> None:
    out = trained(tmp_path, *SMALL, "--population", "tutorial", "--features", "amount,txn_per_hour")
    model = load_model(out)
    assert "tutorial" in model.metadata.window.source
    risk, _ = model.score(np.array([[250, 7]], np.float32))
    assert 0 < risk[0] < 1


@pytest.mark.parametrize("contamination", ["auto", "0.1"])
def test_contamination_sets_the_threshold(tmp_path: Path, contamination: str) -> None:
    model = load_model(trained(tmp_path, *SMALL, "--contamination", contamination))
    if contamination == "auto":
        assert model.threshold == 0.5
    else:
        assert model.metadata.metrics["share_flagged"] == pytest.approx(0.1, abs=0.02)


def test_an_infinite_fact_trains_as_the_largest_finite_one_and_scores_as_that(tmp_path: Path) -> None:
    out = trained(tmp_path, *SMALL, "--features", "amount,seconds_since_last")
    model = load_model(out)
    facts = [facts for _, facts in replay(read_history(None, users=60, days=3))]
    rows = model.rows(facts)
    assert np.isinf(rows[:, 1]).sum() > 20
    np.testing.assert_array_equal(model.score(rows)[0], model.score(bounded(rows.copy(), model.features))[0])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--trees", "0"), "--trees"),
        (("--trees", "1.5"), "--trees"),
        (("--seed", "-1"), "--seed"),
        (("--contamination", "0.7"), "--contamination"),
        (("--contamination", "some"), "--contamination"),
        (("--features", "amount,nonsense"), "nonsense"),
        (("--features", "amount,user"), "user"),
        (("--features", "amount,amount"), "twice"),
        (("--users", "none"), "--users"),
        (("--days", "0"), "--days"),
        (("--population", "martian"), "martian"),
        (("--nonsense",), "--nonsense"),
        (("--history", "there/is/none.csv"), "none.csv"),
        (("--history", "past.csv", "--users", "3"), "--users"),
        (("--out", "model.json"), "--out"),
        (("--out", "no/such/folder/model.pkl"), "no/such/folder"),
        (("--users", "1", "--days", "0.0001"), "transactions"),
    ],
)
def test_a_wrong_argument_ends_in_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str],
    word: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert word in refusal(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_row_leaves_the_model_that_was_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = history(tmp_path)
    out = trained(tmp_path, "--history", str(path))
    before = {each: each.read_bytes() for each in tmp_path.glob("fraud_model*")}
    capsys.readouterr()
    path.write_text(path.read_text() + "\nnever,u1,m,1,0")
    assert "line 402" in refusal(capsys, "--out", str(out), "--history", str(path))
    assert {each: each.read_bytes() for each in tmp_path.glob("fraud_model*")} == before


def test_a_full_disk_leaves_the_model_that_was_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = trained(tmp_path, *SMALL)
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    capsys.readouterr()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train.os, "fsync", full)
    assert "No space left" in refusal(capsys, "--out", str(out), *SMALL, "--seed", "9")
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "training.train", *SMALL, "--out", str(tmp_path / "m.pkl")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""  # no bar where there is no terminal, and no warning
    assert load_model(tmp_path / "m.pkl").metadata.window.rows > 300
