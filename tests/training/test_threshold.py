"""Moving a model's operating point: what is chosen, on what, and that nothing else of the model changes."""

import io
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from confluent_kafka import Producer
from rich.console import Console

from dataflow.errors import UserError
from dataflow.rules import load_rules
from dataflow.scoring.live_model import LiveModel
from dataflow.scoring.loading import load_model
from dataflow.scoring.metadata import Scorer, Window
from dataflow.scoring.operating_point import OperatingPoint
from dataflow.scoring.tiers import SUPERVISED
from dataflow.settings import Settings
from tests.conftest import Broker
from tests.rules.builders import rule
from tests.rules.test_reloading import Clock
from tests.support.builders import DAY, HOUR, NOON, iso, label
from training.backtesting.run import FromFile, run
from training.fitting.tiers import all_tiers
from training.histories.history import read_history
from training.histories.labels import latest
from training.operating_points.operating_points import Choice, Scored, choose
from training.operating_points.options import parse
from training.operating_points.sources import FEWEST, scored_by_replay
from training.threshold import Figures, around, main
from training.train import main as train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Isolation Forest alone, whose operating point is its own."""
    path = tmp_path_factory.mktemp("model") / "fraud_model.pkl"
    features = ["--features", "amount,txn_per_hour", "--tiers", "isolation_forest"]
    assert train(["--out", str(path), "--users", "60", "--days", "7", "--trees", "10", *features]) == 0
    return path


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,600 transactions of ten days, one in 20 a fraud, which pays far more."""
    random = np.random.default_rng(5)
    lines = ["transaction_id,timestamp,user,merchant,amount,fraud"]
    for n in range(1600):
        fraud = n % 20 == 0
        amount = random.uniform(150, 390) if fraud else random.uniform(5, 160)
        lines.append(f"t{n},{iso(NOON + n * 10 * DAY / 1600)},u{n % 40},m{n % 7},{amount:.2f},{int(fraud)}")
    path = tmp_path_factory.mktemp("past") / "past.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def model_file(trained: Path, tmp_path: Path) -> Path:
    for file in (trained, trained.with_suffix(".json")):
        shutil.copy(file, tmp_path)
    return tmp_path / trained.name


@pytest.fixture
def rules_file(tmp_path: Path) -> Path:
    path = tmp_path / "rules.toml"
    path.write_text(rule("huge", "amount > 380") + rule("ml_anomaly", "model_alert"))
    return path


