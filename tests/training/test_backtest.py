"""The backtest decides as the live flow does, counts what it decides, and shows it safely."""

import io
import json
import pickle
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bytewax.testing import TestingSink, TestingSource, run_main
from confluent_kafka import Producer
from rich.console import Console

from dataflow.connectors import exactly_once_sink, kafka_clients, kafka_source
from dataflow.connectors.embedded_broker import EmbeddedBroker
from dataflow.connectors.topic_reader import read_topic
from dataflow.detect import build
from dataflow.errors import UserError
from dataflow.events.feedback import feedback_to_json
from dataflow.process import lifecycle
from dataflow.rules import LiveRules
from dataflow.scoring.isolation_forest import Model
from dataflow.scoring.loading import load_model
from dataflow.scoring.operating_point import CurvePoint, Interval, OperatingPoint
from dataflow.settings import Settings
from dataflow.simulation.simulator import stream, to_json
from dataflow.steps import Routed, written
from tests.conftest import Broker
from tests.rules.builders import rule
from tests.support.builders import DAY, HOUR, MINUTE, NOON, iso, message
from tests.support.reading import read_all
from training.backtest import main, open_history, parse
from training.backtesting.report import Report, Side, compare, show
from training.backtesting.run import DECIDERS, Confusion, FromFile, FromTopic, Tally, _Source, run
from training.histories.history import read_history
from training.histories.kafka_history import KafkaHistory
from training.histories.labels import read_truth

pytestmark = pytest.mark.slow

RULES = (
    rule("high", "amount > 100", "High amount: {amount}", cooldown="2h")
    + rule("change", "location_changed and seconds_since_last <= 86400", "From {last_location} to {location}")
    + rule("often", "txn_per_hour >= 3", "{txn_per_hour} an hour", mode="shadow")
    + rule("model", "model_anomaly", "Anomaly", cooldown="1d")
)


@pytest.fixture(scope="module")
def model_file(forest_file: Path) -> Path:
    return forest_file


@pytest.fixture(scope="module")
def model(model_file: Path) -> Model:
    return load_model(model_file)


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.toml"
    path.write_text(RULES)
    return path


def live(values: list[bytes], rules: Path, model: Model) -> dict[int, dict[str, Any]]:
    """What the live graph writes for messages, by their number."""
    decisions: list[Routed] = []
    source = TestingSource([message(value, offset=n) for n, value in enumerate(values)], 7)
    run_main(build(source, TestingSink(decisions), model, LiveRules(rules, 1e9), Settings()))
    return {record.offset: json.loads(record.value or b"") for record in written(decisions)}


# -------------------------------------------------------------------------------------------------- as the live flow


@pytest.fixture
def settings(broker: Broker, topics: Callable[..., str]) -> Settings:
    return Settings(
        brokers=broker.bootstrap,
        transactions_topic=topics("transactions"),
        alerts_topic=topics("alerts"),
        classified_topic=topics("classified"),
        invalid_topic=topics("invalid"),
        feedback_topic=topics("feedback"),
        labels_topic=topics("labels"),
        kafka_config={"fetch.wait.max.ms": "20"},
    )


def produce(settings: Settings, topic: str, messages: list[tuple[str, bytes]]) -> None:
    producer = Producer({"bootstrap.servers": settings.brokers})
    kafka_clients.count_partitions(settings, topic)
    for key, value in messages:
        producer.produce(topic, key=key.encode(), value=value)
    assert producer.flush(20) == 0


def run_live(settings: Settings, rules: Path, model: Model, count: int) -> None:
    """Runs the flow on Kafka until it has written so many records."""

    def stop() -> None:
        deadline = time.monotonic() + 60
        while len(read_all(settings, outputs)) < count and time.monotonic() < deadline:
            time.sleep(0.1)
        lifecycle._stopping.set()

    outputs = [settings.alerts_topic, settings.classified_topic, settings.invalid_topic]
    lifecycle._stopping.clear()
    watching = threading.Thread(target=stop)
    watching.start()
    sources = settings.transactions_topic, settings.feedback_topic
    by_source = {settings.transactions_topic: outputs, settings.feedback_topic: (settings.invalid_topic,)}
    sink = exactly_once_sink.ExactlyOnceSink(settings, by_source)
    try:
        source = kafka_source.KafkaSource(settings, sources)
        run_main(build(source, sink, model, LiveRules(rules, 1e9), settings))
    finally:
        watching.join()
        lifecycle._stopping.clear()


