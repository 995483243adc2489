"""Training: from a history to a model that the flow can load, the same again for the same seed."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score

from dataflow.rules import load_rules
from dataflow.scoring.loading import load_model
from dataflow.settings import Settings
from dataflow.simulation.simulator import history as simulate
from tests.support.builders import DAY, NOON, iso
from tests.support.pictures import SIGNATURE
from tests.support.replaying import replayed_rows
from training.fitting.infinities import bounded
from training.fitting.options import TREES, parse
from training.fitting.tiers import TREES as TIER_TREES
from training.histories.history import after, read_history
from training.histories.replay import replay
from training.operating_points.operating_points import rule_alerts
from training.train import main

pytestmark = pytest.mark.slow

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


@pytest.mark.usefixtures("drawn")
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
    assert {"python", "scikit-learn", "numpy", "numba"} <= set(meta["versions"])
    assert meta["window"]["rows"] > 300
    assert meta["window"]["first"] < meta["window"]["last"]
    assert meta["metrics"]["threshold"] == model.threshold
    assert meta["metrics"]["training_data"]["share_flagged"] == pytest.approx(0.01, abs=0.005)
    assert out.with_suffix(".png").read_bytes()[:8] == SIGNATURE
    assert len(out.with_suffix(".png").read_bytes()) > 5000
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"fraud_model.{end}" for end in ("json", "pkl", "png")]


def test_the_rows_that_it_trains_on_are_those_that_serving_scores(tmp_path: Path) -> None:
    out = trained(tmp_path, "--history", str(history(tmp_path)), "--trees", "30")
    rows = replayed_rows(read_history(tmp_path / "past.csv"), ["amount", "txn_per_hour"])
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


def test_the_lower_tiers_measure_the_labels_of_a_history_but_never_learn_them(tmp_path: Path) -> None:
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    given = ("--tiers", "feedback", "--history")
    labelled = load_model(trained(tmp_path / "with", *given, str(history(tmp_path))))
    unlabelled = load_model(trained(tmp_path / "without", *given, str(history(tmp_path, fraud=False))))
    later = labelled.metadata.metrics["later_data"]
    assert later["tiers"]["isolation_forest"]["roc_auc"] > 0.9
    assert later["labelled"]["fraud_share"] == pytest.approx(0.02)
    assert "labelled" not in unlabelled.metadata.metrics["later_data"]
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
        assert model.metadata.metrics["training_data"]["share_flagged"] == pytest.approx(0.1, abs=0.02)


def test_an_infinite_feature_trains_as_the_largest_finite_one_and_scores_as_that(tmp_path: Path) -> None:
    out = trained(tmp_path, *SMALL, "--features", "amount,seconds_since_last")
    model = load_model(out)
    rows = replayed_rows(read_history(None, users=60, days=3), model.features)
    assert np.isinf(rows[:, 1]).sum() > 20
    np.testing.assert_array_equal(
        model.score(rows)[0], model.score(bounded(rows, model.features, ["isolation_forest"]))[0]
    )


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
        (("--alerts-per-day", "0"), "--alerts-per-day"),
        (("--precision", "1.5"), "--precision"),
        (("--alert-rate", "0.1", "--cost-of-alert", "3"), "not allowed with argument"),
        (("--trees", "5", "--alerts-per-day", "9"), "--contamination"),
        (("--rules", "none.toml", "--users", "5"), "none.toml"),
        (("--history", "there/is/none.csv"), "none.csv"),
        (("--history", "past.csv", "--users", "3"), "--users"),
        (("--label-column", "Class"), "--label-column"),
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
    assert "line 402" in refusal(capsys, "--force", "--out", str(out), "--history", str(path))
    assert {each: each.read_bytes() for each in tmp_path.glob("fraud_model*")} == before


def test_a_full_disk_leaves_the_model_that_was_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = trained(tmp_path, *SMALL)
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    capsys.readouterr()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in refusal(capsys, "--force", "--out", str(out), *SMALL, "--seed", "9")
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


# ------------------------------------------------------------------------------------------ measured on what came later


def labelled_history(path: Path, rows: int = 1600, users: int = 40, **change: object) -> Path:
    """A transaction a quarter of an hour, every tenth a fraud; `later` multiplies the amounts of the last quarter."""
    random = np.random.default_rng(1)
    later = change.get("later", 1.0)
    lines = [f"timestamp,user,merchant,amount,{change.get('column', 'fraud')}"]
    for i in range(rows):
        bad = i % 10 == 3
        amount = random.uniform(1, 50) * (5 if bad else 1) * (later if i >= rows * 3 // 4 else 1)
        lines.append(f"{iso(NOON + 900 * i)},u{i % users},m{i % 7},{amount:.2f},{int(bad)}")
    path.write_text("\n".join(lines))
    return path


def test_its_figures_are_of_later_transactions_by_a_model_of_the_earlier_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = labelled_history(tmp_path / "past.csv")
    out = trained(tmp_path, "--history", str(path), "--trees", "30")
    said = capsys.readouterr().out

    past = list(read_history(path))
    rows = replayed_rows(past, ["amount", "txn_per_hour"])
    fraud = np.array([each.fraud for each in past])
    forest = IsolationForest(n_estimators=30, contamination=0.01, random_state=42).fit(rows[:1200])
    expected = average_precision_score(fraud[1200:], -forest.score_samples(rows[1200:]))
    metrics = json.loads(out.with_suffix(".json").read_text())["metrics"]
    later = metrics["later_data"]
    assert later["tiers"]["isolation_forest"]["average_precision"] == pytest.approx(expected, abs=1e-5)
    assert later["threshold"] == pytest.approx(-forest.offset_)
    assert later["labelled"]["rows"] == later["window"]["rows"] == 400
    assert (later["fitted_to"]["rows"], later["fitted_to"]["last"]) == (1200, iso(NOON + 900 * 1199))
    assert (later["window"]["first"], later["window"]["last"]) == (iso(NOON + 900 * 1200), iso(NOON + 900 * 1599))
    whole = IsolationForest(n_estimators=30, contamination=0.01, random_state=42).fit(rows)
    assert metrics["threshold"] == pytest.approx(-whole.offset_)

    words = " ".join(said.split())
    assert f"average precision {expected:.3f}" in words
    assert f"fitted to all 1,600 transactions from {iso(NOON)[:16]} to {iso(NOON + 900 * 1599)[:16]}" in words
    assert f"on the later 400 transactions from {iso(NOON + 900 * 1200)[:16]} to" in words
    assert "after a fit to the 1,200 transactions from" in words


def test_nothing_of_the_later_part_is_in_the_model_that_is_measured(tmp_path: Path) -> None:
    """Not even what amounts are like among all."""
    thresholds = []
    for later in (1.0, 7.0):
        path = labelled_history(tmp_path / "past.csv", rows=600, later=later)
        metrics = load_model(trained(tmp_path, "--history", str(path), "--force")).metadata.metrics
        thresholds.append((metrics["later_data"]["threshold"], metrics["threshold"]))
    assert thresholds[0][0] == thresholds[1][0]
    assert thresholds[0][1] != thresholds[1][1]


def test_a_history_too_short_to_be_split_says_so_and_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = trained(tmp_path, "--history", str(history(tmp_path, rows=2)), "--trees", "5")
    assert "only 1 transactions lie before" in capsys.readouterr().out
    assert "before the last quarter" in load_model(out).metadata.metrics["later_data"]["not_measured"]


def test_where_the_earlier_part_has_too_few_labels_it_says_so_and_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.fitting.tiers.FEWEST_FRAUDS", 100)
    path = labelled_history(tmp_path / "past.csv")
    trained(tmp_path, "--history", str(path), "--tiers", "supervised", "--label-delay", "5d")
    words = " ".join(capsys.readouterr().out.split())
    assert "measured not: 72 frauds among 721 labels known in time, 100 are needed" in words


def test_it_says_that_labels_would_allow_the_tier_that_learns_from_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str) -> str:
        trained(tmp_path, "--force", "--history", str(path), "--label-delay", "1d", *arguments)
        return " ".join(capsys.readouterr().out.split())

    path = labelled_history(tmp_path / "past.csv")
    hint = "151 frauds are known, enough for a tier that learns from them: --tiers supervised"
    assert hint in said("--trees", "5")
    assert "frauds are known" not in said("--trees", "5", "--label-column", "none")
    labelled_history(path, rows=400)
    assert "frauds are known" not in said("--trees", "5")


def test_what_it_prints_fits_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = labelled_history(tmp_path / "past.csv")
    trained(tmp_path, "--history", str(path))
    printed = capsys.readouterr().out.replace(str(tmp_path), "")
    assert max(map(len, printed.splitlines())) <= 80
    for tier in ("isolation_forest", "evidence", "feedback"):
        assert re.search(rf"^ +{tier} +average precision \d\.\d+, ROC AUC \d\.\d+$", printed, re.MULTILINE), printed


# ------------------------------------------------------------------------------------------------- the operating point


def simulated(path: Path, days: float, turned_from: float = np.inf) -> Path:
    """200 users of the simulation; labels of what lies after `turned_from`, in days, are the wrong way round."""
    names = ("transaction_id", "timestamp", "user", "merchant", "amount", "location", "device", "txn_type")
    names = (*names, "latitude", "longitude", "category")
    rows = list(simulate(11, 200, days))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((*names, "fraud"))
        for each in rows:
            turn = each.at > rows[0].at + turned_from * DAY
            writer.writerow((*(getattr(each, name) for name in names), int(each.fraud != turn)))
    return path


@pytest.fixture(scope="module")
def budgeted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four weeks, for 20 alerts a day."""
    folder = tmp_path_factory.mktemp("budgeted")
    return trained(folder, "--history", str(simulated(folder / "past.csv", 28)), "--alerts-per-day", "20")


