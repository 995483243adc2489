"""The source: both topics in step by record time, positions that know their topic, and no wait by the wall clock."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from hypothesis import given
from hypothesis import settings as configure
from hypothesis import strategies as st

from dataflow.connectors import kafka_source
from dataflow.connectors.kafka_clients import TopicIdentity
from dataflow.connectors.kafka_source import BUFFER_LIMIT, PATIENCE_SECONDS, KafkaSource
from dataflow.errors import UserError
from dataflow.metrics import LAG, UNSAVED
from dataflow.process import lifecycle
from dataflow.settings import Settings
from tests.conftest import Broker
from tests.support.kafka_server import KafkaServer, create_topics

LEADER, FOLLOWER = "transactions", "fraud_feedback"
Place = tuple[str, int]


class FakeConsumer:
    """Hands out what the test has put in, in that order; its ends are what the test says."""

    def __init__(self) -> None:
        self.queue: list[Any] = []
        self.ends: dict[Place, int] = {}
        self.true_ends: dict[Place, int] = {}  # as the broker says them when it is asked
        self.away = False
        self.asked = 0
        self.paused: list[Place] = []
        self.resumed: list[Place] = []

    def consume(self, count: int, timeout: float) -> list[Any]:
        given, self.queue = self.queue[:count], self.queue[count:]
        return given

    def poll(self, timeout: float) -> Any:
        return self.queue.pop(0) if self.queue else None

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        pass

    def get_watermark_offsets(
        self, partition: TopicPartition, timeout: float = 0.0, cached: bool = False
    ) -> tuple[int, int]:
        assert cached, "who fetches is answered only once the fetch ends"
        return 0, self.ends.get((partition.topic, partition.partition), -1001)

    def pause(self, partitions: list[TopicPartition]) -> None:
        self.paused += [(p.topic, p.partition) for p in partitions]

    def resume(self, partitions: list[TopicPartition]) -> None:
        self.resumed += [(p.topic, p.partition) for p in partitions]

    def close(self) -> None:
        pass


class FakeAsking:
    """Asks the broker of a fake consumer where partitions end."""

    def __init__(self, consumer: FakeConsumer) -> None:
        self._consumer = consumer

    def get_watermark_offsets(self, partition: TopicPartition, timeout: float) -> tuple[int, int]:
        if self._consumer.away:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        self._consumer.asked += 1
        return 0, self._consumer.true_ends.get((partition.topic, partition.partition), 0)


def record(topic: str, partition: int, offset: int, ms: int) -> Message:
    return Message(topic=topic, partition=partition, offset=offset, value=b"", timestamp=(1, ms))


class End:
    """The event that says that a partition has been read to its end."""

    def __init__(self, topic: str, partition: int, offset: int):
        self._place = topic, partition, offset

    def error(self) -> KafkaError:
        return KafkaError(KafkaError._PARTITION_EOF)

    def topic(self) -> str:
        return self._place[0]

    def partition(self) -> int:
        return self._place[1]

    def offset(self) -> int:
        return self._place[2]


class Reading:
    """A fetcher over a fake consumer, with as many parts as the larger topic has partitions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, leaders: int = 2, followers: int = 2, max_batch: int = 500):
        self.consumer = FakeConsumer()
        asking = FakeAsking(self.consumer)
        monkeypatch.setattr(kafka_source, "make_consumer", lambda _settings, own=None: self.consumer if own else asking)
        counts = {LEADER: leaders, FOLLOWER: followers}
        self.fetcher = kafka_source._Fetcher(Settings(max_batch=max_batch), (LEADER, FOLLOWER), counts, None, None)
        self.parts = max(counts.values())
        for number in range(self.parts):
            self.fetcher.add(number, {topic: 0 for topic, count in counts.items() if number < count})

    def give(self, *events: Any) -> None:
        self.consumer.queue += events

    def activation(self) -> list[tuple[str, int, int]]:
        """What all parts hand out: topic, partition, offset."""
        return [
            (m.topic(), m.partition(), m.offset()) for number in range(self.parts) for m in self.fetcher.take(number)
        ]


