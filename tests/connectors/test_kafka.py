"""One contract over whatever broker the tests have: see the `broker` fixture."""

import contextlib
import socket
import socketserver
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import bytewax.operators as op
import msgspec
import pytest
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig
from bytewax.testing import cluster_main, run_main
from confluent_kafka import Message, Producer
from confluent_kafka.admin import AdminClient

from dataflow.connectors import exactly_once_sink, kafka_clients, kafka_source
from dataflow.connectors.embedded_broker import EmbeddedBroker
from dataflow.errors import UserError
from dataflow.events import output_record as record
from dataflow.process import lifecycle
from dataflow.settings import Settings
from dataflow.state import recovery
from tests.conftest import Broker
from tests.support.reading import read_all

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
    messages = op.input("read", flow, kafka_source.KafkaSource(settings, [settings.transactions_topic]))
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
    source = kafka_source.KafkaSource(settings, [settings.transactions_topic])
    part = source.build_part("read", source.list_parts()[0], None)
    state = part.snapshot()
    part.close()
    state["positions"][settings.transactions_topic]["offset"] = 1_000_000
    source = kafka_source.KafkaSource(settings, [settings.transactions_topic])
    source.list_parts()
    with pytest.raises(UserError, match="made anew or cut"):
        source.build_part("read", "00000", state)


def test_no_broker_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_clients, "BROKER_WAIT_SECONDS", 1.0)
    with pytest.raises(UserError, match=r"no broker answers at 127\.0\.0\.1:1"):
        kafka_clients.count_partitions(Settings(brokers="127.0.0.1:1"), "transactions")


@pytest.mark.real_kafka
def test_a_missing_topic_is_one_line_with_its_setting_and_what_to_run_and_is_not_made(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_clients, "TOPIC_WAIT_SECONDS", 0.5)
    misspelt = msgspec.structs.replace(settings, alerts_topic=f"{settings.alerts_topic}-misspelt")
    with pytest.raises(UserError) as error:
        kafka_clients.count_partitions(misspelt, misspelt.alerts_topic)
    line = str(error.value)
    assert "\n" not in line
    assert "(ALERTS_TOPIC)" in line
    assert f"kafka-topics.sh --bootstrap-server {settings.brokers} --create --topic {misspelt.alerts_topic}" in line
    admin = AdminClient({"bootstrap.servers": settings.brokers})
    assert misspelt.alerts_topic not in admin.list_topics(timeout=10).topics
    assert settings.alerts_topic in admin.list_topics(timeout=10).topics


def test_the_embedded_broker_makes_a_topic_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no other way."""
    monkeypatch.setattr(kafka_clients, "BROKER_WAIT_SECONDS", 10.0)
    embedded = EmbeddedBroker()
    try:
        assert kafka_clients.count_partitions(Settings(brokers=embedded.address), "transactions") == 4
    finally:
        embedded.close()


@pytest.mark.parametrize(
    ("brokers", "family"),
    [
        ("127.0.0.1:9092", "v4"),
        ("localhost:9092,10.0.0.1:9092", "v4"),
        ("[::1]:9092", "any"),
        ("127.0.0.1:9092,[::1]:9092", "any"),
        ("kafka.example:9092", "any"),
    ],
)
def test_ipv6_is_tried_unless_all_brokers_are_ipv4(brokers: str, family: str) -> None:
    config = kafka_clients.client_config(Settings(brokers=brokers), {})
    assert config["broker.address.family"] == family


def test_what_the_user_sets_of_our_defaults_counts() -> None:
    given = Settings.load({"KAFKA_CONFIG_LOG_LEVEL": "7", "KAFKA_CONFIG_BROKER_ADDRESS_FAMILY": "v6"}, dotenv=None)
    config = kafka_clients.client_config(given, {})
    assert (config["log_level"], config["broker.address.family"]) == ("7", "v6")


def test_a_broker_at_an_ipv6_address_is_reached(settings: Settings) -> None:
    host, port = settings.brokers.split(",")[0].rsplit(":", 1)
    try:
        listening = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"this machine has no IPv6: {error}")

    class Forwarding(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((host, int(port))) as broker:
                back = threading.Thread(target=pump, args=(broker, self.request), daemon=True)
                back.start()
                pump(self.request, broker)

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    server = Server(("127.0.0.1", 0), Forwarding, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        six = msgspec.structs.replace(settings, brokers=f"[::1]:{listening.getsockname()[1]}")
        assert kafka_clients.count_partitions(six, settings.transactions_topic) == 4
    finally:
        server.shutdown()
        server.server_close()


def test_a_wrong_client_setting_is_one_clear_line() -> None:
    with pytest.raises(UserError, match=r"no\.such\.thing"):
        kafka_clients.make_consumer(Settings(kafka_config={"no.such.thing": "1"}))
