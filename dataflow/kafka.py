"""All of Kafka: a lean source, a sink that writes every decision exactly once, and a plain sink with checked delivery.

Bytewax's own connectors lose a record that the broker refuses (no delivery callback), write the tail of an epoch
twice after a crash, and poll every partition with a timeout. These do not:

- The source hands out librdkafka's messages as they are. Its snapshot is the offset of the next message.
- The exactly-once sink has one part for each output partition. Its snapshot returns only when all that was written
  is acknowledged, and holds the offsets at which its topics then end. Every record's headers carry the topic,
  partition and offset of its transaction. After a crash Bytewax replays from the last snapshot; the part then reads
  what its topics hold behind that snapshot and skips what already stands there.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Generic, TypedDict, TypeVar

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import DynamicSink, FixedPartitionedSink, StatefulSinkPartition, StatelessSinkPartition
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from prometheus_client import Counter, Gauge

from dataflow import lifecycle
from dataflow.outbox import hand_over
from dataflow.record import (
    SOURCE_OFFSET,
    SOURCE_PARTITION,
    SOURCE_TIMESTAMP,
    SOURCE_TOPIC,
    Record,
    partition_key,
)
from dataflow.settings import Settings, UserError

T = TypeVar("T")

BROKER_WAIT_SECONDS = 30.0  # how long a start waits for a broker, a topic and each of its partitions
IDLE_AWAKE = 0.001  # seconds to the next look at an idle partition, doubling up to the source's `idle_seconds`
READY = "redflag: reading"  # how the line begins that says a worker is ready
EMPTY_POLL_SECONDS = 0.0005  # the partitions of one worker share a consumer: an empty poll counts for all of them

LAG = Gauge("redflag_consumer_lag_messages", "Messages behind the end of the partition", ["topic", "partition"])
WRITTEN = Counter("redflag_records_written_total", "Records handed to the producer", ["topic"])
SKIPPED = Counter(
    "redflag_records_skipped_total", "Records that stood in the output already, after a restart", ["topic"]
)
REFUSED = Counter("redflag_records_refused_total", "Records that the broker refused or that timed out", ["topic"])


class SinkState(TypedDict):
    """What a part of the exactly-once sink keeps in a snapshot."""

    version: int
    partitions: int  # of each output topic: source partitions are spread over them by modulo
    ends: dict[str, int]  # topic: the offset up to which everything of ours is acknowledged


def client_config(settings: Settings, own: dict[str, Any]) -> dict[str, Any]:
    """The configuration of one client: our defaults, the user's `KAFKA_CONFIG_*`, then what must be as we say."""
    return {
        "log_level": 3,
        "broker.address.family": "v4",
        "reconnect.backoff.max.ms": 1000,
        **settings.librdkafka(own),
    }


def make_producer(settings: Settings, on_delivery: Callable[[Any, Any], None]) -> Producer:
    """An idempotent producer whose `on_delivery` hears of failures only.

    Raises:
        UserError: librdkafka does not take a setting.
    """
    config = client_config(
        settings,
        {
            "enable.idempotence": True,
            "acks": "all",
            "message.timeout.ms": int(settings.delivery_timeout_seconds * 1000),
            # A callback a message costs 1 µs of Python; whether all went well, flush() and the absence of errors say.
            "delivery.report.only.error": True,
        },
    )
    # 1 ms: under load batches fill anyway (measured: 5 ms brings no throughput), a lone decision is not kept waiting.
    config.setdefault("linger.ms", 1)
    try:
        return Producer({**config, "on_delivery": on_delivery})
    except KafkaException as error:
        raise UserError(_wrong_config(error)) from error


def make_consumer(settings: Settings) -> Consumer:
    """A consumer that is assigned partitions and commits nothing: offsets live in the snapshots.

    Raises:
        UserError: librdkafka does not take a setting.
    """
    own = {
        "group.id": "redflag",  # required by the client; with `assign` no group is ever joined
        "enable.auto.commit": False,
        "auto.offset.reset": "error",
    }
    config = client_config(settings, own)
    config.setdefault("fetch.wait.max.ms", 100)
    try:
        return Consumer(config)
    except KafkaException as error:
        raise UserError(_wrong_config(error)) from error


def _wrong_config(error: KafkaException) -> str:
    return f"Kafka client: {error.args[0].str()}; see KAFKA_BROKERS and KAFKA_CONFIG_* in the environment or .env"


