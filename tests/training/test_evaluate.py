"""The evaluation as a command: what it writes, where its labels come from, and that nothing of the future leaks."""

import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

from dataflow.events.parsing import event_time
from dataflow.simulation.simulator import history
from tests.support.builders import DAY, iso
from training.evaluate import decisions_table, table, weeks_table
from training.evaluate import main as evaluate
from training.evaluation.options import parse
from training.fitting.tiers import all_tiers
from training.histories.labels import read_labels

pytestmark = pytest.mark.slow

BEGIN = datetime(2026, 1, 5, tzinfo=UTC).timestamp()
TEST, END = BEGIN + 21 * DAY, BEGIN + 28 * DAY
COLUMNS = (
    *("transaction_id", "timestamp", "user", "merchant", "amount", "location", "device", "txn_type"),
    *("latitude", "longitude"),
)
LABELS = "transaction_id,fraud,labelled_at\n"


class Past:
    """A small labelled history as files: one with its truth, one without, and labels of a week's delay."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows = list(history(7, 300, 28))
        self.truth = {each.transaction_id: each.fraud for each in self.rows}
        self.at = {each.transaction_id: each.at for each in self.rows}
        self.labelled = self._history("labelled.csv", truth=True)
        self.unlabelled = self._history("unlabelled.csv", truth=False)

    def _history(self, name: str, *, truth: bool) -> Path:
        path = self.folder / name
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow((*COLUMNS, *(["fraud"] if truth else [])))
            for each in self.rows:
                values = [getattr(each, column) for column in COLUMNS]
                writer.writerow((*values, *([int(each.fraud)] if truth else [])))
        return path

    def labels(self, name: str, **changed: tuple[bool, float] | None) -> Path:
        """Labels a week after their transactions; `changed` ones are otherwise, or missing."""
        path = self.folder / name
        lines = []
        for number, fraud in self.truth.items():
            label = changed.get(number, (fraud, self.at[number] + 7 * DAY))
            if label is not None:
                lines.append(f"{number},{int(label[0])},{iso(label[1])}\n")
        path.write_text(LABELS + "".join(lines))
        return path


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Past:
    return Past(tmp_path_factory.mktemp("past"))


def run(past: Past, out: str, *more: str, history: Path | None = None) -> tuple[str, dict[str, Any]]:
    """scores.csv as text, and metrics.json."""
    times = ["--train-from", iso(BEGIN), "--test-from", iso(TEST), "--test-until", iso(END)]
    given = ["--history", str(history or past.unlabelled), *times, "--seeds", "1", "--tiers", "feedback"]
    folder = past.folder / out
    assert evaluate([*given, *more, "--out", str(folder)]) == 0
    return (folder / "scores.csv").read_text(), json.loads((folder / "metrics.json").read_text())


def test_weeks_and_seeds_are_told_in_their_order_and_the_first_seed_decides(past: Past) -> None:
    _, metrics = run(past, "seeds", "--weeks", "2", "--seeds", "2", "1", history=past.labelled)
    told = list(dict.fromkeys((each["week"], each["seed"]) for each in metrics["runs"]))
    first, second = sorted({week for week, _ in told})
    assert told == [(first, 2), (first, 1), (second, 2), (second, 1)]
    assert [week["week"] for week in metrics["decisions"]["weeks"]] == [first, second]


def unlabelled(scores: str) -> str:
    """All but the truth, which no decision knew."""
    rows = csv.DictReader(scores.splitlines())
    return "\n".join(",".join(value for name, value in row.items() if name != "label") for row in rows)


@pytest.fixture(scope="module")
def plain(past: Past) -> tuple[str, dict[str, Any]]:
    return run(past, "plain", "--labels", str(past.labels("plain.csv")))


def test_labels_in_a_file_do_what_a_column_and_a_delay_do(past: Past, plain: tuple[str, dict[str, Any]]) -> None:
    scores, metrics = run(past, "delay", "--label-delay", "7d", history=past.labelled)
    assert scores == plain[0]
    assert metrics["tiers"] == plain[1]["tiers"]


def test_every_transaction_of_the_window_has_one_line(past: Past, plain: tuple[str, dict[str, Any]]) -> None:
    rows = list(csv.DictReader(plain[0].splitlines()))
    assert [row["transaction_id"] for row in rows] == [each.transaction_id for each in past.rows if each.at >= TEST]
    assert all(0.0 <= float(row["score"]) <= 1.0 for row in rows)


def test_a_line_says_who_when_how_much_what_it_was_and_what_each_tier_says(
    past: Past, plain: tuple[str, dict[str, Any]]
) -> None:
    reader = csv.DictReader(plain[0].splitlines())
    of_tiers = ["score_isolation_forest", "score_evidence", "score_feedback"]
    assert reader.fieldnames == [
        *("transaction_id", "user", "timestamp", "amount", "label"),
        *of_tiers,
        *("score", "fraudulent", "action", "reason"),
    ]
    rows = list(reader)
    for row, each in zip(rows, (each for each in past.rows if each.at >= TEST), strict=True):
        assert (row["user"], float(row["amount"]), row["label"]) == (each.user, each.amount, str(int(each.fraud)))
        assert event_time(row["timestamp"]) == pytest.approx(each.at, abs=1e-5)
        assert all(0.0 <= float(row[tier]) <= 1.0 for tier in of_tiers)
        assert row["fraudulent"] in ("0", "1")
    assert any(row["label"] == "1" for row in rows)


def test_the_columns_are_those_that_the_measures_are_of(past: Past) -> None:
    # With known cards among what is measured it is every line: so each tier's figure is that of its column.
    scores, metrics = run(past, "known", "--keep-known-cards", history=past.labelled)
    rows = [row for row in csv.DictReader(scores.splitlines()) if row["label"]]
    for tier, figures in metrics["tiers"].items():
        found = roc_auc_score([row["label"] == "1" for row in rows], [float(row[f"score_{tier}"]) for row in rows])
        assert found == pytest.approx(figures["roc_auc"]["mean"], abs=1e-9), tier


def test_what_is_not_known_has_no_label_in_its_line(past: Past) -> None:
    number = next(each.transaction_id for each in past.rows if each.at >= TEST)
    scores, _ = run(past, "unknown", "--labels", str(past.labels("unknown.csv", **{number: None})))
    labels = {row["transaction_id"]: row["label"] for row in csv.DictReader(scores.splitlines())}
    assert [each for each, label in labels.items() if label == ""] == [number]


def test_its_table_fits_80_columns(plain: tuple[str, dict[str, Any]]) -> None:
    figures = {name: {"mean": 0.123, "std": 0.045} for name in next(iter(plain[1]["tiers"].values()))}
    figures |= {"alerts_a_day": {"mean": 12345.6, "std": 678.1}}
    metrics = plain[1] | {"tiers": dict.fromkeys(all_tiers("supervised"), figures)}
    console = Console(file=io.StringIO(), width=80)
    console.print(table(metrics))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    (alerts,) = [line for line in lines if line.startswith("alerts a day")]
    assert alerts.split() == ["alerts", "a", "day", *["12,346", "±", "678"] * 4]
    assert [line.count("0.123 ± 0.045") for line in lines].count(4) == 6
    assert " ".join(lines[1].split()) == "isolation"
    assert lines[2].split() == ["forest", "evidence", "feedback", "supervised"]


def test_a_history_with_labels_under_another_name_is_asked_for_them(
    past: Past, tmp_path: Path, capsys: pytest.CaptureFixture[str], plain: tuple[str, dict[str, Any]]
) -> None:
    named = tmp_path / "named.csv"
    named.write_text(past.labelled.read_text().replace(",fraud", ",isFraud", 1))
    times = ["--train-from", iso(BEGIN), "--test-from", iso(TEST), "--test-until", iso(END), "--out", str(tmp_path)]
    assert evaluate(["--history", str(named), *times]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--label-column isFraud" in said
    assert "--label-column none" in said
    assert run(past, "named", "--label-column", "isFraud", history=named)[0] == plain[0]
    labels = str(past.labels("beside.csv"))
    assert run(past, "beside", "--labels", labels, history=named)[0] == plain[0]  # the history's own are not read
    assert evaluate(["--history", str(named), *times, "--labels", labels, "--label-column", "isFraud"]) == 2
    assert "--labels names a file of them" in capsys.readouterr().err


def test_no_label_of_the_future_moves_a_score(past: Past, plain: tuple[str, dict[str, Any]]) -> None:
    """Labels that come after the test, turned round or left out: nobody could know them while it ran."""
    late = [number for number, at in past.at.items() if at + 7 * DAY >= END]
    turned: dict[str, tuple[bool, float] | None] = {
        number: (not past.truth[number], past.at[number] + 7 * DAY) for number in late
    }
    scores, _ = run(past, "turned", "--labels", str(past.labels("turned.csv", **turned)))
    assert unlabelled(scores) == unlabelled(plain[0])
    gone: dict[str, tuple[bool, float] | None] = dict.fromkeys(late[::2])
    scores, metrics = run(past, "gone", "--labels", str(past.labels("gone.csv", **gone)))
    assert unlabelled(scores) == unlabelled(plain[0])
    # What has no label is not measured, though it is scored.
    figures = [each["tiers"]["feedback"]["transactions"]["mean"] for each in (metrics, plain[1])]
    assert figures[0] < 0.6 * figures[1]


def test_no_label_of_the_future_trains_a_model_or_chooses_its_operating_point(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Likewise of transactions in the training window, where there is a model that learns from labels."""
    monkeypatch.setattr("training.fitting.tiers.FEWEST_FRAUDS", 10)
    late = [number for number, at in past.at.items() if at >= TEST - 7 * DAY]
    scores, points = [], []
    for turn in (False, True):
        changed: dict[str, tuple[bool, float] | None] = {
            number: (past.truth[number] != turn, END + DAY) for number in late
        }
        labels = str(past.labels(f"late-{turn}.csv", **changed))
        given = ("--labels", labels, "--tiers", "supervised", "--cost-of-alert", "10")
        found, metrics = run(past, f"late-{turn}", *given)
        scores.append(found)
        points.append([(week["alert_threshold"], week["promised"]) for week in metrics["decisions"]["weeks"]])
    assert unlabelled(scores[0]) == unlabelled(scores[1])
    assert points[0] == points[1]


