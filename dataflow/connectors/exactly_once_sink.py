"""A sink that writes what becomes of every message exactly once, in one of the outputs, whatever crashes.

It has one part for each partition of each source. A part's snapshot returns only when all that was written is
acknowledged, and holds offsets of its outputs from which on anything may stand that the snapshot does not cover. Every
record's headers say which message of the source it comes from. After a crash Bytewax replays from the last snapshot;
the part then looks, in all partitions of its outputs from those offsets on, for what stands there already, and leaves
it out. Without a snapshot it looks from their beginning, or from where `output_starts` knows that it may.

So outputs may grow between two runs. A record that is too large for its topic goes to the topic for invalid messages,
its first bytes only, and counts as what became of its message.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from itertools import chain
from typing import Any, NamedTuple, NoReturn

import msgspec
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from dataflow.connectors.acknowledgements import Acknowledgements
from dataflow.connectors.already_written import AlreadyWritten, Place, SourceTopic, ask_ends, latest
from dataflow.connectors.delivery import RecordDelivery, TooLarge, always
from dataflow.connectors.kafka_clients import (
    PerWorker,
    TopicIdentity,
    client_config,
    identify_topics,
    partition_counts,
)
from dataflow.connectors.offset_set import OffsetSet
from dataflow.connectors.output_starts import Outputs, OutputStarts, SinkState
from dataflow.connectors.record_producer import produce_records, source_headers
from dataflow.connectors.topic_limits import Limits, check_rights, read_limits, warn_of_small_outputs
from dataflow.errors import UserError
from dataflow.events.output_record import ERROR, FULL_SIZE, ORIGIN, Header, Record, source_key
from dataflow.metrics import SKIPPED, TOO_LARGE, WRITTEN
from dataflow.process import lifecycle
from dataflow.settings import Settings

VERSION = 2
POINTER_BYTES = 1000  # of the value of a record that is too large, and of its key
ENDS_SECONDS = 10.0  # between two questions where the outputs end


class _Facts(NamedTuple):
    """What the broker says of the topics at the start; all parts of a process go by it."""

    order: dict[str, int]  # of each part its place among all, as Bytewax sorts them
    places: dict[str, Place]  # of each part the source's partition
    counts: dict[str, int]  # partitions of each output
    identities: dict[str, TopicIdentity]
    source_ends: dict[Place, int]
    output_ends: dict[Place, int]
    limits: Limits  # of the outputs
    admin: AdminClient
    starts: OutputStarts
    already: AlreadyWritten


class ExactlyOnceSink(FixedPartitionedSink[list[Record], SinkState]):
    """Writes each record once, in one of its topics, whatever crashes; the partition is the source's, by modulo.

    Items are `(source_key(topic, partition), records)`, with records of that partition of a source. `routes` says
    which outputs each source's records may go to: a part looks only in those. The outputs must have equally many
    partitions, but for the invalid topic of the settings. A message must have one record. The promise holds as long
    as no other flow writes these topics.
    """

    def __init__(
        self,
        settings: Settings,
        routes: Mapping[str, Sequence[str]],
        counted: Callable[[Mapping[str, int]], None] | None = None,
        may_write: Callable[[], bool] = always,
        committed: Mapping[str, SinkState] | None = None,
    ):
        """`counted` hears the number of partitions of each topic; `may_write` says whether no other flow writes.

        `committed`: the last snapshots of all parts, by the keys of the parts, as far as they are known.
        """
        self._settings = settings
        self._counted = counted
        self._may_write = may_write
        self._committed = committed or {}
        self._routes = {source: tuple(outputs) for source, outputs in routes.items()}
        self._outputs = tuple(dict.fromkeys(chain.from_iterable(self._routes.values())))
        self._lock = threading.Lock()
        self._begun: _Facts | None = None
        self._acknowledged: list[Acknowledgements] = []  # of each worker
        # Bytewax shares the sink among the worker threads of a process.
        self._writers = PerWorker(self._make_writer)

    @lifecycle.exit_on_user_error
    def list_parts(self) -> list[str]:
        """One part for each partition of each source.

        Raises:
            UserError: a topic is missing, may not be used, or the outputs have unequal partitions.
        """
        # Bytewax asks once all processes of the cluster have found each other: none of the earlier ones lives.
        lifecycle.cluster_stands()
        return list(self._facts().order)

    @lifecycle.exit_on_user_error
    def part_fn(self, item_key: str) -> int:
        """The place of the item's part in the sorted list of all parts, which is how Bytewax takes it."""
        try:
            return self._facts().order[item_key]
        except KeyError:
            _grown(item_key)

    @lifecycle.exit_on_user_error
    def build_part(self, step_id: str, for_part: str, resume_state: SinkState | None) -> "_ExactlyOncePart":
        """Finds what stands on the outputs already, behind the last snapshot or, without one, at all.

        Raises:
            UserError: an output cannot be read, or is not the one that the recovery data knows.
        """
        facts = self._facts()
        source = facts.places[for_part]
        outputs = self._routes[source[0]]
        starts = {output: facts.starts.of(source, output, resume_state) for output in outputs}
        if resume_state is None and facts.source_ends[source] == 0:
            already = OffsetSet()  # nothing had come when the flow started, so nothing was decided
        else:
            already = facts.already.find(source, _places(starts))
        partitions = sum(topic == source[0] for topic, _ in facts.source_ends)
        return _ExactlyOncePart(self._writers.get(), source, partitions, starts, already)

    def look(self) -> float | None:
        """Takes note of what was acknowledged for this worker; in how many seconds to look again, None: at no time."""
        writer = self._writers.made()
        return None if writer is None else writer.look()

    def waiting_seconds(self) -> float:
        """How long the oldest record of all workers that is not acknowledged has waited, 0 where there is none."""
        return max((each.waiting_seconds() or 0.0 for each in self._acknowledged), default=0.0)

    def _facts(self) -> _Facts:
        if self._begun is None:
            with self._lock:
                if self._begun is None:
                    self._begun = self._ask()
        return self._begun

    def _ask(self) -> _Facts:
        settings, outputs, sources = self._settings, self._outputs, tuple(self._routes)
        counts = partition_counts(settings, (*sources, *outputs))
        equal = {topic: counts[topic] for topic in outputs if topic != settings.invalid_topic}
        if len(set(equal.values())) > 1:
            found = ", ".join(f"{topic} has {count}" for topic, count in equal.items())
            msg = f"the output topics must have equally many partitions, but {found}: add some to the smaller"
            raise UserError(msg)
        if self._counted is not None:
            self._counted(counts)
        admin, seconds = AdminClient(client_config(settings, {})), settings.delivery_timeout_seconds
        check_rights(admin, sources, outputs, seconds)
        limits = read_limits(admin, (*sources, *outputs), seconds)
        warn_of_small_outputs(limits, sources, outputs)
        identities = identify_topics(settings, (*sources, *outputs), admin)
        source_ends, output_ends = (
            ask_ends(admin, [(topic, number) for topic in topics for number in range(counts[topic])], seconds)
            for topics in (sources, outputs)
        )
        already = AlreadyWritten(
            settings,
            {topic: SourceTopic(identities[topic].topic_id, _of_topic(source_ends, topic)) for topic in sources},
            admin,
        )
        already.look(output_ends)
        places = {source_key(*place): place for place in source_ends}
        committed = {places[key]: state for key, state in self._committed.items() if key in places}
        return _Facts(
            order={key: index for index, key in enumerate(sorted(places))},
            places=places,
            counts={topic: counts[topic] for topic in outputs},
            identities=identities,
            source_ends=source_ends,
            output_ends=output_ends,
            limits=Limits({topic: limits.by_topic[topic] for topic in outputs}, limits.known),
            admin=admin,
            starts=OutputStarts(Outputs(counts, output_ends, identities), committed),
            already=already,
        )

    def _make_writer(self) -> "_Writer":
        writer = _Writer(self._settings, self._facts(), self._may_write)
        self._acknowledged.append(writer.acknowledged)
        return writer