def test_as_many_alerts_as_promised_come_on_a_later_part_of_the_simulation(tmp_path: Path) -> None:
    """Of 600 people: among fewer a single merchant that is breached, or no more, moves the week."""
    seed, users, days = 7, 600, 49
    life = ("--seed", str(seed), "--users", str(users), "--days", str(days))
    model = load_model(trained(tmp_path, *life, "--alerts-per-day", "30"))
    assert model.metadata.tiers[-1] == "supervised"
    point = model.operating_point
    assert point.expected is not None
    assert point.chosen_by == "--alerts-per-day 30"
    assert point.expected.alerts_a_day.value == pytest.approx(30, rel=0.02)
    past = read_history(None, seed=seed, users=users, days=days + 7)
    ((lived, batch),) = replay(past, model.amount_prior, after(7 * DAY), batch=1_000_000)
    at = np.asarray(batch.column("timestamp"))
    later = np.flatnonzero(at > at[-1] - 7 * DAY).tolist()
    last_week = batch.part(later)
    risk, anomaly = model.score(last_week.floats(model.features))
    of_rules = rule_alerts(load_rules(Settings().rules_file), last_week)
    came = point.alerts(risk, lambda: anomaly) | of_rules
    assert came.sum() / 7 == pytest.approx(30, rel=0.2)
    fraud = np.array([lived[place].fraud for place in later], np.bool_)
    for promised, found in (
        (point.expected.precision, fraud[came].mean()),
        (point.expected.recall, came[fraud].mean()),
    ):
        assert promised is not None
        assert promised.low - 0.1 <= found <= promised.high + 0.1


