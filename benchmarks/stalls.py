"""Do decisions wait longer, the longer the flow runs? Minutes at a steady rate, with a snapshot every second.

    python -m benchmarks.stalls --minutes 10                 one process
    python -m benchmarks.stalls --minutes 10 --processes 2   two, of which one has nine tenths of the load

Prints the latency of each minute, and ends with 1 if a snapshot's longest pause in the last minute is more than
`--factor` times that in the second: what this is to show grows to whole seconds within a minute. What a pause takes on
disk is mostly the disk's syncs, some hundred milliseconds now and then where the broker writes to it, too; with
TMPDIR=/dev/shm broker and state are in memory, and what is left is the flow's own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from confluent_kafka import Producer
from rich.console import Console
from rich.table import Table

from benchmarks.flow_metrics import FlowMetrics, Pauses
from benchmarks.latency import start_reader
from benchmarks.payments import Payments, stamped
from benchmarks.stage import PARTITIONS, RESULTS, ROOT, Job, add_model_option, default_model, machine, paced
from tests.support.kafka_server import KafkaServer, free_ports

LEAST_MINUTES = 3
USERS = 10_000
LOOKS = 0.45  # of an interval between two looks at the metric of pauses: each pause is seen by itself
PRINTED = {
    "minute": "minute",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "longest_ms": "longest ms",
    "until_handed_over_ms": "of it until the flow had decided",
    "longest_pause_ms": "longest pause of a snapshot ms",
    "longest_sync_ms": "a page's longest sync ms",
}
BUSY_PERCENT = 90  # of the users go to the partition of one process, where there are two


def send(bootstrap: str, topic: str, rate: float, seconds: float, uneven: bool) -> None:
    """Sends evenly in time; a transaction's id says the nanosecond at which it was handed to the producer."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 1, "acks": "all", "enable.idempotence": True})
    payments = Payments(USERS).anyone(int(rate * seconds))
    for number, (user, value) in enumerate(paced(payments, rate)):
        partition = crc32(user) % PARTITIONS  # each user's transactions in one
        if uneven and crc32(user) // PARTITIONS % 100 < BUSY_PERCENT:
            partition = 0
        producer.produce(topic, stamped(value, number), user, partition)
        producer.poll(0)
    producer.flush(60)


class Repeated:
    """Calls something every so many seconds, in a thread of its own, until it is closed."""

    def __init__(self, seconds: float, call: Callable[[], None]):
        self._seconds, self._call = seconds, call
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(1)
        self._running = self._threads.submit(self._run)

    def close(self) -> None:
        """Ends it; an error of a call is raised here."""
        self._stop.set()
        self._running.result()
        self._threads.shutdown()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            self._call()


class Watched:
    """What is measured beside the flow: each when it was seen, ns since 1970, and how long it took, ms.

    Attributes:
        pauses: of the snapshots of the flow's first process, by its own metric.
        syncs: of a page that is written beside the flow's state each second: what the disk alone takes. A snapshot
            waits for eight or ten syncs, one after the other.
    """

    def __init__(self, metrics: FlowMetrics, interval: float, directory: Path):
        self.pauses: list[tuple[int, float]] = []
        self.syncs: list[tuple[int, float]] = []
        self._metric = Pauses(metrics)
        self._page = (directory / "page").open("wb", buffering=0)
        self._repeated = [Repeated(LOOKS * interval, self._look), Repeated(1.0, self._sync)]

    def close(self) -> None:
        """Ends it; what it found stays."""
        for each in self._repeated:
            each.close()
        self._page.close()

    def _look(self) -> None:
        self._metric.look()
        self.pauses += [(time.time_ns(), 1e3 * taken) for taken in self._metric.taken[len(self.pauses) :]]

    def _sync(self) -> None:
        self._page.write(bytes(4096))
        at, began = time.time_ns(), time.perf_counter()
        os.fdatasync(self._page.fileno())
        self.syncs.append((at, 1e3 * (time.perf_counter() - began)))