def _places(starts: Mapping[str, list[int]]) -> dict[Place, int]:
    """All partitions of the outputs: what was written before they grew stands where it stood."""
    return {(output, number): start for output, offsets in starts.items() for number, start in enumerate(offsets)}


def _of_topic(offsets: Mapping[Place, int], topic: str) -> dict[int, int]:
    return {number: offset for (of, number), offset in offsets.items() if of == topic}


def _grown(key: str) -> NoReturn:
    msg = f"{key}: partitions were added to the source while the flow started: start it again"
    raise UserError(msg)


class _ExactlyOncePart(StatefulSinkPartition[list[Record], SinkState]):
    """Writes what becomes of the messages of one partition of a source."""

    def __init__(
        self,
        writer: "_Writer",
        source: Place,
        source_partitions: int,
        starts: dict[str, list[int]],
        already: OffsetSet,
    ):
        self._writer = writer
        self._source_topic, self._partition = source
        self._source_partitions = source_partitions
        self._starts = starts  # as of the last snapshot
        self._already = already  # offsets in the source
        self._reached = -1  # the highest offset that came, while something stands
        self._headers = writer.headers_of(source)
        self._partitions = {topic: self._partition % len(starts[topic]) for topic in starts}

    @lifecycle.exit_on_user_error
    def write_batch(self, values: list[list[Record]]) -> None:
        for together in values:
            if together and (
                together[0].partition != self._partition or together[0].source_topic != self._source_topic
            ):
                _grown(source_key(together[0].source_topic, together[0].partition))
        records = list(chain.from_iterable(values))
        if self._already:
            records = self._drop_already_written(records)
        writer = self._writer
        writer.delivery.await_permission()
        counts = produce_records(records, self._partitions, self._headers, writer.delivery)
        for topic, count in counts.items():
            writer.count(topic, self._partitions[topic], count)
        writer.acknowledged.handed_over(records)
        writer.delivery.poll()
        if writer.delivery.too_large:
            writer.write_pointers()

    def _drop_already_written(self, records: list[Record]) -> list[Record]:
        left = []
        for record in records:
            self._reached = max(self._reached, record.offset)
            if record.offset in self._already:
                SKIPPED.labels(record.topic).inc()
            else:
                left.append(record)
        return left

    @lifecycle.exit_on_user_error
    def snapshot(self) -> SinkState:
        writer = self._writer
        writer.flush()
        # At an epoch's end every earlier message of the source has come: what stands there is not needed any more.
        self._already.drop_below(self._reached + 1)
        if not self._already:
            self._starts = {topic: writer.next_offsets(topic) for topic in self._starts}
        # Else a restart must find again what stands there and has not come yet: the offsets stay where they were.
        return writer.state(self._starts, self._source_partitions)