def test_labels_that_come_after_the_end_move_neither_model_nor_operating_point(budgeted: Path, tmp_path: Path) -> None:
    path = simulated(tmp_path / "past.csv", 28, turned_from=21.1)
    point = load_model(trained(tmp_path, "--history", str(path), "--alerts-per-day", "20")).operating_point
    before = load_model(budgeted).operating_point
    assert point.alert == before.alert
    assert [each.threshold for each in point.curve] == [each.threshold for each in before.curve]
    assert point.expected != before.expected  # what it promises of frauds is measured on these very labels


def test_the_json_has_the_curve_and_the_summary_a_table_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = labelled_history(tmp_path / "past.csv")
    out = trained(tmp_path, "--history", str(path), "--tiers", "feedback", "--precision", ".2")
    said = capsys.readouterr().out
    point = json.loads(out.with_suffix(".json").read_text())["operating_point"]
    assert point["chosen_by"] == "--precision 0.2"
    assert len(point["curve"]) > 20
    assert {"threshold", "alerts_a_day", "precision", "recall", "money_caught"} <= set(point["curve"][9])
    assert point["expected"]["model_precision"]["value"] == pytest.approx(0.2, abs=0.05)
    assert "by a model of the 1,200 before them" in point["measured_on"]
    assert "money caught" in said
    assert f">{point['alert']:8.4f}" in said
    assert load_model(out).operating_point.alert == point["alert"]


def test_a_forest_alone_keeps_its_own_verdict_and_has_a_curve(tmp_path: Path) -> None:
    path = labelled_history(tmp_path / "past.csv")
    model = load_model(trained(tmp_path, "--history", str(path), "--trees", "20"))
    point = model.operating_point
    assert point.of_forest
    assert point.alert == model.threshold
    assert point.expected is not None
    assert point.expected.precision is not None
    assert len(point.curve) > 20
    risk, anomaly = model.score(replayed_rows(read_history(path), model.features))
    assert (point.alerts(risk, lambda: anomaly) == anomaly).all()
    assert point.block is None


