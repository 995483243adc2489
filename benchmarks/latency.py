"""Milliseconds from a producer's send to the decision in a consumer's hands, at several rates; and CPU when idle.

The sender, the flow and the reader are processes of their own on one machine, and share its clock. A transaction's id
holds the moment of its send, so nothing else has to be kept. Transactions are sent evenly, to half a millisecond. They
are those of `benchmarks.payments`, of users whom the flow knows, about one in a hundred an alert; if more than one
decision in twenty is one, it ends with a line that says so: explanations would be measured.

Sender, broker and reader take their time too, and more than a core of a machine that has two. So a job that only hands
on what comes, by the flow's clients, is measured at the same rates first: what is more than that is the flow's.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from rich.console import Console
from rich.table import Table

from benchmarks.measured_flow import TooManyAlerts, check_alerts
from benchmarks.payments import Message, Payments, stamp, stamped
from benchmarks.stage import (
    PARTITIONS,
    RESULTS,
    ROOT,
    Counter,
    Job,
    add_model_option,
    cpu_seconds,
    default_model,
    machine,
    paced,
    run_through,
)
from dataflow.connectors.kafka_clients import watermarks
from tests.support.kafka_server import KafkaServer

WARM_UP = 3.0  # seconds of each rate that are sent and not counted
BROKER_WARM_UP = 60.0  # seconds at the highest of the rates below: until the broker is compiled
RATES = (10.0, 1000.0, 5000.0)
USERS = 10_000
PAID = 30_000  # payments that the flow has decided before any is counted: it is warm, and knows its users
HIGHEST = 200_000  # payments that the highest throughput is taken of


def send(bootstrap: str, topic: str, rate: float, seconds: float, after: int) -> None:
    """Sends evenly; a transaction's id says the nanosecond at which it was handed to the producer.

    Args:
        after: how many payments the flow had before.
    """
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 1, "acks": "all", "enable.idempotence": True})
    payments = list(Payments(USERS, seed=1 + after, after=after).anyone(int(rate * seconds)))
    for number, (user, value) in enumerate(paced(payments, rate)):
        producer.produce(topic, stamped(value, number), user)
        producer.poll(0)
    producer.flush(60)


def read(bootstrap: str, topics: Sequence[str], count: int, out: Path) -> None:
    """Reads decisions until `count` have come, and writes three numbers of each, in nanoseconds.

    They are the time at which it was sent, how long it took from there into our hands, and how much of that until the
    flow had handed its decision to the producer, to a millisecond.
    """
    gc.disable()  # a collection that walks all that was read would be taken for a late decision
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "latency", "enable.auto.commit": False})
    parts = [(topic, partition) for topic in topics for partition in range(PARTITIONS)]
    # Asked until there is an answer: a partition of a topic that was just made may have no leader yet.
    ends = {part: watermarks(consumer, *part, seconds=60)[1] for part in parts}
    consumer.assign([TopicPartition(*part, ends[part]) for part in parts])
    consumer.poll(0.5)
    out.with_suffix(".ready").touch()
    found = np.empty((count + 10_000, 3), np.int64)
    have = 0
    deadline = time.monotonic() + 300
    while have < count and time.monotonic() < deadline:
        first = consumer.poll(0.1)  # returns with the first; consume() would wait for more
        if first is None:
            continue
        messages, now = [first, *consumer.consume(1000, 0)], time.time_ns()
        deadline = time.monotonic() + 60  # without any
        for message in messages:
            if message.error() is None:
                at = stamp(message.value())
                found[have] = at, now - at, message.timestamp()[1] * 1_000_000 - at
                have += 1
    np.save(out, found[:have])


def start_reader(job: Job, count: int, out: Path) -> "subprocess.Popen[bytes]":
    """A process that reads `count` decisions of a job, once it stands at the ends of the topics.

    Raises:
        RuntimeError: it ended before.
    """
    ready = out.with_suffix(".ready")
    ready.unlink(missing_ok=True)  # of an earlier one with this file
    reader = child("--read", job.bootstrap, ",".join(job.topics), str(count), str(out))
    while not ready.exists():
        if reader.poll() is not None:
            msg = "the reader of decisions ended before it began"
            raise RuntimeError(msg)
        time.sleep(0.05)
    return reader


def child(*arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "benchmarks.latency", *arguments], cwd=ROOT)


class Rates:
    """One job at one rate after the other, its decisions read from the topics.

    Args:
        job: that runs.
        scratch: for what the reader writes.
        paid: how many payments it was sent before.
    """

    def __init__(self, job: Job, scratch: Path, paid: int = 0):
        self._job = job
        self._scratch = scratch
        self._paid = paid
        self._alerts = Counter(job.bootstrap, [topic for topic in job.topics if topic.endswith("-alerts")])

    def __call__(self, rate: float, seconds: float) -> dict[str, Any]:
        """The row of a rate.

        Raises:
            TooManyAlerts: the model is not one of ordinary payments.
        """
        job, count = self._job, int(rate * (seconds + WARM_UP))
        out = self._scratch / f"{job.scratch.name}-{rate:g}.npy"
        reader = start_reader(job, count, out)
        alerts, spent, begun = self._alerts(), cpu_seconds(job.processes), time.monotonic()
        sender = child("--send", job.bootstrap, job.source, str(rate), str(seconds + WARM_UP), str(self._paid))
        self._paid += count
        if sender.wait() or reader.wait():
            msg = f"sending or reading at {rate:g}/s failed"
            raise RuntimeError(msg)
        job.check()
        share = (cpu_seconds(job.processes) - spent) / (time.monotonic() - begun)
        rows = np.load(out)
        counted = rows[rows[:, 0] >= rows[:, 0].min() + WARM_UP * 1e9, 1] / 1e6
        p50, p99, p999 = np.percentile(counted, (50, 99, 99.9))
        return {
            "row": f"latency_{rate:g}", "per_second": rate, "decisions": len(counted), "seconds": seconds,
            "alerts": check_alerts(f"{rate:g}/s", self._alerts() - alerts, count), "p50_ms": float(p50),
            "p99_ms": float(p99), "p999_ms": float(p999), "max_ms": float(counted.max()), "cpu_share": share,
        }  # fmt: skip


def measure(seconds: float, given: Path | None, scratch: Path) -> list[dict[str, Any]]:
    console = Console(stderr=True)
    model = default_model(given, scratch)
    payments = Payments(USERS)
    known = list(payments.everyone(PAID // USERS))
    with KafkaServer(lasting=True) as kafka:

        def detection(name: str, more: Sequence[Message] = (), **environment: str) -> tuple[Job, Rates, float]:
            """A flow that knows its users; and the seconds a transaction takes of `more`, sent to it at once."""
            job = Job(kafka.bootstrap, name, scratch, {"MODEL_FILE": str(model), **environment})
            job.start(sys.executable, "-m", "dataflow.detect")
            pace, _ = run_through(job, more or known, timeout=180, warm_up=known if more else ())
            return job, Rates(job, scratch, PAID), pace

        job = Job(kafka.bootstrap, "pass_through", scratch, {})
        job.start(sys.executable, "-m", "benchmarks.jobs.pass_through")
        at_rate = Rates(job, scratch)
        at_rate(max(RATES), BROKER_WARM_UP)
        rows = []
        for rate in RATES:
            row = at_rate(rate, seconds)
            rows.append(row | {"row": f"pass_through_{row['per_second']:g}"})
            console.print(rows[-1])
        job.stop()
        job, _, pace = detection("fastest", list(payments.anyone(HIGHEST)))
        job.stop()
        highest = 1 / pace
        console.print(f"highest throughput {highest:,.0f}/s")
        job, at_rate, _ = detection("latency")
        time.sleep(5)
        spent = cpu_seconds(job.processes)
        time.sleep(seconds)
        idle = (cpu_seconds(job.processes) - spent) / seconds
        rows.append({"row": "idle", "seconds": seconds, "cpu_share": idle})
        console.print(rows[-1])
        for rate in (*RATES, round(highest / 2)):
            rows.append(at_rate(rate, seconds))
            console.print(rows[-1])
        job.stop()
        job, at_rate, _ = detection("often", RECOVERY_INTERVAL="1")
        rows.append(at_rate(1000.0, seconds) | {"row": "latency_1000_snapshots_every_1_s"})
        console.print(rows[-1])
        job.stop()
    return [{"row": "highest", "per_second": highest}, *rows]


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("a second", "decisions", "p50 ms", "p99 ms", "p99.9 ms", "highest ms", "CPU, of a core")
    for row in rows:
        if "p50_ms" in row:
            times = [f"{row[name]:.1f}" for name in ("p50_ms", "p99_ms", "p999_ms", "max_ms")]
            how = ", a snapshot every second" if row["row"].endswith("1_s") else ""
            how = ", handed on only" if row["row"].startswith("pass_through") else how
            table.add_row(f"{row['per_second']:,.0f}{how}", f"{row['decisions']:,}", *times, f"{row['cpu_share']:.1%}")
    idle = next(row for row in rows if row["row"] == "idle")
    table.add_row("idle", "", "", "", "", "", f"{idle['cpu_share']:.1%}")
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each rate (default 60: one snapshot at least)")
    parser.add_argument("--out", type=Path, default=RESULTS / "latency.jsonl")
    add_model_option(parser)
    parser.add_argument("--send", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--read", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.send:
        bootstrap, topic, rate, seconds, after = arguments.send
        send(bootstrap, topic, float(rate), float(seconds), int(after))
        return
    if arguments.read:
        bootstrap, topics, count, out = arguments.read
        read(bootstrap, topics.split(","), int(count), Path(out))
        return
    where = machine()
    with tempfile.TemporaryDirectory(prefix="redflag-bench-") as scratch:
        try:
            rows = measure(arguments.seconds, arguments.model, Path(scratch))
        except TooManyAlerts as error:
            sys.exit(str(error))
    show(rows)
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text("".join(json.dumps(line) + "\n" for line in [{"machine": where}, *rows]))


if __name__ == "__main__":
    main()