def test_a_backlog_of_both_topics_is_handed_out_by_time_whichever_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    payments = [record(LEADER, 0, n, 1000 * n) for n in range(4)]
    labels = [record(FOLLOWER, 0, 0, 1500), record(FOLLOWER, 0, 1, 2000)]
    ends = [End(LEADER, 0, 4), End(FOLLOWER, 0, 2)]
    expected = [(LEADER, 0, 0), (LEADER, 0, 1), (FOLLOWER, 0, 0), (LEADER, 0, 2), (FOLLOWER, 0, 1), (LEADER, 0, 3)]
    for order in ([*payments, *labels, *ends], [*labels, *ends, *payments], [*labels, *payments, *ends]):
        reading = Reading(monkeypatch, 1, 1)
        reading.give(*order)
        found = reading.activation() + reading.activation()
        # Where the labels' end is told first, the payments behind the last label need not wait.
        assert found == expected


def test_transactions_wait_until_it_is_known_what_was_labelled_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading(monkeypatch, 1, 1)
    reading.give(record(LEADER, 0, 0, 1000))
    assert reading.activation() == []
    reading.give(record(FOLLOWER, 0, 0, 500))
    assert reading.activation() == [(FOLLOWER, 0, 0)]
    assert reading.activation() == []  # the next label may be older, too
    reading.consumer.ends[FOLLOWER, 0] = 1
    assert reading.activation() == [(LEADER, 0, 0)]


def test_a_label_that_is_on_its_way_behind_later_transactions_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """One answer of the broker brings both; the client hands out its first messages before the label."""
    reading = Reading(monkeypatch, 1, 1)
    reading.give(End(LEADER, 0, 0), End(FOLLOWER, 0, 0))
    assert reading.activation() == []
    reading.consumer.ends = reading.consumer.true_ends = {(LEADER, 0): 1, (FOLLOWER, 0): 1}
    reading.give(record(LEADER, 0, 0, 1000))
    assert reading.activation() == []
    reading.give(record(FOLLOWER, 0, 0, 900))
    assert reading.activation() == [(FOLLOWER, 0, 0), (LEADER, 0, 0)]