@pytest.mark.parametrize("option", [("--precision", ".8"), ("--cost-of-alert", "5"), ("--block-precision", ".9")])
def test_a_choice_that_needs_labels_is_refused_at_once_without_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, ...]
) -> None:
    path = history(tmp_path, fraud=False)
    said = refusal(capsys, "--out", str(tmp_path / "m.pkl"), "--history", str(path), *option)
    assert f"{option[0]} {float(option[1]):g}: needs labels" in said
    assert "--alerts-per-day and --alert-rate work without" in said
    assert not (tmp_path / "m.pkl").exists()


def test_too_few_frauds_for_a_precision_leave_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = history(tmp_path)
    said = refusal(capsys, "--out", str(tmp_path / "m.pkl"), "--history", str(path), "--precision", ".8")
    assert "needs 10 known frauds" in said
    assert "there are 2 and 98" in said
    assert sorted(each.name for each in tmp_path.iterdir()) == ["past.csv"]


def test_where_nothing_later_can_be_measured_it_takes_the_training_scores_and_says_so(tmp_path: Path) -> None:
    path = history(tmp_path, rows=2)
    point = load_model(trained(tmp_path, "--history", str(path), "--tiers", "feedback")).operating_point
    assert "the 2 transactions that it was trained on (only 1 transactions lie before the last quarter)" in (
        point.measured_on
    )


def test_the_default_tier_gives_way_where_labels_are_too_few_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = trained(tmp_path, "--history", str(history(tmp_path)))
    assert load_model(out).metadata.tiers[-1] == "feedback"
    words = " ".join(capsys.readouterr().out.split())
    assert "--tiers supervised, the default, was not to be had: 0 frauds among 0 labels known in time" in words
    unlabelled = history(tmp_path, fraud=False)
    out = trained(tmp_path, "--history", str(unlabelled), "--force")
    assert load_model(out).metadata.tiers[-1] == "feedback"
    assert "was not to be had" not in capsys.readouterr().out


def test_rules_that_do_not_read_the_model_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nid = "high"\nwhen = "amount > 400"\nreason = "high"\n')
    trained(tmp_path, "--history", str(history(tmp_path)), "--trees", "5", "--rules", str(rules))
    assert "reads model_alert" in " ".join(capsys.readouterr().out.split())


# ----------------------------------------------------------------------------------------------------- labels by name


def test_a_history_with_labels_under_another_name_is_asked_for_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = labelled_history(tmp_path / "past.csv", column="is_fraud"), tmp_path / "fraud_model.pkl"
    given = ("--out", str(out), "--history", str(path), "--trees", "5")
    said = refusal(capsys, *given)
    assert "--label-column is_fraud" in said
    assert "--label-column none" in said
    assert not out.exists()
    assert "no such column" in refusal(capsys, *given, "--label-column", "Class")
    assert main([*given, "--label-column", "is_fraud"]) == 0
    assert load_model(out).metadata.metrics["later_data"]["labelled"]["rows"] == 400
    assert main([*given, "--label-column", "none", "--force"]) == 0
    assert "labelled" not in load_model(out).metadata.metrics["later_data"]


# ------------------------------------------------------------------------------------------- what it does not replace


def test_a_model_that_is_there_is_replaced_only_with_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = trained(tmp_path, *SMALL)
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    capsys.readouterr()
    for there in (out, out.with_suffix(".json")):
        said = refusal(capsys, "--out", str(out), *SMALL, "--seed", "9")
        assert f"{there} is there already" in said
        assert "--force" in said
        assert "--out" in said
        assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before
        before.pop(out, None)
        out.unlink(missing_ok=True)  # then its JSON by itself
    first = before[out.with_suffix(".json")]
    trained(tmp_path, "--force", *SMALL, "--seed", "9")
    assert out.with_suffix(".json").read_bytes() != first
    assert load_model(out).metadata.seed == 9


