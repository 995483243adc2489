"""A sink that writes every decision exactly once, whatever crashes.

It has one part for each output partition. Its snapshot returns only when all that was written is acknowledged, and
holds the offsets at which its topics then end. Every record's headers carry the topic, partition and offset of its
transaction. After a crash Bytewax replays from the last snapshot; the part then reads what its topics hold behind that
snapshot and skips what already stands there.
"""

import threading
import time
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TypedDict

from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from confluent_kafka import Consumer, TopicPartition
from prometheus_client import Counter

from dataflow import lifecycle
from dataflow.connectors.delivery import Delivery, always
from dataflow.connectors.kafka_clients import PerWorker, count_partitions, make_consumer, watermarks
from dataflow.outbox import hand_over
from dataflow.record import SOURCE_OFFSET, SOURCE_PARTITION, SOURCE_TIMESTAMP, SOURCE_TOPIC, Record, partition_key
from dataflow.settings import Settings, UserError

WRITTEN = Counter("redflag_records_written_total", "Records handed to the producer", ["topic"])
SKIPPED = Counter(
    "redflag_records_skipped_total", "Records that stood in the output already, after a restart", ["topic"]
)


class SinkState(TypedDict):
    """What a part of the exactly-once sink keeps in a snapshot."""

    version: int
    partitions: int  # of each output topic: source partitions are spread over them by modulo
    ends: dict[str, int]  # topic: the offset up to which everything of ours is acknowledged


class ExactlyOnceSink(FixedPartitionedSink[list[Record], SinkState]):
    """Writes each record once, in one of its topics, whatever crashes; the partition is the source's, by modulo.

    Items are `(partition_key(partition), records)`, with records of that source partition. All topics must have as many
    partitions as each other. The promise holds as long as no other flow writes these topics: `may_write` says that.
    """

    def __init__(
        self,
        settings: Settings,
        source_topic: str,
        topics: Sequence[str],
        may_write: Callable[[], bool] = always,
    ):
        self._settings = settings
        self._source_topic = source_topic
        self._topics = tuple(topics)
        self._writers = PerWorker(lambda: (Delivery(settings, may_write), make_consumer(settings)))
        self._count = 0

    @lifecycle.mistakes_end_the_flow
    def list_parts(self) -> list[str]:
        """One part for each partition of the output topics.

        Raises:
            UserError: the topics do not have as many partitions as each other.
        """
        counts = {topic: count_partitions(self._settings, topic) for topic in self._topics}
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{topic} has {count}" for topic, count in counts.items())
            msg = f"the output topics must have equally many partitions, but {found}: add some to the smaller"
            raise UserError(msg)
        self._count = next(iter(counts.values()))
        # Bytewax asks once all processes of the cluster have found each other: none of the earlier ones lives.
        lifecycle.cluster_stands()
        _settling.begin()
        return [partition_key(p) for p in range(self._count)]

    def part_fn(self, item_key: str) -> int:
        """The source partition; Bytewax takes it modulo the number of parts."""
        return int(item_key)

    @lifecycle.mistakes_end_the_flow
    def build_part(self, step_id: str, for_part: str, resume_state: SinkState | None) -> "_ExactlyOncePart":
        """Finds what this part's partitions hold already, behind the last snapshot or, without one, at all.

        Raises:
            UserError: the output topics are not those that the recovery data knows.
        """
        delivery, consumer = self._writers.get()
        partition = int(for_part)
        if resume_state is not None and resume_state["partitions"] != self._count:
            msg = (
                f"the output topics have {self._count} partitions, but had {resume_state['partitions']} when the "
                "recovery data was written: stop the flow before changing that, then use an empty directory"
            )
            raise UserError(msg)
        ends = resume_state["ends"] if resume_state is not None else dict.fromkeys(self._topics, 0)
        standing, now = _read_tail(self._settings, consumer, self._source_topic, partition, ends)
        return _ExactlyOncePart(delivery, self._source_topic, partition, self._count, ends, standing, now)


