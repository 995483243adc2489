"""The source: every partition of its topics, each message as librdkafka hands it over.

All topics are read by one source, and one consumer a worker. Two sources would each close their epochs by their own
clock, and drift apart (see `dataflow.state.epochs`); and what one topic says of another, as labels do of transactions,
is read in step with it: in the order of the records' timestamps, also after a crash or a downtime, when both topics
have a backlog.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import TypedDict

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from dataflow.connectors.kafka_clients import (
    PerWorker,
    TopicIdentity,
    identify_topics,
    make_consumer,
    partition_counts,
    watermarks,
)
from dataflow.errors import UserError
from dataflow.events.output_record import partition_key
from dataflow.metrics import LAG, UNSAVED
from dataflow.process import lifecycle
from dataflow.process.health import goes_round, stops_going_round
from dataflow.settings import Settings
from dataflow.state.epochs import EpochPace
from dataflow.state.snapshot_times import SnapshotTimes

READY = "reading"  # how the message of the log begins that says a worker is ready
IDLE_SECONDS = 0.02
"""How long one worker by itself waits for messages at a time; it wakes at once when one comes."""
SHARED_IDLE_SECONDS = 0.002
"""The same where there are several workers: meanwhile a worker takes nothing from the others."""
PATIENCE_SECONDS = 30.0
"""How long other partitions are kept back for one whose next message is not known: its broker may be away."""
BACKLOG_SECONDS = 1.0
"""Age of a record from which on it is taken for part of a backlog, and by which clocks may differ."""
DOUBT_SECONDS = 3.0
"""How long after a backlog the client is not believed that it has heard of all that stands on the other topics."""
ASK_SECONDS = 1.0
"""How long the broker may take to say where a partition ends."""
SILENT_SECONDS = 5.0
"""After so long without an answer the lag is not known any more."""
BUFFER_LIMIT = 10_000
"""Messages of a partition that may wait here, kept back for another; beyond it the partition is not read."""
VERSION = 1
"""Of a part's state in snapshots."""

_ALWAYS = datetime(1970, 1, 1, tzinfo=UTC)

log = logging.getLogger("redflag.source")


class Position(TypedDict):
    """How far a partition was read, in a snapshot."""

    cluster_id: str
    topic_id: str
    offset: int  # of what is to be read next


class SourceState(TypedDict):
    """What a part keeps in a snapshot."""

    version: int
    positions: dict[str, Position]  # by topic