def test_over_a_topic_the_decisions_are_those_of_the_live_flow_byte_for_byte(
    settings: Settings, rules: Path, model: Model
) -> None:
    # At this rate event time passes quickly, so that all rules fire; one in ten has no id, three are no transactions.
    past = list(islice(stream(seed=3, rate=0.002, start=datetime(2026, 3, 2, tzinfo=UTC)), 1500))
    messages = []
    for number, txn in enumerate(past):
        fields = json.loads(to_json(txn)) | {"n": number}
        if number % 10 == 0:
            del fields["transaction_id"]
        messages.append((txn.user, msgspec.json.encode(fields)))
    messages += [("x", b"{}"), ("y", b"no"), ("z", b"")]
    produce(settings, settings.transactions_topic, messages)
    run_live(settings, rules, model, len(messages))
    standing = {
        topic: sorted(m.value() for m in read_all(settings, [topic]))
        for topic in (settings.alerts_topic, settings.classified_topic)
    }
    assert sum(map(len, standing.values())) == 1500
    out = [json.loads(value) for value in standing[settings.alerts_topic]]
    assert {name for o in out for name in o["rules"]} == {"high", "change", "model"}
    assert any(o.get("suppressed") for o in out)

    # The whole run: alerts as they stand in its spool.
    history = KafkaHistory(settings.transactions_topic, settings)
    spool = io.BytesIO()
    tally = run(FromTopic(history), rules, model, settings, spool)
    assert sorted(spool.getvalue().splitlines()) == standing[settings.alerts_topic]
    assert tally.decided.total == 1500
    assert tally.alerts.total == len(out)
    assert tally.suppressed == sum(o.get("suppressed", False) for o in out)
    assert tally.invalid.total() == 3
    assert history.progress == 1.0

    # And its source in the graph: what is classified, too.
    decisions: list[Routed] = []
    source = _Source(FromTopic(history), lambda done: None)
    run_main(build(source, TestingSink(decisions), model, LiveRules(rules, 1e9), settings))
    for topic, values in standing.items():
        assert sorted(record.value or b"" for record in written(decisions) if record.topic == topic) == values


def test_over_a_file_the_verdicts_are_those_of_the_live_flow(tmp_path: Path, rules: Path, model: Model) -> None:
    past = list(islice(stream(seed=5, rate=0.002, start=datetime(2026, 3, 2, tzinfo=UTC)), 1000))
    columns = [*json.loads(to_json(past[0]))]
    lines = [",".join(columns)]
    for txn in past:
        fields = json.loads(to_json(txn))
        lines.append(",".join(str(fields.get(column, "")) for column in columns))
    (tmp_path / "past.csv").write_text("\n".join(lines))
    expected = live([to_json(txn) for txn in past], rules, model)

    decisions: list[Routed] = []
    source = _Source(FromFile(read_history(tmp_path / "past.csv")), lambda done: None)
    run_main(build(source, TestingSink(decisions), model, LiveRules(rules, 1e9), Settings()))
    found = {record.offset: json.loads(record.value or b"") for record in written(decisions)}
    different = [(expected[n], out) for n, out in found.items() if out != expected[n]]
    assert different == []
    assert len(found) == 1000
    assert sum(o["fraudulent"] for o in found.values()) > 10


def test_a_topic_can_be_read_from_an_offset_or_a_time(settings: Settings) -> None:
    topic = settings.transactions_topic
    produce(settings, topic, [(f"u{n}", b"%d" % n) for n in range(100)])
    first = read_all(settings, [topic])
    time.sleep(0.05)
    middle = datetime.now(UTC)
    time.sleep(0.05)
    produce(settings, topic, [(f"u{n}", b"%d" % n) for n in range(100, 150)])

    def values(where: str) -> list[int]:
        return [int(m.value()) for m in KafkaHistory(where, settings)]

    assert sorted(values(topic)) == list(range(150))
    assert sorted(values(f"{topic}@{middle.isoformat()}")) == list(range(100, 150))
    assert values(f"{topic}@2999-01-01") == []
    since = [
        sorted(int(m.value() or b"") for m in read_topic(settings, topic, at)) for at in (middle.timestamp(), 32e9)
    ]
    assert since == [[*range(100, 150)], []]
    assert len(values(f"{topic}@5")) == 150 - 5 * len({m.partition() for m in first})
    stamps = [m.timestamp()[1] for m in KafkaHistory(topic, settings)]
    assert stamps == sorted(stamps)


