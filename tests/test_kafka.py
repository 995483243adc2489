"""One contract over whatever broker the tests have: see the `broker` fixture."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig
from bytewax.testing import cluster_main, run_main
from confluent_kafka import Message, Producer

from dataflow import lifecycle, record, recovery
from dataflow.connectors import exactly_once_sink, kafka_clients, kafka_source
from dataflow.settings import Settings, UserError
from tests.conftest import Broker
from tests.reading import read_all

ALERTS_SHARE = 7


@pytest.fixture
def settings(broker: Broker, topics: Callable[..., str]) -> Settings:
    return Settings(
        brokers=broker.bootstrap,
        transactions_topic=topics("transactions"),
        alerts_topic=topics("alerts"),
        classified_topic=topics("classified"),
        invalid_topic=topics("invalid"),
        output_settle_seconds=0.1,
        delivery_timeout_seconds=10,
    )


@pytest.fixture(autouse=True)
def running() -> Iterator[None]:
    lifecycle._stopping.clear()
    yield
    lifecycle._stopping.clear()


def produce(settings: Settings, count: int, start: int = 0) -> None:
    producer = Producer({"bootstrap.servers": settings.brokers})
    kafka_clients.count_partitions(settings, settings.transactions_topic)
    for number in range(start, start + count):
        producer.produce(settings.transactions_topic, key=b"u%d" % (number % 50), value=b"%d" % number)
        producer.poll(0)
    assert producer.flush(20) == 0


def routes(settings: Settings) -> dict[str, tuple[str, ...]]:
    return {settings.transactions_topic: (settings.alerts_topic, settings.classified_topic, settings.invalid_topic)}


def copy_flow(
    settings: Settings, to_alerts: Callable[[Message], bool], sink_class: type = exactly_once_sink.ExactlyOnceSink
) -> Dataflow:
    """The smallest flow over source and sink: a message goes to alerts or to classified as it is."""

    def route(messages: list[Message]) -> list[tuple[str, list[record.Record]]]:
        return [
            (
                record.source_key(settings.transactions_topic, m.partition()),
                [
                    record.Record(
                        settings.alerts_topic if to_alerts(m) else settings.classified_topic,
                        m.key(),
                        m.value(),
                        settings.transactions_topic,
                        m.partition(),
                        m.offset(),
                        m.timestamp()[1],
                        record.producer_headers(m.headers()),
                    )
                ],
            )
            for m in messages
        ]

    flow = Dataflow("copy")
    messages = op.input("read", flow, kafka_source.KafkaSource(settings, settings.transactions_topic))
    routed = op.flat_map_batch("route", messages, route)
    op.output("write", routed, sink_class(settings, routes(settings)))
    return flow


def run_for(seconds: float, flow: Dataflow, directory: Path, workers: int = 1) -> None:
    lifecycle._stopping.clear()
    recovery.prepare(directory, 2)
    timer = threading.Timer(seconds, lifecycle._stopping.set)
    timer.start()
    config = RecoveryConfig(str(directory), timedelta(0))
    try:
        if workers == 1:
            run_main(flow, epoch_interval=timedelta(seconds=1), recovery_config=config)
        else:
            cluster_main(
                flow, [], 0, worker_count_per_proc=workers, epoch_interval=timedelta(seconds=1), recovery_config=config
            )
    finally:
        timer.cancel()
        lifecycle._stopping.clear()


def every_seventh(message: Message) -> bool:
    return message.offset() % ALERTS_SHARE == 0


def outputs(settings: Settings) -> Counter[bytes]:
    return Counter(m.value() for m in read_all(settings, [settings.alerts_topic, settings.classified_topic]))


@pytest.mark.parametrize("workers", [1, 2])
def test_everything_is_copied_once_with_its_origin_in_headers_and_its_partition_kept(
    settings: Settings, tmp_path: Path, workers: int
) -> None:
    produce(settings, 2000)
    run_for(3, copy_flow(settings, every_seventh), tmp_path / "r", workers)
    messages = read_all(settings, [settings.alerts_topic, settings.classified_topic])
    assert len(messages) == 2000
    sources = {(m.partition(), m.offset()): m for m in read_all(settings, [settings.transactions_topic])}
    for message in messages:
        headers = dict(message.headers())
        origin = sources[int(headers["source_partition"]), int(headers["source_offset"])]
        assert (message.key(), message.value(), message.partition()) == (
            origin.key(),
            origin.value(),
            origin.partition(),
        )
        assert int(headers["source_timestamp"]) == origin.timestamp()[1]
        assert headers["source_topic"] == settings.transactions_topic.encode()


def test_a_restart_goes_on_where_the_last_one_stopped(settings: Settings, tmp_path: Path) -> None:
    produce(settings, 500)
    run_for(2, copy_flow(settings, every_seventh), tmp_path / "r")
    produce(settings, 500, start=500)
    run_for(2, copy_flow(settings, every_seventh), tmp_path / "r", workers=2)
    assert outputs(settings) == Counter({b"%d" % n: 1 for n in range(1000)})


def test_without_the_recovery_data_what_stands_in_the_outputs_is_still_not_written_twice(
    settings: Settings, tmp_path: Path
) -> None:
    produce(settings, 500)
    run_for(2, copy_flow(settings, every_seventh), tmp_path / "first")
    # Now every decision is another: still each transaction must stand in exactly one topic.
    run_for(2, copy_flow(settings, lambda m: not every_seventh(m)), tmp_path / "second")
    assert outputs(settings) == Counter({b"%d" % n: 1 for n in range(500)})


def test_a_source_that_ends_before_the_recovery_data_is_refused(settings: Settings) -> None:
    produce(settings, 10)
    source = kafka_source.KafkaSource(settings, settings.transactions_topic)
    with pytest.raises(UserError, match="made anew or cut"):
        source.build_part("read", "00000", 1_000_000)


def test_no_broker_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_clients, "BROKER_WAIT_SECONDS", 1.0)
    with pytest.raises(UserError, match=r"no broker answers at 127\.0\.0\.1:1"):
        kafka_clients.count_partitions(Settings(brokers="127.0.0.1:1"), "transactions")


def test_a_wrong_client_setting_is_one_clear_line() -> None:
    with pytest.raises(UserError, match=r"no\.such\.thing"):
        kafka_clients.make_consumer(Settings(kafka_config={"no.such.thing": "1"}))