class KafkaSource(FixedPartitionedSource[Message, SourceState]):
    """Reads topics; part N has partition N of each topic that has one.

    Without recovery data it begins at the beginning of each partition. The first topic leads: a message of another
    topic is handed out once all messages of the first that carry its timestamp or an earlier one have been, and
    before those with a later one. Where the topics have equally many partitions that goes by partition, as all of
    them are keyed by user; else by worker.

    Args:
        settings: of the flow.
        topics: the first leads.
        pace: of the epochs; makes one for each worker. None lets each part close its own.
        accept_gap: go on where records are gone that were not read, or a topic was made anew; else refuse to.
        started: hears of each partition where it begins, and where it ends.
        began: hears the number of partitions of each topic, once it is known.
        ready: hears from each worker that all its partitions have begun, with the number of partitions of each topic.
        broker_silent: seconds since a broker answered.
        snapshots: hears when snapshots begin and when work goes on.
        look: is called whenever a worker turns to its source; for how many seconds it may sleep if there is nothing
            to read, None for as long as it likes.
    """

    def __init__(
        self,
        settings: Settings,
        topics: Sequence[str],
        pace: Callable[[], EpochPace] | None = None,
        *,
        accept_gap: bool = False,
        started: Callable[[str, int, int, int], None] | None = None,
        began: Callable[[Mapping[str, int]], None] = lambda counts: None,
        ready: Callable[[Mapping[str, int]], None] | None = None,
        broker_silent: Callable[[], float] = lambda: 0.0,
        snapshots: SnapshotTimes | None = None,
        look: Callable[[], float | None] = lambda: None,
    ):
        self._settings = settings
        self._topics = tuple(topics)
        self._accept_gap = accept_gap
        self._started = started
        self._began = began
        self._broker_silent = broker_silent
        self._counts: dict[str, int] = {}
        self._said = False
        self._identities: dict[str, TopicIdentity] = {}
        # Bytewax shares the source among the worker threads of a process.
        self._fetchers = PerWorker(
            lambda: _Fetcher(settings, self._topics, self._counts, pace() if pace else None, ready, snapshots, look)
        )

    @lifecycle.exit_on_user_error
    def list_parts(self) -> list[str]:
        """One part for each partition number, zero-padded."""
        self._counts.update(partition_counts(self._settings, self._topics))
        self._identities = identify_topics(self._settings, self._topics)
        if len(set(self._counts.values())) > 1 and not self._said:
            self._said = True
            log.warning(
                "%s: give them equally many partitions, else each worker keeps only those in step that it reads itself",
                ", ".join(f"{topic} has {count} partitions" for topic, count in self._counts.items()),
            )
        self._began(self._counts)
        return [partition_key(p) for p in range(max(self._counts.values()))]

    @lifecycle.exit_on_user_error
    def build_part(self, step_id: str, for_part: str, resume_state: SourceState | None) -> "_SourcePart":
        """Begins at the offsets of the snapshot, or at the beginning.

        Raises:
            UserError: a topic is not the one that the recovery data knows, or what is next to read is gone.
        """
        number = int(for_part)
        fetcher = self._fetchers.get()
        saved = resume_state["positions"] if resume_state is not None else {}
        offsets = {}
        for topic in self._topics:
            if number < self._counts[topic]:
                low, high = watermarks(fetcher.asking, topic, number, self._settings.delivery_timeout_seconds)
                offsets[topic] = self._begin(topic, number, saved.get(topic), low, high)
                if self._started is not None:
                    self._started(topic, number, offsets[topic], high)
        fetcher.add(number, offsets)
        return _SourcePart(fetcher, number, self._identities, offsets, self._broker_silent)

    def _begin(self, topic: str, number: int, saved: Position | None, low: int, high: int) -> int:
        """The offset to begin at, of a partition that now holds the offsets from `low` to before `high`."""
        if saved is None:
            return low
        offset, place = saved["offset"], f"{topic}[{number}]"
        now = self._identities[topic]
        if saved["cluster_id"] != now.cluster_id:
            gap = f"{place} is on the cluster {now.cluster_id}, but the recovery data is of {saved['cluster_id']}"
            begin = low
        elif saved["topic_id"] and now.topic_id and saved["topic_id"] != now.topic_id:
            gap = f"{place} was made anew: its topic id is {now.topic_id}, in the recovery data {saved['topic_id']}"
            begin = low
        elif offset > high:
            gap = f"{place} ends at offset {high}, but the recovery data stands at {offset}: it was made anew or cut"
            begin = low
        elif offset < low:
            gap = f"{place} begins at offset {low}, but {offset} is next: retention removed {low - offset} records"
            begin = low
        else:
            return offset
        if not self._accept_gap:
            advice = "bring it back, or accept that with python -m dataflow.detect --accept-gap, which keeps profiles"
            msg = f"{gap}; {advice}"
            raise UserError(msg)
        log.warning("%s; accepted, goes on at offset %d", gap, begin)
        return begin


Place = tuple[str, int]
"""A topic and the number of one of its partitions."""


class _Partition:
    """What has come of a partition and is not handed out yet."""

    __slots__ = (
        "asked_end",
        "asked_of",
        "end",
        "known",
        "leads",
        "messages",
        "next_offset",
        "paused",
        "place",
        "unknown_since",
    )

    def __init__(self, place: Place, next_offset: int, leads: bool):
        self.place = place
        self.leads = leads  # it is one of the topic that the others are read in step with
        self.known = TopicPartition(*place)  # as the client takes it
        self.messages: deque[Message] = deque()
        self.next_offset = next_offset  # past what was handed out, and past control records behind that
        # Where the partition ended when the broker was asked last; and where the client thought then that it ended,
        # which is behind what stands in a Kafka transaction that is still open.
        self.asked_end = 0
        self.asked_of = -1
        self.end = -1  # the offset at which the partition ended when the last of it came; -1: it went on
        self.unknown_since: float | None = None  # there is more of it, and since then it has been waited for
        self.paused = False