def test_labels_that_come_in_time_do_move_scores(past: Past, plain: tuple[str, dict[str, Any]]) -> None:
    known = [number for number, at in past.at.items() if TEST - 3 * DAY < at < TEST - 2 * DAY]
    early: dict[str, tuple[bool, float] | None] = dict.fromkeys(known[:30], (True, TEST - DAY))
    scores, _ = run(past, "early", "--labels", str(past.labels("early.csv", **early)))
    assert unlabelled(scores) != unlabelled(plain[0])


def test_the_decisions_are_counted_as_they_stand_in_the_scores(past: Past) -> None:
    kept = ["--labels", str(past.labels("kept.csv")), "--keep-known-cards"]
    scores, metrics = run(past, "kept", *kept)
    alerts = [row["transaction_id"] for row in csv.DictReader(scores.splitlines()) if row["fraudulent"] == "1"]
    tested = [number for number, at in past.at.items() if at >= TEST]
    decisions = metrics["decisions"]
    assert decisions["all"]["alerts"] == len(alerts) > 0
    right = sum(past.truth[number] for number in alerts)
    assert decisions["all"]["precision"] == pytest.approx(right / len(alerts))
    assert decisions["all"]["recall"] == pytest.approx(right / sum(past.truth[number] for number in tested))
    assert decisions["all"]["alerts_a_day"] == pytest.approx(len(alerts) / 7, rel=0.02)
    by_rule = sum(rule["alerts"] for rule in decisions["by_rule"].values())
    assert by_rule >= len(alerts)
    page = (past.folder / "kept" / "report.html").read_text()
    assert all(rule in page for rule in decisions["by_rule"])