def test_make_train_refuses_and_takes_force(tmp_path: Path) -> None:
    def make(*arguments: str) -> str:
        command = ["make", "-n", *arguments, f"MODEL={tmp_path / 'm.pkl'}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def trains(said: str) -> list[str]:
        return [line.partition("training.train ")[2].strip() for line in said.splitlines() if "training.train " in line]

    out = f"--out {tmp_path / 'm.pkl'}"
    assert trains(make("train")) == [out]
    assert trains(make("train", "TRAIN=--force")) == [f"{out} --force"]
    assert trains(make("detect")) == [out]  # there is none yet
    (tmp_path / "m.pkl").touch()
    assert trains(make("detect")) == []


# -------------------------------------------------------------------------------------------------- defaults and advice


@pytest.mark.parametrize(
    ("arguments", "tiers", "trees", "users", "days"),
    [
        ((), "supervised", None, 3000, 49),
        (("--tiers", "supervised"), "supervised", None, 3000, 49),
        (("--tiers", "feedback"), "feedback", None, 2000, 14),
        (("--trees", "7"), "isolation_forest", 7, 2000, 14),
        (("--features", "amount"), "isolation_forest", 100, 2000, 14),
        (("--population", "tutorial"), "isolation_forest", 100, 57600, 0.0625),
    ],
)
def test_the_help_names_the_defaults_that_apply(
    arguments: tuple[str, ...], tiers: str, trees: int | None, users: int, days: float,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    options = parse(arguments)
    assert (options.tiers[-1], options.users, options.days) == (tiers, users, days)
    assert trees in (None, options.trees)
    assert options.features == ("amount",) if "--features" in arguments else ("amount", "txn_per_hour")
    assert (options.label_delay, options.seed, options.contamination) == (7 * 86400, 42, 0.01)
    with pytest.raises(SystemExit):
        parse(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "default supervised where the history has labels enough to learn from, else feedback; but isolation_forest "
        "with --features, --trees or --population tutorial",
        "where the model raises an alert; default --alert-rate 0.0135",
        "default 0.9 where labels allow it",
        f"of isolation_forest alone; default {TREES}; with other tiers it is always {TIER_TREES}",
        "of isolation_forest alone; default amount,txn_per_hour; other tiers have their own",
        "default 3000 to learn from labels, else 2000; with --population tutorial 57600",
        "default 49 to learn from labels, else 14; with --population tutorial 0.0625",
        "a label comes; default 7d",
        "default: fraud, where there is one",
        "or auto; default 0.01",
        "default 42",
        "default fraud_model.pkl",
    ):
        assert words in said


def advice(capsys: pytest.CaptureFixture[str], folder: Path, path: Path, *arguments: str) -> str:
    return refusal(capsys, "--out", str(folder / "m.pkl"), "--history", str(path), *arguments)


def test_a_feature_that_cannot_be_learned_from_is_told_with_the_option_that_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody comes twice, so there is no time since the last transaction."""
    path = labelled_history(tmp_path / "past.csv", users=1600)
    said = advice(capsys, tmp_path, path, "--tiers", "supervised", "--label-delay", "1d")
    assert "the feature seconds_since_last has no finite value" in said
    assert "take --tiers feedback, which does not read it" in said
    assert "--features" not in said
    assert main(["--out", str(tmp_path / "m.pkl"), "--history", str(path), "--tiers", "feedback"]) == 0
    capsys.readouterr()
    said = advice(capsys, tmp_path, path, "--force", "--features", "amount,seconds_since_last")
    assert "choose --features without it" in said


def test_a_feature_that_all_tiers_read_leaves_the_forest_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = labelled_history(tmp_path / "past.csv", rows=40)
    lines = [line.replace(".", "0" * 40 + ".") for line in path.read_text().splitlines()[1:]]
    path.write_text("timestamp,user,merchant,amount,fraud\n" + "\n".join(lines))
    said = advice(capsys, tmp_path, path)
    assert "--tiers feedback: the feature amount has no finite value" in said
    assert "take --tiers isolation_forest, with --features that leave it out" in said
    assert main(["--out", str(tmp_path / "m.pkl"), "--history", str(path), "--features", "txn_per_hour"]) == 0


def test_too_few_labels_are_told_with_the_option_that_helps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = labelled_history(tmp_path / "past.csv", rows=200, column="verdict")
    said = advice(capsys, tmp_path, path, "--tiers", "supervised")
    assert "0 frauds among 0 labels known in time" in said
    assert "name the column of the history's labels with --label-column" in said
    said = advice(capsys, tmp_path, path, "--tiers", "supervised", "--label-column", "verdict")
    assert "take a longer history, or --tiers feedback" in said
