"""Milliseconds from a producer's send to the decision in a consumer's hands, at several rates; and CPU when idle.

The sender, the flow and the reader are processes of their own on one machine, and share its clock. A transaction's id
holds the moment of its send, so nothing else has to be kept. Transactions are sent evenly, to half a millisecond.

Sender, broker and reader take their time too, and more than a core of a machine that has two. So a job that only hands
on what comes, by the flow's clients, is measured at the same rates first: what is more than that is the flow's.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from rich.console import Console
from rich.table import Table

from benchmarks.stage import (
    PARTITIONS,
    RESULTS,
    ROOT,
    Job,
    add_model_option,
    cpu_seconds,
    default_model,
    machine,
    paced,
    run_through,
    transactions,
)
from tests.support.kafka_server import KafkaServer

WARM_UP = 3.0  # seconds of each rate that are sent and not counted
BROKER_WARM_UP = 60.0  # seconds at the highest of the rates below: until the broker is compiled
RATES = (10.0, 1000.0, 5000.0)


def send(bootstrap: str, topic: str, rate: float, seconds: float) -> None:
    """Sends evenly; a transaction's id is the nanosecond at which it was handed to the producer."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 1, "acks": "all", "enable.idempotence": True})
    count = int(rate * seconds)
    bodies = [msgspec.json.decode(value) for _, value in transactions(min(count, 20_000))]
    for number in paced(range(count), rate):
        body = bodies[number % len(bodies)]
        body["transaction_id"] = f"{time.time_ns()}-{number}"
        producer.produce(topic, msgspec.json.encode(body), body["user"])
        producer.poll(0)
    producer.flush(60)


def read(bootstrap: str, topics: Sequence[str], count: int, out: Path) -> None:
    """Reads decisions until `count` have come; writes the send time and the latency of each, in nanoseconds."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "latency", "enable.auto.commit": False})
    ends = {t: [TopicPartition(t, p) for p in range(PARTITIONS)] for t in topics}
    consumer.assign(
        [
            TopicPartition(part.topic, part.partition, consumer.get_watermark_offsets(part, timeout=10)[1])
            for parts in ends.values()
            for part in parts
        ]
    )
    consumer.poll(0.5)
    out.with_suffix(".ready").touch()
    found: list[tuple[bytes, int]] = []
    deadline = time.monotonic() + 300
    while len(found) < count and time.monotonic() < deadline:
        first = consumer.poll(0.1)  # returns with the first; consume() would wait for more
        if first is None:
            continue
        messages, now = [first, *consumer.consume(1000, 0)], time.time_ns()
        deadline = time.monotonic() + 60  # without any
        found += [(message.value(), now) for message in messages if message.error() is None]
    sent = [int(msgspec.json.decode(value)["transaction_id"].split("-")[0]) for value, _ in found]
    np.save(out, np.array([(at, now - at) for at, (_, now) in zip(sent, found, strict=True)]))


def child(*arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "benchmarks.latency", *arguments], cwd=ROOT)


def at_rate(job: Job, rate: float, seconds: float, scratch: Path) -> dict[str, Any]:
    count = int(rate * (seconds + WARM_UP))
    out = scratch / f"{job.scratch.name}-{rate:g}.npy"
    out.with_suffix(".ready").unlink(missing_ok=True)  # of the warm-up at this rate
    reader = child("--read", job.bootstrap, ",".join(job.topics), str(count), str(out))
    while not out.with_suffix(".ready").exists():
        time.sleep(0.05)
    spent, begun = cpu_seconds(job.processes), time.monotonic()
    sender = child("--send", job.bootstrap, job.source, str(rate), str(seconds + WARM_UP))
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
        "p50_ms": float(p50), "p99_ms": float(p99), "p999_ms": float(p999),
        "max_ms": float(counted.max()), "cpu_share": share,
    }  # fmt: skip


def measure(seconds: float, given: Path | None, scratch: Path) -> list[dict[str, Any]]:
    console = Console(stderr=True)
    model = default_model(given, scratch)
    messages = transactions(200_000)
    with KafkaServer(lasting=True) as kafka:
        job = Job(kafka.bootstrap, "pass_through", scratch, {})
        job.start(sys.executable, "-m", "benchmarks.jobs.pass_through")
        at_rate(job, max(RATES), BROKER_WARM_UP, scratch)
        passed = [at_rate(job, rate, seconds, scratch) for rate in RATES]
        rows = [row | {"row": f"pass_through_{row['per_second']:g}"} for row in passed]
        for row in rows:
            console.print(row)
        job.stop()
        job = Job(kafka.bootstrap, "fastest", scratch, {"MODEL_FILE": str(model)})
        job.start(sys.executable, "-m", "dataflow.detect")
        pace, _ = run_through(job, messages, timeout=180)
        job.stop()
        highest = 1 / pace
        console.print(f"highest throughput {highest:,.0f}/s")
        job = Job(kafka.bootstrap, "latency", scratch, {"MODEL_FILE": str(model)})
        job.start(sys.executable, "-m", "dataflow.detect")
        run_through(job, messages[:20_000], timeout=180)  # warm, and with snapshots to take
        time.sleep(5)
        spent = cpu_seconds(job.processes)
        time.sleep(seconds)
        idle = (cpu_seconds(job.processes) - spent) / seconds
        rows.append({"row": "idle", "seconds": seconds, "cpu_share": idle})
        console.print(rows[-1])
        for rate in (*RATES, round(highest / 2)):
            rows.append(at_rate(job, rate, seconds, scratch))
            console.print(rows[-1])
        job.stop()
        job = Job(kafka.bootstrap, "often", scratch, {"MODEL_FILE": str(model), "RECOVERY_INTERVAL": "1"})
        job.start(sys.executable, "-m", "dataflow.detect")
        run_through(job, messages[:20_000], timeout=180)
        rows.append(at_rate(job, 1000.0, seconds, scratch) | {"row": "latency_1000_snapshots_every_1_s"})
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
    parser.add_argument("--send", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--read", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.send:
        bootstrap, topic, rate, seconds = arguments.send
        send(bootstrap, topic, float(rate), float(seconds))
        return
    if arguments.read:
        bootstrap, topics, count, out = arguments.read
        read(bootstrap, topics.split(","), int(count), Path(out))
        return
    where = machine()
    with tempfile.TemporaryDirectory(prefix="redflag-bench-") as scratch:
        rows = measure(arguments.seconds, arguments.model, Path(scratch))
    show(rows)
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text("".join(json.dumps(line) + "\n" for line in [{"machine": where}, *rows]))


if __name__ == "__main__":
    main()