def counted(past: Past, alerts: list[str]) -> dict[str, float]:
    """The figures of some alerts of the week, counted anew."""
    frauds = [each for each in past.rows if each.at >= TEST and each.fraud]
    hits = [each for each in frauds if each.transaction_id in set(alerts)]
    return {
        "alerts": len(alerts),
        "precision": len(hits) / len(alerts),
        "recall": len(hits) / len(frauds),
        "money_caught": sum(each.amount for each in hits) / sum(each.amount for each in frauds),
    }


def test_alerts_of_rules_and_model_are_told_apart_and_together_known_cards_too(past: Past) -> None:
    options = ["--labels", str(past.labels("apart.csv")), "--alerts-per-day", "20", "--block-precision", ".2"]
    scores, metrics = run(past, "apart", *options)
    decisions = metrics["decisions"]
    rows = list(csv.DictReader(scores.splitlines()))
    of_all = [row["transaction_id"] for row in rows if row["fraudulent"] == "1"]
    of_model = [row["transaction_id"] for row in rows if "ML anomaly detection" in row["reason"].split(" | ")]
    of_rules = [
        row["transaction_id"]
        for row in rows
        if any(reason and not reason.startswith("ML ") for reason in row["reason"].split(" | "))
    ]
    assert 0 < len(of_rules) < len(of_all) < len(of_rules) + len(of_model)
    for name, alerts in (("all", of_all), ("model_alone", of_model), ("rules_alone", of_rules)):
        for figure, value in counted(past, alerts).items():
            assert decisions[name][figure] == pytest.approx(value), (name, figure)
    threshold = decisions["weeks"][0]["alert_threshold"]
    assert set(of_model) == {row["transaction_id"] for row in rows if float(row["score_feedback"]) >= threshold}
    assert {row["action"] for row in rows} <= {"approve", "review", "block"}
    assert all((row["action"] != "approve") == (row["fraudulent"] == "1") for row in rows)
    blocked = [row["transaction_id"] for row in rows if row["action"] == "block"]
    assert decisions["blocked"]["alerts"] == len(blocked) > 0
    for kind, figures in decisions["by_scenario"].items():  # labels in a file name no scenario
        assert kind
        assert 0 <= figures["recall_rules"] <= figures["recall_all"] <= 1


