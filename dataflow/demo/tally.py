"""What came of the transactions that were generated, read back from the topics: decisions, truth, latency."""

import time
from collections import Counter

import msgspec
from confluent_kafka import Consumer, Message, TopicPartition

from dataflow.connectors import kafka_clients
from dataflow.demo.figures import Figures
from dataflow.events import output_record as record
from dataflow.settings import Settings
from dataflow.simulation.purchases import Truth

LATENCIES_KEPT = 1_000_000
BATCH = 10_000  # messages taken at once, at most


class Reason(msgspec.Struct):
    """An entry of an alert's explanation, as far as it is shown."""

    text: str


class Alert(msgspec.Struct):
    """What is shown of an alert."""

    transaction_id: str
    user: str
    amount: float
    merchant: str
    location: str
    timestamp: str
    score: float
    reason: list[str]
    rules: list[str]
    action: str = "review"
    explanation: list[Reason] = []


class _Decided(msgspec.Struct):
    transaction_id: str
    amount: float
    fraudulent: bool


class Tally:
    """What was generated and decided since it was made.

    What came before `go_live` is the warm-up, of which it is only counted how many were decided. Of what comes after
    it, it is told too how good the decisions are, by the truth on the labels' topic.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._consumer: Consumer = kafka_clients.make_consumer(settings)
        self._outputs = (settings.alerts_topic, settings.classified_topic, settings.invalid_topic)
        topics = (*self._outputs, settings.labels_topic)
        counts = {topic: kafka_clients.count_partitions(settings, topic) for topic in topics}
        self._partitions = kafka_clients.count_partitions(settings, settings.transactions_topic)
        self._first = self._live = self._ends()
        self._is_live = False
        self._consumer.assign(
            [
                TopicPartition(
                    topic, partition, self._consumer.get_watermark_offsets(TopicPartition(topic, partition))[1]
                )
                for topic, count in counts.items()
                for partition in range(count)
            ]
        )
        self._alert = msgspec.json.Decoder(Alert).decode
        self._decided = msgspec.json.Decoder(_Decided).decode
        self._truth = msgspec.json.Decoder(Truth).decode
        self.warmed = 0  # decisions of the warm-up
        self.figures = Figures()
        self.by_topic: Counter[str] = Counter()
        self.by_rule: Counter[str] = Counter()
        self.by_action: Counter[str] = Counter()
        self.refused_labels = 0  # feedback that the detector sent to the dead letters
        self.latencies: list[float] = []  # milliseconds, from the transaction's Kafka timestamp to our reading it
        self.first = self.last = 0.0

    def _ends(self) -> dict[int, int]:
        topic = self._settings.transactions_topic
        return {
            p: self._consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10)[1]
            for p in range(self._partitions)
        }

    def go_live(self) -> None:
        """Ends the warm-up: what is generated from here on is counted as live."""
        self._live = self._ends()
        self._is_live = True

    def generated(self) -> int:
        """Transactions on the topic since the start of what is under way: the warm-up, or the live part."""
        start = self._live if self._is_live else self._first
        return sum(self._ends().values()) - sum(start.values())

    def to_warm(self) -> int:
        """Transactions of the warm-up that are on the topic."""
        return sum((self._live if self._is_live else self._ends()).values()) - sum(self._first.values())

    def decided(self) -> int:
        """Decisions on live ones."""
        return self.by_topic.total()

    def judged(self) -> bool:
        """Whether the truth about all that was decided has come."""
        return self.figures.judged >= self.decided() - self.by_topic[self._settings.invalid_topic]

    def take(self, seconds: float) -> list[Alert]:
        """Reads what was decided meanwhile; returns the alerts on live transactions."""
        alerts = []
        # consume() alone would wait until it has all it may take: the first is awaited, the rest is what is there.
        first = self._consumer.poll(seconds)
        for message in [first, *self._consumer.consume(BATCH, 0)] if first is not None else ():
            if message.error() is not None:
                continue
            if message.topic() == self._settings.labels_topic:
                truth = self._truth(message.value())
                self.figures.truth(truth.transaction_id, truth.fraud, truth.scenario)
                continue
            alert = self._take_output(message)
            if alert is not None:
                alerts.append(alert)
        return alerts

    def _take_output(self, message: Message) -> Alert | None:
        headers = dict(message.headers() or ())
        partition, offset = int(headers[record.SOURCE_PARTITION]), int(headers[record.SOURCE_OFFSET])
        if headers[record.SOURCE_TOPIC].decode() != self._settings.transactions_topic:
            self.refused_labels += 1
            return None
        if offset < self._first[partition]:
            return None  # it was generated before we started, and is decided only now
        if not self._is_live or offset < self._live[partition]:
            self.warmed += 1
            return None
        now = time.time()
        self.first = self.first or now
        self.last = now
        if len(self.latencies) < LATENCIES_KEPT:
            self.latencies.append(now * 1000 - int(headers[record.SOURCE_TIMESTAMP]))
        topic = message.topic()
        self.by_topic[topic] += 1
        if topic == self._settings.invalid_topic:
            return None
        decided = self._decided(message.value())
        self.figures.decided(decided.transaction_id, decided.amount, decided.fraudulent)
        if topic != self._settings.alerts_topic:
            return None
        alert = self._alert(message.value())
        self.by_rule.update(alert.rules)
        self.by_action[alert.action] += 1
        return alert

    def close(self) -> None:
        """Ends the consumer."""
        self._consumer.close()