def test_a_label_that_the_client_has_not_heard_of_after_an_outage_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The transactions' partition is fetched again first; what the client knows of the labels' is from before."""
    reading = Reading(monkeypatch, 1, 1)
    consumer = reading.consumer
    reading.give(End(LEADER, 0, 0), End(FOLLOWER, 0, 0))
    assert reading.activation() == []
    reading.fetcher._doubted_until = 0.0  # it has run for long
    now = int(time.time() * 1000)
    consumer.true_ends[FOLLOWER, 0] = 1
    consumer.away = True
    reading.give(record(LEADER, 0, 0, now - 20_000))
    assert reading.activation() == []
    consumer.away = False
    assert reading.activation() == []
    assert consumer.asked == 1
    reading.give(record(FOLLOWER, 0, 0, now - 21_000), record(LEADER, 0, 1, now - 20_000))
    assert reading.activation() == [(FOLLOWER, 0, 0), (LEADER, 0, 0), (LEADER, 0, 1)]
    assert consumer.asked == 1  # that answer is good for all records of before


def test_while_it_keeps_up_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading(monkeypatch, 1, 1)
    reading.give(End(LEADER, 0, 0), End(FOLLOWER, 0, 0))
    reading.activation()
    reading.fetcher._doubted_until = 0.0
    for number in range(5):
        reading.give(record(LEADER, 0, number, int(time.time() * 1000)))
        assert reading.activation() == [(LEADER, 0, number)]
    assert reading.consumer.asked == 0


def test_a_partition_of_which_nothing_is_heard_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(kafka_source.time, "monotonic", lambda: now)
    reading = Reading(monkeypatch, 1, 1)
    now += 1000.0  # it took long to start
    reading.give(record(LEADER, 0, 0, 1000))
    assert reading.activation() == []
    now += PATIENCE_SECONDS / 2
    assert reading.activation() == []
    now += PATIENCE_SECONDS / 2 + 0.1
    assert reading.activation() == [(LEADER, 0, 0)]


def test_with_other_numbers_of_partitions_a_worker_reads_all_of_its_own_in_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading = Reading(monkeypatch, 3, 1)
    reading.give(
        *[record(LEADER, p, n, 1000 * n + p) for p in range(3) for n in range(3)],
        record(FOLLOWER, 0, 0, 1001),
        *[End(LEADER, p, 3) for p in range(3)],
        End(FOLLOWER, 0, 1),
    )
    found: list[tuple[str, int, int]] = []
    for _ in range(5):
        found += reading.activation()
    label = found.index((FOLLOWER, 0, 0))
    assert {(p, n) for _, p, n in found[:label]} == {(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)}
    assert len(found) == 10


@configure(deadline=None)
@given(data=st.data())
def test_a_parts_order_does_not_depend_on_how_its_messages_arrive(data: st.DataObject) -> None:
    times = st.lists(st.integers(0, 30), max_size=12).map(sorted)
    payments = [record(LEADER, 0, n, ms) for n, ms in enumerate(data.draw(times))]
    labels = [record(FOLLOWER, 0, n, ms) for n, ms in enumerate(data.draw(times))]
    arriving = {LEADER: [*payments, End(LEADER, 0, len(payments))], FOLLOWER: [*labels, End(FOLLOWER, 0, len(labels))]}
    with pytest.MonkeyPatch.context() as monkeypatch:
        reading = Reading(monkeypatch, 1, 1, data.draw(st.integers(1, 5)))
        found: list[tuple[str, int, int]] = []
        while any(arriving.values()):
            topic = data.draw(st.sampled_from([topic for topic, events in arriving.items() if events]))
            reading.give(arriving[topic].pop(0))
            if data.draw(st.booleans()):
                found += reading.activation()
        for _ in range(40):
            found += reading.activation()
    in_time = sorted([*payments, *labels], key=lambda m: (m.timestamp()[1], m.topic() == FOLLOWER, m.offset()))
    assert found == [(m.topic(), m.partition(), m.offset()) for m in in_time]


def test_the_first_part_of_an_activation_hands_out_what_has_come_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading(monkeypatch, 3, 3, max_batch=4)
    reading.give(*[End(FOLLOWER, p, 0) for p in range(3)])
    reading.activation()
    reading.give(*[record(LEADER, p, n, 1) for p in range(3) for n in range(2)])
    assert [(m.partition(), m.offset()) for m in reading.fetcher.take(0)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert (reading.fetcher.take(1), reading.fetcher.take(2)) == ([], [])
    # No more than a batch comes at once.
    assert [(m.partition(), m.offset()) for m in reading.fetcher.take(0)] == [(2, 0), (2, 1)]


@pytest.mark.slow
@configure(deadline=None)
@given(data=st.data())
def test_a_parts_snapshot_covers_what_was_handed_out_of_its_partition_in_its_epochs(data: st.DataObject) -> None:
    """As in Bytewax, each part closes its epoch by its own clock, and none begins one before all closed the last."""
    parts, count = 3, 12
    with pytest.MonkeyPatch.context() as monkeypatch:
        reading = Reading(monkeypatch, parts, parts, max_batch=5)
        fetcher = reading.fetcher
        reading.give(*[End(FOLLOWER, p, 0) for p in range(parts)])
        arriving = [record(LEADER, p, n, n) for n in range(count) for p in range(parts)]
        epochs = [0] * parts
        came: list[list[tuple[int, int]]] = [[] for _ in range(parts)]  # of each partition: offset, in which epoch
        covered: list[list[int]] = [[] for _ in range(parts)]  # of each part: by the end of each epoch, up to where
        for _ in range(60):
            arrived = data.draw(st.integers(0, 4))
            reading.give(*arriving[:arrived])
            del arriving[:arrived]
            oldest = min(epochs)
            for number in [number for number in range(parts) if epochs[number] == oldest]:
                for message in fetcher.take(number):
                    came[message.partition()].append((message.offset(), epochs[number]))
                if data.draw(st.integers(0, 3)) == 0:
                    fetcher.snapshot_taken(number)
                    covered[number].append(fetcher.partition(LEADER, number).next_offset)
                    epochs[number] += 1
    for number in range(parts):
        assert [offset for offset, _ in came[number]] == list(range(len(came[number])))
        for epoch, end in enumerate(covered[number]):
            assert [offset for offset, when in came[number] if when <= epoch] == list(range(end))


def test_what_is_kept_back_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading(monkeypatch, 1, 1, max_batch=1000)
    reading.give(*[record(LEADER, 0, n, 1000) for n in range(BUFFER_LIMIT + 1)])
    for _ in range(BUFFER_LIMIT // 1000 + 1):
        assert reading.activation() == []
    assert reading.consumer.paused == [(LEADER, 0)]
    reading.give(End(FOLLOWER, 0, 0))
    taken = 0
    for _ in range(BUFFER_LIMIT // 1000 + 2):
        taken += len(reading.activation())
    assert taken == BUFFER_LIMIT + 1
    assert reading.consumer.resumed == [(LEADER, 0)]


def test_the_next_offset_lies_past_the_control_records_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading(monkeypatch, 1, 1)
    partition = reading.fetcher.partition(LEADER, 0)
    reading.give(End(FOLLOWER, 0, 0), record(LEADER, 0, 0, 1), End(LEADER, 0, 2))
    reading.activation()
    assert partition.next_offset == 2
    reading.give(record(LEADER, 0, 2, 2))
    reading.activation()
    assert partition.next_offset == 3


def test_it_goes_by_no_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall clock that is set back must not keep it from reading: Bytewax compares `next_awake` with that clock."""
    reading = Reading(monkeypatch, 1, 1)
    identities = dict.fromkeys((LEADER, FOLLOWER), TopicIdentity("c", "t"))
    part = kafka_source._SourcePart(reading.fetcher, 0, identities, {LEADER: 0, FOLLOWER: 0}, lambda: 0.0)
    assert list(part.next_batch()) == []
    awake = part.next_awake()
    assert awake is not None
    assert awake < datetime(2000, 1, 1, tzinfo=UTC)


