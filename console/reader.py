"""Reads alerts and feedback from Kafka into the store, each record once, whenever the process was killed.

Records and the offsets that they come from are stored together; the broker keeps no offsets of ours.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from console import metrics
from console.database import AwayError, DatabaseError
from console.feedback_messages import own_number
from console.records import parse_alert
from console.store import Batch, Place, Store
from console.topic_thread import TopicThread
from dataflow.connectors import kafka_clients
from dataflow.errors import UserError
from dataflow.events.feedback import Feedback, parse_feedback
from dataflow.process import health, lifecycle
from dataflow.settings import Settings

AT_ONCE: Final = 500
"""Records that one transaction of the database takes in: others wait no longer than that takes (0.1 s)."""
GATHER_EACH_SECONDS: Final = 0.01
GATHER_SECONDS: Final = 0.2
"""How long the next records are gathered after some were stored: so long for each of them, and so long at most. So from
100 a second on they are stored five times a second. An alert that is stored with 100 others costs half the CPU and a
third of the writes to the disk of one that is stored with five (168 µs and 68 KB; 333 and 207), and the flow beside it
wants both."""
POLL_SECONDS: Final = 0.1
LAG_SECONDS: Final = 1.0
AGAIN_SECONDS: Final = 1.0
"""Until a database server that was away is tried again."""
CONSUMER: Final = {
    "enable.partition.eof": True,
    # What is fetched ahead is in memory: librdkafka's own 64 MiB a partition is what the console may have in all.
    "queued.max.messages.kbytes": 4096,
}

_log = logging.getLogger("redflag.console")


class Reader(TopicThread):
    """Reads both topics on a thread of its own."""

    def __init__(self, settings: Settings, store: Store):
        """Looks where to go on.

        Raises:
            UserError: a topic is missing, or no broker answers.
        """
        super().__init__("console-reader", kafka_clients.make_consumer(settings, CONSUMER))
        self._settings = settings
        self._store = store
        self._id = store.database.id
        self._topics = (settings.alerts_topic, settings.feedback_topic)
        self._identities: dict[str, str] = {}
        self._next: dict[Place, int] = {}  # the offset after what is stored
        self._lag_due = 0.0
        self.behind = 0
        """Messages that stand on the topics and are not stored yet, a second ago at most."""
        self._at_end: dict[Place, int] = {}  # up to where all is stored
        self._progress = threading.Condition()
        self._consumer.assign(self._starts())

    def wait_until_stored(self, ends: dict[Place, int], seconds: float) -> bool:
        """Waits until all below these offsets is stored; returns whether that is so."""
        with self._progress:
            return self._progress.wait_for(
                lambda: self._stop.is_set() or all(self._at_end.get(p, 0) >= end for p, end in ends.items()), seconds
            )

    def _starts(self) -> list[TopicPartition]:
        stored = self._store.offsets()
        counts = {topic: kafka_clients.count_partitions(self._settings, topic) for topic in self._topics}
        identities = kafka_clients.identify_topics(self._settings, self._topics)
        starts = []
        for topic in self._topics:
            where = {}
            for partition in range(counts[topic]):
                where[partition] = kafka_clients.watermarks(
                    self._consumer, topic, partition, self._settings.delivery_timeout_seconds
                )
            found = identities[topic]
            self._identities[topic] = self._identity(topic, found.topic_id, found.cluster_id, stored, where)
            for partition, (low, high) in where.items():
                identity, after = stored.get((topic, partition), ("", 0))
                if identity != self._identities[topic]:
                    after = low
                elif after < low:
                    _log.warning("%s[%d]: offsets %d to %d are no longer there", topic, partition, after, low - 1)
                    after = low
                self._next[topic, partition] = after
                starts.append(TopicPartition(topic, partition, after))
                if after >= high:
                    self._at_end[topic, partition] = high
        return starts

    @staticmethod
    def _identity(
        topic: str,
        topic_id: str,
        cluster_id: str,
        stored: dict[Place, tuple[str, int]],
        where: dict[int, tuple[int, int]],
    ) -> str:
        """What tells this topic from another of its name, so that its offsets are taken for its own.

        Where the broker has no topic ids, one that ends before where we were was made anew.
        """
        if topic_id:
            return topic_id
        known = {partition: stored[topic, partition] for partition in where if (topic, partition) in stored}
        same = all(identity.startswith(cluster_id) for identity, _ in known.values())
        if known and same and all(after <= where[partition][1] for partition, (_, after) in known.items()):
            return next(iter(known.values()))[0]
        return f"{cluster_id}/{os.urandom(4).hex()}"

    def _read(self) -> None:
        gather_until = 0.0
        try:
            while not self._stop.is_set():
                health.goes_round()
                first = self._consumer.poll(POLL_SECONDS)
                if first is not None:
                    self._stop.wait(max(gather_until - time.monotonic(), 0.0))
                    messages = [first, *self._consumer.consume(AT_ONCE - 1, 0)]
                    gathered = 0.0 if len(messages) == AT_ONCE else len(messages) * GATHER_EACH_SECONDS
                    gather_until = time.monotonic() + min(gathered, GATHER_SECONDS)
                    self._take_in(messages)
                self._measure_lag()
        except DatabaseError as error:
            if not self._stop.is_set():
                lifecycle.fail(UserError(f"CONSOLE_DATABASE={self._store.database.where} cannot be written ({error})"))
        except (KafkaException, UserError) as error:
            lifecycle.fail(UserError(f"the console cannot read on: {error}"))

    def _measure_lag(self) -> None:
        """Once a second: how far each partition's end, as the broker last told it, is from what is stored."""
        if time.monotonic() < self._lag_due:
            return
        self._lag_due = time.monotonic() + LAG_SECONDS
        behind = 0
        for where in self._consumer.assignment():
            _, end = self._consumer.get_watermark_offsets(where, cached=True)
            next_offset = self._next.get((where.topic, where.partition), 0)
            lag = max(end - next_offset, 0)  # the end is negative until the broker has told it
            metrics.LAG.labels(where.topic, str(where.partition)).set(lag)
            behind += lag
        self.behind = behind

    def _take_in(self, messages: Sequence[Message]) -> None:
        alerts, feedback, confirmed = [], [], []
        after: dict[Place, tuple[str, int]] = {}
        ends: dict[Place, int] = {}
        for message in messages:
            place = (message.topic() or "", message.partition() or 0)
            error = message.error()
            offset = message.offset() or 0
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    ends[place] = offset
                elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                    msg = f"{place[0]}[{place[1]}] has lost or changed its records ({error.str()}): start it anew"
                    raise UserError(msg)
                continue  # the client tries again by itself
            after[place] = (self._identities[place[0]], offset + 1)
            at = max(message.timestamp()[1], 0)
            if place[0] == self._settings.alerts_topic:
                alert = parse_alert(message.value(), self._identities[place[0]], place[1], offset, at)
                if alert is None:
                    _log.warning("%s[%d]@%d is no alert, and left out", *place, offset)
                else:
                    alerts.append(alert)
                continue
            if (number := own_number(message.headers(), self._id)) is not None:
                confirmed.append(number)
                continue
            label = parse_feedback(message.value(), message.key(), place[1], offset, at)
            if isinstance(label, Feedback):
                feedback.append(label)
        if after:
            new = self._ingest(Batch(alerts, feedback, confirmed, after))
            if new is None:
                return
            self._next |= {place: offset for place, (_, offset) in after.items()}
            metrics.ALERTS_READ.inc(new)
            metrics.LABELS_READ.inc(len(feedback))
            metrics.FEEDBACK_SENT.inc(len(confirmed))
            stored = self._store.clock()
            metrics.STORED_AFTER.add([max(stored - each.decided_at, 0.0) for each in alerts])
        # The end lies beyond the last record by the marks of transactions, which nobody is given.
        self._next |= {place: max(end, self._next.get(place, 0)) for place, end in ends.items()}
        if ends or after:
            with self._progress:
                self._at_end |= ends
                self._progress.notify_all()

    def _ingest(self, batch: Batch) -> int | None:
        """Stores a batch, once the database server is there; how many alerts were new, None where it ended before.

        A batch that was stored although nobody said so is stored once all the same: what it has is there already.
        """
        while True:
            try:
                return self._store.ingest(batch)
            except AwayError:  # the database tells it
                if self._stop.wait(AGAIN_SECONDS):
                    return None
                health.goes_round()


def ends_of(settings: Settings, topic: str) -> dict[Place, int]:
    """Where the partitions of a topic end now.

    Raises:
        UserError: no broker answers.
    """
    partitions = kafka_clients.count_partitions(settings, topic)
    with contextlib.closing(kafka_clients.make_consumer(settings)) as consumer:
        return {
            (topic, number): _end(consumer, topic, number, settings.delivery_timeout_seconds)
            for number in range(partitions)
        }


def _end(consumer: Consumer, topic: str, partition: int, seconds: float) -> int:
    return kafka_clients.watermarks(consumer, topic, partition, seconds)[1]