def test_the_embedded_broker_s_topics_are_read_from_a_time_too() -> None:
    """It answers no question for a time."""
    embedded = EmbeddedBroker()
    try:
        settings = Settings(brokers=embedded.address)
        produce(settings, "past", [(f"u{n}", b"%d" % n) for n in range(20)])
        time.sleep(0.05)
        middle = datetime.now(UTC)
        time.sleep(0.05)
        produce(settings, "past", [(f"u{n}", b"%d" % n) for n in range(20, 30)])
        for where, expected in ((middle.isoformat(), range(20, 30)), ("1999-01-01", range(30)), ("2999-01-01", ())):
            messages = KafkaHistory(f"past@{where}", settings)
            assert sorted(int(m.value()) for m in messages) == list(expected)
        assert sorted(int(m.value() or b"") for m in read_topic(settings, "past", middle.timestamp())) == [
            *range(20, 30)
        ]
    finally:
        embedded.close()


def test_labels_come_from_a_topic(settings: Settings) -> None:
    topic = settings.labels_topic
    label = '{"transaction_id": "t%d", "fraud": %s, "scenario": "none"}'
    produce(settings, topic, [("k", (label % (n, "true" if n % 3 == 0 else "false")).encode()) for n in range(9)])
    assert read_truth(f"kafka:{topic}", settings) == {f"t{n}": n % 3 == 0 for n in range(9)}
    produce(settings, topic, [("k", b"{}")])
    with pytest.raises(UserError, match="not a label"):
        read_truth(f"kafka:{topic}", settings)
    # On the topic of feedback it is passed over, and the label that was given last counts, wherever it stands.
    given = [
        feedback_to_json("t1", "ann", "Shop", iso(NOON), fraud, iso(NOON + later))
        for fraud, later in ((True, 20.0), (False, 10.0))
    ]
    produce(settings, settings.feedback_topic, [("ann", b"{}"), *(("ann", each) for each in given)])
    assert read_truth(f"kafka:{settings.feedback_topic}", settings) == {"t1": True}


def test_a_topic_that_is_not_there_is_told_and_not_made(settings: Settings) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match="there is no topic 'no-such-topic'"):
            KafkaHistory("no-such-topic", settings)
    with pytest.raises(UserError, match="an offset or an ISO 8601 time"):
        KafkaHistory(f"{settings.transactions_topic}@yesterday", settings)


# ---------------------------------------------------------------------------------------------------------- counting

HEADER = "transaction_id,timestamp,user,merchant,amount,location,fraud"


def csv(path: Path, *rows: tuple[float, str, float, str, str]) -> Path:
    """Rows of seconds after noon, user, amount, location and truth."""
    lines = [
        f"t{n},{iso(NOON + at)},{user},Shop,{amount},{where},{truth}"
        for n, (at, user, amount, where, truth) in enumerate(rows)
    ]
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return path


ROWS = (
    (0.0, "ann", 50.0, "US", "0"),
    (HOUR, "ann", 500.0, "US", "1"),
    (HOUR + MINUTE, "ann", 600.0, "FR", "0"),
    (2 * HOUR, "bob", 700.0, "US", ""),
    (3 * DAY, "bob", 800.0, "US", "1"),
    (3 * DAY + MINUTE, "bob", 900.0, "US", "1"),
    (3 * DAY + 2 * MINUTE, "bob", 20.0, "US", "1"),
)  # fmt: skip
SMALL = (
    rule("high", "amount > 400", "High", cooldown="10m")
    + rule("change", "location_changed", "Change", mode="shadow")
    + rule("huge", "amount > 850", "Huge", cooldown="10m")
    + rule("never", "amount > 1e9", "Never")
)


def tally_of(path: Path, rules: Path, model: Model, **others: Any) -> Tally:
    return run(FromFile(read_history(path)), rules, model, Settings(), io.BytesIO(), **others)


