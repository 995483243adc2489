"""A broker that goes and comes back, and topics that change meanwhile."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from dataflow import start_report
from dataflow.connectors import broker_watch, kafka_clients
from dataflow.connectors.broker_watch import BrokerWatch
from dataflow.connectors.kafka_clients import TopicIdentity, identify_topics
from dataflow.connectors.kafka_source import READY
from dataflow.metrics import BROKER_SILENT
from dataflow.settings import Settings
from tests.conftest import Broker, MakeTopic
from tests.process.test_lifecycle import Flow, wait_for
from tests.support.kafka_server import KafkaServer


@pytest.fixture(scope="module")
def server(apache_kafka: None) -> Iterator[KafkaServer]:
    """It makes a topic that somebody asks for, as many do."""
    with KafkaServer({"auto.create.topics.enable": "true"}) as started:
        yield started


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watches are less patient, and a minute is a second and a half."""
    monkeypatch.setattr(broker_watch, "ASK_EVERY_SECONDS", 0.2)
    monkeypatch.setattr(broker_watch, "ASK_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(broker_watch, "AWAY_AFTER_SECONDS", 2.0)
    monkeypatch.setattr(broker_watch, "SAY_EVERY_SECONDS", 1.5)
    monkeypatch.setattr(broker_watch, "IDENTIFY_EVERY_SECONDS", 0.3)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[logging.LogRecord]]:
    caplog.set_level(logging.INFO, logger="redflag.kafka")
    return lambda: [record for record in caplog.records if record.name == "redflag.kafka"]


def seconds_in(line: str) -> int:
    found = re.search(r"(\d+) s\b", line)
    assert found is not None, line
    return int(found[1])


def gauge() -> float:
    return next(iter(BROKER_SILENT.collect())).samples[0].value


def test_one_line_when_the_broker_goes_one_a_minute_and_one_when_it_is_back(
    server: KafkaServer, hurried: None, said: Callable[[], list[logging.LogRecord]]
) -> None:
    server.create_topics({"watched": 1})
    answered = threading.Event()
    watch = BrokerWatch(Settings(brokers=server.bootstrap), ["watched"], on_metadata=lambda _: answered.set())
    watch.start()
    try:
        assert answered.wait(30)
        assert said() == []
        killed = time.monotonic()
        server.kill()
        wait_for(lambda: len(said()) >= 3)
        waited = broker_watch.AWAY_AFTER_SECONDS + 2 * broker_watch.SAY_EVERY_SECONDS
        assert watch.seconds_since_answer() >= waited
        assert gauge() >= waited
        server.start()
        wait_for(lambda: "answers again" in said()[-1].getMessage())
        away = time.monotonic() - killed
        assert watch.seconds_since_answer() < away
        assert gauge() < away
    finally:
        watch.close()
        server.start()
    *gone, back = [record.getMessage() for record in said()]
    for line in gone:
        assert line.startswith(f"the broker at {server.bootstrap} has not answered for ")
        assert line.endswith("; waiting")
    assert "Connection refused" in gone[2]
    apart = [later.relativeCreated - sooner.relativeCreated for sooner, later in pairwise(said()[:-1])]
    assert min(apart) >= 1000 * broker_watch.SAY_EVERY_SECONDS - 100
    assert back.startswith(f"the broker at {server.bootstrap} answers again, after ")
    assert seconds_in(gone[-1]) <= seconds_in(back) <= away + broker_watch.ASK_EVERY_SECONDS + 1


def test_a_broker_that_hangs_is_away_too(
    server: KafkaServer, hurried: None, said: Callable[[], list[logging.LogRecord]]
) -> None:
    server.create_topics({"hangs": 1})
    answered = threading.Event()
    watch = BrokerWatch(Settings(brokers=server.bootstrap), ["hangs"], on_metadata=lambda _: answered.set()).start()
    pid = server.pid
    assert pid is not None
    try:
        assert answered.wait(30)
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: len(said()) > 0)
        os.kill(pid, signal.SIGCONT)
        wait_for(lambda: "answers again" in said()[-1].getMessage())
    finally:
        os.kill(pid, signal.SIGCONT)
        watch.close()


@pytest.mark.slow
def test_a_start_that_waits_for_the_broker_is_not_told_by_the_watch(
    hurried: None, said: Callable[[], list[logging.LogRecord]]
) -> None:
    watch = BrokerWatch(Settings(brokers="127.0.0.1:1"), ["any"]).start()
    try:
        wait_for(lambda: watch.seconds_since_answer() > 2 * broker_watch.AWAY_AFTER_SECONDS)
    finally:
        watch.close()
    assert said() == []


