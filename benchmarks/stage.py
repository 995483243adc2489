"""What every benchmark needs: models, transactions on a topic, jobs as processes, and how much CPU they take."""

import argparse
import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from dataflow.simulation.simulator import history, to_json
from tests.support.kafka_server import create_topics

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PEERS = ROOT / ".venv-bench" / "bin" / "python"
PARTITIONS = 4
PRELUDE = 2000  # transactions before the clock starts, at most
TICKS = os.sysconf("SC_CLK_TCK")
TWO_FEATURES = ("--features", "amount,txn_per_hour", "--tiers", "isolation_forest", "--trees", "100")
"""Of the model that everybody gets where like is compared with like."""


def machine() -> dict[str, Any]:
    """What the figures were taken on, and how busy it was with other work."""
    said = Path("/proc/cpuinfo").read_text()
    cpu = next((line.split(":")[1].strip() for line in said.splitlines() if line.startswith("model name")), "unknown")
    libraries = ("bytewax", "confluent-kafka", "numba", "numpy", "onnxruntime", "msgspec", "scikit-learn", "pandas")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit.stdout.strip(), "cpu": cpu,
        "cores": os.cpu_count(), "load_before": os.getloadavg(), "system": platform.system() + " " + platform.release(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in libraries},
    }  # fmt: skip


def train(path: Path, *options: str) -> Path:
    subprocess.run(
        [sys.executable, "-m", "training.train", "--out", str(path), *options],
        cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return path


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """`--model`, for `default_model`."""
    parser.add_argument(
        "--model", type=Path, help="the default model, where it was trained already (a minute); else it is trained anew"
    )


def default_model(given: Path | None, scratch: Path) -> Path:
    """The model given, or the default one trained anew."""
    return given.absolute() if given else train(scratch / "default.pkl")


def transactions(count: int, users: int = 5000) -> list[tuple[bytes, bytes]]:
    """(key, value) of so many simulated transactions."""
    found = islice(history(7, users, count / users), count)  # about 3 a person and day: more than enough
    return [(txn.user.encode(), to_json(txn)) for txn in found]


def paced(items: Iterable[T], rate: float, slack: float = 0.0005) -> Iterator[T]:
    """Items evenly, so many a second; one may come `slack` seconds early.

    A sleep before each of 20,000 a second would take a core of two by itself.
    """
    begun = time.monotonic()
    for number, item in enumerate(items):
        wait = begun + number / rate - time.monotonic()
        if wait > slack:
            time.sleep(wait)
        yield item


def produce(bootstrap: str, topic: str, messages: Iterable[tuple[bytes, bytes]]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 50, "acks": "all", "enable.idempotence": True})
    for key, value in messages:
        while True:
            try:
                producer.produce(topic, value, key)
                break
            except BufferError:
                producer.poll(0.1)
    if producer.flush(120):
        msg = f"{topic} could not be filled"
        raise RuntimeError(msg)


def delete_topics(bootstrap: str, topics: list[str]) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})  # held: without it its requests end
    there = admin.list_topics(timeout=10).topics  # a job that ended early made none of its own
    for deleted in admin.delete_topics([topic for topic in topics if topic in there]).values():
        deleted.result()


Count = Callable[[], int]
"""How many transactions a job has decided."""


class Counter:
    """How many records stand in topics, in one request."""

    def __init__(self, bootstrap: str, topics: Sequence[str]):
        self._admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
        self._asked = {TopicPartition(t, p): OffsetSpec.latest() for t in topics for p in range(PARTITIONS)}

    def __call__(self) -> int:
        for _ in range(100):
            with contextlib.suppress(KafkaException):  # a topic that was just made moves its leaders about
                return sum(
                    f.result().offset for f in self._admin.list_offsets(self._asked, request_timeout=10).values()
                )
            time.sleep(0.1)
        msg = "the broker does not tell where its topics end"
        raise RuntimeError(msg)


class Committed:
    """How many records of a topic a consumer group has committed, in one request.

    For a job that commits in the transaction of its decisions: what it has committed stands there for others to read.
    """

    def __init__(self, bootstrap: str, group: str, topic: str):
        self._admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
        self._asked = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, p) for p in range(PARTITIONS)])

    def __call__(self) -> int:
        for _ in range(100):
            with contextlib.suppress(KafkaException):  # its coordinator may not be known yet
                (asked,) = self._admin.list_consumer_group_offsets([self._asked]).values()
                return sum(max(found.offset, 0) for found in asked.result(timeout=10).topic_partitions)
            time.sleep(0.1)
        msg = "the broker does not tell what was committed"
        raise RuntimeError(msg)