def test_the_promise_stands_beside_what_came_each_week(past: Past) -> None:
    _, metrics = run(past, "weekly", "--weeks", "2", "--alerts-per-day", "20", history=past.labelled)
    decisions = metrics["decisions"]
    assert decisions["chosen_by"] == "--alerts-per-day 20"
    first, second = decisions["weeks"]
    assert first["alert_threshold"] != second["alert_threshold"]  # each chosen in its own window
    for week in (first, second):
        promised, came = week["promised"], week["came"]
        assert promised["alerts_a_day"]["value"] <= 20
        assert promised["alerts_a_day"]["low"] < 20 < promised["alerts_a_day"]["high"]
        assert promised["recall"]["low"] < promised["recall"]["value"] < promised["recall"]["high"]
        assert came["alerts_a_day"] == pytest.approx(20, rel=0.5)
    alerts = first["came"]["alerts"] + second["came"]["alerts"]
    assert alerts == decisions["all"]["alerts"]
    page = (past.folder / "weekly" / "report.html").read_text()
    assert "Promised" in page
    console = Console(file=io.StringIO(), width=80)
    console.print(decisions_table(metrics), weeks_table(metrics))
    printed = console.file.getvalue().splitlines()
    assert max(map(len, printed)) <= 80
    assert any(f"{first['came']['alerts_a_day']:.1f}" in line for line in printed)
    assert any(line.startswith("both: fraud_alerts") for line in printed)


@pytest.mark.parametrize("option", [("--alert-rate", "0.02"), ("--precision", "0.3"), ("--cost-of-alert", "20")])
def test_each_option_chooses_the_operating_point(past: Past, option: tuple[str, str]) -> None:
    _, metrics = run(past, f"by{option[0]}", *option, history=past.labelled)
    decisions = metrics["decisions"]
    assert decisions["chosen_by"] == f"{option[0]} {float(option[1]):g}"
    came = decisions["model_alone"]
    if option[0] == "--alert-rate":
        days = [each for each in past.rows if each.at >= TEST]
        assert decisions["all"]["alerts"] == pytest.approx(0.02 * len(days), rel=0.4)
    elif option[0] == "--precision":
        assert came["precision"] == pytest.approx(0.3, abs=0.12)
    assert came["alerts"] > 0