def described(model_file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(model_file.with_suffix(".json").read_text())
    return found


def point_of(model_file: Path) -> OperatingPoint:
    return msgspec.convert(described(model_file)["operating_point"], OperatingPoint)


def moved(model_file: Path, rules_file: Path, *options: str) -> OperatingPoint:
    assert main(["--model", str(model_file), "--rules", str(rules_file), *options]) == 0
    return point_of(model_file)


# ----------------------------------------------------------------------------------------------------------- by name


def test_a_named_point_takes_the_place_of_the_forests_own_and_nothing_else_changes(
    model_file: Path, rules_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pickled, before = model_file.read_bytes(), described(model_file)
    assert before["operating_point"]["of_forest"] is True
    point = moved(model_file, rules_file, "--at", "0.6", "--block-at", "0.75")
    assert (point.alert, point.block, point.of_forest) == (0.6, 0.75, False)
    assert point.chosen_by == "--at 0.6 --block-at 0.75"
    assert point.expected is None  # nothing was measured that could promise anything
    after = described(model_file)
    assert list(after) == list(before)
    assert {**after, "operating_point": None} == {**before, "operating_point": None}
    assert model_file.read_bytes() == pickled
    model = load_model(model_file)
    assert (model.operating_point, model.version) == (point, before["fingerprint"][:12])
    said = capsys.readouterr()
    assert said.err == ""
    assert f"of model {model.version}" in said.out
    words = " ".join(said.out.split())
    assert "before on the forest's own verdict" in words
    assert "now from a risk of 0.6000 on (--at 0.6 --block-at 0.75); blocks from 0.7500 on" in words
    lines = said.out.splitlines()
    assert max(map(len, lines[1:])) <= 80


def test_what_is_unknown_in_the_json_stays_in_it(model_file: Path, rules_file: Path) -> None:
    path = model_file.with_suffix(".json")
    path.write_text(json.dumps(described(model_file) | {"of a later version": [1, {"x": 0.1}]}))
    moved(model_file, rules_file, "--at", "0.6")
    assert described(model_file)["of a later version"] == [1, {"x": 0.1}]


def test_a_named_point_is_measured_where_a_history_is_named(model_file: Path, rules_file: Path, past: Path) -> None:
    point = moved(model_file, rules_file, "--at", "0.6", "--history", str(past))
    expected = point.expected
    assert expected is not None
    assert expected.threshold == point.alert == 0.6
    assert expected.precision is not None
    assert not point.of_forest
    # The same, counted here.
    seen = replayed(model_file, rules_file, past)
    alerts = (seen.risk >= 0.6) | seen.by_rules
    assert expected.alerts_a_day.value == pytest.approx(alerts.sum() / 5.0, rel=0.01)
    assert expected.precision.value == pytest.approx(seen.fraud[alerts].mean())


def test_a_block_threshold_stays_and_rises_where_the_alert_would_lie_above_it(
    model_file: Path, rules_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved(model_file, rules_file, "--at", "0.5", "--block-at", "0.7")
    assert moved(model_file, rules_file, "--at", "0.6").block == 0.7
    capsys.readouterr()
    assert moved(model_file, rules_file, "--at", "0.8").block == 0.8
    assert "rises with it" in " ".join(capsys.readouterr().out.split())


def test_it_says_where_no_rule_reads_the_models_alert(
    model_file: Path, rules_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules_file.write_text(rule("huge", "amount > 380"))
    moved(model_file, rules_file, "--at", "0.6")
    assert "the model by itself alerts on nothing" in " ".join(capsys.readouterr().out.split())


def test_a_link_to_the_json_stays_one(model_file: Path, rules_file: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = model_file.with_suffix(".json")
    target = path.rename(tmp_path / "elsewhere" / "real.json")
    path.symlink_to(target)
    moved(model_file, rules_file, "--at", "0.6")
    assert path.is_symlink()
    assert json.loads(target.read_text())["operating_point"]["alert"] == 0.6


def test_a_reader_meets_the_json_whole_at_any_moment(model_file: Path, rules_file: Path) -> None:
    path, done = model_file.with_suffix(".json"), threading.Event()
    read: list[float] = []

    def reader() -> None:
        while not done.is_set():
            read.append(json.loads(path.read_text())["operating_point"]["alert"])

    thread = threading.Thread(target=reader)
    thread.start()
    try:
        for n in range(5):
            moved(model_file, rules_file, "--at", f"0.{5 + n}")
    finally:
        done.set()
        thread.join()
    assert len(set(read)) > 1


def test_a_running_flow_takes_up_what_it_writes(model_file: Path, rules_file: Path) -> None:
    model, clock = load_model(model_file), Clock()
    live = LiveModel(model, model_file, 1.0, clock)
    point = moved(model_file, rules_file, "--at", "0.6")
    for _ in range(2):
        clock.now += 1.0
        live.look()
    assert model.operating_point == point


# ---------------------------------------------------------------------------------------------------- from a history


def replayed(model_file: Path, rules_file: Path, past: Path) -> Scored:
    """What a history gives, by the options of the command line."""
    options = parse(["--model", str(model_file), "--alert-rate", "0.1", "--history", str(past)])
    return scored_by_replay(load_model(model_file), load_rules(rules_file), options, Console(quiet=True))


def test_what_is_measured_are_the_decisions_that_the_flow_makes_on_the_later_half(
    model_file: Path, rules_file: Path, past: Path, tmp_path: Path
) -> None:
    seen = replayed(model_file, rules_file, past)
    assert len(seen.risk) == 800
    everything = tmp_path / "all.toml"
    everything.write_text(rule("all", "amount > 0") + rule("huge", "amount > 380", mode="shadow"))
    spool = io.BytesIO()
    run(FromFile(read_history(past)), everything, load_model(model_file), Settings(), spool)
    decided = [json.loads(line) for line in spool.getvalue().splitlines()]
    by_number = {int(d["transaction_id"][1:]): d for d in decided}
    later = [by_number[n] for n in range(800, 1600)]
    np.testing.assert_allclose(seen.risk, [d["model_score"] for d in later], rtol=0, atol=1e-6)
    assert seen.by_rules.tolist() == ["huge" in d["shadow_rules"] for d in later]
    assert seen.amounts.tolist() == [d["amount"] for d in later]
    assert seen.fraud.tolist() == [n % 20 == 0 for n in range(800, 1600)]
    assert seen.labelled.all()


@pytest.mark.parametrize(
    "options",
    [
        ("--alerts-per-day", "12"),
        ("--alert-rate", "0.05"),
        ("--precision", "0.8"),
        ("--cost-of-alert", "20"),
        ("--alert-rate", "0.05", "--block-precision", "0.95"),
    ],
)
def test_a_point_is_chosen_as_training_chooses_it(
    model_file: Path, rules_file: Path, past: Path, options: tuple[str, ...]
) -> None:
    point = moved(model_file, rules_file, *options, "--history", str(past))
    kind: Any = options[0].removeprefix("--").replace("-", "_")
    choice = Choice(kind, float(options[1]), float(options[3]) if len(options) > 2 else None)
    assert point == choose(replayed(model_file, rules_file, past), choice)
    assert point.chosen_by == " ".join(options[:2])
    assert not point.of_forest
    assert load_model(model_file).operating_point == point


def test_the_first_half_of_the_labels_may_be_missing_and_a_file_without_any_keeps_the_block_threshold(
    model_file: Path, rules_file: Path, past: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved(model_file, rules_file, "--at", "0.5", "--block-at", "0.55")
    bare = tmp_path / "bare.csv"
    bare.write_text("\n".join(line.rsplit(",", 1)[0] for line in past.read_text().splitlines()) + "\n")
    point = moved(model_file, rules_file, "--alert-rate", "0.05", "--history", str(bare))
    assert point.expected is not None
    assert point.expected.precision is None
    assert point.block == max(0.55, point.alert)
    assert "the point from which it blocks stays" in " ".join(capsys.readouterr().out.split())


def test_the_rows_that_are_shown_lie_around_the_new_threshold(
    model_file: Path, rules_file: Path, past: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    point = moved(model_file, rules_file, "--precision", "0.8", "--history", str(past))
    shown = around(point).curve
    assert len(shown) == 8
    thresholds = sorted(abs(each.threshold - point.alert) for each in point.curve)
    assert max(abs(each.threshold - point.alert) for each in shown) == thresholds[7]
    out = capsys.readouterr().out
    (marked,) = [line for line in out.splitlines() if line.lstrip().startswith(">")]
    assert f"{point.alert:.4f}" in marked
    assert sum(f"{each.threshold:.4f}" in out for each in shown) == 8


def test_a_simulation_serves_where_nothing_else_is_named(model_file: Path, rules_file: Path) -> None:
    options = ("--alert-rate", "0.02", "--users", "40", "--days", "12")
    point = moved(model_file, rules_file, *options)
    assert "simulation: realistic, 40 users, 12 days, seed 43" in point.measured_on  # not the seed of training
    assert point.expected is not None
    assert point.expected.recall is not None
    assert moved(model_file, rules_file, *options, "--seed", "7") != point


# ---------------------------------------------------------------------- what a supervised model has learned by heart


def learned(model_file: Path, source: str, until: float) -> Scorer:
    """A model that says of itself that it has learned the labels of a source up to a time."""
    model = load_model(model_file)
    window = Window(source=source, first=iso(NOON), last=iso(until), rows=100)
    metadata = msgspec.structs.replace(model.metadata, tiers=all_tiers(SUPERVISED), window=window, seed=42)
    model.metadata = metadata
    return model


def test_a_supervised_model_is_not_measured_on_what_it_has_learned(
    model_file: Path, rules_file: Path, past: Path
) -> None:
    # The file has 160 transactions a day for ten days; the later half is what would be measured.
    def measured(source: str, days: float) -> int:
        options = parse(["--model", str(model_file), "--alert-rate", "0.1", "--history", str(past)])
        model = learned(model_file, source, NOON + days * DAY)
        return len(scored_by_replay(model, load_rules(rules_file), options, Console(quiet=True)).risk)

    assert measured("earlier.csv", 4.0) == 800
    assert measured("earlier.csv", 6.0) == 1600 - 6 * 160 - 1
    assert measured("simulation: realistic, 60 users", 6.0) == 800  # that is no time of this file
    with pytest.raises(UserError, match=r"has learned the labels of .*past.csv up to .*, and 159 later transactions"):
        measured("earlier.csv", 9.0)


def test_a_supervised_model_is_not_measured_on_the_simulation_that_it_has_learned(
    model_file: Path, rules_file: Path
) -> None:
    options = parse(["--model", str(model_file), "--alert-rate", "0.1", "--seed", "42", "--users", "20"])
    model = learned(model_file, "simulation: realistic, 60 users", NOON)
    with pytest.raises(UserError, match="take another seed"):
        scored_by_replay(model, load_rules(rules_file), options, Console(quiet=True))


# -------------------------------------------------------------------------------------------------------- from topics


@pytest.fixture
def settings(broker: Broker, topics: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    made = Settings(
        brokers=broker.bootstrap,
        transactions_topic=topics("transactions"),
        alerts_topic=topics("alerts"),
        classified_topic=topics("classified"),
        invalid_topic=topics("invalid"),
        labels_topic=topics("labels"),
        feedback_topic=topics("feedback"),
    )
    monkeypatch.setenv("KAFKA_BROKERS", made.brokers)
    for name in ("transactions", "alerts", "classified", "invalid", "labels", "feedback"):
        monkeypatch.setenv(f"{name.upper()}_TOPIC", getattr(made, f"{name}_topic"))
    return made


def decision(n: int, version: str, **others: Any) -> dict[str, Any]:
    """As much of a decision as counts; the risk is n / 1000."""
    fields = {
        "transaction_id": f"t{n}",
        "timestamp": iso(NOON + n * HOUR / 4),
        "amount": float(n % 500),
        "fraudulent": False,
        "rules": [],
        "model_version": version,
        "model_score": n % 1000 / 1000,
    }
    return fields | others


def test_a_point_is_chosen_on_the_models_own_decisions_and_the_feedback_on_them(
    settings: Settings, model_file: Path, rules_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = load_model(model_file).version
    producer = Producer({"bootstrap.servers": settings.brokers})

    def put(topic: str, value: Any) -> None:
        producer.produce(topic, value=value if isinstance(value, bytes) else json.dumps(value).encode())

    for n in range(1000):
        # What the model's own rule found is no alert of the other rules; what an allow list excused is none either.
        rules = (
            ["huge"]
            if n % 100 == 0
            else ["ml_anomaly"]
            if n > 900
            else ["allow_friends_user", "huge"]
            if n == 7
            else []
        )
        topic = settings.alerts_topic if rules and "allow_friends_user" not in rules else settings.classified_topic
        put(topic, decision(n, version, rules=rules, fraudulent=topic == settings.alerts_topic))
    for n in range(700):
        put(settings.classified_topic, decision(n, "another model", model_score=1.0))
    put(settings.classified_topic, {"transaction_id": "old", "timestamp": iso(NOON), "amount": 1.0, "rules": []})
    put(settings.classified_topic, b"not json")
    for n in range(800, 1000):
        fraud = n >= 950
        given = {
            "transaction_id": f"t{n}",
            "user": "ann",
            "merchant": "Shop",
            "timestamp": iso(NOON),
            "fraud": not fraud,
            "labelled_at": iso(NOON + DAY),
        }
        put(settings.feedback_topic, given)
        put(settings.feedback_topic, given | {"fraud": fraud, "labelled_at": iso(NOON + 2 * DAY)})  # corrected
    put(settings.feedback_topic, b"not json")
    assert producer.flush(20) == 0
    (rules_file.parent / "friends.txt").write_text("ann\n")
    rules_file.write_text(
        '[lists]\nfriends = "friends.txt"\n[[allow]]\nfield = "user"\nlist = "friends"\n' + rules_file.read_text()
    )

    # 10 alerts of "huge" at 0, 100 … 900; 40 more of the model: those from .960 on.
    point = moved(model_file, rules_file, "--alert-rate", "0.05", "--topics")
    assert point.alert == 0.96
    assert point.measured_on.startswith("1,000 decisions of this model on ")
    assert point.expected is not None
    assert point.expected.precision is not None
    assert point.expected.recall is not None
    # Known are 800 to 999; of the alerts the 40, all frauds, and 800 and 900 of "huge", both genuine.
    assert point.expected.precision.value == pytest.approx(40 / 42)
    assert point.expected.recall.value == pytest.approx(40 / 50)
    said = " ".join(capsys.readouterr().out.split())
    assert "2 messages on" in said
    assert "feedback is known of" in said
    assert moved(model_file, rules_file, "--at", "0.97", "--topics").expected is not None

    # A trial writes nothing, and measures the threshold in service on the same decisions.
    before, out = model_file.with_suffix(".json").read_bytes(), rules_file.parent / "figures.json"
    tried = moved(model_file, rules_file, "--at", "0.5", "--topics", "--last", "1d", "--try", "--json", str(out))
    assert model_file.with_suffix(".json").read_bytes() == before
    assert tried.alert == 0.97
    figures = msgspec.json.decode(out.read_bytes(), type=Figures)
    assert (figures.before.alert, figures.after.alert) == (0.97, 0.5)
    assert (figures.frauds, figures.fraud_money) == (50, pytest.approx(sum(range(450, 500))))
    assert figures.before.expected is not None
    assert figures.after.expected is not None
    assert figures.days is not None
    assert figures.before.expected.alerts_a_day.value * figures.days == pytest.approx(10 + 30)
    assert figures.after.expected.recall is not None
    assert figures.after.expected.recall.value == 1.0
    assert figures.after.measured_on.endswith("in the last 1 days")
    assert "in service" in capsys.readouterr().out
    # What was decided longer ago than is asked for does not count.
    with pytest.raises(AssertionError):
        moved(model_file, rules_file, "--at", "0.5", "--topics", "--last", "0h", "--try")
    assert "hold 0 decisions" in capsys.readouterr().err


def test_too_few_decisions_of_this_model_are_told_with_what_works_without(
    settings: Settings, model_file: Path, rules_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    producer = Producer({"bootstrap.servers": settings.brokers})
    for n in range(FEWEST + 100):
        version = load_model(model_file).version if n < 3 else "another model"
        producer.produce(settings.classified_topic, value=json.dumps(decision(n, version)).encode())
    assert producer.flush(20) == 0
    before = model_file.with_suffix(".json").read_bytes()
    given = ["--model", str(model_file), "--rules", str(rules_file), "--alert-rate", "0.05", "--topics"]
    assert main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "hold 3 decisions of model" in line
    assert f"and {FEWEST + 97} of other models" in line
    assert "take --history or --at" in line
    assert model_file.with_suffix(".json").read_bytes() == before


def test_of_several_labels_on_a_transaction_the_last_counts() -> None:
    labels = [
        label("a", fraud=True, after=DAY),
        label("a", fraud=False, after=3 * DAY),
        label("a", fraud=True, after=2 * DAY),
        "no label",
        label("b", fraud=True),
    ]
    assert latest(labels) == {"a": False, "b": True}


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "say where the model is to raise an alert"),
        (["--at", "1.5"], "'1.5' is no threshold from 0 to 1"),
        (["--at", "-0.1"], "'-0.1' is no threshold from 0 to 1"),
        (["--at", "nan"], "'nan' is no threshold"),
        (["--at", "0.5", "--block-at", "2"], "'2' is no threshold"),
        (["--at", "0.5", "--block-at", "0.4"], "0.4 lies below --at 0.5"),
        (["--block-at", "0.4", "--alert-rate", "0.1"], "--block-at: goes with --at"),
        (["--at", "0.5", "--alert-rate", "0.1"], "--at: names the threshold, and --alert-rate chooses it"),
        (["--at", "0.5", "--block-precision", "0.9"], "name this one with --block-at"),
        (["--block-precision", "0.9"], "say where the model is to raise an alert"),
        (["--alerts-per-day", "0"], "'0' is no number above 0"),
        (["--alerts-per-day", "5", "--alert-rate", "0.1"], "not allowed with"),
        (["--precision", "1.1"], "'1.1' is no share"),
        (["--alert-rate", "0"], "'0' is no share"),
        (["--alert-rate", "0.1", "--topics", "--history", "{past}"], "--history names transactions, too"),
        (["--alert-rate", "0.1", "--last", "7d"], "--last: is for decisions on the topics"),
        (["--alert-rate", "0.1", "--json", "no/folder/out.json"], "there is no folder no/folder"),
        (["--alert-rate", "0.1", "--topics", "--label-delay", "7d"], "labels are as late as they came"),
        (["--alert-rate", "0.1", "--label-column", "fraud"], "--label-column: is for a file"),
        (["--alert-rate", "0.1", "--history", "{past}", "--users", "5"], "--users: is for a simulation"),
        (["--at", "0.5", "--seed", "5"], "--seed: is for a simulation"),
        (["--alert-rate", "0.1", "--history", "none.csv"], "none.csv"),
        (["--precision", "0.9", "--history", "{bare}"], "--alerts-per-day and --alert-rate work without labels"),
        (["--precision", "0.9", "--history", "{genuine}"], "--alerts-per-day and --alert-rate work without labels"),
        (["--alert-rate", "0.1", "--history", "{short}"], "holds 9 transactions, and 1000 are needed"),
        (["--at", "0.5", "--history", "{short}"], "holds 9 transactions, and 1000 are needed"),
        (["--model", "none.pkl", "--at", "0.5"], "there is no model at none.pkl"),
        (["--rules", "none.toml", "--at", "0.5"], "none.toml"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2_and_writes_nothing(
    model_file: Path,
    past: Path,
    tmp_path: Path,
    options: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODEL_FILE", str(model_file))
    lines = past.read_text().splitlines()
    files = {
        "past": lines,
        "bare": [line.rsplit(",", 1)[0] for line in lines],
        "genuine": [line.removesuffix(",1") + ",0" if line.endswith(",1") else line for line in lines],
        "short": lines[:10],
    }
    names = {name: tmp_path / f"{name}.csv" for name in files}
    for name, content in files.items():
        names[name].write_text("\n".join(content) + "\n")
    before = model_file.with_suffix(".json").read_bytes()
    assert main([option.format(**names) for option in options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("redflag: ")
    assert says in line
    assert model_file.with_suffix(".json").read_bytes() == before


def test_a_model_that_was_replaced_meanwhile_is_left_alone(
    model_file: Path, rules_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from training import threshold

    load = threshold.load_model

    def and_then_it_is_trained_anew(path: Path) -> Any:
        model = load(path)
        options = ["--users", "20", "--days", "3", "--trees", "5", "--seed", "8"]
        assert train(["--out", str(path), "--force", *options]) == 0
        return model

    monkeypatch.setattr(threshold, "load_model", and_then_it_is_trained_anew)
    assert main(["--model", str(model_file), "--rules", str(rules_file), "--at", "0.6"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "was replaced by another model meanwhile" in line
    assert point_of(model_file).of_forest


def test_a_folder_that_cannot_be_written_is_told(
    model_file: Path, rules_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = model_file.with_suffix(".json").read_bytes()
    monkeypatch.setattr("dataflow.process.whole_files.os.fsync", full)
    assert main(["--model", str(model_file), "--rules", str(rules_file), "--at", "0.6"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot write" in line
    assert "No space left" in line
    assert model_file.with_suffix(".json").read_bytes() == before
    assert sorted(path.name for path in model_file.parent.glob(".*")) == []