def cpu_seconds(processes: Sequence[subprocess.Popen[bytes]]) -> float:
    """User and system time of the processes and of their ended children."""
    total = 0
    for process in processes:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += sum(map(int, fields[11:15]))
    return total / TICKS


class Job:
    """A job on topics of its own: its processes, their environment, and the directory of its logs and state."""

    def __init__(self, bootstrap: str, name: str, scratch: Path, environment: dict[str, str]):
        self.bootstrap = bootstrap
        self.source = f"{name}-transactions"
        self.scratch = scratch / name
        self.scratch.mkdir(parents=True)
        outputs = {"ALERTS_TOPIC": f"{name}-alerts", "CLASSIFIED_TOPIC": f"{name}-classified"}
        others = {"INVALID_TOPIC": f"{name}-invalid", "FEEDBACK_TOPIC": f"{name}-feedback"}
        create_topics(bootstrap, dict.fromkeys([self.source, *outputs.values(), *others.values()], PARTITIONS))
        self.topics = list(outputs.values())
        self.count: Count = Counter(bootstrap, self.topics)
        self.internal_topics: list[str] = []  # that the job makes itself
        self.processes: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **os.environ, "METRICS_ADDRESS": "off", **outputs, **others, **environment, "KAFKA_BROKERS": bootstrap,
            "TRANSACTIONS_TOPIC": self.source, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore",
            "RECOVERY_DIR": str(self.scratch / "recovery"), "BENCH_SCRATCH": str(self.scratch),
        }  # fmt: skip

    def start(self, *command: str) -> None:
        with (self.scratch / "log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.scratch, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.processes.append(process)

    def check(self) -> None:
        if any(process.poll() is not None for process in self.processes):
            msg = f"the job ended: {self.log_tail()}"
            raise RuntimeError(msg)

    def log_tail(self) -> str:
        return (self.scratch / "log").read_text()[-2000:]

    def signal(self, number: int) -> None:
        for process in self.processes:
            process.send_signal(number)

    def stop(self) -> None:
        """Ends the processes, and removes what they wrote: a run's topics would fill the disk."""
        self.signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        delete_topics(self.bootstrap, [self.source, *self.topics, *self.internal_topics])


def run_through(
    job: Job,
    messages: Sequence[tuple[bytes, bytes]],
    timeout: float,
    warm_up: Sequence[tuple[bytes, bytes]] = (),
) -> tuple[float, float]:
    """Seconds and CPU-seconds a transaction, from the moment when the job is let go to that when the last one stands.

    The job first decides a prelude, so that it is connected, warm and idle: `warm_up`, or the first of the messages
    where that is empty. Then it is frozen (SIGSTOP) while its
    source fills, and clock and CPU count from when it is thawed. So neither imports nor the harness's own producing
    count, and there is nothing that a fast job could have done before the first look.
    """
    deadline = time.monotonic() + timeout
    prelude = warm_up or messages[: min(PRELUDE, len(messages) // 10)]
    produce(job.bootstrap, job.source, prelude)
    _wait(job, len(prelude), deadline, 0.05)
    time.sleep(0.5)  # joins and snapshots of the start come to rest
    job.signal(signal.SIGSTOP)
    try:
        produce(job.bootstrap, job.source, messages)
        if job.count() != len(prelude):
            msg = "the job went on while it was frozen"
            raise RuntimeError(msg)
    finally:
        spent = cpu_seconds(job.processes)
        begun = time.monotonic()
        job.signal(signal.SIGCONT)
    _wait(job, len(prelude) + len(messages), deadline, 0.02)
    return (time.monotonic() - begun) / len(messages), (cpu_seconds(job.processes) - spent) / len(messages)


def _wait(job: Job, count: int, deadline: float, pause: float) -> None:
    while (done := job.count()) < count:
        job.check()
        if time.monotonic() > deadline:
            msg = f"{done} of {count} in time: {job.log_tail()}"
            raise RuntimeError(msg)
        time.sleep(pause)
