"""What stands on the outputs when a flow starts: read once a process, for all parts of the sink in it.

A record of the process that was killed can still be on its way: in a socket's buffer, or in the broker's queue. Kafka
can fence that only with transactions, whose latency we do not want; so a part waits until no new record of its own
partition of the source has come for `OUTPUT_SETTLE_SECONDS` (0.5 by default) of a broker that answers, counted from
when the cluster stood at the earliest. By then the other process was dead: it would hold the lock of the recovery
directory. What other parts write meanwhile does not count, so nobody waits for them.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from dataflow.connectors.kafka_clients import make_consumer, retry
from dataflow.connectors.offset_set import OffsetSet
from dataflow.connectors.topic_limits import DENIED, denied
from dataflow.errors import UserError
from dataflow.events.output_record import Origin, read_origin
from dataflow.process import lifecycle
from dataflow.settings import Settings

Place = tuple[str, int]  # a topic and one of its partitions

TOLD_FROM = 50_000  # records: to look through so many takes longer than a moment, so the log says what takes so long
UNIDENTIFIED_KEPT = 200_000  # records, until they are held against the source
GONE = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC)

_log = logging.getLogger("redflag.sink")


@dataclass(frozen=True)
class SourceTopic:
    """A topic whose messages are decided, as it stood when the flow started."""

    topic_id: str  # "" where the broker has no topic ids
    ends: Mapping[int, int]  # partition: where it ended


class AlreadyWritten:
    """Which messages of the sources stand on the outputs already. Threads may share it."""

    def __init__(self, settings: Settings, sources: Mapping[str, SourceTopic], admin: AdminClient):
        self._settings = settings
        self._sources = sources
        self._admin = admin
        self._lock = threading.Lock()
        self._clock = _AnsweredClock()
        self._outputs = _RangeReader(settings)
        self._source = _RangeReader(settings)
        self._from: dict[Place, int] = {}  # of an output: read from here on
        self._next: dict[Place, int] = {}  # up to here
        self._looked: dict[Place, float] = {}  # when its end was last asked for, by the clock
        self._first_ends: dict[Place, int] = {}  # where it ended when it was first asked for
        self._found: dict[Place, OffsetSet] = {}  # by partition of a source
        self._taken: set[Place] = set()  # partitions of sources whose part has been built
        self._news: dict[Place, float] = {}  # when the last record of it came that was not there at the first look
        self._unidentified: dict[Place, set[tuple[int, int]]] = {}  # by partition of a source: offset and timestamp
        self._unidentified_count = 0
        self._strangers: Counter[str] = Counter()  # by output: records with some of our headers, or with garbage

    def find(self, source: Place, starts: Mapping[Place, int]) -> OffsetSet:
        """The offsets of a source's partition that stand on the outputs from `starts` on; asked for once.

        Some that stand before `starts` may be among them.

        Raises:
            UserError: an output cannot be read.
        """
        with self._lock:
            earlier = {
                place: (start, self._from[place])
                for place, start in starts.items()
                if start < self._from.get(place, start)
            }
            self._read(earlier)
            for place, start in starts.items():
                self._from[place] = min(start, self._from.get(place, start))
                self._next.setdefault(place, start)
            while due := [place for place in starts if not self._settled(source, place)]:
                lifecycle.end_if_stopping()
                self.look(due)
                if not all(self._settled(source, place) for place in due):
                    time.sleep(0.05)
            self._say_strangers()
            self._taken.add(source)
            return self._found.pop(source, OffsetSet())

    def _settled(self, source: Place, place: Place) -> bool:
        looked = self._looked.get(place)
        waited = self._settings.output_settle_seconds
        return looked is not None and looked - self._news.get(source, 0.0) >= waited

    def look(self, places: Iterable[Place]) -> None:
        """Reads what has come; each is fetched from at least once, so it shows whether it may be read.

        Raises:
            UserError: one cannot be read.
        """
        ends = ask_ends(self._admin, places, self._settings.delivery_timeout_seconds)
        clock = self._clock.answered()
        for place, end in ends.items():
            self._first_ends.setdefault(place, end)
        begins = {place: self._next.get(place, end) for place, end in ends.items()}
        self._read(
            {
                place: (begins[place], end)
                for place, end in ends.items()
                if begins[place] < end or place not in self._looked
            }
        )
        for place, end in ends.items():
            if place in self._next:
                self._next[place] = max(end, begins[place])
                self._looked[place] = clock

    def _read(self, ranges: Mapping[Place, tuple[int, int]]) -> None:
        count = sum(end - begin for begin, end in ranges.values())
        if count >= TOLD_FROM:
            topics = ", ".join(sorted({topic for topic, _ in ranges}))
            _log.info("looking through %d records of %s for what stands there already", count, topics)
        self._outputs.read(ranges, self._take)
        self._identify()

    def _take(self, message: Message) -> None:
        topic = message.topic()
        try:
            origin = read_origin(message.headers())
        except ValueError:
            self._strangers[topic] += 1
            return
        source = self._sources.get(origin.topic) if origin is not None else None
        if origin is None or source is None:
            return
        place = origin.topic, origin.partition
        if place in self._taken or _of_another_topic(source, origin):
            return
        if message.offset() >= self._first_ends.get((topic, message.partition()), 0):
            self._news[place] = self._clock.seconds
        if source.topic_id and origin.topic_id:
            self._add(place, origin.offset)
        else:
            self._unidentified.setdefault(place, set()).add((origin.offset, origin.record_ms))
            self._unidentified_count += 1
            if self._unidentified_count >= UNIDENTIFIED_KEPT:
                self._identify()

    def _add(self, place: Place, offset: int) -> None:
        found = self._found.get(place)
        if found is None:
            found = self._found[place] = OffsetSet()
        found.add(offset)

    def _identify(self) -> None:
        """Holds records that do not say which topic id they come from against the source as it now is.

        They are of a version or a broker without topic ids. A record is of the source's message at its offset if that
        has the same timestamp.
        """
        waiting, self._unidentified, self._unidentified_count = self._unidentified, {}, 0
        ranges = {}
        for place, cases in waiting.items():
            offsets = [offset for offset, _ in cases]
            ranges[place] = min(offsets), max(offsets) + 1

        def compare(message: Message) -> None:
            place = message.topic(), message.partition()
            if (message.offset(), message.timestamp()[1]) in waiting[place]:
                self._add(place, message.offset())

        self._source.read(ranges, compare)

    def _say_strangers(self) -> None:
        for topic, count in self._strangers.items():
            _log.warning(
                "%d records on %s carry some of Redflag's headers, but not all, or with garbage in them: somebody "
                "else wrote them, and they are not taken for decisions",
                count, topic,
            )  # fmt: skip
        self._strangers.clear()


def _of_another_topic(source: SourceTopic, origin: Origin) -> bool:
    """Whether a record is surely of a topic that is no more: it had another id, or reached further."""
    other = bool(source.topic_id and origin.topic_id) and source.topic_id != origin.topic_id
    return other or origin.offset >= source.ends.get(origin.partition, 0)


class _RangeReader:
    """Reads stretches of partitions, from one offset to another."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._made: Consumer | None = None

    def read(self, ranges: Mapping[Place, tuple[int, int]], each: Callable[[Message], None]) -> None:
        """Hands over every message of each range, of which the second offset is no more part.

        What retention has removed and what no reader gets to see (control records) is passed over. A range may be
        empty: then the partition is fetched from nevertheless.

        Raises:
            UserError: a partition is gone, may not be read, or does not answer within the delivery timeout.
        """
        if not ranges:
            return
        consumer = self._consumer()
        seconds = self._settings.delivery_timeout_seconds
        left = {place: stop for place, (_, stop) in ranges.items()}
        consumer.assign([TopicPartition(topic, number, start) for (topic, number), (start, _) in ranges.items()])
        try:
            deadline = time.monotonic() + seconds
            while left:
                lifecycle.end_if_stopping()  # there may be millions
                # consume() alone would wait until it has all it may take: one is awaited, the rest is what is there.
                first = consumer.poll(0.1)
                for message in [] if first is None else [first, *consumer.consume(10_000, 0)]:
                    place = message.topic(), message.partition()
                    stop = left.get(place)
                    reached = self._reached(message)
                    if reached is None or stop is None:
                        continue
                    if message.error() is None and message.offset() < stop:
                        each(message)
                    if reached >= stop:
                        del left[place]
                        consumer.incremental_unassign([TopicPartition(*place)])
                    deadline = time.monotonic() + seconds
                if time.monotonic() > deadline:
                    places = ", ".join(f"{topic}[{number}]" for topic, number in left)
                    msg = f"cannot read {places} for {seconds:g} s: is the broker up?"
                    raise UserError(msg)
        finally:
            consumer.unassign()

    def _reached(self, message: Message) -> int | None:
        """The offset that is next after this message, or event; None if it does not tell."""
        error = message.error()
        if error is None:
            return int(message.offset()) + 1
        if error.code() == KafkaError._PARTITION_EOF:
            return int(message.offset())
        if error.code() in DENIED:
            raise denied(message.topic(), "read")
        if error.code() in GONE:
            msg = f"topic {message.topic()!r} is gone from {self._settings.brokers} ({error.str()}): create it"
            raise UserError(msg)
        return None  # a broker that is away librdkafka mends by itself, with back-off

    def _consumer(self) -> Consumer:
        if self._made is None:
            self._made = make_consumer(
                self._settings,
                {
                    "auto.offset.reset": "earliest",  # retention may take the beginning while we read
                    # Somebody else's transaction that stays open must not hide what lies behind it.
                    "isolation.level": "read_uncommitted",
                    "enable.partition.eof": True,
                    "fetch.wait.max.ms": 20,
                },
            )
        return self._made