# -------------------------------------------------------------------------------------------------------- on a broker


@pytest.fixture
def settings(broker: Broker, topics: Callable[..., str]) -> Settings:
    return Settings(
        brokers=broker.bootstrap,
        transactions_topic=topics("transactions"),
        feedback_topic=topics("feedback"),
        delivery_timeout_seconds=10,
        kafka_config={"fetch.wait.max.ms": "20"},
    )


@pytest.fixture(autouse=True)
def running() -> Iterator[None]:
    lifecycle._stopping.clear()
    yield
    lifecycle._stopping.clear()


def produce(settings: Settings, count: int, **config: Any) -> None:
    producer = Producer({"bootstrap.servers": settings.brokers, **config})
    if "transactional.id" in config:
        producer.init_transactions(30)
        producer.begin_transaction()
    for number in range(count):
        producer.produce(settings.transactions_topic, b"%d" % number, partition=0)
    if "transactional.id" in config:
        producer.commit_transaction(30)
    assert producer.flush(20) == 0


def build(settings: Settings, state: Any = None, **options: Any) -> Any:
    source = KafkaSource(settings, (settings.transactions_topic, settings.feedback_topic), **options)
    assert source.list_parts()[0] == "00000"
    return source.build_part("read", "00000", state)


def read(part: Any, count: int, seconds: float = 20) -> list[Message]:
    """So many messages, or what came in time, and the end behind them."""
    found: list[Message] = []
    deadline = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < deadline:
        found += part.next_batch()
    for _ in range(20):
        found += part.next_batch()
    return found


def offset_of(state: Any, settings: Settings) -> int:
    return int(state["positions"][settings.transactions_topic]["offset"])


@pytest.mark.real_kafka
def test_behind_a_transactional_producer_nothing_is_missed_and_the_lag_ends_at_nought(settings: Settings) -> None:
    produce(settings, 3, **{"transactional.id": settings.transactions_topic})
    part = build(settings)
    assert len(read(part, 3)) == 3
    assert offset_of(part.snapshot(), settings) == 4  # three, and the marker of the commit
    part._set_gauges()
    assert LAG.labels(settings.transactions_topic, "0")._value.get() == 0
    part.close()


@pytest.mark.real_kafka
def test_labels_in_a_kafka_transaction_that_stays_open_keep_no_transaction_back(settings: Settings) -> None:
    part = build(settings)
    read(part, 1, 1)
    producer = Producer({"bootstrap.servers": settings.brokers, "transactional.id": settings.feedback_topic})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(settings.feedback_topic, b"{}", partition=0)
    producer.flush(20)
    produce(settings, 3)
    began = time.monotonic()
    assert len(read(part, 3, PATIENCE_SECONDS / 2)) == 3
    assert time.monotonic() - began < PATIENCE_SECONDS / 2
    producer.abort_transaction(30)
    part.close()


@pytest.mark.real_kafka
def test_markers_that_retention_removed_are_no_gap(settings: Settings) -> None:
    produce(settings, 3, **{"transactional.id": settings.transactions_topic})
    part = build(settings)
    read(part, 3)
    state = part.snapshot()
    part.close()
    delete_before(settings, 4)
    again = build(settings, state)
    assert read(again, 1, 1) == []
    again.close()