def count_partitions(settings: Settings, topic: str) -> int:
    """How many partitions a topic has, once each of them has a leader.

    Asks through a producer, since a consumer's request would not create the topic where the broker does that.

    Raises:
        UserError: no broker answers, or the topic does not exist, within `BROKER_WAIT_SECONDS`.
    """
    with contextlib.closing(make_producer(settings, lambda _error, _message: None)) as producer:
        return _wait_for_partitions(settings, topic, producer)


def _wait_for_partitions(settings: Settings, topic: str, producer: Producer) -> int:
    deadline = time.monotonic() + BROKER_WAIT_SECONDS
    problem = ""
    while time.monotonic() < deadline and not lifecycle.stopping():
        try:
            found = producer.list_topics(topic, timeout=5).topics[topic]
        except KafkaException as error:
            problem = (
                f"no broker answers at {settings.brokers} ({error.args[0].str()}): is it up, is KAFKA_BROKERS right?"
            )
            continue
        if found.error is not None:
            problem = (
                f"topic {topic!r} cannot be used on {settings.brokers} ({found.error.str()}): "
                "create it, or name another in the settings"
            )
            if found.error.code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.TOPIC_EXCEPTION):
                break
        elif found.partitions and all(p.leader >= 0 for p in found.partitions.values()):
            return len(found.partitions)
        else:
            problem = f"topic {topic!r} on {settings.brokers} has partitions without a leader"
        time.sleep(0.1)
    raise UserError(problem or "stopped while waiting for the broker")