class _Fetcher:
    """The consumer of one worker: one poll fetches for all its partitions, each then takes what is its own."""

    def __init__(
        self,
        settings: Settings,
        topics: Sequence[str],
        counts: dict[str, int],
        pace: EpochPace | None,
        ready: Callable[[Mapping[str, int]], None] | None,
        snapshots: SnapshotTimes | None = None,
        look: Callable[[], float | None] = lambda: None,
    ):
        self._settings = settings
        self._topics = topics
        self._counts = counts
        self._ready = ready
        self._leader = topics[0]
        self._by_partition = len(set(counts.values())) == 1
        self._pace = pace
        self._snapshots = snapshots or SnapshotTimes(recovery=False)
        self._look = look
        self.consumer: Consumer = make_consumer(settings, {"enable.partition.eof": True})
        # A broker answers a client in turn: who fetches hears an answer only once the fetch ends, up to 100 ms later.
        self.asking: Consumer = make_consumer(settings)
        self._partitions: dict[Place, _Partition] = {}
        self._followers: list[_Partition] = []
        self._served: set[int] = set()  # parts that had their turn in this activation
        self._epochs: dict[int, int] = {}  # how many each part has closed
        self._together = False  # in this activation the first part hands out what has come for all
        self._followers_waiting = 0  # messages of topics other than the leader that have come
        self._idle = True  # nothing was handed out in the last activation
        self._kept_back = False  # though messages have come
        self._announced = False
        self._doubted_until = time.monotonic() + DOUBT_SECONDS
        self._unsure = False  # it was asked, and did not answer
        self._asked_at = 0.0  # when the broker was last asked where the followers end: seconds since 1970

    def add(self, number: int, offsets: dict[str, int]) -> None:
        """Begins to read partition `number` of each topic at an offset."""
        self._epochs[number] = 0
        if self._pace is not None:
            self._pace.began(number)
        for topic, offset in offsets.items():
            partition = self._partitions[topic, number] = _Partition((topic, number), offset, topic == self._leader)
            if topic != self._leader:
                self._followers.append(partition)
        self.consumer.incremental_assign([TopicPartition(topic, number, offset) for topic, offset in offsets.items()])

    def drop(self, number: int) -> None:
        """Ends reading that partition of each topic."""
        del self._epochs[number]
        if self._pace is not None:
            self._pace.ended(number)
        for topic in self._topics:
            gone = self._partitions.pop((topic, number), None)
            if gone in self._followers:
                self._followers.remove(gone)
        if not self._partitions:
            self._snapshots.ended()
            stops_going_round()
            self.consumer.close()
            self.asking.close()

    def partition(self, topic: str, number: int) -> _Partition:
        """What is known of a partition."""
        return self._partitions[topic, number]

    def end(self, partition: _Partition) -> int:
        """Where the partition ended when librdkafka last heard of it, 0 before; no request is made."""
        high: int = self.consumer.get_watermark_offsets(partition.known, cached=True)[1]
        return max(0, high)

    def snapshot_taken(self, number: int) -> None:
        """To be called with each snapshot of a part."""
        self._epochs[number] += 1
        self._snapshots.closed()
        if self._pace is not None:
            self._pace.closed(number)

    def take(self, number: int) -> list[Message]:
        """The messages that a part may hand out now, of each partition in the order of their time.

        Nearly always the first part of an activation hands out what has come for all parts of its worker, as one batch:
        a transaction takes 23 µs in one batch of 2,000, and 28 in four of 500. They are messages of the epoch that the
        part is in. So that is done only while all parts are in the same: each part's snapshot then covers what was
        handed out of its partitions in that epoch, and nothing of the next.
        """
        first = not self._served or number in self._served
        if first:
            self._served.clear()
            self._activated()
            # Else there are messages of another topic to keep in step with, which goes by partition.
            in_step = not self._followers_waiting and all(map(self._ended, self._followers))
            self._together = in_step and len(set(self._epochs.values())) == 1
        self._served.add(number)
        if self._together:
            batch = self._of_all() if first else []
        else:
            batch = self._of_one(number)
            for partition in self._of(number):
                self._handed_out(partition)
        if batch:
            self._idle = False
        return batch

    def _of_all(self) -> list[Message]:
        """What has come of all partitions, one after the other, where nothing of the followers is waiting."""
        batch: list[Message] = []
        for partition in self._partitions.values():
            batch += self._next_of(partition, self._settings.max_batch - len(batch))
            self._handed_out(partition)
        return batch

    def _of_one(self, number: int) -> list[Message]:
        leader = self._partitions.get((self._leader, number))
        if leader is not None and not self._followers_waiting and self._all_ended(number):
            return self._next_of(leader, self._settings.max_batch)
        return self._in_step(number)

    def _next_of(self, partition: _Partition, most: int) -> list[Message]:
        """What has come of a partition, as far as it fits."""
        messages = partition.messages
        taken = list(islice(messages, most))
        if len(taken) == len(messages):
            messages.clear()
        else:  # many were kept back
            for _ in taken:
                messages.popleft()
        if taken:
            partition.next_offset = taken[-1].offset() + 1
        return taken

    def _activated(self) -> None:
        """The first part of this worker has its turn: fetches for all."""
        goes_round()
        self._snapshots.activated()
        may_sleep = self._look()
        if not self._announced:
            self._announced = True
            if self._ready is not None:
                self._ready(self._counts)
            for topic in self._topics:
                numbers = ", ".join(str(n) for t, n in sorted(self._partitions) if t == topic)
                log.info("%s %s[%s] on %s", READY, topic, numbers, self._settings.brokers)
        partitions = self._partitions
        wait = 0.0
        if self._pace is not None:
            self._pace.activated()
        if self._idle:
            wait = IDLE_SECONDS
            if self._pace is not None:
                wait = min(IDLE_SECONDS if self._pace.alone else SHARED_IDLE_SECONDS, self._pace.rest())
            if may_sleep is not None:
                wait = min(wait, may_sleep)
        self._kept_back = self._idle and any(partition.messages for partition in partitions.values())
        self._idle = True
        messages = self.consumer.consume(self._settings.max_batch, 0)
        if not messages and wait:
            # Not consume(): that would wait until it has all it may take.
            first = self.consumer.poll(wait)
            messages = [first, *self.consumer.consume(self._settings.max_batch - 1, 0)] if first is not None else []
        for message in messages:
            if message.error() is not None:
                self._event(message)
                continue
            partition = partitions[message.topic(), message.partition()]
            partition.messages.append(message)
            partition.end = -1
            if not partition.leads:
                self._followers_waiting += 1
            if len(partition.messages) > BUFFER_LIMIT and not partition.paused:
                partition.paused = True
                self.consumer.pause([partition.known])
        if self._followers and (messages or self._unsure or self._kept_back):
            self._see_to_followers()

    def _see_to_followers(self) -> None:
        """Asks where the other topics end, where the client may not have heard of their newest messages yet.

        It fetches all partitions of a broker at once, so in general it has. But after an outage each comes back by
        itself, and transactions may arrive seconds before a label that stood on its topic before them. Who asks once
        these transactions have arrived is told of that label; and one answer is good for all records of before.
        """
        newest = max(
            (p.messages[-1].timestamp()[1] / 1000 for p in self._partitions.values() if p.messages and p.leads),
            default=0.0,
        )
        now = time.time()
        if newest and now - newest > BACKLOG_SECONDS:
            self._doubted_until = time.monotonic() + DOUBT_SECONDS
        known = newest <= self._asked_at - BACKLOG_SECONDS
        doubted = newest and not known and time.monotonic() < self._doubted_until
        if doubted or (newest and any(map(self._may_be_open, self._followers))):
            self._unsure = not self._ask()
            if not self._unsure:
                self._asked_at = now
        else:
            self._unsure = False

    def _may_be_open(self, follower: _Partition) -> bool:
        """Whether its end was told, but more stands there: on its way, or in a Kafka transaction that is still open."""
        end = self.end(follower)
        return not follower.messages and follower.end >= 0 and end > follower.next_offset and end != follower.asked_of

    def _ask(self) -> bool:
        """Asks where the followers end; False if the broker does not answer, and has to be asked again."""
        try:
            for follower in self._followers:
                thought = self.end(follower)
                follower.asked_end = self.asking.get_watermark_offsets(follower.known, timeout=ASK_SECONDS)[1]
                follower.asked_of = thought
        except KafkaException:
            return False
        return True

    def _event(self, message: Message) -> None:
        error = message.error()
        topic, number = message.topic(), message.partition()
        if error.code() == KafkaError._PARTITION_EOF:
            # It lies past control records, which nobody gets to see.
            self._partitions[topic, number].end = message.offset()
            return
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            msg = (
                f"{topic}[{number}]: {error.str()}: next to read, but gone; to go on without it, start with "
                "python -m dataflow.detect --accept-gap"
            )
            raise UserError(msg)
        if error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC):
            msg = f"{topic!r} is gone from {self._settings.brokers} ({error.str()}): create it, then start again"
            raise UserError(msg)
        if error.code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED):
            msg = f"not allowed to read topic {topic!r} ({error.str()}): see the broker's ACLs and KAFKA_CONFIG_*"
            raise UserError(msg)
        # Anything else (a broker that is away) librdkafka mends by itself, with back-off.

    def _of(self, number: int) -> Iterable[_Partition]:
        return [self._partitions[t, number] for t in self._topics if (t, number) in self._partitions]

    def _handed_out(self, partition: _Partition) -> None:
        if partition.messages:
            return
        partition.next_offset = max(partition.next_offset, partition.end)
        if partition.paused:
            partition.paused = False
            self.consumer.resume([partition.known])

    def _ended(self, partition: _Partition) -> bool:
        """Whether all that the partition is known to hold has been handed out."""
        if partition.messages:
            return False
        # Not by the event that tells the end alone: what has come since may be in the client's queue already, behind
        # messages of other partitions that carry later timestamps.
        if self._unsure and not partition.leads:
            return False
        end = self.end(partition)
        end = partition.asked_end if end == partition.asked_of else max(end, partition.asked_end)
        return end <= partition.next_offset and (end > 0 or partition.end >= 0)

    def _known_until(self, partition: _Partition) -> float:
        """No message of the partition will come that is older, as far as is known: record time in ms."""
        if partition.messages:
            partition.unknown_since = None
            return float(partition.messages[0].timestamp()[1])
        if self._ended(partition):
            partition.unknown_since = None
            return math.inf
        if partition.unknown_since is None:
            partition.unknown_since = time.monotonic()
        return math.inf if time.monotonic() - partition.unknown_since > PATIENCE_SECONDS else -math.inf

    def _all_ended(self, number: int) -> bool:
        return all(
            self._ended(follower)
            for follower in self._followers
            if not self._by_partition or follower.place[1] == number
        )

    def _in_step(self, number: int) -> list[Message]:
        """Messages of this number's partitions, as far as those of the other topics allow."""
        of_others = [
            partition for place, partition in self._partitions.items() if not self._by_partition or place[1] == number
        ]
        batch: list[Message] = []
        while len(batch) < self._settings.max_batch:
            leaders_until = min((self._known_until(p) for p in of_others if p.leads), default=math.inf)
            followers_until = min((self._known_until(p) for p in of_others if not p.leads), default=math.inf)
            took = len(batch)
            for partition in self._of(number):
                messages = partition.messages
                if partition.leads:
                    while messages and messages[0].timestamp()[1] <= followers_until:
                        batch.append(self._next(partition))
                        if len(batch) >= self._settings.max_batch:
                            break
                elif messages and messages[0].timestamp()[1] < leaders_until:
                    batch.append(self._next(partition))
                    self._followers_waiting -= 1
                if len(batch) > took:
                    break
            if len(batch) == took:
                break
        return batch

    def _next(self, partition: _Partition) -> Message:
        message = partition.messages.popleft()
        partition.next_offset = message.offset() + 1
        return message


