"""A running flow says when it is ready, live, and how long its decisions take: while brokers and processes go away."""

import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Message, Producer

from dataflow.settings import Settings
from dataflow.start_report import METRICS_ON
from tests.conftest import Broker, MakeTopic
from tests.process.test_lifecycle import wait_for
from tests.support.builders import raw
from tests.support.detection import environ_of, topics_by_default, topics_of_its_own
from tests.support.kafka_server import KafkaServer, free_ports
from tests.support.reading import read_all

pytestmark = pytest.mark.slow


class Served:
    """One process of a detection flow, asked over HTTP."""

    def __init__(self, settings: Settings, model_file: Path, directory: Path, *options: str, interval: str = "1"):
        self.settings = settings
        self._log = directory / f"log{'-'.join(options[:2])}"
        environ = environ_of(settings, model_file, directory, interval) | {"METRICS_ADDRESS": "127.0.0.1:0"}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dataflow.detect", *options], env=environ, stderr=log, stdout=log
            )

    def ask(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self._address()}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def _address(self) -> str:
        found = re.search(rf"{METRICS_ON}http://(\S+)/metrics", self.said())
        assert found is not None, self.said()
        return found[1]

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.said()
        return METRICS_ON in self.said() and self.ask("/ready") == (200, "ready\n")

    def not_ready(self, why: str) -> bool:
        status, line = self.ask("/ready")
        assert line.count("\n") == 1
        return status == 503 and why in line

    def metric(self, name: str) -> float:
        """Its value, as the sum over its labels."""
        found = re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", self.ask("/metrics")[1], re.MULTILINE)
        return sum(map(float, found))

    def send(self, value: bytes) -> None:
        producer = Producer({"bootstrap.servers": self.settings.brokers})
        producer.produce(self.settings.transactions_topic, key=b"ann", value=value)
        assert producer.flush(20) == 0

    def written(self) -> list[Message]:
        return read_all(self.settings, [self.settings.alerts_topic, self.settings.classified_topic])


Start = Callable[..., Served]


@pytest.fixture
def start(model_file: Path, tmp_path: Path) -> Iterator[Start]:
    started: list[Served] = []

    def start(settings: Settings, *options: str, interval: str = "1") -> Served:
        started.append(Served(settings, model_file, tmp_path, *options, interval=interval))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


@pytest.fixture
def settings(broker: Broker, topics: MakeTopic) -> Settings:
    return topics_of_its_own(broker, topics)


def test_latency_is_known_as_soon_as_the_broker_has_acknowledged_though_nothing_else_comes(
    settings: Settings, start: Start
) -> None:
    """Neither the next message nor a snapshot is waited for: there is none for ten minutes."""
    flow = start(settings, interval="600")
    wait_for(flow.is_ready)
    for number in range(3):
        flow.send(raw("ann", n=number))
        wait_for(lambda number=number: flow.metric("redflag_end_to_end_latency_seconds_count") == number + 1)
    flow.send(b"not a transaction")
    wait_for(lambda: flow.metric("redflag_end_to_end_latency_seconds_count") == 4)
    mean = flow.metric("redflag_end_to_end_latency_seconds_sum") / 4
    produced = [
        message.timestamp()[1] / 1000 - int(dict(message.headers() or [])["source_timestamp"]) / 1000
        for message in flow.written()
    ]
    assert len(produced) == 3
    assert min(produced) <= mean <= max(produced) + 2


def test_snapshots_have_an_age_and_a_pause_and_lag_goes_back_to_none(settings: Settings, start: Start) -> None:
    flow = start(settings)
    wait_for(flow.is_ready)
    flow.send(raw("ann"))
    wait_for(lambda: flow.metric("redflag_snapshot_pause_seconds_count") >= 2)
    ages = [flow.metric("redflag_snapshot_age_seconds")]

    def is_younger_than_before() -> bool:
        ages.append(flow.metric("redflag_snapshot_age_seconds"))
        return ages[-1] < ages[-2]

    wait_for(is_younger_than_before)
    assert 0 <= ages[-1] < 10, ages  # soon after a snapshot
    assert flow.metric("redflag_snapshot_pause_seconds_sum") > 0
    wait_for(lambda: flow.metric("redflag_consumer_lag_messages") == 0)
    assert flow.metric("redflag_profiles") == 2


def test_without_its_broker_a_flow_is_live_but_not_ready_and_is_ready_when_it_is_back(
    kafka_server: KafkaServer, start: Start
) -> None:
    settings = topics_by_default(kafka_server)
    flow = start(settings)
    wait_for(flow.is_ready)
    flow.send(raw("ann"))
    wait_for(lambda: flow.metric("redflag_end_to_end_latency_seconds_count") == 1)
    kafka_server.kill()
    wait_for(lambda: flow.not_ready("no broker has answered for 1"))
    wait_for(lambda: flow.not_ready("whose the outputs are"))
    assert flow.ask("/live") == (200, "live\n")
    assert flow.metric("redflag_seconds_since_broker_answered") > 10
    kafka_server.start()
    wait_for(flow.is_ready)
    flow.send(raw("ann"))
    wait_for(lambda: flow.metric("redflag_end_to_end_latency_seconds_count") == 2)


def test_a_process_whose_cluster_takes_no_snapshots_any_more_is_not_ready_until_it_does(
    settings: Settings, start: Start
) -> None:
    addresses = ";".join(f"127.0.0.1:{port}" for port in free_ports(2))
    first, second = (start(settings, "-i", str(number), "-a", addresses) for number in range(2))
    wait_for(lambda: first.is_ready() and second.is_ready())
    second.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: first.not_ready("the last snapshot is "))
    assert first.metric("redflag_snapshot_age_seconds") > 13
    assert "no broker" not in first.ask("/ready")[1]
    second.process.send_signal(signal.SIGCONT)
    wait_for(lambda: first.is_ready() and second.is_ready())