def _retry(what: str, call: Callable[[], Any], seconds: float) -> Any:
    """Calls until the broker answers: a broker that restarts is no reason to stop.

    Raises:
        UserError: it did not answer within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except KafkaException as error:
            if time.monotonic() > deadline:
                msg = f"{what}: {error.args[0].str()} (for {seconds:g} s); is the broker up?"
                raise UserError(msg) from error
            time.sleep(0.1)


def _watermarks(consumer: Consumer, topic: str, partition: int, seconds: float) -> tuple[int, int]:
    return _retry(  # type: ignore[no-any-return]
        f"cannot ask for the offsets of {topic}[{partition}]",
        lambda: consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=5),
        seconds,
    )


class _PerWorker(Generic[T]):
    """One object for each worker thread: the parts of a worker share it, other workers never touch it."""

    def __init__(self, make: Callable[[], T]):
        self._make = make
        self._local = threading.local()

    def get(self) -> T:
        if not hasattr(self._local, "it"):
            self._local.it = self._make()
        return self._local.it  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------------------------------------- source


class KafkaSource(FixedPartitionedSource[Message, int]):
    """Reads every partition of a topic, each message as librdkafka hands it over; its state is the next offset.

    Without recovery data it begins at the beginning of each partition. A message that comes after a lull waits up to
    `idle_seconds`: an idle flow of two topics with 16 partitions each takes 2.8 % of a core at 20 ms, 4.9 % at 10.
    """

    def __init__(self, settings: Settings, topic: str, idle_seconds: float = 0.02):
        self._settings = settings
        self._topic = topic
        self._idle_seconds = idle_seconds
        # Bytewax shares the source among the worker threads of a process.
        self._fetchers = _PerWorker(lambda: _Fetcher(settings, topic))

    @lifecycle.mistakes_end_the_flow
    def list_parts(self) -> list[str]:
        """One part for each partition, named with its zero-padded number."""
        return [partition_key(p) for p in range(count_partitions(self._settings, self._topic))]

    @lifecycle.mistakes_end_the_flow
    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> "_SourcePartition":
        """Begins at the offset of the snapshot, or at the beginning.

        Raises:
            UserError: the topic ends before that offset, so it is not the one that the recovery data knows.
        """
        fetcher = self._fetchers.get()
        offset = None if resume_state == OFFSET_BEGINNING else resume_state  # it had not read anything
        fetcher.add(int(for_part), offset)
        return _SourcePartition(fetcher, int(for_part), offset, self._idle_seconds)


class _Fetcher:
    """The consumer of one worker: one poll fetches for all its partitions, each then takes what is its own.

    So an idle flow polls once, not once for each partition, and no partition waits for another's poll.
    """

    def __init__(self, settings: Settings, topic: str):
        self._settings = settings
        self._topic = topic
        self._consumer = make_consumer(settings)
        self._buffers: dict[int, list[Message]] = {}
        self._polled_empty = 0.0
        self._announced = False

    def add(self, partition: int, offset: int | None) -> None:
        if offset is not None:
            low, high = _watermarks(self._consumer, self._topic, partition, self._settings.delivery_timeout_seconds)
            if offset > high:
                msg = (
                    f"{self._topic}[{partition}] ends at offset {high}, but the recovery data stands at {offset}: "
                    "the topic was made anew or cut; to begin again at its start, use an empty recovery directory"
                )
                raise UserError(msg)
            if offset < low:
                msg = (
                    f"{self._topic}[{partition}] begins at offset {low}, but {offset} is next to decide: retention "
                    f"removed {low - offset} transactions; to go on without them, use an empty recovery directory"
                )
                raise UserError(msg)
        self._buffers[partition] = []
        start = OFFSET_BEGINNING if offset is None else offset
        self._consumer.incremental_assign([TopicPartition(self._topic, partition, start)])

    def take(self, partition: int) -> list[Message]:
        if not self._announced:
            self._announced = True
            partitions = ", ".join(map(str, sorted(self._buffers)))
            print(f"{READY} {self._topic}[{partitions}] on {self._settings.brokers}", file=sys.stderr, flush=True)
        buffer = self._buffers[partition]
        if not buffer:
            now = time.monotonic()
            if now - self._polled_empty < EMPTY_POLL_SECONDS:
                return buffer
            messages = self._consumer.consume(self._settings.max_batch, 0)
            if not messages:
                self._polled_empty = now
                return buffer
            buffers = self._buffers
            for message in messages:
                if message.error() is not None:
                    self._check(message)
                else:
                    buffers[message.partition()].append(message)
            buffer = self._buffers[partition]
        self._buffers[partition] = []
        return buffer

    def _check(self, message: Message) -> None:
        error = message.error()
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            reason = f"{self._topic}[{message.partition()}]: {error.str()}"
            msg = f"{reason}: next to decide, but gone; to begin again, use an empty recovery directory"
            raise UserError(msg)
        if error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC):
            msg = f"{self._topic!r} is gone from {self._settings.brokers} ({error.str()}): create it, then start again"
            raise UserError(msg)
        if error.code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED):
            msg = f"not allowed to read topic {self._topic!r} ({error.str()}): see the broker's ACLs and KAFKA_CONFIG_*"
            raise UserError(msg)
        # Anything else (a broker that is away) librdkafka mends by itself, with back-off.

    def end(self, partition: int) -> int:
        """The offset at which the partition ended when librdkafka last heard of it; no request is made."""
        return int(self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), cached=True)[1])

    def drop(self, partition: int) -> None:
        del self._buffers[partition]
        if not self._buffers:
            self._consumer.close()


class _SourcePartition(StatefulSourcePartition[Message, int]):
    def __init__(self, fetcher: _Fetcher, partition: int, offset: int | None, idle_seconds: float):
        self._fetcher = fetcher
        self._idle_seconds = idle_seconds
        self._partition = partition
        self._next_offset = OFFSET_BEGINNING if offset is None else offset
        self._idle = 0.0
        self._lag = LAG.labels(fetcher._topic, str(partition))
        self._lag_due = 0.0

    @lifecycle.mistakes_end_the_flow
    def next_batch(self) -> Iterable[Message]:
        if lifecycle.stopping():
            raise StopIteration
        batch = self._fetcher.take(self._partition)
        if batch:
            self._next_offset = batch[-1].offset() + 1
            self._idle = 0.0
        else:
            self._idle = min(max(2 * self._idle, IDLE_AWAKE), self._idle_seconds)
        now = time.monotonic()
        if now >= self._lag_due:
            self._lag_due = now + 1.0
            self._lag.set(max(0, self._fetcher.end(self._partition) - max(0, self._next_offset)))
        return batch

    def next_awake(self) -> datetime | None:
        if not self._idle:
            return None
        # On a common grid: all idle partitions are then looked at in one activation, not in one each.
        return datetime.fromtimestamp((time.time() // self._idle + 1) * self._idle, UTC)

    @lifecycle.mistakes_end_the_flow
    def snapshot(self) -> int:
        return self._next_offset

    def close(self) -> None:
        self._fetcher.drop(self._partition)


# ------------------------------------------------------------------------------------------------------------ sinks


class _Delivery:
    """A producer whose first failed delivery is kept and raised at the next call."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._failure: UserError | None = None
        self._poll_due = 0.0
        self._producer = make_producer(settings, self._failed)
        self.produce_at_once = self._producer.produce  # the client's own, which raises where `produce` waits

    def _failed(self, error: KafkaError, message: Message) -> None:
        REFUSED.labels(message.topic()).inc()
        if self._failure is None:
            size = len(message.value() or b"")
            self._failure = UserError(
                f"a record of {size} bytes was not taken by {message.topic()}[{message.partition()}]: {error.str()}; "
                "the flow stops here, and what is not acknowledged is decided again after the restart"
            )

    def produce(self, topic: str, **record: Any) -> None:
        """Hands a record over; waits while the queue is full (back-pressure), never drops.

        Raises:
            UserError: an earlier record was refused or timed out, or this one is refused at once.
        """
        while True:
            try:
                self._producer.produce(topic, **record)
                return
            except BufferError:
                self._producer.poll(0.05)
                self.check()
            except KafkaException as error:
                key = record.get("key")
                msg = (
                    f"a record of {len(record.get('value') or b'')} bytes (key {key!r}) was not taken for {topic}: "
                    f"{error.args[0].str()}; the flow stops here, and it is decided again after the restart"
                )
                raise UserError(msg) from error

    def poll(self) -> None:
        """Serves delivery reports without waiting, at most every 50 ms; raises the first failure.

        Every batch of a partition ends in this, and a look at the empty queue takes 0.3 µs for each of its records.
        """
        now = time.monotonic()
        if now >= self._poll_due:
            self._poll_due = now + 0.05
            self._producer.poll(0)
        self.check()

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def flush(self) -> None:
        """Returns when everything handed over is acknowledged.

        Raises:
            UserError: a record was refused, or the broker did not answer within the delivery timeout.
        """
        deadline = time.monotonic() + self._settings.delivery_timeout_seconds + 10
        while self._producer.flush(0.5) > 0:
            self.check()
            if time.monotonic() > deadline:
                msg = (
                    f"{len(self._producer)} records are not acknowledged by {self._settings.brokers}: is the broker up?"
                )
                raise UserError(msg)
        self.check()


