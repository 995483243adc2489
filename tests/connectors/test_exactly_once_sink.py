"""The exactly-once sink over restarts: grown outputs, topics made anew, several sources, strangers, large records.

A "run" here is a new sink: what a process would build. A crash is a run that ends without a snapshot.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec
import pytest
from bytewax.testing import TestingSource, run_main
from confluent_kafka import Message, Producer
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewPartitions,
    ResourcePatternType,
    ResourceType,
)

from dataflow.connectors import already_written, exactly_once_sink, kafka_clients, topic_limits
from dataflow.connectors.exactly_once_sink import ExactlyOnceSink, SinkState
from dataflow.errors import UserError
from dataflow.events import output_record as record
from dataflow.metrics import TOO_LARGE
from dataflow.settings import Settings
from tests.conftest import Broker, MakeTopic
from tests.support.kafka_server import KafkaServer, create_topics
from tests.support.reading import read_all

Part = Any

real_kafka = pytest.mark.real_kafka


@pytest.fixture
def settings(broker: Broker, topics: MakeTopic) -> Settings:
    return make_settings(broker.bootstrap, topics)


def make_settings(bootstrap: str, topics: MakeTopic, **counts: int) -> Settings:
    return Settings(
        brokers=bootstrap,
        transactions_topic=topics("transactions", partitions=counts.get("source", 4)),
        feedback_topic=topics("feedback", partitions=4),
        alerts_topic=topics("alerts", partitions=counts.get("outputs", 4)),
        classified_topic=topics("classified", partitions=counts.get("outputs", 4)),
        invalid_topic=topics("invalid", partitions=counts.get("invalid", 4)),
        output_settle_seconds=0.1,
        delivery_timeout_seconds=20,
    )


def routes(settings: Settings) -> dict[str, tuple[str, ...]]:
    return {
        settings.transactions_topic: outputs(settings),
        settings.feedback_topic: (settings.invalid_topic,),
    }


def outputs(settings: Settings) -> tuple[str, ...]:
    return settings.alerts_topic, settings.classified_topic, settings.invalid_topic


def feed(settings: Settings, counts: dict[int, int], topic: str = "", at: int = 0) -> None:
    """Puts so many messages into partitions of a source, with a timestamp where one is given."""
    producer = Producer({"bootstrap.servers": settings.brokers, "log_level": 0})
    stamp = {"timestamp": at} if at else {}
    for partition, count in counts.items():
        for _ in range(count):
            producer.produce(topic or settings.transactions_topic, b"x", partition=partition, **stamp)
    assert producer.flush(20) == 0


def run(settings: Settings, partition: int = 0, state: SinkState | None = None, topic: str = "") -> Part:
    """The part of a source's partition in a new run."""
    sink = ExactlyOnceSink(settings, routes(settings))
    key = record.source_key(topic or settings.transactions_topic, partition)
    assert key in sink.list_parts()
    return sink.build_part("write", key, state)


def records(
    settings: Settings, offsets: Sequence[int], partition: int = 0, topic: str = "", at: int = 1_000, source: str = ""
) -> list[list[record.Record]]:
    source = source or settings.transactions_topic
    return [
        [
            record.Record(
                topic or settings.alerts_topic, b"k", b"%d-%d" % (partition, offset), source, partition, offset, at
            )
            for offset in offsets
        ]
    ]


def crash(part: Part) -> None:
    """Ends a run without a snapshot, once all that it handed over stands."""
    part._writer.delivery.flush()