def test_all_is_counted(tmp_path: Path, rules: Path, model: Model) -> None:
    rules.write_text(SMALL)
    tally = tally_of(csv(tmp_path / "past.csv", *ROWS), rules, model)
    counts = {name: (c.fraud, c.genuine, c.unknown) for name, c in tally.fired.items()}
    assert (tally.decided.fraud, tally.decided.genuine, tally.decided.unknown) == (4, 2, 1)
    assert (tally.alerts.fraud, tally.alerts.genuine, tally.alerts.unknown) == (3, 1, 1)
    assert counts == {"high": (3, 1, 1), "change": (0, 1, 0), "huge": (1, 0, 0)}
    assert tally.alone == {"high": 4}
    assert tally.pairs == {("change", "high"): 1, ("high", "huge"): 1}
    assert tally.suppressed == 1
    assert [tally.by_day[day] for day in sorted(tally.by_day)] == [[4, 3, 2], [3, 2, 2]]
    assert tally.days == 4
    assert tally.alerts.precision == 0.75


@pytest.fixture
def at_threshold(model_file: Path) -> Callable[[float], Model]:
    """A model of its own, with an operating point at a risk."""

    def load(alert: float, expected: CurvePoint | None = None) -> Model:
        model = load_model(model_file)
        model.operating_point = OperatingPoint(
            alert=alert, chosen_by=f"--at {alert:g}", measured_on="last month", expected=expected, curve=[]
        )
        return model

    return load


def decided(path: Path, rules: Path, model: Model) -> list[dict[str, Any]]:
    """All decisions of the graph, in the order of the file."""
    decisions: list[Routed] = []
    source = _Source(FromFile(read_history(path)), lambda done: None)
    run_main(build(source, TestingSink(decisions), model, LiveRules(rules, 1e9), Settings()))
    found = {record.offset: json.loads(record.value or b"") for record in written(decisions)}
    return [found[offset] for offset in sorted(found)]