def test_partitions_that_are_added_and_topics_that_go_or_are_made_anew_are_handed_on(
    server: KafkaServer, hurried: None
) -> None:
    server.create_topics({"grows": 2, "goes": 1})
    settings = Settings(brokers=server.bootstrap)
    before = identify_topics(settings, ["grows", "goes"])
    admin = AdminClient({"bootstrap.servers": server.bootstrap})
    counts: list[dict[str, int]] = []
    identities: list[dict[str, TopicIdentity]] = []
    watch = BrokerWatch(settings, ["grows", "goes"], on_metadata=counts.append, on_identities=identities.append).start()
    try:
        wait_for(lambda: counts[-1:] == [{"grows": 2, "goes": 1}])
        wait_for(lambda: identities[-1:] == [before])
        for future in admin.create_partitions([NewPartitions("grows", 5)]).values():
            future.result(30)
        wait_for(lambda: counts[-1] == {"grows": 5, "goes": 1})
        for future in admin.delete_topics(["goes"]).values():
            future.result(30)
        wait_for(lambda: counts[-1] == {"grows": 5, "goes": 0})
        # What asks for it must not make it.
        seen = len(counts)
        wait_for(lambda: len(counts) > seen + 5)
        assert {each["goes"] for each in counts[seen:]} == {0}
        wait_for(lambda: identities[-1] == {"grows": before["grows"]})
        server.create_topics({"goes": 1})
        wait_for(lambda: counts[-1] == {"grows": 5, "goes": 1})
        wait_for(lambda: len(identities[-1]) == 2)
    finally:
        watch.close()
    assert identities[-1]["grows"] == before["grows"]
    assert identities[-1]["goes"].cluster_id == before["goes"].cluster_id
    assert identities[-1]["goes"].topic_id not in ("", before["goes"].topic_id)


def test_a_users_mistake_found_by_the_watch_ends_the_flow_with_one_line(broker: Broker, topics: MakeTopic) -> None:
    code = (
        "import sys, time\n"
        "from dataflow.process import lifecycle\n"
        "from dataflow.connectors.broker_watch import BrokerWatch\n"
        "from dataflow.settings import Settings, UserError\n"
        "def look(counts): raise UserError(f'{counts} is not what it was: start again')\n"
        "lifecycle.report_mistakes()\n"
        "BrokerWatch(Settings(brokers=sys.argv[1]), [sys.argv[2]], on_metadata=look).start()\n"
        "time.sleep(60)\n"
        "print('went on')"
    )
    topic = topics()
    found = subprocess.run(
        [sys.executable, "-c", code, broker.bootstrap, topic], capture_output=True, text=True, check=False, timeout=90
    )
    line = f"redflag: {{'{topic}': 4}} is not what it was: start again\n"
    assert (found.returncode, found.stdout, found.stderr) == (2, "", line)


def test_a_detector_says_two_lines_of_a_broker_that_was_away_and_goes_on(
    server: KafkaServer, model_file: Path, tmp_path: Path
) -> None:
    names = ("transactions", "alerts", "classified", "invalid", "feedback")
    settings = Settings(brokers=server.bootstrap, **{f"{name}_topic": f"{name}-of-detector" for name in names})
    server.create_topics({f"{name}-of-detector": 2 for name in names})
    flow = Flow(settings, model_file, tmp_path)

    def lines() -> list[str]:
        return [line for line in flow.said().splitlines() if READY not in line and start_report.PREFIX not in line]

    try:
        flow.start()
        flow.give(100)
        wait_for(lambda: len(flow.decided()) == 100)
        assert lines() == []
        killed = time.monotonic()
        server.kill()
        # As long as a restart takes, and until it has been noticed.
        wait_for(lambda: time.monotonic() - killed > 8 and len(lines()) > 0)
        server.start()
        wait_for(lambda: len(lines()) > 1)
        flow.give(100)
        wait_for(lambda: len(flow.decided()) == 200)
        assert flow.stop() == 0, flow.said()
    finally:
        flow.process.kill()
        flow.process.wait()
        server.start()
    assert set(flow.decided().values()) == {1}
    gone, *again, back = lines()
    for line in (gone, *again):
        assert f"the broker at {server.bootstrap} has not answered for " in line
    assert f"the broker at {server.bootstrap} answers again, after " in back
    assert len(again) <= seconds_in(back.partition(" after ")[2]) // broker_watch.SAY_EVERY_SECONDS


def test_a_broker_that_is_not_up_yet_is_waited_for_and_that_is_said_once(
    server: KafkaServer, said: Callable[[], list[logging.LogRecord]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_clients, "BROKER_WAIT_SECONDS", 120.0)
    server.create_topics({"late": 3})
    settings = Settings(brokers=server.bootstrap)
    server.kill()
    try:
        with ThreadPoolExecutor() as pool:
            counts = [pool.submit(kafka_clients.count_partitions, settings, "late") for _ in range(2)]
            wait_for(lambda: len(said()) > 0)
            assert not any(count.done() for count in counts)
            server.start()
            assert [count.result(60) for count in counts] == [3, 3]
    finally:
        server.start()
    (line,) = [record.getMessage() for record in said()]
    assert line.startswith(f"no broker answers at {server.bootstrap} (")
    assert "is KAFKA_BROKERS right? Waiting for up to 120 s" in line