def measure(
    minutes: float, processes: int, rate: float, interval: int, given: Path | None, scratch: Path
) -> list[dict[str, Any]]:
    model = default_model(given, scratch)
    with KafkaServer(lasting=True) as kafka:
        *ports, metrics_port = free_ports(processes + 1)
        settings = {
            "MODEL_FILE": str(model),
            "RECOVERY_INTERVAL": str(interval),
            "METRICS_ADDRESS": f"127.0.0.1:{metrics_port}",
        }
        job = Job(kafka.bootstrap, "stalls", scratch, settings)
        addresses = ";".join(f"127.0.0.1:{port}" for port in ports)
        for number in range(processes):
            options = ["-i", str(number), "-a", addresses] if processes > 1 else []
            job.start(sys.executable, "-m", "dataflow.detect", *options)
        out = scratch / "stalls.npy"
        count = int(rate * 60 * minutes)
        reader = start_reader(job, count, out)
        while (job.scratch / "log").read_text().count("redflag: reading") < processes:
            job.check()
            time.sleep(0.1)
        arguments = ["--send", job.bootstrap, job.source, str(rate), str(60 * minutes), str(int(processes > 1))]
        watched = Watched(FlowMetrics(metrics_port), interval, job.scratch)
        sender = subprocess.Popen([sys.executable, "-m", "benchmarks.stalls", *arguments], cwd=ROOT)
        if sender.wait() or reader.wait():
            msg = "sending or reading failed"
            raise RuntimeError(msg)
        watched.close()
        job.check()
        job.stop()
    rows = np.load(out)
    began = rows[:, 0].min()
    minute = ((rows[:, 0] - began) // 60e9).astype(int)
    found = []
    for number in range(minute.max() + 1):
        taken, in_flow = rows[minute == number, 1:].T / 1e6
        p50, p99 = np.percentile(taken, (50, 99))
        slowest = int(taken.argmax())
        syncs = [took for at, took in watched.syncs if (at - began) // 60e9 == number]
        held_up = [took for at, took in watched.pauses if (at - began) // 60e9 == number]
        found.append(
            {
                "row": "minute", "processes": processes, "interval": interval, "per_second": rate,
                "minute": number + 1, "p50_ms": float(p50), "p99_ms": float(p99), "longest_ms": float(taken[slowest]),
                "until_handed_over_ms": float(in_flow[slowest]),
                "longest_pause_ms": max(held_up, default=0.0),
                "longest_sync_ms": max(syncs, default=0.0),
            }
        )  # fmt: skip
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stalls", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help=f"at least {LEAST_MINUTES} (default 10)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1000.0, help="a second (default 1000)")
    parser.add_argument("--interval", type=int, default=1, help="seconds between snapshots (default 1)")
    parser.add_argument("--factor", type=float, default=2.0, help="last minute's longest pause to that of the second")
    parser.add_argument("--out", type=Path, help="(default benchmarks/results/stalls-N.jsonl)")
    add_model_option(parser)
    parser.add_argument("--send", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.send:
        bootstrap, topic, rate, seconds, uneven = given.send
        send(bootstrap, topic, float(rate), float(seconds), uneven == "1")
        return 0
    if given.minutes < LEAST_MINUTES:
        parser.error(
            f"--minutes {given.minutes:g}: the last minute is held against the second: at least {LEAST_MINUTES}"
        )
    where = machine()
    with tempfile.TemporaryDirectory(prefix="redflag-bench-") as scratch:
        rows = measure(given.minutes, given.processes, given.rate, given.interval, given.model, Path(scratch))
    table = Table(*PRINTED.values())
    for row in rows:
        table.add_row(*(f"{row[name]:,.0f}" for name in PRINTED))
    Console(width=80).print(table)
    out = given.out or RESULTS / f"stalls-{given.processes}.jsonl"
    out.write_text("".join(json.dumps(line) + "\n" for line in [{"machine": where}, *rows]))
    second, last = rows[1]["longest_pause_ms"], rows[-1]["longest_pause_ms"]
    print(f"longest pause of the last minute ÷ of the second: {last / second:.2f}")
    return int(last > given.factor * second)


if __name__ == "__main__":
    sys.exit(main())
