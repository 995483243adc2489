"""The warm-up, on the embedded broker, with a detector that decides when the test lets it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, Consumer, Message, TopicPartition

from dataflow.connectors.embedded_broker import EmbeddedBroker
from dataflow.demo import past_life as module
from dataflow.demo.past_life import Life, messages, warm_up
from dataflow.errors import UserError
from dataflow.events.transaction import DAY
from dataflow.settings import Settings
from dataflow.simulation.simulator import history, life_after

END = datetime(2026, 3, 2, tzinfo=UTC)
LIFE = Life(seed=7, people=200, days=2.0, end=END, label_delay=0.5 * DAY)
TRANSACTIONS = list(LIFE.transactions())


class Detector:
    """Stands for the tally: says that all is decided, `at_once` at a time."""

    def __init__(self, at_once: int):
        self.warmed = 0
        self.at_once = at_once
        self.asked = 0

    def take(self, _seconds: float) -> list[Any]:
        self.asked += 1
        self.warmed += self.at_once
        return []


@contextmanager
def broker() -> Iterator[Settings]:
    embedded = EmbeddedBroker()
    try:
        yield Settings(brokers=embedded.address)
    finally:
        embedded.close()


def read(settings: Settings, topic: str) -> list[Message]:
    consumer = Consumer({"bootstrap.servers": settings.brokers, "group.id": "test", "log_level": 0})
    places = [TopicPartition(topic, number, 0) for number in range(4)]
    count = sum(consumer.get_watermark_offsets(place, timeout=10)[1] for place in places)
    consumer.assign(places)
    found: list[Message] = []
    while len(found) < count:
        found += [message for message in consumer.consume(1000, 1.0) if message.error() is None]
    consumer.close()
    return found


def test_the_life_ends_where_the_live_part_begins_and_goes_on_with_the_same_people() -> None:
    assert END.timestamp() - 2 * DAY <= TRANSACTIONS[0].at < TRANSACTIONS[-1].at < END.timestamp()
    assert len(TRANSACTIONS) == pytest.approx(LIFE.expected, rel=0.15)
    live = list(islice(life_after(7, 200, 2, END), 600))
    assert live[0].at >= END.timestamp()
    cards = {(txn.user, txn.device) for txn in TRANSACTIONS if txn.device.startswith("card-") and not txn.fraud}
    of_live = {(txn.user, txn.device) for txn in live if txn.device.startswith("card-") and not txn.fraud}
    assert len(of_live & cards) > 0.95 * len(of_live)


def test_feedback_comes_in_between_late_as_it_should_and_what_would_come_after_the_end_does_not() -> None:
    settings = Settings()
    dated = list(messages(LIFE, settings))
    assert [each.at for each in dated] == sorted(each.at for each in dated)
    feedback = [each for each in dated if each.topic == settings.feedback_topic]
    due = [txn for txn in TRANSACTIONS if txn.at + 0.5 * DAY <= TRANSACTIONS[-1].at]
    assert [json.loads(each.message[1])["transaction_id"] for each in feedback] == [txn.transaction_id for txn in due]
    assert [each.at for each in feedback] == [txn.at + 0.5 * DAY for txn in due]
    assert any(json.loads(each.message[1])["fraud"] for each in feedback)


def test_without_a_delay_there_is_no_feedback() -> None:
    settings = Settings()
    topics = {each.topic for each in messages(LIFE._replace(label_delay=None), settings)}
    assert topics == {settings.transactions_topic}


@pytest.mark.slow
def test_every_record_is_dated_when_it_took_place() -> None:
    with broker() as settings:
        produced = warm_up(LIFE, settings, Detector(10**6), lambda: True, lambda decided: None)  # type: ignore[arg-type]
        transactions = read(settings, settings.transactions_topic)
        feedback = read(settings, settings.feedback_topic)
    assert produced == len(transactions) == len(TRANSACTIONS)
    for message in transactions:
        at = datetime.fromisoformat(json.loads(message.value())["timestamp"]).timestamp()
        assert message.timestamp() == (TIMESTAMP_CREATE_TIME, round(at * 1000))
    for message in feedback:
        label = json.loads(message.value())
        at = datetime.fromisoformat(label["labelled_at"]).timestamp()
        assert abs(message.timestamp()[1] - at * 1000) <= 1
        assert message.key() == label["user"].encode()
    assert len(feedback) > 100


def test_it_waits_for_the_detector_so_that_the_broker_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNDECIDED", 100)
    monkeypatch.setattr(module, "STEP", 50)
    detector = Detector(20)
    behind: list[int] = []
    produced = 0

    def note(dated: Any) -> Any:
        nonlocal produced
        produced += dated.topic == "transactions"
        behind.append(produced - detector.warmed)
        return dated

    monkeypatch.setattr(module, "messages", lambda life, settings: map(note, messages(life, settings)))
    with broker() as settings:
        count = warm_up(LIFE, settings, detector, lambda: True, lambda decided: None)  # type: ignore[arg-type]
    assert count == len(TRANSACTIONS)
    assert max(behind) <= 100 + 50
    assert detector.warmed >= count  # it returns when all is decided


def test_a_detector_that_decides_nothing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(module, "UNDECIDED", 100)
    with broker() as settings, pytest.raises(UserError, match=r"has decided 0 of \d+ transactions, and no other for"):
        warm_up(LIFE, settings, Detector(0), lambda: True, lambda decided: None)  # type: ignore[arg-type]


def test_it_ends_when_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP", 50)
    detector = Detector(0)
    asked = iter([True] * 3)
    with broker() as settings:
        count = warm_up(LIFE, settings, detector, lambda: next(asked, False), lambda decided: None)  # type: ignore[arg-type]
    assert count < len(TRANSACTIONS)
    assert len(TRANSACTIONS) == len(list(history(7, 200, 2.0, datetime(2026, 2, 28, tzinfo=UTC))))