class ExactlyOnceSink(FixedPartitionedSink[list[Record], SinkState]):
    """Writes each record once, in one of its topics, whatever crashes; the partition is the source's, by modulo.

    Items are `(partition_key(partition), records)`, with records of that source partition. All topics must have as many
    partitions as each other. The promise holds as long as no other flow writes these topics.
    """

    def __init__(self, settings: Settings, source_topic: str, topics: Sequence[str]):
        self._settings = settings
        self._source_topic = source_topic
        self._topics = tuple(topics)
        self._writers = _PerWorker(lambda: (_Delivery(settings), make_consumer(settings)))
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
        delivery: _Delivery,
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
        low, high = _watermarks(consumer, topic, partition, seconds)
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
            highs = {topic: _watermarks(consumer, topic, partition, seconds)[1] for topic in positions}
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


class ProducerSink(DynamicSink[tuple[bytes | None, bytes]]):
    """Writes `(key, value)` items to a topic, partitioned by key; every delivery is checked.

    For what is made here (generated transactions, their truth), where there is no input to replay after a crash.
    """

    def __init__(self, settings: Settings, topic: str):
        self._settings = settings
        self._topic = topic

    @lifecycle.mistakes_end_the_flow
    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_ProducerPart":
        """Waits for the topic, then makes this worker's producer.

        Raises:
            UserError: no broker answers, or the topic does not exist.
        """
        count_partitions(self._settings, self._topic)
        return _ProducerPart(_Delivery(self._settings), self._topic)


class _ProducerPart(StatelessSinkPartition[tuple[bytes | None, bytes]]):
    def __init__(self, delivery: _Delivery, topic: str):
        self._delivery = delivery
        self._topic = topic

    @lifecycle.mistakes_end_the_flow
    def write_batch(self, items: list[tuple[bytes | None, bytes]]) -> None:
        for key, value in items:
            self._delivery.produce(self._topic, key=key, value=value)
        self._delivery.poll()

    def close(self) -> None:
        # Bytewax drops the part also while it unwinds from an error; an exception there would abort the process.
        try:
            self._delivery.flush()
        except UserError as error:
            lifecycle.fail(error)
