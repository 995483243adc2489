"""Redflag as its users start it: processes, a broker, other clients; and what they see of their mistakes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Message
from kafka import KafkaProducer

from dataflow.connectors import kafka_clients
from dataflow.settings import Settings
from tests.conftest import Broker
from tests.support.builders import MINUTE, NOON, raw
from tests.support.kafka_server import free_ports
from tests.support.reading import read_all
from training.train import main as train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "fraud_model.pkl"
    assert train(["--out", str(path), "--users", "300", "--days", "7", "--trees", "30"]) == 0
    return path


@pytest.fixture
def settings(broker: Broker, topics: Callable[..., str]) -> Settings:
    return Settings(
        brokers=broker.bootstrap,
        transactions_topic=topics("transactions"),
        alerts_topic=topics("alerts"),
        classified_topic=topics("classified"),
        invalid_topic=topics("invalid"),
        labels_topic=topics("labels"),
        feedback_topic=topics("feedback"),
    )


def environ(settings: Settings, model_file: Path, **others: str) -> dict[str, str]:
    return {
        **os.environ,
        "KAFKA_BROKERS": settings.brokers,
        "TRANSACTIONS_TOPIC": settings.transactions_topic,
        "ALERTS_TOPIC": settings.alerts_topic,
        "CLASSIFIED_TOPIC": settings.classified_topic,
        "INVALID_TOPIC": settings.invalid_topic,
        "LABELS_TOPIC": settings.labels_topic,
        "FEEDBACK_TOPIC": settings.feedback_topic,
        "MODEL_FILE": str(model_file),
        "RECOVERY_INTERVAL": "1",
        "KAFKA_CONFIG_FETCH_WAIT_MAX_MS": "20",
        **others,
    }


class Processes:
    """Started modules; whatever a test leaves running is killed."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[str]] = []

    def start(self, *command: str, env: dict[str, str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.running.append(process)
        return process

    def stop(self) -> None:
        for process in self.running:
            process.send_signal(signal.SIGTERM)
        for process in self.running:
            assert process.wait(60) == 0, process.communicate()[1]
        self.running.clear()


@pytest.fixture
def processes() -> Iterator[Processes]:
    started = Processes()
    yield started
    for process in started.running:
        process.kill()
        process.wait()


def outputs(settings: Settings, count: int, seconds: float = 60) -> list[Message]:
    """Waits for so many decisions and rejections, and then for whether more come than that."""
    topics = [settings.alerts_topic, settings.classified_topic, settings.invalid_topic]
    deadline = time.monotonic() + seconds
    while (found := len(read_all(settings, topics))) < count:
        assert time.monotonic() < deadline, f"{found} of {count}"
        time.sleep(0.2)
    time.sleep(0.5)
    messages = read_all(settings, topics)
    assert len(messages) == count
    return messages


def decision_of(message: Message) -> tuple[str, bool, list[str]]:
    out = json.loads(message.value())
    return out["transaction_id"], out["fraudulent"], out["reason"]


def test_messages_of_other_clients_are_decided_the_same(
    settings: Settings, model_file: Path, processes: Processes, tmp_path: Path
) -> None:
    kafka_clients.count_partitions(settings, settings.transactions_topic)
    clients = ["kafka-python"]
    producer = KafkaProducer(bootstrap_servers=settings.brokers)
    good = [
        raw("ann", amount=450.0, transaction_id="{}-1"),
        raw("ann", location="IN", at=NOON + MINUTE, transaction_id="{}-2"),
    ]

    def values(client: str) -> list[bytes]:
        return [value.replace(b"ann", client.encode()).replace(b"{}", client.encode()) for value in good]

    for value in values("kafka-python"):
        producer.send(settings.transactions_topic, key=b"kafka-python", value=value).get(10)
    producer.send(settings.transactions_topic, key=b"kafka-python", value=b"not json").get(10)
    producer.close()
    if shutil.which("kcat"):
        clients.append("kcat")
        subprocess.run(
            ["kcat", "-P", "-b", settings.brokers, "-t", settings.transactions_topic, "-k", "kcat"],
            input=b"\n".join([*values("kcat"), b"not json"]),
            check=True,
            timeout=30,
        )
    processes.start("dataflow.detect", env=environ(settings, model_file, RECOVERY_DIR=str(tmp_path / "r")))
    messages = outputs(settings, 3 * len(clients))
    processes.stop()
    for client in clients:
        mine = [m for m in messages if m.key() == client.encode()]
        decided = {decision_of(m)[0]: decision_of(m)[1:] for m in mine if m.topic() != settings.invalid_topic}
        without_model = {k: [r for r in v[1] if r != "ML anomaly detection"] for k, v in decided.items()}
        assert without_model == {f"{client}-1": ["High amount"], f"{client}-2": ["Location change from US to IN"]}
        (bad,) = [m for m in mine if m.topic() == settings.invalid_topic]
        assert bad.value() == b"not json"
        assert dict(bad.headers())["source_topic"] == settings.transactions_topic.encode()


def test_both_flows_on_two_processes_decide_as_on_one(
    settings: Settings, topics: Callable[..., str], model_file: Path, processes: Processes, tmp_path: Path
) -> None:
    count = 2000
    env = environ(
        settings, model_file, GENERATOR_COUNT=str(count), GENERATOR_RATE="2000", GENERATOR_POPULATION="tutorial"
    )
    first, second = (f"127.0.0.1:{port}" for port in free_ports(2))
    generators = [
        processes.start("bytewax.run", "dataflow.generate:flow", "-i", str(i), "-a", f"{first};{second}", env=env)
        for i in range(2)
    ]
    for generator in generators:
        assert generator.wait(60) == 0, generator.communicate()[1]
    processes.running.clear()
    assert len(read_all(settings, [settings.transactions_topic])) == count
    assert len(read_all(settings, [settings.labels_topic])) == count

    # Read by four partitions, a user's transactions are in one of them, so every decision is determined.
    env = environ(settings, model_file, RECOVERY_DIR=str(tmp_path / "two"))
    first, second = (f"127.0.0.1:{port}" for port in free_ports(2))
    for i in range(2):
        processes.start("dataflow.detect", "-i", str(i), "-a", f"{first};{second}", env=env)
    two = outputs(settings, count)
    processes.stop()

    alone = msgspec.structs.replace(
        settings, alerts_topic=topics("alerts"), classified_topic=topics("classified"), invalid_topic=topics("invalid")
    )
    processes.start("dataflow.detect", env=environ(alone, model_file, RECOVERY_DIR=str(tmp_path / "one")))
    one = outputs(alone, count)
    processes.stop()

    def alerts(messages: list[Message], topic: str) -> list[tuple[bytes, bytes]]:
        return sorted((m.key(), m.value()) for m in messages if m.topic() == topic)

    assert alerts(two, settings.alerts_topic) == alerts(one, alone.alerts_topic)
    assert alerts(two, settings.classified_topic) == alerts(one, alone.classified_topic)


def test_make_runs_program_shows_decisions_and_a_summary_that_adds_up(model_file: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k != "KAFKA_BROKERS"}
    result = subprocess.run(
        [sys.executable, "-m", "dataflow.demo", "--duration", "5"],
        env={
            **env,
            "MODEL_FILE": str(model_file),
            "GENERATOR_RATE": "100",
            "GENERATOR_SEED": "3",
            "GENERATOR_WARM_UP": "0.5",
            # In this minute of the simulation there are frauds; in some there are none.
            "GENERATOR_START": "2026-03-04T12:00:00+00:00",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    rows = dict(
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in result.stdout.splitlines()
        if line.startswith("│")
    )
    assert rows["transactions generated"] == rows["transactions decided"] == "500"
    assert (
        sum(int(rows[f"to {topic}"]) for topic in ("fraud_alerts", "classified_transactions", "invalid_transactions"))
        == 500
    )
    assert re.search(
        r"Profiles of 2,000 people filled with 0.5 days of their life: [23],\d\d\d transactions", result.stdout
    )
    assert "REVIEW" in result.stdout
    assert re.search(r"Alerts to work on: http://127\.0\.0\.1:\d+/\n", result.stdout)
    frauds, caught, missed = (int(rows[name].split(",")[0]) for name in ("frauds", "caught", "missed"))
    assert frauds == caught + missed > 0
    assert caught + int(rows["false alarms"]) == int(rows["to fraud_alerts"])
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({"KAFKA_BROKERS": "nonsense"}, "KAFKA_BROKERS='nonsense' is wrong"),
        ({"RECOVERY_INTERVAL": "soon"}, "RECOVERY_INTERVAL='soon' is wrong: it takes a whole number"),
        ({"ALERTS_TOPIC": "transactions"}, "named by more than one"),
        ({"MODEL_FILE": "nowhere.pkl"}, "make train"),
        ({"RULES_FILE": "nowhere.toml"}, "nowhere.toml"),
        ({"KAFKA_CONFIG_NO_SUCH_THING": "1"}, "no.such.thing"),
        ({"RECOVERY_DIR": "/proc/nowhere"}, "RECOVERY_DIR"),
    ],
)
def test_a_users_mistake_ends_with_one_line_and_no_traceback(
    model_file: Path, tmp_path: Path, others: dict[str, str], says: str
) -> None:
    env = {
        **os.environ,
        "MODEL_FILE": str(model_file),
        "RECOVERY_DIR": str(tmp_path / "r"),
        "KAFKA_BROKERS": "127.0.0.1:1",
        "TRANSACTIONS_TOPIC": "transactions",
        **others,
    }
    result = subprocess.run(
        [sys.executable, "-m", "dataflow.detect"], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 2, result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