class _SourcePart(StatefulSourcePartition[Message, SourceState]):
    """Partition N of each topic."""

    def __init__(
        self,
        fetcher: _Fetcher,
        number: int,
        identities: dict[str, TopicIdentity],
        offsets: dict[str, int],
        broker_silent: Callable[[], float],
    ):
        self._fetcher = fetcher
        self._number = number
        self._identities = identities
        self._broker_silent = broker_silent
        self._partitions = {topic: fetcher.partition(topic, number) for topic in offsets}
        self._saved = dict(offsets)
        self._gauges_due = 0.0

    @lifecycle.exit_on_user_error
    def next_batch(self) -> Iterable[Message]:
        if lifecycle.stopping():
            raise StopIteration
        batch = self._fetcher.take(self._number)
        now = time.monotonic()
        if now >= self._gauges_due:
            self._gauges_due = now + 1.0
            self._set_gauges()
        return batch

    def _set_gauges(self) -> None:
        silent = self._broker_silent() > SILENT_SECONDS
        for topic, partition in self._partitions.items():
            end = self._fetcher.end(partition)
            labels = topic, str(self._number)
            LAG.labels(*labels).set(math.nan if silent else max(0, end - partition.next_offset))
            UNSAVED.labels(*labels).set(partition.next_offset - self._saved[topic])

    def next_awake(self) -> datetime | None:
        # At once, and by no clock: the fetcher itself waits for messages. Bytewax goes by the wall clock, and one that
        # is set back would let it wait for as long.
        return _ALWAYS

    @lifecycle.exit_on_user_error
    def snapshot(self) -> SourceState:
        self._fetcher.snapshot_taken(self._number)
        self._saved = {topic: partition.next_offset for topic, partition in self._partitions.items()}
        positions = {
            topic: Position(
                cluster_id=self._identities[topic].cluster_id, topic_id=self._identities[topic].topic_id, offset=offset
            )
            for topic, offset in self._saved.items()
        }
        return {"version": VERSION, "positions": positions}

    def close(self) -> None:
        self._fetcher.drop(self._number)
