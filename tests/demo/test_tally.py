"""The tally reads decisions and truth back from the topics; here both are written by the test."""

import json
import time
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from dataflow.connectors.embedded_broker import EmbeddedBroker
from dataflow.demo.tally import Alert, Tally
from dataflow.settings import Settings

pytestmark = pytest.mark.slow


class Kafka:
    """The topics of a run, as generator and detector write them: all in partition 0."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self._producer = Producer({"bootstrap.servers": settings.brokers, "log_level": 0})
        self._generated = 0

    def _write(self, topic: str, value: object, headers: list[tuple[str, bytes]] | None = None) -> None:
        self._producer.produce(topic, json.dumps(value).encode(), partition=0, headers=headers)
        assert self._producer.flush(10) == 0

    def generate(self) -> int:
        """A transaction; returns its offset."""
        self._write(self.settings.transactions_topic, {})
        self._generated += 1
        return self._generated - 1

    def decide(self, offset: int, alert: bool, amount: float = 10.0, topic: str = "", source: str = "") -> None:
        settings = self.settings
        headers = [
            ("source_topic", (source or settings.transactions_topic).encode()),
            ("source_partition", b"0"),
            ("source_offset", str(offset).encode()),
            ("source_timestamp", str(int(time.time() * 1000)).encode()),
        ]
        decision = {
            "transaction_id": f"t-{offset}",
            "user": "ann",
            "amount": amount,
            "merchant": "Amazon",
            "location": "US",
            "timestamp": "2026-03-02T12:00:00Z",
            "fraudulent": alert,
            "score": 0.9,
            "reason": ["High amount"] if alert else [],
            "rules": ["high_amount"] if alert else [],
            "action": "block" if alert else "approve",
            **({"explanation": [{"text": "far too much"}]} if alert else {}),
        }
        self._write(topic or (settings.alerts_topic if alert else settings.classified_topic), decision, headers)

    def tell(self, offset: int, fraud: bool) -> None:
        truth = {"transaction_id": f"t-{offset}", "fraud": fraud, "scenario": "stolen_card" if fraud else "none"}
        self._write(self.settings.labels_topic, truth)


@pytest.fixture
def kafka() -> Iterator[Kafka]:
    broker = EmbeddedBroker()
    yield Kafka(Settings(brokers=broker.address))
    broker.close()


def read_all(tally: Tally) -> list[Alert]:
    """What the tally takes until nothing comes any more."""
    found: list[Alert] = []
    quiet = 0
    while quiet < 3:
        before = tally.decided(), tally.warmed, tally.refused_labels, tally.figures.judged
        found += tally.take(0.3)
        after = tally.decided(), tally.warmed, tally.refused_labels, tally.figures.judged
        quiet = quiet + 1 if after == before else 0
    return found


def test_of_the_warm_up_it_is_only_counted_how_much_was_decided(kafka: Kafka) -> None:
    tally = Tally(kafka.settings)
    kafka.decide(kafka.generate(), alert=True)
    kafka.decide(kafka.generate(), alert=False)
    assert tally.generated() == tally.to_warm() == 2
    assert read_all(tally) == []
    assert (tally.warmed, tally.decided()) == (2, 0)
    tally.go_live()
    assert (tally.generated(), tally.to_warm()) == (0, 2)
    live = kafka.generate()
    kafka.decide(live, alert=True)
    kafka.decide(1, alert=False)  # one of the warm-up, decided twice: it must not pass for a live one
    assert [alert.transaction_id for alert in read_all(tally)] == [f"t-{live}"]
    assert (tally.warmed, tally.decided(), tally.generated()) == (3, 1, 1)
    tally.close()


def test_live_decisions_are_held_against_the_truth(kafka: Kafka) -> None:
    tally = Tally(kafka.settings)
    tally.go_live()
    for fraud, alert, amount in ((True, True, 100.0), (True, False, 40.0), (False, True, 7.0), (False, False, 1.0)):
        offset = kafka.generate()
        kafka.decide(offset, alert, amount)
        if offset < 3:
            kafka.tell(offset, fraud)
    alerts = read_all(tally)
    assert [(alert.action, alert.explanation[0].text) for alert in alerts] == [("block", "far too much")] * 2
    assert not tally.judged()
    kafka.tell(3, fraud=False)
    read_all(tally)
    assert tally.judged()
    figures = tally.figures
    assert (figures.caught.money, figures.missed.money, figures.false_alarms.money) == (100.0, 40.0, 7.0)
    assert (figures.precision, figures.recall) == (0.5, 0.5)
    assert tally.by_action["block"] == tally.by_rule["high_amount"] == 2
    tally.close()


def test_a_refused_label_is_no_decision(kafka: Kafka) -> None:
    tally = Tally(kafka.settings)
    tally.go_live()
    settings = kafka.settings
    kafka.decide(kafka.generate(), alert=False, topic=settings.invalid_topic, source=settings.feedback_topic)
    read_all(tally)
    assert (tally.refused_labels, tally.decided()) == (1, 0)
    tally.close()


def test_what_was_generated_before_it_was_made_counts_nowhere(kafka: Kafka) -> None:
    before = kafka.generate()
    tally = Tally(kafka.settings)
    kafka.decide(before, alert=True)
    assert read_all(tally) == []
    assert (tally.warmed, tally.decided(), tally.generated()) == (0, 0, 0)
    tally.close()
