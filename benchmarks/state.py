"""What state costs: bytes a user in memory and on disk, time of a snapshot and of a resume, CPU a transaction.

For each number of users, on a real Kafka, with the default model and rules:

1. every user pays three times, on three days, in a single epoch; the growth of the process is the memory;
2. a graceful stop takes the snapshot of all of them; what the recovery directory then holds is the disk;
3. a start from it, until a transaction is decided: the resume, with the start itself;
4. with a snapshot every 5 s, the default: CPU of 20 s in which nobody pays, and of 20 s after one user in a hundred has
   paid; the difference is what is written of these, the former what snapshots cost anyway;
5. transactions of users drawn at random: the CPU time of each, with its share of the snapshots;
6. the same over two minutes in which there is always more to do.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.stage import RESULTS, Job, add_model_option, cpu_seconds, default_model, machine, produce
from dataflow.events.transaction import DAY
from tests.support.kafka_server import KafkaServer

BEGIN = datetime(2026, 1, 5, tzinfo=UTC).timestamp()
ROUNDS = 3  # transactions of each user
MERCHANTS = 5000
WINDOW = 120.0  # seconds of step 6
INTERVAL = "5"  # seconds between snapshots, the default
NEVER = "100000"  # seconds between snapshots where only the stop is to take one


def payment(user: int, number: int, at: float, draw: random.Random) -> tuple[bytes, bytes]:
    """(key, value): two devices and places, amounts around 50, coordinates near the user's own."""
    name = f"user-{user:07}"
    second = datetime.fromtimestamp(at, UTC).isoformat()
    lat, lon = 30 + user % 30 + draw.random() / 10, user % 90 + draw.random() / 10
    return name.encode(), (
        f'{{"transaction_id":"{number:x}-{user:x}","user":"{name}","amount":{draw.lognormvariate(3.6, 0.7):.2f},'
        f'"location":"US","device":"device-{draw.randrange(2)}","merchant":"merchant-{draw.randrange(MERCHANTS)}",'
        f'"txn_type":"purchase","timestamp":"{second}","latitude":{lat:.4f},"longitude":{lon:.4f}}}'
    ).encode()


def everyone(users: int) -> Iterator[tuple[bytes, bytes]]:
    draw = random.Random(1)
    for number in range(ROUNDS):
        for user in range(users):
            yield payment(user, number, BEGIN + number * DAY + user * 80_000 / users, draw)


def draw_at_random(users: int, count: int, first: int) -> Iterator[tuple[bytes, bytes]]:
    draw = random.Random(first)
    for n in range(count):
        yield payment(draw.randrange(users), first + n, BEGIN + ROUNDS * DAY + n * 20_000 / count, draw)


def at_random(users: int, count: int, first: int) -> list[tuple[bytes, bytes]]:
    return list(draw_at_random(users, count, first))


