import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from tests.conftest import Broker, MakeTopic
from tests.support import kafka_server as module
from tests.support.kafka_server import KafkaServer, KafkaServerError, KafkaUnavailableError, fetch_jars

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def produce(bootstrap: str, topic: str, values: list[bytes], partition: int = 0) -> list[str | None]:
    """Writes them in order and returns what delivery said of each: None is good."""
    said: list[str | None] = []
    producer = Producer({"bootstrap.servers": bootstrap, "message.timeout.ms": 30_000, "log_level": 0})
    for value in values:
        producer.produce(topic, value, partition=partition, on_delivery=lambda err, _: said.append(err and err.name()))
    assert producer.flush(40) == 0
    return said


def consume(bootstrap: str, topic: str, count: int, partition: int = 0) -> list[bytes]:
    """The first `count` values of the partition, or as many as come within 30 s."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "reader", "log_level": 0})
    consumer.assign([TopicPartition(topic, partition, 0)])
    values: list[bytes] = []
    deadline = time.monotonic() + 30
    while len(values) < count and time.monotonic() < deadline:
        message = consumer.poll(0.5)
        if message is not None and message.error() is None:
            values.append(message.value())
    consumer.close()
    return values


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that ended and only waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def eventually(true: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    return true()


@pytest.fixture(scope="module")
def server(apache_kafka: None) -> Iterator[KafkaServer]:
    with KafkaServer({"message.max.bytes": 20_000}) as started:
        yield started


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """`java()` anew in a changed environment, and anew again afterwards."""
    module.java.cache_clear()
    yield monkeypatch
    module.java.cache_clear()


def test_what_was_acknowledged_outlives_sigkill_on_the_same_port(server: KafkaServer) -> None:
    server.create_topics({"kept": 2})
    values = [b"%d" % n for n in range(1000)]
    assert produce(server.bootstrap, "kept", values) == [None] * 1000
    address, pid = server.bootstrap, server.pid

    server.kill()
    assert server.pid is None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=1)

    started = time.monotonic()
    server.start()
    assert time.monotonic() - started < 30  # 4 s on two idle cores; Kafka's own session timeout would make it 12
    assert server.bootstrap == address
    assert server.pid not in {None, pid}
    assert consume(server.bootstrap, "kept", 1000) == values
    assert produce(server.bootstrap, "kept", [b"more"]) == [None]


def test_a_client_that_stays_connected_finds_the_broker_again(server: KafkaServer) -> None:
    server.create_topics({"stays": 1})
    producer = Producer({"bootstrap.servers": server.bootstrap, "enable.idempotence": True, "log_level": 0})
    said: list[object] = []
    for round_ in range(2):
        for n in range(100):
            producer.produce("stays", b"%d" % (100 * round_ + n), on_delivery=lambda err, _: said.append(err))
        if round_ == 0:
            assert producer.flush(30) == 0
            server.kill()
    server.start()
    assert producer.flush(60) == 0
    assert said == [None] * 200
    assert consume(server.bootstrap, "stays", 200) == [b"%d" % n for n in range(200)]


def test_restart_keeps_data_and_address(server: KafkaServer) -> None:
    server.create_topics({"restarted": 1})
    produce(server.bootstrap, "restarted", [b"a"])
    address = server.bootstrap
    server.restart()
    assert server.bootstrap == address
    assert consume(server.bootstrap, "restarted", 1) == [b"a"]


def test_topics_have_their_partitions_and_settings(server: KafkaServer) -> None:
    server.create_topics({"one": 1, "seven": 7}, config={"max.message.bytes": 500})
    asking = Producer({"bootstrap.servers": server.bootstrap})
    assert {name: len(asking.list_topics(name, timeout=10).topics[name].partitions) for name in ("one", "seven")} == {
        "one": 1,
        "seven": 7,
    }
    assert produce(server.bootstrap, "seven", [b"x" * 1000], partition=6) == ["MSG_SIZE_TOO_LARGE"]
    with pytest.raises(KafkaException, match="already exists"):
        server.create_topics({"one": 1})


def test_settings_of_the_broker_and_of_a_topic_can_be_changed(server: KafkaServer) -> None:
    server.create_topics({"narrow": 1})
    assert produce(server.bootstrap, "narrow", [b"x" * 30_000]) == ["MSG_SIZE_TOO_LARGE"]
    assert produce(server.bootstrap, "narrow", [b"x" * 10_000]) == [None]
    server.configure_topic("narrow", {"max.message.bytes": 5_000})
    assert eventually(lambda: produce(server.bootstrap, "narrow", [b"x" * 10_000]) == ["MSG_SIZE_TOO_LARGE"])


def test_records_of_long_ago_stay(apache_kafka: None) -> None:
    eager = {"log.initial.task.delay.ms": 100, "log.retention.check.interval.ms": 100}
    with KafkaServer(eager) as server:
        server.create_topics({"ours": 1})
        server.create_topics({"of-a-week": 1}, config={"retention.ms": 7 * 24 * 3600 * 1000})
        producer = Producer({"bootstrap.servers": server.bootstrap})
        for topic in ("ours", "of-a-week"):
            producer.produce(topic, b"old", timestamp=1_500_000_000_000)
        assert producer.flush(30) == 0
        consumer = Consumer({"bootstrap.servers": server.bootstrap, "group.id": "reader"})

        def first_offset(topic: str) -> int:
            return int(consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)[0])

        assert eventually(lambda: first_offset("of-a-week") == 1)
        assert first_offset("ours") == 0
        consumer.close()


def test_close_leaves_neither_process_nor_data(apache_kafka: None, tmp_path: Path) -> None:
    with KafkaServer(parent=tmp_path) as server:
        pid = server.pid
        assert pid is not None
        assert server.directory.parent == tmp_path
        assert server.log_file.stat().st_size > 0
    assert not is_alive(pid)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KafkaServerError, match="has not been started yet"):
        _ = server.bootstrap


def test_the_broker_ends_with_a_process_that_is_killed(apache_kafka: None, tmp_path: Path) -> None:
    # Started by a thread that is over by the time: what counts is the process.
    code = (
        "import sys, threading, time\n"
        "from pathlib import Path\n"
        "from tests.support.kafka_server import KafkaServer\n"
        "server = KafkaServer(parent=Path(sys.argv[1]))\n"
        "thread = threading.Thread(target=server.start)\n"
        "thread.start(); thread.join()\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.5)
        assert is_alive(pid)
        parent.kill()
    assert eventually(lambda: not is_alive(pid))
    assert eventually(lambda: list(tmp_path.iterdir()) == [])


def test_ctrl_c_in_the_terminal_does_not_reach_the_broker(server: KafkaServer) -> None:
    assert server.pid is not None
    assert os.getsid(server.pid) != os.getsid(0)


def test_java_maps_the_classes_from_an_archive(server: KafkaServer) -> None:
    archive = module.class_archive(fetch_jars())
    assert archive is not None
    assert str(archive) in Path(f"/proc/{server.pid}/maps").read_text()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"num.network.threads": 0}, r"(?s)could not format its storage.*num\.network\.threads"),
        ({"authorizer.class.name": "no.such.Class"}, r"(?s)ended while it started \(exit code 1\).*no\.such\.Class"),
    ],
)
def test_a_start_that_fails_shows_the_end_of_the_log(
    apache_kafka: None, tmp_path: Path, settings: dict[str, object], complaint: str
) -> None:
    with pytest.raises(KafkaServerError, match=complaint):
        KafkaServer(settings, parent=tmp_path).start()
    assert list(tmp_path.iterdir()) == []


def test_a_port_taken_in_the_last_moment_is_given_up_for_another(
    server: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = module.free_ports
    # By another Kafka, which answers as ours would.
    answers = iter([[server.port, *free(1)]])
    monkeypatch.setattr(module, "free_ports", lambda count: next(answers, None) or free(count))
    with KafkaServer() as second:
        assert second.port != server.port
        assert second.pid is not None


def test_ports_are_not_those_of_outgoing_connections() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if first < 13_000:
        pytest.skip(f"this system gives outgoing connections ports from {first} on: there is little room below")
    assert max(port for _ in range(100) for port in module.free_ports(2)) < first


def test_without_java_the_error_names_it(no_java: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_java.delenv("JAVA_HOME", raising=False)
    no_java.setenv("PATH", str(tmp_path))
    with pytest.raises(KafkaUnavailableError, match=r"needs Java 17 or later, and there is no java on PATH"):
        KafkaServer().start()
    no_java.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(KafkaUnavailableError, match=r"has no bin/java"):
        KafkaServer().start()


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ('openjdk version "11.0.2" 2019-01-15', "is Java 11"),
        ('java version "1.8.0_391"', "is Java 8"),
        ("no", "does not tell its version"),
    ],
)
def test_an_old_java_is_refused(no_java: pytest.MonkeyPatch, tmp_path: Path, said: str, complaint: str) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/java").write_text(f"#!/bin/sh\necho '{said}' >&2\n")
    (tmp_path / "bin/java").chmod(0o755)
    no_java.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(KafkaUnavailableError, match=complaint):
        KafkaServer().start()


def test_without_maven_the_error_names_it(apache_kafka: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module.java()  # known from here on
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KafkaUnavailableError, match=r"there is no mvn on PATH"):
        KafkaServer().start()


class FakeMaven:
    """Stands in for mvn: counts its calls, and does what it is told to."""

    def __init__(self, directory: Path) -> None:
        self._calls = directory / "calls"
        self._script = directory / "mvn"
        self.does("sleep 0.3; touch $out/kafka.jar")

    def does(self, script: str) -> None:
        self._script.write_text(
            f"#!/bin/sh\necho call >> {self._calls}\n"
            f"for a; do case $a in -DoutputDirectory=*) out=${{a#*=}};; esac; done\n{script}\n"
        )
        self._script.chmod(0o755)

    @property
    def calls(self) -> int:
        return len(self._calls.read_text().splitlines())


@pytest.fixture
def maven(apache_kafka: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeMaven:
    """A Maven of the test's own, and an empty cache."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return FakeMaven(bin_)


