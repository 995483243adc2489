"""What the start says is in force."""

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from dataflow.process.execution import Execution
from dataflow.rules import load_rules
from dataflow.scoring.metadata import Metadata, Window
from dataflow.scoring.operating_point import CurvePoint, Interval, OperatingPoint
from dataflow.settings import Settings
from dataflow.start_report import StartReport
from dataflow.state.recovery import Held

SETTINGS = Settings()
MODEL = Metadata(
    format=1,
    tiers=["isolation_forest", "evidence"],
    features=["amount"],
    sha256="",
    fingerprint="0123456789abcdef",
    versions={},
    window=Window(source="simulation", first="2026-01-01", last="2026-02-01", rows=5000),
    hyperparameters={},
    seed=1,
    metrics={},
    created_at="2026-03-01T12:00:00+00:00",
)
POINT = OperatingPoint(
    alert=0.25,
    block=0.875,
    chosen_by="--alerts-per-day 85",
    measured_on="a week of the simulation",
    expected=CurvePoint(
        threshold=0.25,
        alerts_a_day=Interval(85.0, 79.25, 91.5),
        precision=Interval(0.7, 0.65, 0.74),
        recall=Interval(0.6, 0.55, 0.64),
    ),
)
HELD = Held(Path("/var/redflag"), 4, True)
EXECUTION = Execution(HELD.directory, 0, 1, 1, 60.0)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Any:
    def messages(level: int = logging.INFO) -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == level]

    return messages


class InService:
    """As much of a model as the start speaks of."""

    def __init__(self, point: OperatingPoint | None):
        self.metadata = replace(MODEL, operating_point=point)
        self.operating_point = point or OperatingPoint.of_the_forest(0.5312)


def report(
    held: Held | None = HELD,
    metrics: str | None = "http://127.0.0.1:3030/metrics",
    point: OperatingPoint | None = POINT,
) -> StartReport:
    rules = load_rules(SETTINGS.rules_file)
    model: Any = InService(point)
    return StartReport(SETTINGS, EXECUTION, lambda: rules, model, held, metrics)


def test_it_says_all_that_is_in_force_in_one_block(said: Any) -> None:
    made = report()
    made.topics({"fraud_alerts": 2, "classified_transactions": 2})
    made.partition("transactions", 1, 7, 9)
    made.partition("transactions", 0, 0, 4)
    made.say({"transactions": 2})
    rules = load_rules(SETTINGS.rules_file)
    assert said() == [
        "in force: brokers 127.0.0.1:9092",
        f"in force: rules {rules.version} from {SETTINGS.rules_file}: 11 active, 1 allow, 1 deny",
        "in force: model 0123456789ab from fraud_model.pkl: isolation_forest, evidence; trained "
        "2026-03-01T12:00:00+00:00 on 5000 transactions of simulation, 2026-01-01 to 2026-02-01",
        "in force: operating point: alert from 0.25, block from 0.875 (--alerts-per-day 85); it promises "
        "85 alerts a day (79.2 to 91.5), precision 0.70 (0.65 to 0.74), recall 0.60 (0.55 to 0.64), measured on "
        "a week of the simulation",
        "in force: recovery in /var/redflag, resumed, 4 files, a snapshot every 60 s",
        "in force: metrics on http://127.0.0.1:3030/metrics",
        "in force: writes fraud_alerts (2 partitions), classified_transactions (2 partitions)",
        "in force: reads transactions, 2 of 2 partitions: 0 from 0 of 4, 1 from 7 of 9",
    ]
    assert said(logging.WARNING) == []


def test_what_is_off_is_said_too(said: Any) -> None:
    report(held=None, metrics=None).say({})
    assert "in force: no metrics (METRICS_ADDRESS=off)" in said()
    assert any(line.startswith("in force: no recovery: a restart ") for line in said())


@pytest.mark.parametrize(
    ("point", "line"),
    [
        (
            None,
            "operating point: fraud_model.pkl has none, as it was trained before there were any: the Isolation "
            "Forest's own threshold, 0.5312; `python -m training.threshold --model fraud_model.pkl` sets one",
        ),
        (
            OperatingPoint.of_the_forest(0.5312),
            "operating point: alert from 0.5312 (the Isolation Forest's own threshold)",
        ),
        (OperatingPoint(alert=0.5, chosen_by="--at 0.5"), "operating point: alert from 0.5 (--at 0.5)"),
    ],
)
def test_a_start_says_where_the_model_raises_an_alert(said: Any, point: OperatingPoint | None, line: str) -> None:
    report(point=point).say({})
    assert [said for said in said() if "operating point" in said] == [f"in force: {line}"]


def test_each_worker_says_what_it_reads_and_the_first_the_rest(said: Any) -> None:
    made = report()

    def work(partition: int) -> None:
        made.partition("transactions", partition, partition, 7)
        made.say({"transactions": 2})

    for partition in (0, 1):
        thread = threading.Thread(target=work, args=(partition,))
        thread.start()
        thread.join()
    assert sum(line.startswith("in force: brokers") for line in said()) == 1
    assert [line for line in said() if "reads" in line] == [
        "in force: reads transactions, 1 of 2 partitions: 0 from 0 of 7",
        "in force: reads transactions, 1 of 2 partitions: 1 from 1 of 7",
    ]


@pytest.mark.parametrize(
    ("topic", "count", "offset", "end", "suspicious"),
    [
        ("transactions", 1, 0, 0, True),
        ("transactions", 1, 0, 3, False),
        ("transactions", 1, 3, 3, False),
        ("transactions", 4, 0, 0, False),
        ("fraud_feedback", 1, 0, 0, False),
    ],
)
def test_an_empty_topic_of_one_partition_may_be_a_spelling_mistake_that_the_broker_made_a_topic_of(
    said: Any, topic: str, count: int, offset: int, end: int, suspicious: bool
) -> None:
    made = report()
    made.partition(topic, 0, offset, end)
    made.say({topic: count})
    warnings = said(logging.WARNING)
    assert len(warnings) == suspicious
    if suspicious:
        assert "topic 'transactions' has one partition" in warnings[0]
        assert "TRANSACTIONS_TOPIC" in warnings[0]