def resident(process: "subprocess.Popen[bytes]") -> int:
    """Bytes of the process in memory."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def wait(job: Job, count: int, seconds: float = 1800) -> None:
    deadline = time.monotonic() + seconds
    while job.count() < count:
        job.check()
        if time.monotonic() > deadline:
            msg = f"{job.count()} of {count} decided: {(job.scratch / 'log').read_text()[-2000:]}"
            raise RuntimeError(msg)
        time.sleep(0.02)


def start(job: Job, interval: str) -> "subprocess.Popen[bytes]":
    job.environment |= {"RECOVERY_INTERVAL": interval, "STOP_TIMEOUT_SECONDS": "1800"}
    job.start(sys.executable, "-m", "dataflow.detect")
    return job.processes[-1]


def stop(job: Job) -> float:
    """Seconds that a graceful stop takes, with its snapshot."""
    begun = time.monotonic()
    process = job.processes.pop()
    process.send_signal(signal.SIGTERM)
    if process.wait(1800):
        msg = f"the flow ended with {process.returncode}: {(job.scratch / 'log').read_text()[-2000:]}"
        raise RuntimeError(msg)
    return time.monotonic() - begun


def measure(users: int, count: int, model: Path, scratch: Path, console: Console) -> dict[str, Any]:
    found: dict[str, Any] = {"row": f"state_{users}", "users": users}

    def tell(**figures: float) -> None:
        found.update(figures)
        console.print(f"{users:,} users: {figures}", markup=False)

    with KafkaServer() as kafka:
        job = Job(kafka.bootstrap, f"state-{users}", scratch, {"MODEL_FILE": str(model)})
        process = start(job, NEVER)
        # The same warm-up for every size: what the machinery itself takes is not the users'.
        produce(kafka.bootstrap, job.source, [payment(-n - 1, 0, BEGIN, random.Random(n)) for n in range(2000)])
        done = 2000
        wait(job, done)
        before = resident(process)
        produce(kafka.bootstrap, job.source, everyone(users))
        done += ROUNDS * users
        wait(job, done)
        tell(bytes_in_memory=(resident(process) - before) / users)
        tell(snapshot_all_seconds=stop(job))
        stored = sum(path.stat().st_size for path in (job.scratch / "recovery").rglob("*") if path.is_file())
        tell(bytes_in_store=stored / users)

        begun = time.monotonic()
        process = start(job, NEVER)
        produce(kafka.bootstrap, job.source, [payment(0, 10**6, BEGIN + ROUNDS * DAY, random.Random(0))])
        done += 1
        wait(job, done)
        tell(resume_seconds=time.monotonic() - begun)
        stop(job)
        process = start(job, INTERVAL)
        warm = at_random(users, 2000, 2 * 10**7)
        produce(kafka.bootstrap, job.source, warm)
        done += len(warm)
        wait(job, done)
        time.sleep(21)  # its snapshot too
        spent = cpu_seconds([process])
        time.sleep(20)
        idle = cpu_seconds([process]) - spent
        share = at_random(users, users // 100, 10**7)
        produce(kafka.bootstrap, job.source, share)
        done += len(share)
        wait(job, done)
        spent = cpu_seconds([process])
        time.sleep(20)
        tell(
            snapshot_one_percent_seconds=max(cpu_seconds([process]) - spent - idle, 0.0),
            snapshot_none_seconds=idle / 2,
        )
        process.send_signal(signal.SIGSTOP)
        produce(kafka.bootstrap, job.source, at_random(users, count, 3 * 10**7))
        done += count
        spent, begun = cpu_seconds([process]), time.monotonic()
        process.send_signal(signal.SIGCONT)
        wait(job, done)
        tell(
            per_second=count / (time.monotonic() - begun),
            cpu_seconds_per_million=(cpu_seconds([process]) - spent) / count * 1e6,
        )
        stop(job)
        process = start(job, INTERVAL)
        more = int(found["per_second"] * 1.6 * (WINDOW + 20))
        produce(kafka.bootstrap, job.source, draw_at_random(users, more, 4 * 10**7))
        wait(job, done + 20_000)
        decided, spent = job.count(), cpu_seconds([process])
        time.sleep(WINDOW)
        decided, spent = job.count() - decided, cpu_seconds([process]) - spent
        if job.count() >= done + more:
            msg = f"{more} transactions were too few for {WINDOW:g} s"
            raise RuntimeError(msg)
        tell(per_second_long=decided / WINDOW, cpu_seconds_per_million_long=spent / decided * 1e6)
        job.stop()
    return found


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("users", *[f"{row['users']:,}" for row in rows])
    titles = {
        "bytes_in_memory": "bytes a user in memory",
        "bytes_in_store": "bytes a user in the recovery store",
        "snapshot_all_seconds": "snapshot and stop, all active, s",
        "snapshot_one_percent_seconds": "snapshot, 1 % active, CPU-s",
        "snapshot_none_seconds": "10 s with two snapshots and nothing else, CPU-s",
        "resume_seconds": "start and resume, s",
        "cpu_seconds_per_million": "CPU-s a million transactions",
        "per_second": "transactions/s",
        "cost_to_smallest": "cost of a transaction ÷ at the smallest",
        "cpu_seconds_per_million_long": "CPU-s a million, over two minutes",
        "per_second_long": "transactions/s, over two minutes",
        "cost_to_smallest_long": "cost ÷ at the smallest, over two minutes",
    }
    for name, title in titles.items():
        table.add_row(title, *[f"{row[name]:,.2f}" if row[name] < 100 else f"{row[name]:,.0f}" for row in rows])
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.state", description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--count", type=int, default=600_000, help="transactions of step 5 (default 600,000)")
    parser.add_argument("--out", type=Path, default=RESULTS / "state.jsonl")
    add_model_option(parser)
    arguments = parser.parse_args()
    where = machine()
    rows = []
    for users in arguments.users:
        with tempfile.TemporaryDirectory(prefix="redflag-bench-") as scratch:
            model = default_model(arguments.model, Path(scratch))
            rows.append(measure(users, arguments.count, model, Path(scratch), Console(stderr=True)))
    for row in rows:
        for often in ("", "_long"):
            cost = f"cpu_seconds_per_million{often}"
            row[f"cost_to_smallest{often}"] = row[cost] / rows[0][cost]
    show(rows)
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text("".join(json.dumps(line) + "\n" for line in [{"machine": where}, *rows]))


if __name__ == "__main__":
    main()