def taken_by(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    """Which records are looked at from now on."""
    taken: list[Message] = []
    take = already_written.AlreadyWritten._take
    monkeypatch.setattr(
        already_written.AlreadyWritten, "_take", lambda self, message: (taken.append(message), take(self, message))
    )
    return taken


def standing(settings: Settings) -> Counter[bytes]:
    return Counter(m.value() for m in read_all(settings, outputs(settings)))


def once(*offsets: int, partition: int = 0) -> Counter[bytes]:
    return Counter(b"%d-%d" % (partition, offset) for offset in offsets)


def grow(settings: Settings, count: int, topics: Sequence[str]) -> None:
    admin = AdminClient({"bootstrap.servers": settings.brokers, "log_level": 0})
    for future in admin.create_partitions([NewPartitions(topic, count) for topic in topics]).values():
        future.result(timeout=30)
    for topic in topics:
        wait_for(lambda topic=topic: kafka_clients.count_partitions(settings, topic) == count)


def make_anew(settings: Settings, topic: str, partitions: int = 4) -> None:
    admin = AdminClient({"bootstrap.servers": settings.brokers, "log_level": 0})
    for future in admin.delete_topics([topic]).values():
        future.result(timeout=30)
    wait_for(lambda: topic not in admin.list_topics(timeout=5).topics)
    create_topics(settings.brokers, {topic: partitions})


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---- what stands


def test_a_snapshot_while_the_tail_is_still_decided_again_forgets_nothing_of_it(settings: Settings) -> None:
    """Killed twice: the second time before all that the first had written came again."""
    feed(settings, {0: 5})
    first = run(settings)
    before = first.snapshot()
    first.write_batch(records(settings, [0, 1, 2, 3]))
    crash(first)
    second = run(settings, state=before)
    second.write_batch(records(settings, [0, 1]))
    state = second.snapshot()
    third = run(settings, state=state)
    third.write_batch(records(settings, [2, 3, 4]))
    assert third.snapshot()["outputs"][settings.alerts_topic]["starts"] == [5, 0, 0, 0]
    assert standing(settings) == once(0, 1, 2, 3, 4)


def test_whatever_becomes_of_a_message_the_second_time_it_stands_in_one_output(settings: Settings) -> None:
    feed(settings, {0: 3})
    first = run(settings)
    first.write_batch(records(settings, [0], topic=settings.alerts_topic))
    first.write_batch(records(settings, [1], topic=settings.classified_topic))
    first.write_batch(records(settings, [2], topic=settings.invalid_topic))
    crash(first)
    second = run(settings)
    second.write_batch(records(settings, [0], topic=settings.invalid_topic))
    second.write_batch(records(settings, [1], topic=settings.alerts_topic))
    second.write_batch(records(settings, [2], topic=settings.classified_topic))
    crash(second)
    assert standing(settings) == once(0, 1, 2)


def test_two_sources_with_the_same_partitions_and_offsets_do_not_stand_for_each_other(settings: Settings) -> None:
    feed(settings, {1: 3})
    feed(settings, {1: 3}, settings.feedback_topic)
    invalid, labels = settings.invalid_topic, settings.feedback_topic
    first = run(settings, 1)
    first.write_batch(records(settings, [0, 1, 2], 1, invalid))
    crash(first)
    second = run(settings, 1, topic=labels)
    second.write_batch(records(settings, [0, 1], 1, invalid, source=labels))
    crash(second)
    third = run(settings, 1, topic=labels)
    third.write_batch(records(settings, [0, 1, 2], 1, invalid, source=labels))
    crash(third)
    assert standing(settings) == once(0, 1, 2, 0, 1, 2, partition=1)


def test_a_record_that_was_still_on_its_way_is_waited_for_whatever_others_write(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The killed process's last record comes late, while another part already writes the same partition."""
    settings = msgspec.structs.replace(settings, output_settle_seconds=1.0)
    feed(settings, {0: 1, 1: 5000})
    other = run(msgspec.structs.replace(settings, output_settle_seconds=0.0), 1)
    built, begun, looking = threading.Event(), threading.Event(), threading.Event()
    written: list[int] = []
    find = already_written.AlreadyWritten.find
    monkeypatch.setattr(already_written.AlreadyWritten, "find", lambda *where: (looking.set(), find(*where))[1])

    def write_on() -> None:
        late = Producer({"bootstrap.servers": settings.brokers, "log_level": 0})
        late.list_topics(settings.alerts_topic, timeout=10)
        headers = record_headers(settings, 0, 0)
        since_it_looks = 0
        while since_it_looks < 20 or (not built.is_set() and len(written) < 5000):
            other.write_batch(records(settings, [len(written)], 1))
            written.append(1)
            since_it_looks += looking.is_set()
            if since_it_looks == 20:
                late.produce(settings.alerts_topic, b"0-0", partition=0, headers=headers)
                late.flush(10)
            begun.set()
            time.sleep(0.01)

    other._partitions = dict.fromkeys(other._partitions, 0)  # as if there were fewer of the outputs than of the source
    looking.clear()
    writing = threading.Thread(target=write_on)
    writing.start()
    try:
        assert begun.wait(60)
        part = run(settings)
    finally:
        built.set()
        writing.join()
    assert len(written) < 5000, "it waited for what others write"
    part.write_batch(records(settings, [0]))
    crash(part)
    assert standing(settings)[b"0-0"] == 1


def record_headers(settings: Settings, partition: int, offset: int, at: int = 1_000) -> list[tuple[str, bytes]]:
    identity = kafka_clients.identify_topics(settings, [settings.transactions_topic])[settings.transactions_topic]
    headers = {
        record.SOURCE_TOPIC: settings.transactions_topic,
        record.SOURCE_TOPIC_ID: identity.topic_id,
        record.SOURCE_PARTITION: str(partition),
        record.SOURCE_OFFSET: str(offset),
        record.SOURCE_TIMESTAMP: str(at),
    }
    return [(name, value.encode()) for name, value in headers.items() if value]


def test_the_parts_of_a_process_read_the_outputs_once_and_say_so(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    feed(settings, dict.fromkeys(range(4), 50))
    sink = ExactlyOnceSink(settings, routes(settings))
    for partition in range(4):
        part = sink.build_part("write", record.source_key(settings.transactions_topic, partition), None)
        part.write_batch(records(settings, range(50), partition))
        crash(part)
    taken = taken_by(monkeypatch)
    monkeypatch.setattr(already_written, "TOLD_FROM", 200)
    caplog.set_level(logging.INFO)
    sink = ExactlyOnceSink(settings, routes(settings))
    for partition in range(4):
        key = record.source_key(settings.transactions_topic, partition)
        part = sink.build_part("write", key, None)
        assert len(part._already) == 50
    assert len(taken) == 200
    assert caplog.text.count("looking through 200 records of ") == 1


def test_a_part_that_is_built_later_with_an_earlier_snapshot_finds_what_stands_behind_it(settings: Settings) -> None:
    feed(settings, {0: 20, 1: 20})
    older = run(settings, 0)
    states = [older.snapshot()]
    older.write_batch(records(settings, range(10), 0))
    crash(older)
    newer = run(settings, 1)
    newer.write_batch(records(settings, range(10), 1))
    states.append(newer.snapshot())
    newer.write_batch(records(settings, range(10, 20), 1))
    crash(newer)
    sink = ExactlyOnceSink(settings, routes(settings))
    # The one with the later snapshot first: what the other needs lies before what was read for it.
    for partition in (1, 0):
        part = sink.build_part("write", record.source_key(settings.transactions_topic, partition), states[partition])
        part.write_batch(records(settings, range(10 * partition, 20), partition))
        crash(part)
    assert standing(settings) == once(*range(20), partition=0) + once(*range(20), partition=1)


def test_a_part_whose_source_was_empty_at_the_start_reads_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is built when the first message comes: years of decisions must not be read then, in the midst of a run."""
    sink = ExactlyOnceSink(settings, routes(settings))
    keys = sink.list_parts()
    monkeypatch.setattr(already_written.AlreadyWritten, "find", lambda *_: pytest.fail("it looked"))
    feed(settings, {2: 1})
    part = sink.build_part("write", keys[-2], None)
    part.write_batch(records(settings, [0], 2))
    crash(part)
    assert standing(settings) == once(0, partition=2)


def test_where_several_workers_write_a_partition_a_snapshot_knows_how_far_they_are(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a restart would read again what the others wrote since the start."""
    monkeypatch.setattr(exactly_once_sink, "ENDS_SECONDS", 5)
    feed(settings, {0: 1000, 1: 1000})
    mine, other = run(settings, 0), run(settings, 1)
    other._partitions = dict.fromkeys(other._partitions, 0)
    other.write_batch(records(settings, range(500), 1))
    crash(other)
    mine.write_batch(records(settings, range(3), 0))

    def known() -> int:
        mine._writer._ask_due = 0.0
        return int(mine.snapshot()["outputs"][settings.alerts_topic]["starts"][0])

    assert known() <= 503
    wait_for(lambda: known() == 503)


# ---- parts


def test_the_function_that_chooses_a_part_gives_its_place_among_all_sorted(settings: Settings) -> None:
    sink = ExactlyOnceSink(settings, routes(settings))
    parts = sink.list_parts()
    assert len(parts) == 8
    for place, key in enumerate(sorted(parts)):
        assert sink.part_fn(key) == place


def test_bytewax_brings_each_partition_of_each_source_to_its_own_part(settings: Settings) -> None:
    feed(settings, dict.fromkeys(range(4), 3))
    feed(settings, dict.fromkeys(range(4), 3), settings.feedback_topic)
    items = [
        (record.source_key(source, partition), records(settings, range(3), partition, topic, source=source)[0])
        for source, topic in (
            (settings.transactions_topic, settings.alerts_topic),
            (settings.feedback_topic, settings.invalid_topic),
        )
        for partition in range(4)
    ]
    import bytewax.operators as op
    from bytewax.dataflow import Dataflow

    flow = Dataflow("parts")
    op.output("write", op.input("read", flow, TestingSource(items)), ExactlyOnceSink(settings, routes(settings)))
    run_main(flow)
    for message in read_all(settings, outputs(settings)):
        headers = dict(message.headers())
        assert message.partition() == int(headers["source_partition"])
    assert standing(settings).total() == 24


def test_partitions_that_are_added_while_the_flow_starts_are_told(settings: Settings) -> None:
    """Two processes that count differently must not put records into each other's parts."""
    part = run(settings, 0)
    with pytest.raises(UserError, match=r"-00001: partitions were added to the source while the flow started"):
        part.write_batch(records(settings, [0], 1))
    with pytest.raises(UserError, match="while the flow started"):
        ExactlyOnceSink(settings, routes(settings)).part_fn(record.source_key(settings.transactions_topic, 9))


def test_output_topics_with_different_partitions_are_refused(
    settings: Settings, topics: MakeTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = exactly_once_sink.partition_counts
    for topic, refused in ((settings.classified_topic, True), (settings.invalid_topic, False)):
        monkeypatch.setattr(exactly_once_sink, "partition_counts", lambda s, t, topic=topic: {**real(s, t), topic: 3})
        sink = ExactlyOnceSink(settings, routes(settings))
        if refused:
            with pytest.raises(UserError, match="equally many partitions"):
                sink.list_parts()
        else:
            assert len(sink.list_parts()) == 8


# ---- outputs that grow


@real_kafka
def test_outputs_that_grew_double_nothing_with_the_recovery_data_of_before(broker: Broker, topics: MakeTopic) -> None:
    settings = make_settings(broker.bootstrap, topics, source=8, outputs=4, invalid=2)
    feed(settings, {7: 30})
    first = run(settings, 7)
    first.write_batch(records(settings, range(10), 7))
    state = first.snapshot()
    first.write_batch(records(settings, range(10, 20), 7))
    first.write_batch(records(settings, [20], 7, settings.invalid_topic))
    crash(first)
    grow(settings, 6, (settings.alerts_topic, settings.classified_topic))
    grow(settings, 3, (settings.invalid_topic,))
    second = run(settings, 7, state)
    second.write_batch(records(settings, range(10, 22), 7))
    crash(second)  # grown again before there is any snapshot
    grow(settings, 8, (settings.alerts_topic, settings.classified_topic))
    third = run(settings, 7, state)
    third.write_batch(records(settings, range(10, 23), 7))
    state = third.snapshot()
    assert standing(settings) == once(*range(23), partition=7)
    places = {m.value(): m.partition() for m in read_all(settings, [settings.alerts_topic])}
    assert (places[b"7-19"], places[b"7-21"], places[b"7-22"]) == (3, 1, 7)
    # And the snapshot after that says of every partition that nothing is left to be looked for.
    third.write_batch(records(settings, [23], 7))
    crash(third)
    taken = run(settings, 7, state)._already
    assert (len(taken), 23 in taken) == (1, True)


# ---- sources that grow


def part_of(settings: Settings, partition: int, committed: dict[int, SinkState]) -> Part:
    """The part of a partition without a snapshot, beside those of others, in a new run."""
    keys = {number: record.source_key(settings.transactions_topic, number) for number in (partition, *committed)}
    states = {keys[number]: state for number, state in committed.items()}
    sink = ExactlyOnceSink(settings, routes(settings), committed=states)
    return sink.build_part("write", keys[partition], None)


@pytest.fixture
def grown(broker: Broker, topics: MakeTopic) -> tuple[Settings, SinkState]:
    """A source that had one partition and 100 decisions, and then was given a second; the snapshot between."""
    settings = make_settings(broker.bootstrap, topics, source=1, outputs=1, invalid=1)
    feed(settings, {0: 200})
    before = run(settings, 0)
    before.write_batch(records(settings, range(100)))
    state = before.snapshot()
    grow(settings, 2, [settings.transactions_topic])
    feed(settings, {1: 10})
    return settings, state


@real_kafka
def test_an_added_partition_is_looked_for_where_the_snapshots_of_before_end(
    grown: tuple[Settings, SinkState], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stood there before is not read; killed before its own first snapshot, it doubles nothing."""
    settings, state = grown
    first = part_of(settings, 1, {0: state})
    first.write_batch(records(settings, range(5), 1))
    crash(first)
    taken = taken_by(monkeypatch)
    second = part_of(settings, 1, {0: state})
    assert len(taken) == 5
    second.write_batch(records(settings, range(10), 1))
    assert second.snapshot()["source_partitions"] == 2
    assert standing(settings) == once(*range(100)) + once(*range(10), partition=1)


@real_kafka
def test_a_snapshot_of_a_flow_that_had_the_partition_tells_nothing_of_where_it_begins(
    grown: tuple[Settings, SinkState],
) -> None:
    """A flow with other recovery data had written some of it before, and this one was killed before its snapshot."""
    settings, state = grown
    elsewhere = part_of(settings, 1, {})
    elsewhere.write_batch(records(settings, range(5), 1))
    crash(elsewhere)
    back = run(settings, 0, state)
    back.write_batch(records(settings, range(100, 150)))
    later = back.snapshot()
    assert later["outputs"][settings.alerts_topic]["starts"] == [155]
    part = part_of(settings, 1, {0: later})
    part.write_batch(records(settings, range(10), 1))
    crash(part)
    assert standing(settings) == once(*range(150)) + once(*range(10), partition=1)


@real_kafka
@pytest.mark.parametrize("change", ["other topic", "says nothing", "reaches further"])
def test_a_snapshot_that_does_not_fit_an_output_tells_nothing_of_where_an_added_partition_begins(
    grown: tuple[Settings, SinkState], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    settings, state = grown
    if change == "other topic":
        state["outputs"][settings.alerts_topic]["topic_id"] = "x"
    elif change == "reaches further":
        state["outputs"][settings.alerts_topic]["starts"] = [1000]
    else:
        del state["source_partitions"]
    taken = taken_by(monkeypatch)
    part_of(settings, 1, {0: state})
    assert len(taken) == 100


@real_kafka
def test_outputs_that_grew_double_nothing_with_an_empty_recovery_directory(broker: Broker, topics: MakeTopic) -> None:
    settings = make_settings(broker.bootstrap, topics, source=8, outputs=4)
    feed(settings, dict.fromkeys(range(8), 50))
    for partitions in (4, 8):
        sink = ExactlyOnceSink(settings, routes(settings))
        for partition in range(8):
            part = sink.build_part("write", record.source_key(settings.transactions_topic, partition), None)
            part.write_batch(records(settings, range(50), partition))
            part.snapshot()
        if partitions == 4:
            grow(settings, 8, (settings.alerts_topic, settings.classified_topic))
    assert set(standing(settings).values()) == {1}
    assert standing(settings).total() == 400


# ---- topics that were made anew


def no_topic_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the embedded broker, and older ones."""
    real = exactly_once_sink.identify_topics

    def identify(settings: Settings, topics: Sequence[str], admin: Any) -> dict[str, kafka_clients.TopicIdentity]:
        return {topic: found._replace(topic_id="") for topic, found in real(settings, topics, admin).items()}

    monkeypatch.setattr(exactly_once_sink, "identify_topics", identify)


@real_kafka
@pytest.mark.parametrize("ids", [True, False], ids=["topic ids", "no topic ids"])
def test_a_source_made_anew_is_not_taken_for_the_old_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, ids: bool
) -> None:
    """The outputs keep decisions on the same offsets of the old one: nothing of the new is skipped, nothing doubled."""
    if not ids:
        no_topic_ids(monkeypatch)
    feed(settings, {0: 50}, at=1_700_000_000_000)
    old = run(settings)
    old.write_batch(records(settings, range(50), at=1_700_000_000_000))
    state = old.snapshot()
    old.write_batch(records(settings, range(40, 50), topic=settings.classified_topic, at=1_700_000_000_000))
    crash(old)
    make_anew(settings, settings.transactions_topic)
    feed(settings, {0: 60}, at=1_700_000_360_000)
    for resumed in (None, state):  # without recovery data, and with that of before
        new = run(settings, state=resumed)
        new.write_batch(records(settings, range(20 if resumed is None else 60), at=1_700_000_360_000))
        crash(new)
    found = Counter((dict(m.headers())["source_timestamp"], m.value()) for m in read_all(settings, outputs(settings)))
    new_ones = {value: count for (at, value), count in found.items() if at == b"1700000360000"}
    assert new_ones == once(*range(60))


@real_kafka
def test_a_source_made_anew_at_the_very_same_times_is_told_by_its_id(settings: Settings) -> None:
    feed(settings, {0: 5}, at=1_700_000_000_000)
    old = run(settings)
    old.write_batch(records(settings, range(5), at=1_700_000_000_000))
    crash(old)
    make_anew(settings, settings.transactions_topic)
    feed(settings, {0: 5}, at=1_700_000_000_000)
    new = run(settings)
    new.write_batch(records(settings, range(5), at=1_700_000_000_000))
    crash(new)
    assert standing(settings) == once(*range(5), *range(5))


def test_records_without_a_topic_id_are_held_against_the_source_in_bounded_memory(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an older version wrote them: after an upgrade nothing is doubled."""
    no_topic_ids(monkeypatch)
    monkeypatch.setattr(already_written, "UNIDENTIFIED_KEPT", 7)
    feed(settings, {0: 50}, at=1_700_000_000_000)
    older = run(settings)
    older.write_batch(records(settings, range(40), at=1_700_000_000_000))
    crash(older)
    monkeypatch.undo()
    newer = run(settings)
    newer.write_batch(records(settings, range(50), at=1_700_000_000_000))
    crash(newer)
    assert standing(settings) == once(*range(50))


@real_kafka
def test_an_output_that_was_made_anew_is_refused_and_with_accept_gap_read_from_its_beginning(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    feed(settings, {0: 50})
    first = run(settings)
    first.write_batch(records(settings, range(20)))
    state = first.snapshot()
    make_anew(settings, settings.alerts_topic)
    # It is longer than the old one was: only its id tells that it is another.
    between = run(settings)
    between.write_batch(records(settings, range(20, 50)))
    crash(between)
    with pytest.raises(UserError, match=rf"{settings.alerts_topic} was made anew since .*--accept-gap"):
        run(settings, state=state)
    monkeypatch.setenv("REDFLAG_ACCEPT_GAP", "1")
    with caplog.at_level(logging.WARNING, "redflag.sink"):
        accepted = run(settings, state=state)
    (line,) = caplog.messages
    assert "accepted" in line
    assert "read from its beginning" in line
    accepted.write_batch(records(settings, range(20, 50)))
    crash(accepted)
    assert standing(settings) == once(*range(20, 50))
    # What it writes from now on knows the new topic.
    monkeypatch.delenv("REDFLAG_ACCEPT_GAP")
    run(settings, state=accepted.snapshot())


def test_another_cluster_is_refused(settings: Settings) -> None:
    feed(settings, {0: 1})
    first = run(settings)
    state = first.snapshot()
    state["cluster_id"] = "elsewhere"
    with pytest.raises(UserError, match=r"was written on cluster elsewhere, but this is .*--accept-gap"):
        run(settings, state=state)


@pytest.mark.parametrize(
    ("starts", "says"), [([99, 0, 0, 0], "made anew or cut"), ([0] * 9, "has 4 partitions, .* knows 9")]
)
def test_an_output_that_is_shorter_than_the_recovery_data_says_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, starts: list[int], says: str
) -> None:
    no_topic_ids(monkeypatch)
    state = run(settings).snapshot()
    state["outputs"][settings.alerts_topic]["starts"] = starts
    with pytest.raises(UserError, match=says):
        run(settings, state=state)


# ---- what others leave on the outputs


@real_kafka
def test_transaction_markers_at_the_end_of_an_output_are_no_obstacle(settings: Settings) -> None:
    """No reader ever gets to see them, so that the last offset never comes."""
    settings = msgspec.structs.replace(settings, delivery_timeout_seconds=5)
    feed(settings, {0: 10})
    first = run(settings)
    first.write_batch(records(settings, range(5)))
    crash(first)
    stranger = Producer({"bootstrap.servers": settings.brokers, "transactional.id": "stranger", "log_level": 0})
    stranger.init_transactions(20)
    for end in (stranger.commit_transaction, stranger.abort_transaction):
        stranger.begin_transaction()
        stranger.produce(settings.alerts_topic, b"stranger", partition=0)
        stranger.produce(settings.classified_topic, b"stranger", partition=0)
        stranger.flush(10)
        end(20)
    stranger.begin_transaction()  # one that stays open hides nothing either
    stranger.produce(settings.alerts_topic, b"stranger", partition=0)
    stranger.flush(10)
    second = run(settings)
    assert len(second._already) == 5
    stranger.abort_transaction(20)
    second.write_batch(records(settings, range(6)))
    crash(second)
    found = [m.value() for m in read_through(settings, settings.alerts_topic) if m.value() != b"stranger"]
    assert sorted(found) == sorted(once(*range(6)))


def read_through(settings: Settings, topic: str) -> Iterator[Message]:
    """All messages of the first partition, markers passed over."""
    found: list[Message] = []
    end = already_written.ask_ends(AdminClient({"bootstrap.servers": settings.brokers}), [(topic, 0)], 10)[topic, 0]
    already_written._RangeReader(settings).read({(topic, 0): (0, end)}, found.append)
    return iter(found)


def test_a_half_labelled_strangers_record_is_one_line_at_the_start(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    feed(settings, {0: 5})
    first = run(settings)
    first.write_batch(records(settings, range(3)))
    crash(first)
    whole = record_headers(settings, 0, 3)
    producer = Producer({"bootstrap.servers": settings.brokers, "log_level": 0})
    for headers in (whole[:2], [(record.SOURCE_TOPIC, b"\xff")], [("source_offset", None)], [("trace", b"1")], None):
        producer.produce(settings.alerts_topic, b"stranger", partition=0, headers=headers)
    producer.produce(settings.alerts_topic, b"far", partition=1, headers=record_headers(settings, 0, 10**15))
    assert producer.flush(10) == 0
    with caplog.at_level(logging.WARNING, "redflag.sink"):
        second = run(settings)
    (line,) = caplog.messages
    assert line.startswith(f"3 records on {settings.alerts_topic} carry some of Redflag's headers")
    assert len(second._already) == 3
    second.write_batch(records(settings, range(5)))
    state = second.snapshot()
    found = standing(settings)
    assert {value: found[value] for value in once(*range(5))} == once(*range(5))
    # Nothing that somebody else wrote holds back how far a restart has to look.
    assert state["outputs"][settings.alerts_topic]["starts"][0] == 3 + 5 + 2


# ---- records that are too large

LARGE = 1_000_100
FITS = b'{"note":"' + b"x" * (LARGE - 11) + b'"}'


def write_large(settings: Settings, *values: bytes, key: bytes = b"k", topic: str = "") -> Part:
    part = run(settings)
    batch = [
        record.Record(topic or settings.classified_topic, key, value, settings.transactions_topic, 0, offset, 1_000)
        for offset, value in enumerate(values)
    ]
    part.write_batch([batch])
    part.snapshot()
    return part


@real_kafka
@pytest.mark.parametrize("value", [FITS, b"\x00" * LARGE], ids=["JSON", "garbage"])
def test_a_message_that_the_source_takes_goes_through(settings: Settings, value: bytes) -> None:
    feed(settings, {0: 1})
    write_large(settings, value)
    (message,) = read_all(settings, outputs(settings))
    assert (message.topic(), message.value() == value) == (settings.classified_topic, True)


@real_kafka
@pytest.mark.parametrize("limit", ["of the client", "of the broker"])
def test_a_record_that_is_too_large_leaves_a_pointer_and_the_flow_goes_on(
    broker: Broker, topics: MakeTopic, limit: str
) -> None:
    settings = make_settings(broker.bootstrap, topics)
    if limit == "of the client":
        settings = msgspec.structs.replace(settings, kafka_config={"message.max.bytes": "500000"})
    else:
        # The invalid topic takes more, so that the client lets it through.
        settings = msgspec.structs.replace(settings, invalid_topic=topics("roomy", config=MORE))
    feed(settings, {0: 3})
    value = bytes(range(256)) * 4300
    before = TOO_LARGE.labels(settings.classified_topic)._value.get()
    write_large(settings, b"before", value, b"after")
    found = {m.value(): m for m in read_all(settings, outputs(settings))}
    assert set(found) == {b"before", value[:1000], b"after"}
    pointer = found[value[:1000]]
    headers = dict(pointer.headers())
    assert (pointer.topic(), pointer.key()) == (settings.invalid_topic, b"k")
    assert headers["full_size"] == b"%d" % len(value)
    assert headers["error"].startswith(f"too large for {settings.classified_topic}: {len(value)} bytes".encode())
    assert headers["source_offset"] == b"1"
    assert TOO_LARGE.labels(settings.classified_topic)._value.get() == before + 1
    # It is what became of the message: decided again, and small enough this time, it is not written.
    again = run(settings)
    again.write_batch(records(settings, [1]))
    crash(again)
    assert len(read_all(settings, outputs(settings))) == 3


MORE = {"max.message.bytes": 2_000_000}
LITTLE = {"max.message.bytes": 20_000}


@real_kafka
def test_a_key_or_headers_that_are_too_large_leave_a_pointer_too(settings: Settings) -> None:
    feed(settings, {0: 2})
    part = run(settings)
    large = [("trace", b"x" * 1_100_000)]
    part.write_batch(
        [
            [
                record.Record(settings.alerts_topic, b"k", b"0-0", settings.transactions_topic, 0, 0, 1, large),
                record.Record(settings.alerts_topic, b"k" * 1_100_000, b"0-1", settings.transactions_topic, 0, 1, 1),
            ]
        ]
    )
    part.snapshot()
    found = {m.value(): m for m in read_all(settings, outputs(settings))}
    assert {m.topic() for m in found.values()} == {settings.invalid_topic}
    assert [len(found[value].key()) for value in (b"0-0", b"0-1")] == [1, 1000]


@real_kafka
@pytest.mark.parametrize("told", [True, False], ids=["the limits are told", "the limits are not told"])
def test_batches_are_never_larger_than_the_smallest_output_takes(
    broker: Broker, topics: MakeTopic, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """332 bytes each, of which the client would put 3,000 into a batch. Not told, each is sent alone once refused."""
    settings = make_settings(broker.bootstrap, lambda name, **more: topics(name, **more, config=LITTLE))
    settings = msgspec.structs.replace(settings, alerts_topic=topics("roomy", config=MORE))
    if not told:
        monkeypatch.setattr(
            exactly_once_sink,
            "read_limits",
            lambda _admin, names, _seconds: topic_limits.Limits(
                dict.fromkeys(names, topic_limits.DEFAULT_BYTES), known=False
            ),
        )
    feed(settings, {0: 300})
    values = [b"%0332d" % number for number in range(300)]
    part = write_large(settings, *values, b"x" * 19_000, b"y" * 30_000)
    found = {m.value(): m.topic() for m in read_all(settings, outputs(settings))}
    wanted = dict.fromkeys([*values, b"x" * 19_000], settings.classified_topic)
    assert found == {**wanted, b"y" * 1000: settings.invalid_topic}
    assert part.snapshot()["outputs"][settings.classified_topic]["starts"][0] == 301


@real_kafka
def test_a_pointer_that_is_refused_too_ends_the_flow_with_one_line(broker: Broker, topics: MakeTopic) -> None:
    settings = make_settings(broker.bootstrap, topics)
    settings = msgspec.structs.replace(
        settings, invalid_topic=topics("tiny", config={"max.message.bytes": 300}), kafka_config={}
    )
    feed(settings, {0: 1})
    with pytest.raises(UserError, match=r"a record of 1000 bytes was not taken by tiny-\w+: it is too large"):
        write_large(settings, b"x" * 2_000_000)


@real_kafka
def test_a_topic_whose_limit_is_lowered_while_the_flow_runs_ends_it_with_the_reason(
    broker: Broker, settings: Settings
) -> None:
    feed(settings, {0: 1})
    part = run(settings)
    configure(settings, settings.alerts_topic, "max.message.bytes", "200")
    with pytest.raises(UserError, match=r"max\.message\.bytes was lowered: start again"):
        for number in range(200):  # the broker takes it over after it has said that it has
            part.write_batch(records(settings, range(50 * number, 50 * number + 50)))
            part.snapshot()
            time.sleep(0.05)


def configure(settings: Settings, topic: str, name: str, value: str) -> None:
    server = KafkaServer()
    server.port = int(settings.brokers.rpartition(":")[2])
    server.configure_topic(topic, {name: value})


@real_kafka
def test_an_output_that_takes_less_than_the_source_brings_is_one_line_at_the_start(
    broker: Broker, topics: MakeTopic, caplog: pytest.LogCaptureFixture
) -> None:
    settings = msgspec.structs.replace(
        make_settings(broker.bootstrap, topics), alerts_topic=topics("small", config=LITTLE)
    )
    with caplog.at_level(logging.WARNING, "redflag.sink"):
        run(settings)
    (line,) = caplog.messages
    assert f"records of up to 1048588 bytes, but {settings.alerts_topic} takes 20000" in line


def test_limits_that_are_not_told_are_one_line_and_taken_for_the_default(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from confluent_kafka import KafkaError, KafkaException

    class Admin:
        def describe_configs(self, resources: list[Any], **_: object) -> dict[Any, Future[Any]]:
            refused: Future[Any] = Future()
            refused.set_exception(KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)))
            return dict.fromkeys(resources, refused)

    monkeypatch.setattr(topic_limits, "is_embedded", lambda *_: False)
    with caplog.at_level(logging.WARNING, "redflag.sink"):
        limits = topic_limits.read_limits(Admin(), ["a", "b"], 10)
    (line,) = caplog.messages
    assert "allow DescribeConfigs" in line
    assert limits == ({"a": 1_048_588, "b": 1_048_588}, False)


# ---- rights


@pytest.fixture(scope="module")
def guarded(apache_kafka: None) -> Iterator[KafkaServer]:
    """A broker where a topic is anybody's until there is an ACL for it."""
    properties = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
        "super.users": "User:admin",
    }
    with KafkaServer(properties) as server:
        yield server


def allow(settings: Settings, topic: str, *operations: AclOperation) -> None:
    """From now on these are all that we may do with the topic."""
    admin = AdminClient({"bootstrap.servers": settings.brokers, "log_level": 0})
    bindings = [
        AclBinding(
            ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*", operation,
            AclPermissionType.ALLOW,
        )
        for operation in operations
    ]  # fmt: skip
    for future in admin.create_acls(bindings).values():
        future.result(timeout=30)


@pytest.mark.parametrize(
    ("which", "operations", "says"),
    [
        ("alerts_topic", [AclOperation.WRITE], "not allowed to read topic .*: allow Read, Write and Describe on it"),
        ("alerts_topic", [AclOperation.READ], "not allowed to write topic .*: allow Read, Write and Describe on it"),
        ("transactions_topic", [AclOperation.WRITE], "not allowed to read topic .*: allow Read and Describe on it"),
    ],
)
def test_a_right_that_is_missing_is_told_at_the_first_start(
    guarded: KafkaServer, which: str, operations: list[AclOperation], says: str
) -> None:
    settings = guarded_settings(guarded)
    allow(settings, getattr(settings, which), *operations)
    began = time.monotonic()
    with pytest.raises(UserError, match=says):
        wait_for(lambda: run(settings) is None)  # until the ACL is known to the broker
    assert time.monotonic() - began < settings.delivery_timeout_seconds


def guarded_settings(server: KafkaServer) -> Settings:
    def make(name: str, *, partitions: int = 4, config: object = None) -> str:
        topic = f"{name}-{time.monotonic_ns()}"
        server.create_topics({topic: partitions})
        return topic

    return make_settings(server.bootstrap, make)


def test_without_the_right_to_read_an_output_the_reading_itself_says_so(
    guarded: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a broker does not tell what is allowed."""
    monkeypatch.setattr(exactly_once_sink, "check_rights", lambda *_: None)
    settings = guarded_settings(guarded)
    allow(settings, settings.alerts_topic, AclOperation.WRITE)
    with pytest.raises(UserError, match=r"not allowed to read topic .*allow Read, Write and Describe"):
        wait_for(lambda: run(settings) is None)


def test_with_the_rights_that_the_lines_name_the_sink_works(guarded: KafkaServer) -> None:
    settings = guarded_settings(guarded)
    needed = {"Read": AclOperation.READ, "Write": AclOperation.WRITE, "Describe": AclOperation.DESCRIBE}
    for kind, topics in (
        ("source", (settings.transactions_topic, settings.feedback_topic)),
        ("output", outputs(settings)),
    ):
        for topic in topics:
            allow(settings, topic, *(operation for name, operation in needed.items() if name in NEEDED[kind]))
    feed_settings = settings
    part = run(feed_settings)
    part.write_batch(records(settings, [0]))
    part.snapshot()
    assert standing(settings) == once(0)


NEEDED = topic_limits.NEEDED