def test_jars_are_fetched_once_by_processes_that_come_together(maven: FakeMaven, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from tests.support.kafka_server import fetch_jars; print(fetch_jars())"]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    found = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(found) == 1
    assert [path.name for path in Path(found.pop()).iterdir()] == ["kafka.jar"]
    assert maven.calls == 1


def test_a_fetch_that_fails_says_why_and_leaves_nothing_behind(maven: FakeMaven) -> None:
    maven.does("touch $out/half.jar; echo '[ERROR] no route to host'; exit 1")
    with pytest.raises(KafkaUnavailableError, match=r"Maven could not fetch Apache Kafka .*no route to host"):
        fetch_jars()
    assert [path.suffix for path in module.jars_dir().parent.iterdir()] == [".lock"]

    maven.does("touch $out/kafka.jar")
    assert [path.name for path in fetch_jars().iterdir()] == ["kafka.jar"]


def test_a_fetch_that_was_killed_is_begun_anew(maven: FakeMaven) -> None:
    left = Path(f"{module.jars_dir()}.part-left")
    left.mkdir(parents=True)
    (left / "half.jar").touch()
    assert [path.name for path in fetch_jars().iterdir()] == ["kafka.jar"]
    assert not left.exists()


def test_by_hand_it_prints_its_address_and_ends_at_sigterm(apache_kafka: None) -> None:
    command = [sys.executable, "-m", "tests.support.kafka_server", "--set", "num.partitions=3"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
        assert len(Producer({"bootstrap.servers": address}).list_topics("new", timeout=10).brokers) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def test_the_shared_broker_takes_and_gives(broker: Broker, topics: MakeTopic) -> None:
    topic = topics("transactions")
    assert topic.startswith("transactions-")
    assert topics("transactions") != topic
    assert produce(broker.bootstrap, topic, [b"a", b"b"], partition=3) == [None, None]
    assert consume(broker.bootstrap, topic, 2, partition=3) == [b"a", b"b"]


@pytest.mark.real_kafka
def test_the_shared_broker_makes_topics_of_any_size(broker: Broker, topics: MakeTopic) -> None:
    topic = topics(partitions=3, config={"max.message.bytes": 100})
    assert (
        len(Producer({"bootstrap.servers": broker.bootstrap}).list_topics(topic, timeout=10).topics[topic].partitions)
        == 3
    )
    assert produce(broker.bootstrap, topic, [b"x" * 1000]) == ["MSG_SIZE_TOO_LARGE"]


# How the fixtures choose, seen from outside: pytest in a process of its own, over two tests of this file.
CHOSEN = [
    "tests/connectors/test_kafka_server.py::test_the_shared_broker_takes_and_gives",
    "tests/connectors/test_kafka_server.py::test_the_shared_broker_makes_topics_of_any_size",
]


def run_pytest(**environment: str) -> str:
    left = {k: v for k, v in os.environ.items() if k not in {"KAFKA_BROKERS", "REQUIRE_KAFKA", "JAVA_HOME"}}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *CHOSEN]
    done = subprocess.run(
        command, cwd=ROOT, env=left | environment, capture_output=True, text=True, check=False, timeout=200
    )
    return done.stdout


def test_brokers_that_are_given_are_used(server: KafkaServer) -> None:
    said = run_pytest(KAFKA_BROKERS=server.bootstrap, PATH="/nonexistent")
    assert f"broker: KAFKA_BROKERS={server.bootstrap}" in said
    assert "2 passed" in said


def test_without_java_the_embedded_broker_serves_and_the_rest_is_skipped_by_name() -> None:
    said = run_pytest(PATH="/nonexistent")
    assert re.search(r"broker: librdkafka's embedded one.*no java on PATH", said)
    assert "1 passed, 1 skipped" in said
    assert "needs Apache Kafka" in said


def test_an_embedded_broker_that_is_given_is_known_as_such() -> None:
    from dataflow.connectors.embedded_broker import EmbeddedBroker

    embedded = EmbeddedBroker()
    said = run_pytest(KAFKA_BROKERS=embedded.address)
    embedded.close()
    assert "1 passed, 1 skipped" in said


def test_where_kafka_is_required_its_absence_fails() -> None:
    said = run_pytest(PATH="/nonexistent", REQUIRE_KAFKA="1")
    assert "2 errors" in said
    assert "REQUIRE_KAFKA is set: Apache Kafka" in said
