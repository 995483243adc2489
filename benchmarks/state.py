"""What users cost: bytes of each in memory and on disk, stop and resume, pauses of snapshots, CPU of a transaction.

For each number of users, on a real Kafka, with the default model and rules and a snapshot every 5 s, the default; all
payments are those of `benchmarks.payments`, of which about one in a hundred is an alert:

1. every user pays `--rounds` times; what the process grows by is the memory;
2. a graceful stop, right after the last decision; what the recovery directory then holds is the disk;
3. a start from it, until a transaction is decided: the resume, with the start itself;
4. a minute at 1,000 payments/s of users drawn at random: how long each snapshot held up the worker, as the flow's own
   metric `redflag_snapshot_pause_seconds` has it;
5. two minutes under a backlog, of users drawn at random: the CPU time of a transaction with its share of snapshots. The
   flow is frozen (SIGSTOP) each time while its source is filled: to make payments costs it nothing.

If more than one decision in twenty is an alert, it ends with a line that says so: explanations would be measured.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.flow_metrics import Pauses
from benchmarks.measured_flow import Flow, TooManyAlerts
from benchmarks.payments import Payments
from benchmarks.stage import RESULTS, add_model_option, cpu_seconds, default_model, machine
from tests.support.kafka_server import KafkaServer

WARM_UP = 200_000  # payments of WARM_USERS, so that queues and merchants' profiles are there before users are counted
WARM_USERS = 2000
RATE = 1000  # payments a second of step 4
FEW = 100_000  # users below which the process grows more by chance than by them


def in_memory(pid: int, field: str) -> int:
    """Bytes of a process: `VmRSS`, those that it has; `VmHWM`, the most that it had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def children(pid: int) -> list[int]:
    """The processes that a process started and that run: of a flow, the one that makes images."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def measure(users: int, given: argparse.Namespace, model: Path, scratch: Path, console: Console) -> dict[str, Any]:
    """The figures of one number of users."""
    found: dict[str, Any] = {"row": f"state_{users}", "users": users, "rounds": given.rounds}

    def tell(**figures: float | None) -> None:
        found.update(figures)
        console.print(f"{users:,} users: {figures}", markup=False)

    with KafkaServer(lasting=True) as kafka:
        flow = Flow(kafka, f"state-{users}", model, scratch)
        try:
            _measure(flow, Payments(users), given, tell)
        finally:
            flow.job.stop()
    return found


def _measure(flow: Flow, payments: Payments, given: argparse.Namespace, tell: Any) -> None:
    users = payments.users
    flow.start()
    flow.send(Payments(WARM_USERS, seed=2, name="warm").anyone(WARM_UP), WARM_UP)
    flow.wait()
    before = in_memory(flow.pid, "VmRSS")
    flow.alert_share("warm-up")
    flow.send(payments.everyone(given.rounds), given.rounds * users)
    flow.wait()
    grown = in_memory(flow.pid, "VmRSS") - before
    tell(
        bytes_in_memory=grown / users if users >= FEW else None,
        bytes_of_profile=flow.metrics.bytes_of_a_user(),
        alerts_history=flow.alert_share("everyone pays"),
        most_gigabytes=sum(in_memory(pid, "VmHWM") for pid in (flow.pid, *children(flow.pid))) / 1e9,
    )
    tell(stop_seconds=flow.stop())
    recovery = flow.job.scratch / "recovery"
    tell(bytes_on_disk=sum(path.stat().st_size for path in recovery.rglob("*") if path.is_file()) / users)

    begun = time.monotonic()
    flow.start()
    flow.send(payments.anyone(1), 1)
    flow.wait()
    tell(resume_seconds=time.monotonic() - begun)

    flow.send(payments.anyone(20_000), 20_000)  # until it is as warm as it will be
    flow.wait()
    flow.alert_share("after the resume")
    pauses = Pauses(flow.metrics)
    spent = cpu_seconds(flow.job.processes)
    count = RATE * given.pause_seconds
    pauses.send(flow.job, payments.anyone(count), RATE)
    flow.sent += count
    spent = cpu_seconds(flow.job.processes) - spent
    flow.wait()
    tell(
        snapshots=len(pauses.taken),
        longest_pause_ms=max(pauses.taken) * 1e3,
        mean_pause_ms=sum(pauses.taken) / len(pauses.taken) * 1e3,
        cpu_share_at_rate=spent / given.pause_seconds,
        alerts_at_rate=flow.alert_share(f"{RATE:,} payments/s"),
    )

    decided, seconds, spent = 0, 0.0, 0.0
    while seconds < given.seconds:
        taken, cpu = flow.frozen(payments.anyone(given.count), given.count)
        decided, seconds, spent = decided + given.count, seconds + taken, spent + cpu
    tell(
        per_second=decided / seconds,
        cpu_seconds_per_million=spent / decided * 1e6,
        alerts_backlog=flow.alert_share("under a backlog"),
    )


ROWS = {
    "alerts_history": "alerts, every user pays",
    "alerts_at_rate": f"alerts, at {RATE:,}/s",
    "alerts_backlog": "alerts, under a backlog",
    "bytes_in_memory": "bytes a user in memory, all counted",
    "bytes_of_profile": "of these the profile's row",
    "bytes_on_disk": "bytes a user in the recovery directory",
    "most_gigabytes": "most memory, with the helper that makes images, GB",
    "stop_seconds": "stop, s",
    "resume_seconds": "start and resume, s",
    "longest_pause_ms": f"longest pause of a snapshot at {RATE:,}/s, ms",
    "mean_pause_ms": "mean pause, ms",
    "cpu_share_at_rate": f"CPU at {RATE:,}/s, of a core",
    "per_second": "transactions/s under a backlog",
    "cpu_seconds_per_million": "CPU-s a million",
    "cost_of_users": "of these more than among the fewest users",
    "cost_to_smallest": "cost of a transaction ÷ among the fewest users",
}


def compare(rows: list[dict[str, Any]]) -> None:
    """Sets what a transaction costs against what it costs among the fewest users."""
    fewest = min(rows, key=lambda row: row["users"])["cpu_seconds_per_million"]
    for row in rows:
        row["cost_of_users"] = row["cpu_seconds_per_million"] - fewest
        row["cost_to_smallest"] = row["cpu_seconds_per_million"] / fewest


def shown(name: str, value: float | None) -> str:
    """A figure of the table."""
    if value is None:
        return ""
    if name.startswith("alerts"):
        return f"{value:.2%}"
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.state", description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3, help="how often every user pays in step 1 (default 3)")
    parser.add_argument("--pause-seconds", type=int, default=60, help="of step 4 (default 60)")
    parser.add_argument("--seconds", type=float, default=120.0, help="of step 5, at least (default 120)")
    parser.add_argument("--count", type=int, default=600_000, help="payments of step 5 at a time (default 600,000)")
    parser.add_argument("--out", type=Path, default=RESULTS / "state.jsonl")
    add_model_option(parser)
    arguments = parser.parse_args()
    where = machine()
    rows = []
    for users in arguments.users:
        with tempfile.TemporaryDirectory(prefix="redflag-bench-") as scratch:
            model = default_model(arguments.model, Path(scratch))
            try:
                rows.append(measure(users, arguments, model, Path(scratch), Console(stderr=True)))
            except TooManyAlerts as error:
                sys.exit(f"{users:,} users: {error}")
    compare(rows)
    table = Table("users", *[f"{row['users']:,}" for row in rows])
    for name, title in ROWS.items():
        table.add_row(title, *[shown(name, row[name]) for row in rows])
    Console().print(table)
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text("".join(json.dumps(line) + "\n" for line in [{"machine": where}, *rows]))


if __name__ == "__main__":
    main()