def ask_ends(admin: AdminClient, places: Iterable[Place], seconds: float) -> dict[Place, int]:
    """Where partitions end; waits for a broker that is away.

    Raises:
        UserError: it did not answer within `seconds`, or one may not be asked for.
    """
    asked = list(places)

    def ask() -> dict[Place, int]:
        answers = admin.list_offsets(latest(asked), request_timeout=5)
        ends = {}
        for place, answer in answers.items():
            try:
                ends[place.topic, place.partition] = int(answer.result().offset)
            except KafkaException as error:
                if error.args[0].code() in DENIED:
                    raise denied(place.topic, "describe") from error
                raise
        return ends

    topics = ", ".join(sorted({topic for topic, _ in asked}))
    ends: dict[Place, int] = retry(f"cannot ask for the offsets of {topics}", ask, seconds) if asked else {}
    return ends


def latest(places: Collection[Place]) -> dict[TopicPartition, OffsetSpec]:
    """The question where partitions end, as the client takes it."""
    return {TopicPartition(topic, number): OffsetSpec.latest() for topic, number in places}


class _AnsweredClock:
    """How long the broker has been there to answer.

    A broker that hangs holds the records of the killed process as it holds our questions: while it does not answer,
    that nothing comes says nothing. So between two answers at most `_ANSWER_COUNTS` seconds count.
    """

    _ANSWER_COUNTS = 0.1

    def __init__(self) -> None:
        self.seconds = 0.0
        self._answered = time.monotonic()

    def answered(self) -> float:
        """The broker has answered; the time that counts until now."""
        now = time.monotonic()
        self.seconds += min(now - self._answered, self._ANSWER_COUNTS)
        self._answered = now
        return self.seconds
