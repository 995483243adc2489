"""What users cost: bytes of each in memory and on disk, stop and resume, pauses of snapshots, CPU of a transaction.

For each number of users, on a real Kafka, with the default model and rules and a snapshot every 5 s, the default; all
payments are those of `benchmarks.payments`, of which about one in a hundred is an alert:

1. every user pays `--rounds` times; what the process grows by is the memory;
2. a graceful stop, right after the last decision; what the recovery directory then holds is the disk;
3. a start from it, until a transaction is decided: the resume, with the start itself;
4. a minute at 1,000 payments/s of users drawn at random: how long each snapshot held up the worker, as the flow's own
   metric `redflag_snapshot_pause_seconds` has it;
5. two minutes under a backlog, of users drawn at random: the CPU time of a transaction with its share of snapshots. The
   flow is frozen (SIGSTOP) each time while its source is filled: to make payments costs it nothing. The flows of all
   numbers of users are up then, and take their backlogs in turns, a round in this order and the next in the opposite
   one: what a transaction costs differs more between two parts of a run than the users make of it. Ratios are within a
   round.

If more than one decision in twenty is an alert, it ends with a line that says so: explanations would be measured.
"""

import argparse
import json
import statistics
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


class Candidate:
    """The flow of one number of users, and its figures.

    Args:
        kafka: the broker, which all candidates share.
        users: how many.
        model: its model file.
        scratch: a directory for its files.
    """

    def __init__(self, kafka: KafkaServer, users: int, model: Path, scratch: Path):
        scratch.mkdir()
        self.flow = Flow(kafka, f"state-{users}", model, scratch)
        self.payments = Payments(users)
        self.row: dict[str, Any] = {"row": f"state_{users}", "users": users}
        self.rounds: list[dict[str, float]] = []

    def tell(self, **figures: float | None) -> None:
        self.row.update(figures)
        Console(stderr=True).print(f"{self.payments.users:,} users: {figures}", markup=False)

    def alert_share(self, step: str) -> float:
        """Of the decisions since it was last asked for; see `benchmarks.measured_flow.check_alerts`."""
        return self.flow.alert_share(f"{self.payments.users:,} users: {step}")

    def take_backlog(self, count: int) -> float:
        """One round of step 5; returns how many seconds it took."""
        seconds, spent = self.flow.frozen(self.payments.anyone(count), count)
        self.rounds.append({"per_second": count / seconds, "cpu_seconds_per_million": spent / count * 1e6})
        return seconds


def measure(candidates: list[Candidate], given: argparse.Namespace) -> None:
    """All figures of all candidates, which are left running."""
    for candidate in candidates:
        _measure_alone(candidate, given)
    least, number = 0.0, 0
    while least < given.seconds:
        turn = candidates if number % 2 else candidates[::-1]
        least, number = least + min(candidate.take_backlog(given.count) for candidate in turn), number + 1
    for candidate in candidates:
        candidate.row |= compared(candidate.rounds, min(candidates, key=lambda each: each.payments.users).rounds)
        candidate.tell(alerts_backlog=candidate.alert_share("under a backlog"))


def _measure_alone(candidate: Candidate, given: argparse.Namespace) -> None:
    """Steps 1 to 4."""
    flow, payments, tell, alert_share = candidate.flow, candidate.payments, candidate.tell, candidate.alert_share
    users = payments.users
    flow.start()
    flow.send(Payments(WARM_USERS, seed=2, name="warm").anyone(WARM_UP), WARM_UP)
    flow.wait()
    before = in_memory(flow.pid, "VmRSS")
    alert_share("warm-up")
    flow.send(payments.everyone(given.rounds), given.rounds * users)
    flow.wait()
    grown = in_memory(flow.pid, "VmRSS") - before
    tell(
        bytes_in_memory=grown / users if users >= FEW else None,
        bytes_of_profile=flow.metrics.bytes_of_a_user(),
        alerts_history=alert_share("everyone pays"),
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
    alert_share("after the resume")
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
        alerts_at_rate=alert_share(f"{RATE:,} payments/s"),
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
    "cost_to_smallest": "cost of a transaction ÷ among the fewest users, median of the rounds",
    "cost_to_smallest_min": "the lowest",
    "cost_to_smallest_max": "the highest",
}


def compared(rounds: list[dict[str, float]], fewest: list[dict[str, float]]) -> dict[str, float]:
    """Medians of the rounds, and what a transaction costs ÷ what it costs among the fewest users in the same round."""
    cost = "cpu_seconds_per_million"
    ratios = [each[cost] / other[cost] for each, other in zip(rounds, fewest, strict=True)]
    return {
        "backlogs": len(rounds),
        "per_second": statistics.median(each["per_second"] for each in rounds),
        cost: statistics.median(each[cost] for each in rounds),
        "cost_to_smallest": statistics.median(ratios),
        "cost_to_smallest_min": min(ratios),
        "cost_to_smallest_max": max(ratios),
    }


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
    with tempfile.TemporaryDirectory(prefix="redflag-bench-") as name, KafkaServer(lasting=True) as kafka:
        scratch = Path(name)
        model = default_model(arguments.model, scratch)
        candidates = [Candidate(kafka, users, model, scratch / str(users)) for users in arguments.users]
        try:
            measure(candidates, arguments)
        except TooManyAlerts as error:
            sys.exit(str(error))
        finally:
            for candidate in candidates:
                candidate.flow.job.stop()
    rows = [{**candidate.row, "rounds": arguments.rounds} for candidate in candidates]
    table = Table("users", *[f"{row['users']:,}" for row in rows])
    for name, title in ROWS.items():
        table.add_row(title, *[shown(name, row[name]) for row in rows])
    Console().print(table)
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text("".join(json.dumps(line) + "\n" for line in [{"machine": where}, *rows]))


if __name__ == "__main__":
    main()