class _Writer:
    """What the parts of one worker share: the producer, and how far the outputs are known to reach."""

    def __init__(self, settings: Settings, facts: _Facts, may_write: Callable[[], bool]):
        self.delivery = RecordDelivery(settings, facts.limits, may_write)
        self.acknowledged = Acknowledgements(self.delivery)
        self._invalid_topic = settings.invalid_topic
        self._facts = facts
        # Of each partition an offset that nothing written from now on can have a smaller one than. It is the next one
        # where only this worker writes: asking the broker takes 5 ms, in which no decision is made, counting nothing.
        self._next = dict(facts.output_ends)
        self._asked: dict[TopicPartition, Future[Any]] = {}
        self._ask_due = 0.0
        self._written = {topic: WRITTEN.labels(topic) for topic in facts.counts}

    def look(self) -> float | None:
        """Takes note of what was acknowledged, if that is due; in how many seconds to look again, None: at no time."""
        wait = self.acknowledged.look_again_seconds()
        if wait != 0.0:
            return wait
        self.delivery.poll_now()
        self.acknowledged.look()
        return self.acknowledged.look_again_seconds()

    def headers_of(self, source: Place) -> list[Header]:
        """The headers that all records of a source's partition have in common."""
        topic, partition = source
        return source_headers(topic, self._facts.identities[topic].topic_id, partition)

    def count(self, topic: str, partition: int, count: int) -> None:
        """So many records were handed over."""
        self._written[topic].inc(count)
        self._next[topic, partition] += count

    def next_offsets(self, topic: str) -> list[int]:
        """By partition, from which offset on the next records can stand; to be asked after `flush`."""
        return [self._next[topic, number] for number in range(self._facts.counts[topic])]

    def state(self, starts: Mapping[str, list[int]], source_partitions: int) -> SinkState:
        """The snapshot of a part."""
        identities = self._facts.identities
        return {
            "version": VERSION,
            "cluster_id": next(iter(identities.values())).cluster_id,
            "outputs": {
                topic: {"topic_id": identities[topic].topic_id, "starts": list(offsets)}
                for topic, offsets in starts.items()
            },
            "source_partitions": source_partitions,
        }

    def flush(self) -> None:
        """Returns when everything handed over stands, or a pointer to it.

        Raises:
            UserError: a record was refused for another reason than its size, or the broker does not answer.
        """
        self.delivery.flush()
        self.acknowledged.look()
        self.write_pointers()
        self._learn_ends()

    def write_pointers(self) -> None:
        """Sends again, alone, what was refused for its size; of what is too large by itself the first bytes.

        Raises:
            UserError: even those were refused.
        """
        delivery = self.delivery
        while delivery.too_large:
            delivery.flush()
            refused, delivery.too_large = delivery.too_large, []
            for case in refused:
                if case.handed_over:
                    self._next[case.record.topic, case.partition] -= 1  # it was counted, but does not stand
                record, partition = case.record, case.partition
                if case.alone:
                    record = self._pointer(case)
                    partition = record.partition % self._facts.counts[record.topic]
                    TOO_LARGE.labels(case.record.topic).inc()
                origin = [header for header in case.headers if header[0] in ORIGIN]
                headers = [*(record.headers or ()), *origin]
                delivery.await_permission()
                if delivery.produce_watched(record, partition, headers, alone=True):
                    self.count(record.topic, partition, 1)
                delivery.flush()

    def _pointer(self, case: TooLarge) -> Record:
        """The beginning of a record that is too large, for the invalid topic."""
        record = case.record
        size = len(record.value or b"")
        if _is_pointer(record) or self._invalid_topic not in self._facts.counts:
            msg = (
                f"a record of {size} bytes was not taken by {record.topic}: it is too large for its max.message.bytes; "
                "the flow stops here, and it is decided again after the restart"
            )
            raise UserError(msg)
        error = f"too large for {record.topic}: {size} bytes, and {len(record.key or b'')} of its key"
        return msgspec.structs.replace(
            record,
            topic=self._invalid_topic,
            key=record.key[:POINTER_BYTES] if record.key is not None else None,
            value=record.value[:POINTER_BYTES] if record.value is not None else None,
            headers=[(ERROR, error.encode()), (FULL_SIZE, str(size).encode())],
        )

    def _learn_ends(self) -> None:
        """Takes what the broker said since, and asks anew, without waiting.

        Where other workers write the same partitions, counting what this one writes falls behind, and a restart would
        read all that they wrote. That an answer is old or missing makes it read more, and nothing worse.
        """
        for place in [place for place, answer in self._asked.items() if answer.done()]:
            answer = self._asked.pop(place)
            if answer.exception() is None:
                where = place.topic, place.partition
                self._next[where] = max(self._next[where], int(answer.result().offset))
        now = time.monotonic()
        if not self._asked and now >= self._ask_due:
            self._ask_due = now + ENDS_SECONDS
            self._asked = self._facts.admin.list_offsets(latest(self._next), request_timeout=ENDS_SECONDS)


def _is_pointer(record: Record) -> bool:
    return any(name == FULL_SIZE for name, _ in record.headers or ())