def test_other_rules_decide_where_a_file_names_them(
    past: Past, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nid = "large"\nwhen = "amount > 300"\nreason = "large"\naction = "block"\n')
    scores, metrics = run(past, "other", "--rules", str(rules), history=past.labelled)
    assert list(metrics["decisions"]["by_rule"]) == ["large"]
    rows = list(csv.DictReader(scores.splitlines()))
    assert {row["action"] for row in rows} == {"approve", "block"}
    assert all((row["action"] == "block") == (float(row["amount"]) > 300) for row in rows)
    assert metrics["decisions"]["blocked"] == metrics["decisions"]["all"]
    times = ["--train-from", iso(BEGIN), "--test-from", iso(TEST), "--test-until", iso(END), "--out", str(tmp_path)]
    assert evaluate(["--history", str(past.labelled), *times, "--rules", "none.toml"]) == 2
    assert "none.toml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "transaction_id,labelled_at\nx,2026-01-05\n",
            ["no column fraud", "takes transaction_id, fraud, labelled_at"],
        ),
        (LABELS + "x,1,2026-01-05\n,1,2026-01-05\n", ["line 3", "no transaction_id"]),
        (LABELS + "x,maybe,2026-01-05\n", ["line 2", "'maybe'", "neither 0 nor 1"]),
        (LABELS + "x,1,soon\n", ["line 2", "'soon'", "ISO 8601"]),
        (LABELS + "x,1\n", ["line 2", "ISO 8601"]),
    ],
)
def test_a_wrong_labels_file_is_told_with_its_line(
    past: Past, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str]
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(text)
    times = ["--train-from", iso(BEGIN), "--test-from", iso(TEST), "--test-until", iso(END)]
    given = ["--history", str(past.unlabelled), "--labels", str(labels), *times, "--out", str(tmp_path / "out")]
    assert evaluate(given) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(labels) in said
    assert all(word in said for word in words), said


def test_of_two_labels_of_a_transaction_the_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(LABELS + "x,0,2026-01-05\nx,1,2026-01-06\n")
    assert read_labels(path, timed=True)["x"].fraud


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--test-from", "tomorrow"], "ISO 8601"),
        (["--label-delay", "7"], "no time such as 12h or 7d"),
        (["--weeks", "0"], "--weeks"),
        (["--alerts-per-day", "0"], "--alerts-per-day"),
        (["--alert-rate", "0.1", "--precision", "0.5"], "not allowed with argument"),
        (["--precision", "0.999"], "reach"),
        (["--test-until", iso(BEGIN)], "must lie before"),
        (["--history", "no-such.csv"], "no-such.csv"),
        (["--train-from", iso(BEGIN - 90 * DAY), "--test-from", iso(BEGIN - 80 * DAY)], "cannot train"),
        (["--test-from", iso(END + DAY), "--test-until", iso(END + 2 * DAY)], "needs both fraud and genuine"),
    ],
)
def test_wrong_arguments_end_in_one_line(
    past: Past, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], word: str
) -> None:
    times = ["--train-from", iso(BEGIN), "--test-from", iso(TEST), "--test-until", iso(END)]
    given = ["--history", str(past.labelled), *times, "--seeds", "1", "--tiers", "feedback", "--out", str(tmp_path)]
    assert evaluate([*given, *more]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("redflag: ")]
    assert len(said) == 1
    assert word in said[0], said


def test_options_have_the_defaults_that_the_help_names() -> None:
    times = ["--train-from", "2026-01-05", "--test-from", "2026-01-26", "--test-until", "2026-02-02"]
    options = parse(["--history", "past.csv", *times, "--out", "out"])
    assert (options.delay, options.weeks, options.seeds) == (7 * DAY, 1, [1, 2, 3])