def delete_before(settings: Settings, offset: int) -> None:
    admin = AdminClient({"bootstrap.servers": settings.brokers})
    for future in admin.delete_records([TopicPartition(settings.transactions_topic, 0, offset)]).values():
        future.result(timeout=20)


@pytest.mark.real_kafka
def test_on_an_expired_topic_the_first_start_has_no_lag(settings: Settings) -> None:
    produce(settings, 10)
    delete_before(settings, 10)
    part = build(settings)
    read(part, 1, 0.5)
    part._set_gauges()
    assert LAG.labels(settings.transactions_topic, "0")._value.get() == 0
    assert offset_of(part.snapshot(), settings) == 10
    part.close()


def test_lag_is_not_known_while_the_broker_is_away(settings: Settings) -> None:
    part = build(settings, broker_silent=lambda: 60.0)
    part._set_gauges()
    assert math.isnan(LAG.labels(settings.transactions_topic, "0")._value.get())
    part.close()


def test_records_since_the_snapshot_are_counted(settings: Settings) -> None:
    produce(settings, 5)
    part = build(settings)
    read(part, 5)
    part._set_gauges()
    assert UNSAVED.labels(settings.transactions_topic, "0")._value.get() == 5
    part.snapshot()
    part._set_gauges()
    assert UNSAVED.labels(settings.transactions_topic, "0")._value.get() == 0
    part.close()


@pytest.mark.real_kafka
def test_a_gap_is_refused_unless_it_is_accepted(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    produce(settings, 10)
    part = build(settings)
    read(part, 10)
    state = part.snapshot()
    part.close()
    produce(settings, 10)
    delete_before(settings, 15)
    with pytest.raises(
        UserError, match=r"begins at offset 15, but 10 is next: retention removed 5 records.*accept-gap"
    ):
        build(settings, state)
    with caplog.at_level(logging.INFO):
        part = build(settings, state, accept_gap=True)
    assert "retention removed 5 records; accepted, goes on at offset 15" in caplog.text
    assert [m.offset() for m in read(part, 5)] == [15, 16, 17, 18, 19]
    part.close()


@pytest.mark.real_kafka
def test_a_partition_that_was_empty_at_the_snapshot_is_treated_as_any_other(settings: Settings) -> None:
    part = build(settings)
    read(part, 1, 0.5)
    state = part.snapshot()
    part.close()
    produce(settings, 60)
    delete_before(settings, 60)
    with pytest.raises(UserError, match="begins at offset 60, but 0 is next: retention removed 60 records"):
        build(settings, state)


@pytest.mark.real_kafka
def test_a_longer_topic_of_the_same_name_is_refused_or_read_from_its_beginning(
    settings: Settings, kafka_server: KafkaServer, caplog: pytest.LogCaptureFixture
) -> None:
    own = Settings(
        brokers=kafka_server.bootstrap, delivery_timeout_seconds=10, kafka_config={"fetch.wait.max.ms": "20"}
    )
    create_topics(own.brokers, {own.transactions_topic: 1, own.feedback_topic: 1})
    produce(own, 50)
    part = build(own)
    read(part, 50)
    state = part.snapshot()
    part.close()
    admin = AdminClient({"bootstrap.servers": own.brokers})
    admin.delete_topics([own.transactions_topic])[own.transactions_topic].result(timeout=20)
    time.sleep(0.5)
    create_topics(own.brokers, {own.transactions_topic: 1})
    produce(own, 80)
    with pytest.raises(UserError, match=r"transactions\[0\] was made anew: its topic id is \S+, in the recovery data"):
        build(own, state)
    with caplog.at_level(logging.INFO):
        part = build(own, state, accept_gap=True)
    assert "was made anew" in caplog.text
    assert "accepted, goes on at offset 0" in caplog.text
    assert len(read(part, 80)) == 80
    part.close()

    # Another cluster, with the same topics: that is told, too.
    elsewhere = build(settings)
    foreign = elsewhere.snapshot()
    elsewhere.close()
    foreign["positions"] = {own.transactions_topic: foreign["positions"][settings.transactions_topic]}
    with pytest.raises(UserError, match=r"is on the cluster redflag-\S+, but the recovery data is of "):
        build(own, foreign)