def with_scenarios(path: Path) -> Path:
    """300 transactions of a few users, every tenth a fraud of one of two kinds, one in seven without a label."""
    lines = [HEADER + ",scenario"]
    for n in range(300):
        fraud = n % 10 == 0
        amount = 40 + n if fraud else 5 + n % 60
        truth = "" if n % 7 == 0 else str(int(fraud))
        kind = ("burst" if n % 20 == 0 else "testing") if fraud else ""
        lines.append(f"t{n},{iso(NOON + n * HOUR / 4)},u{n % 3},Shop,{amount},US,{truth},{kind}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("mode", ["active", "shadow", "off"])
def test_decisions_are_counted_for_rules_alone_the_model_alone_and_both(
    tmp_path: Path, rules: Path, at_threshold: Callable[[float], Model], mode: str
) -> None:
    (tmp_path / "friends.txt").write_text("u2\n")
    rules.write_text(
        '[lists]\nfriends = "friends.txt"\n[[allow]]\nfield = "user"\nlist = "friends"\n'
        + rule("high", "amount > 200", action="block")
        + rule("mixed", "amount > 150 and model_score > 0.5")
        + rule("ml_anomaly", "model_alert", mode=mode)
    )
    path, model = with_scenarios(tmp_path / "past.csv"), at_threshold(0.52)
    tally = tally_of(path, rules, model)
    expected = {name: [0, 0, 0, 0.0] for name in DECIDERS}  # fraud, genuine, not known, money
    kinds: dict[str, dict[str, int]] = {}
    actions: dict[str, int] = {}
    for n, out in enumerate(decided(path, rules, model)):
        truth = None if n % 7 == 0 else n % 10 == 0
        alerts = {
            "rules": out["amount"] > 200 and out["user"] != "u2",
            "model": out["model_score"] >= 0.52,
            "both": out["fraudulent"],
        }
        kind = ("burst" if n % 20 == 0 else "testing") if truth else None
        if kind is not None:
            kinds.setdefault(kind, dict.fromkeys(["all", *DECIDERS], 0))["all"] += 1
        if out["fraudulent"]:
            actions[out["action"]] = actions.get(out["action"], 0) + 1
        for name in DECIDERS:
            if alerts[name]:
                expected[name][2 if truth is None else not truth] += 1
                expected[name][3] += out["amount"] if truth else 0.0
                if kind is not None:
                    kinds[kind][name] += 1
    found = {name: [c.fraud, c.genuine, c.unknown, c.money] for name, c in tally.by_decider.items()}
    assert found == expected
    assert len({tuple(counts) for counts in found.values()}) == 3
    assert all(counts[0] and counts[3] for counts in found.values())
    scenarios = {kind: {name: c.fraud for name, c in caught.items()} for kind, caught in tally.scenarios.items()}
    assert scenarios == kinds
    assert set(kinds) == {"burst", "testing"}
    assert {action: c.total for action, c in tally.by_action.items()} == actions
    assert "block" in actions
    assert tally.money.money == sum(40 + n for n in range(0, 300, 10) if n % 7)
    assert tally.by_decider["both"].total == tally.alerts.total


def test_the_model_alone_is_told_to_the_last_bit_where_a_rule_says_it(
    tmp_path: Path, rules: Path, at_threshold: Callable[[float], Model]
) -> None:
    """A threshold is often the very risk of a transaction, and the score that is written has six digits."""
    path = with_scenarios(tmp_path / "past.csv")
    rules.write_text(rule("ml_anomaly", "model_alert"))
    seen: list[float] = []
    model = at_threshold(2.0)
    risk_first = model.risk_first

    def listening(rows: Any) -> Any:
        risk, anomaly = risk_first(rows)
        seen.extend(risk.tolist())
        return risk, anomaly

    model.risk_first = listening  # type: ignore[method-assign]
    tally_of(path, rules, model)
    threshold = next(risk for risk in sorted(set(seen), reverse=True) if round(risk, 6) < risk)
    model = at_threshold(threshold)
    tally = tally_of(path, rules, model)
    assert tally.by_decider["model"].total == tally.alerts.total == sum(risk >= threshold for risk in seen)
    by_digits = sum(out["model_score"] >= out["alert_threshold"] for out in decided(path, rules, model))
    assert by_digits < tally.alerts.total  # so that there was something to tell


def test_a_forests_own_verdict_is_the_models_where_a_rule_says_just_that_and_else_not_told(
    tmp_path: Path, rules: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    assert model.operating_point.of_forest
    path = with_scenarios(tmp_path / "past.csv")
    rules.write_text(rule("high", "amount > 200") + rule("anomaly", "model_anomaly"))
    told = tally_of(path, rules, model)
    assert told.model_told
    assert told.by_decider["model"].total == told.fired["anomaly"].total > 0
    rules.write_text(rule("high", "amount > 200") + rule("both", "model_anomaly and amount > 300"))
    untold = tally_of(path, rules, model)
    assert not untold.model_told
    show(Report("past.csv", 1.0, Side("new.toml", LiveRules(rules, 1.0).current(), untold, tmp_path), None, None),
         Console(width=80))  # fmt: skip
    shown = capsys.readouterr().out
    (alerts,) = [line for line in shown.splitlines() if line.startswith("alerts a day") and "-" in line]
    assert alerts.split()[4] == "-"
    assert "no rule of this set says just that" in " ".join(shown.split())


def test_what_the_operating_point_promised_stands_beside_what_came(
    tmp_path: Path, rules: Path, at_threshold: Callable[..., Model], capsys: pytest.CaptureFixture[str]
) -> None:
    rules.write_text(rule("high", "amount > 200") + rule("ml_anomaly", "model_alert"))
    expected = CurvePoint(
        threshold=0.52,
        alerts_a_day=Interval(11.25, 9.5, 13.0),
        precision=Interval(0.5, 0.25, 0.75),
        recall=Interval(0.875, 0.75, 1.0),
    )
    tally = tally_of(with_scenarios(tmp_path / "past.csv"), rules, at_threshold(0.52, expected))
    side = Side("new.toml", LiveRules(rules, 1.0).current(), tally, tmp_path)
    show(Report("past.csv", 1.0, side, None, None), Console(width=80))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    table = shown[shown.index("Decisions") : shown.index("Alerts by action")].splitlines()
    rows = {line[:20].strip(): " ".join(line[20:].split()) for line in table[3:]}
    both = tally.by_decider["both"]
    assert rows["alerts a day"].endswith(f"{both.total / tally.days:.1f} 11.2 (9.5 to 13.0)")
    assert rows["precision"].endswith(f"{both.precision:.2%} 50% (25% to 75%)")
    assert rows["recall"].endswith(f"{both.fraud / tally.decided.fraud:.2%} 88% (75% to 100%)")
    assert rows["of the frauds' money"].endswith("-")
    words = " ".join(shown.split())
    assert "operating point: alert from 0.52 (--at 0.52); it promises what last month gave" in words
    assert "Recall by scenario" in words


def test_labels_of_another_file_replace_those_of_the_history(tmp_path: Path, rules: Path, model: Model) -> None:
    rules.write_text(SMALL)
    tally = tally_of(csv(tmp_path / "past.csv", *ROWS), rules, model, labels={"t0": True, "t1": False})
    assert (tally.decided.fraud, tally.decided.genuine, tally.decided.unknown) == (1, 1, 5)
    assert (tally.alerts.fraud, tally.alerts.genuine, tally.alerts.unknown) == (0, 1, 4)


def test_a_warm_up_fills_profiles_and_is_not_counted(tmp_path: Path, rules: Path, model: Model) -> None:
    rules.write_text(rule("known", "history >= 1"))
    path = csv(tmp_path / "past.csv", *ROWS)
    cold = tally_of(path, rules, model)
    warm = tally_of(path, rules, model, warm_up=DAY)
    assert (cold.decided.total, cold.alerts.total) == (7, 5)
    assert (warm.warm_up, warm.decided.total, warm.alerts.total) == (4, 3, 3)


def test_after_a_warm_up_all_rulesets_are_counted_on_the_same_transactions(
    tmp_path: Path, rules: Path, model: Model
) -> None:
    """By event time: the first decision that comes out may be a later alert, and then the window began with that."""
    rows = [(n * HOUR, "ann", 500.0 if n == 5 else 50.0, "US", "0") for n in range(72)]
    path = csv(tmp_path / "past.csv", *rows)
    counted = []
    for condition in ("amount > 400", "amount > 40", "amount > 1e9", "txn_per_hour >= 99"):
        rules.write_text(rule("one", condition))
        tally = tally_of(path, rules, model, warm_up=DAY)
        counted.append((tally.warm_up, tally.decided.total, sorted(tally.by_day)))
    day = int(NOON // DAY)
    assert counted == [(24, 48, [day + 1, day + 2, day + 3])] * 4


def test_messages_that_are_no_transactions_do_not_begin_a_warm_up() -> None:
    source = _Source(FromFile(read_history(None, users=5, days=1)), lambda done: None)
    part = source.build_part("read", "history", None)
    part._messages = iter([message(value, offset=n) for n, value in enumerate(
        (None, b"", b"[", b'{"timestamp": 7}', b'{"timestamp": "soon"}', b'{"timestamp": "2026-03-02T12:00:00Z"}')
    )])  # fmt: skip
    part.next_batch()
    assert source.begin == NOON


def test_a_topic_that_grows_is_read_as_far_by_every_ruleset(settings: Settings) -> None:
    topic = settings.transactions_topic
    produce(settings, topic, [(f"u{n}", b"%d" % n) for n in range(20)])
    opened = FromTopic(KafkaHistory(topic, settings), KafkaHistory(settings.feedback_topic, settings))
    shared = pickle.dumps(opened)
    produce(settings, topic, [(f"u{n}", b"%d" % n) for n in range(20, 30)])
    for messages in (pickle.loads(shared), pickle.loads(shared)):
        assert sorted(int(each.value()) for each in messages) == list(range(20))
        assert messages.feedback(1e12) == []


def test_labels_come_back_as_feedback_after_their_delay(tmp_path: Path, rules: Path, model: Model) -> None:
    rules.write_text(rule("again", "confirmed_frauds >= 1", "{confirmed_frauds} confirmed"))
    truths = ["1" if n == 0 else "0" for n in range(6000)]
    rows = [(n * 60.0, "ann", 10.0, "US", truth) for n, truth in enumerate(truths)]
    history = read_history(csv(tmp_path / "past.csv", *rows))
    assert run(FromFile(history), rules, model, Settings(), io.BytesIO()).alerts.total == 0
    spool = io.BytesIO()
    tally = run(FromFile(history, 1000 * MINUTE), rules, model, Settings(), spool)
    first = json.loads(spool.getvalue().splitlines()[0])
    # Within a batch or two after the label came.
    assert 1000 < int(first["transaction_id"][1:]) <= 3000
    assert tally.alerts.total == 6000 - int(first["transaction_id"][1:])
    assert tally.invalid.total() == 0


def test_what_is_added_and_dropped_is_told_apart(tmp_path: Path, rules: Path, model: Model) -> None:
    path = csv(tmp_path / "past.csv", *ROWS)
    sides = []
    for name, text in (("new", rule("over", "amount > 600")), ("old", rule("under", "amount < 750 and amount > 100"))):
        rules.write_text(text)
        spool = tmp_path / name
        with spool.open("wb") as file:
            tally = run(FromFile(read_history(path)), rules, model, Settings(), file)
        sides.append(Side(name, LiveRules(rules, 1.0).current(), tally, spool))
    difference = compare(*sides)
    assert difference.kept == 1
    assert (difference.added.all.fraud, difference.added.all.total) == (2, 2)
    assert (difference.dropped.all.fraud, difference.dropped.all.genuine) == (1, 1)
    assert {alert.transaction_id for alert, _ in difference.added.examples} == {"t4", "t5"}
    assert {(alert.transaction_id, truth) for alert, truth in difference.dropped.examples} == {
        ("t1", True),
        ("t2", False),
    }
    assert difference.added.by_rule.keys() == {"over"}


def test_a_wrong_row_ends_it_with_its_line(tmp_path: Path, rules: Path, model: Model) -> None:
    path = csv(tmp_path / "past.csv", *ROWS)
    path.write_text(path.read_text() + "t9,never,ann,Shop,5,US,0\n")
    with pytest.raises(UserError, match=r"past.csv, line 9: timestamp 'never'"):
        tally_of(path, rules, model)


# ------------------------------------------------------------------------------------------------------ command line


@pytest.mark.usefixtures("drawn")
def test_the_report_names_rules_and_examples_and_escapes_all(
    tmp_path: Path, rules: Path, model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "<script>alert(1)</script>[red]\x1b[31m"
    rules.write_text(SMALL + rule("shop", "amount > 800", "At {merchant}"))
    old = tmp_path / "old.toml"
    old.write_text(rule("high", "amount > 10000") + rule("small", "amount < 100", "Small at {merchant}"))
    path = csv(tmp_path / "past.csv", *ROWS)
    path.write_text(path.read_text().replace("Shop", hostile))
    page = tmp_path / "out.html"
    tables = tmp_path / "out.json"
    arguments = ["--history", str(path), "--model", str(model_file), "--html", str(page), "--json", str(tables)]
    assert main(["--rules", str(rules), "--against", str(old), *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    shown = captured.out.partition("The same with plots")[0]
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    for words in ("Never fired: never", "it adds", "it drops", "Examples of what it drops", "alerts a day", "recall"):
        assert words in captured.out
    assert "\x1b[31m" not in captured.out

    told = json.loads(tables.read_text())
    assert [each for each in told["notes"] if each.startswith("Never fired: never")]
    (rows,) = [grid["rows"] for grid in told["grids"] if grid["title"] == "Rules"]
    assert rows[-1][:2] == ["small", "gone"]

    html = page.read_text()
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;[red]" in html
    pictures = html.split("data:image/png;base64,iVBORw0KGgo")[1:]
    assert [len(picture) > 5_000 for picture in pictures] == [True] * 4
    assert "http" not in html.replace("http-equiv", "")


def test_its_tables_are_still_readable_in_80_columns(
    tmp_path: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    """No word and no number is broken into pieces."""
    sides = []
    for name, amount in (("new", 400), ("old", 600)):
        path = tmp_path / f"{name}.toml"
        path.write_text(rule("compromised_merchant", f"amount > {amount}", "High amount: {amount} at {merchant}"))
        spool = tmp_path / name
        with spool.open("wb") as file:
            tally = run(FromFile(read_history(csv(tmp_path / "past.csv", *ROWS))), path, model, Settings(), file)
        counts = {rule: Confusion(fired.fraud + 12_345, 23_456, 0) for rule, fired in tally.fired.items()}
        tally.fired.update(counts)
        tally.decided = Confusion(45_678, 4_567_890, 0)
        sides.append(Side(f"{name}.toml", LiveRules(path, 1.0).current(), tally, spool))
    show(Report("past.csv", 1.0, sides[0], sides[1], compare(*sides)), Console(width=80))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    (rules,) = [line for line in shown.splitlines() if line.startswith("compromised_merchant") and "active" in line]
    assert rules.split()[1:3] == ["active", "35,804"]
    (header,) = [line for line in shown.splitlines() if line.startswith("rule") and "mode" in line]
    assert header.split() == ["rule", "mode", "fires", "a", "day", "alone", "precision", "recall", "before"]
    assert any(line.startswith("2026-03-02T13:00") and "ann: 500.00 at" in line for line in shown.splitlines())


def test_a_history_with_labels_under_another_name_is_asked_for_them(
    tmp_path: Path, rules: Path, model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules.write_text(SMALL)
    path = csv(tmp_path / "past.csv", *ROWS)
    path.write_text(path.read_text().replace(",fraud\n", ",Class\n", 1))
    given = ["--rules", str(rules), "--history", str(path), "--model", str(model_file)]
    assert main(given) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--label-column Class" in said
    assert "--label-column none" in said
    for more, expected in (
        (["--label-column", "Class"], [0, 1, 0, -1, 1, 1, 1]),
        (["--label-column", "none"], [-1] * 7),
        (["--labels", str(path)], [-1] * 7),  # the truth comes from elsewhere
    ):
        messages = open_history(parse([*given, *more]))
        assert len(list(messages)) == 7
        assert list(messages.truths) == expected


def test_without_labels_it_says_that_there_is_no_precision(
    tmp_path: Path, rules: Path, model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "past.csv"
    path.write_text("timestamp,user,merchant,amount\n2026-03-02T12:00:00Z,ann,Shop,500\n")
    assert main(["--rules", str(rules), "--history", str(path), "--model", str(model_file)]) == 0
    assert "no precision and no recall" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--rules"),
        (["--rules", "none.toml"], "No such file"),
        (["--rules", "{rules}", "--history", "none.csv"], "none.csv"),
        (["--rules", "{rules}", "--history", "none.txt"], "none.txt"),
        (["--rules", "{rules}", "--history", "{empty}"], "holds no transaction"),
        (["--rules", "{rules}", "--history", "{past}", "--warm-up", "99d"], "beyond a warm-up of 99 days"),
        (["--rules", "{rules}", "--history", "{past}", "--labels", "none.csv"], "cannot read the labels none.csv"),
        (["--rules", "{rules}", "--history", "{past}", "--labels", "{empty}"], "no column transaction_id, fraud"),
        (["--rules", "{rules}", "--history", "{past}", "--labels", "{labels}"], "line 2: fraud is 'maybe'"),
        (["--rules", "{rules}", "--history", "{past}", "--model", "none.pkl"], "no model at none.pkl"),
        (["--rules", "{rules}", "--label-column", "Class"], "--label-column: is for a file"),
        (["--rules", "{rules}", "--history", "kafka:t", "--label-column", "Class"], "--label-column: is for a file"),
        (["--rules", "{rules}", "--history", "{past}", "--label-column", "no"], "--label-column no: "),
        (["--rules", "{rules}", "--history", "{past}", "--users", "5"], "--users: is for a simulated history"),
        (["--rules", "{rules}", "--users", "-5"], "'-5' is no whole number"),
        (["--rules", "{rules}", "--days", "nan"], "'nan' is no number"),
        (["--rules", "{rules}", "--warm-up", "7"], "--warm-up: '7' is no time such as 12h or 7d"),
        (["--rules", "{rules}", "--history", "kafka:t", "--labels-after", "1d"], "--labels-after: is for a file"),
        (["--rules", "{rules}", "--history", "{past}", "--feedback", "kafka:f"], "--history must name a topic"),
        (["--rules", "{rules}", "--html", "no/such/out.html"], "no folder no/such"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(
    tmp_path: Path,
    rules: Path,
    model_file: Path,
    arguments: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODEL_FILE", str(model_file))
    names = {"rules": rules, "past": csv(tmp_path / "past.csv", *ROWS)}
    names["empty"], names["labels"] = tmp_path / "empty.csv", tmp_path / "labels.csv"
    names["empty"].write_text("timestamp,user,merchant,amount\n")
    names["labels"].write_text("transaction_id,fraud\nt1,maybe\n")
    assert main([argument.format(**names) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("redflag: ")
    assert says in line