class _ExactlyOncePart(StatefulSinkPartition[list[Record], SinkState]):
    """Owns one partition of each output topic."""

    def __init__(
        self,
        delivery: Delivery,
        source_topic: str,
        partition: int,
        count: int,
        ends: dict[str, int],
        standing: set[tuple[int, int, int]],
        now: dict[str, int],
    ):
        self._delivery = delivery
        self._partition = partition
        self._count = count
        self._topics = tuple(ends)
        self._ends = ends  # as of the last snapshot
        self._now = now  # where the topics end once all that was handed over is acknowledged
        self._standing = standing  # source partition, offset, timestamp of what is written already
        self._reached: dict[int, int] = {}  # source partition: the highest offset that came, while something stands
        self._source_topic = source_topic.encode()
        self._written = {topic: WRITTEN.labels(topic) for topic in ends}

    @lifecycle.mistakes_end_the_flow
    def write_batch(self, values: list[list[Record]]) -> None:
        records = list(chain.from_iterable(values))
        if self._standing:
            records = self._not_standing(records)
        self._delivery.await_permission()
        counts = hand_over(records, self._partition, self._source_topic, self._delivery)
        for topic, count in counts.items():
            self._written[topic].inc(count)
            self._now[topic] += count
        self._delivery.poll()

    def _not_standing(self, records: list[Record]) -> list[Record]:
        """Those that do not stand in the outputs already."""
        left = []
        for record in records:
            source = record.partition
            self._reached[source] = max(record.offset, self._reached.get(source, -1))
            origin = (source, record.offset, record.record_ms)
            if origin in self._standing:
                self._standing.remove(origin)
                SKIPPED.labels(record.topic).inc()
            else:
                left.append(record)
        return left

    @lifecycle.mistakes_end_the_flow
    def snapshot(self) -> SinkState:
        self._delivery.flush()
        if self._standing:
            # All of the source up to what came has come by the end of an epoch: what stands there was another topic's.
            reached = self._reached
            self._standing -= {each for each in self._standing if each[1] <= reached.get(each[0], -1)}
        if not self._standing:
            # Counted, not asked for: a question takes 5 ms for each topic and partition, in which no decision is made.
            # This part alone writes these partitions, each record acknowledged is one offset, and where somebody else
            # has written too, the ends lie further on: then a restart reads more than it need.
            self._ends = dict(self._now)
        # Else a restart must find again what stands there and has not come yet: the ends stay where they were.
        return {"version": 1, "partitions": self._count, "ends": dict(self._ends)}


class _Settling:
    """How long the outputs have stood still, in time in which the broker answered; all parts of a process share it.

    A broker that hangs holds the records of the killed process as it holds our questions: while it does not answer,
    the outputs standing still says nothing. So between two answers at most `_ANSWER_COUNTS` seconds count.
    """

    _ANSWER_COUNTS = 0.1

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.begin()

    def begin(self) -> None:
        """Counts from now."""
        with self._lock:
            self._still, self._answered = 0.0, time.monotonic()

    def answered(self) -> float:
        """The broker has answered, and nothing has moved: how long that has been so."""
        with self._lock:
            now = time.monotonic()
            self._still += min(now - self._answered, self._ANSWER_COUNTS)
            self._answered = now
            return self._still


_settling = _Settling()


def _read_tail(
    settings: Settings, consumer: Consumer, source_topic: str, partition: int, ends: dict[str, int]
) -> tuple[set[tuple[int, int, int]], dict[str, int]]:
    """The transactions whose decisions stand in the partition from the given offset of each topic on; where these end.

    A record of the process that was killed can still be on its way: in a socket's buffer, or in the broker's queue.
    Kafka can fence that only with transactions, whose latency we do not want; so this waits it out: it returns when
    no topic has grown for `OUTPUT_SETTLE_SECONDS` (0.5 by default) of a broker that answers, counted from when the
    cluster stood at the earliest. By then the other one was dead: it would hold the lock of the recovery directory.
    """
    positions = dict(ends)
    standing: set[tuple[int, int, int]] = set()
    seconds = settings.delivery_timeout_seconds
    for topic, start in ends.items():
        low, high = watermarks(consumer, topic, partition, seconds)
        if start > high:
            msg = (
                f"{topic}[{partition}] ends at offset {high}, but the recovery data says that {start} records were "
                "acknowledged: the topic was made anew or cut; use an empty recovery directory, or bring the topic back"
            )
            raise UserError(msg)
        positions[topic] = max(low, start)
    wanted = source_topic.encode()
    deadline = time.monotonic() + seconds
    known: dict[str, int] = {}
    consumer.assign([TopicPartition(topic, partition, position) for topic, position in positions.items()])
    try:
        while True:
            highs = {topic: watermarks(consumer, topic, partition, seconds)[1] for topic in positions}
            if known and highs != known:
                _settling.begin()
            known = highs
            still = _settling.answered()
            if all(positions[topic] >= high for topic, high in highs.items()):
                if still >= settings.output_settle_seconds:
                    return standing, highs
                time.sleep(0.05)
                continue
            if time.monotonic() > deadline:
                msg = f"cannot read {', '.join(positions)}[{partition}] for {seconds:g} s: is the broker up?"
                raise UserError(msg)
            for message in consumer.consume(10_000, 0.05):
                if message.error() is not None:
                    continue
                positions[message.topic()] = message.offset() + 1
                headers = dict(message.headers() or ())
                if headers.get(SOURCE_TOPIC) == wanted:
                    origin = (headers[SOURCE_PARTITION], headers[SOURCE_OFFSET], headers[SOURCE_TIMESTAMP])
                    standing.add((int(origin[0]), int(origin[1]), int(origin[2])))
                deadline = time.monotonic() + seconds
    finally:
        consumer.unassign()
