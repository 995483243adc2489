"""What the console costs the flow: its decisions a second and CPU, alone and with the console beside it.

python -m benchmarks.console_beside --model fraud_model.pkl

One flow and one console (SQLite) run from beginning to end beside an Apache Kafka. In each round the flow decides the
same number of payments three times: alone, while the console is stopped (SIGSTOP); with the console, which stores its
alerts; and with somebody who looks at its queue, too (`benchmarks.queue_watcher`, no browser). Each round begins with
another of these. Each time the flow is frozen while its source fills, and clock and CPU count from when it is thawed to
the last decision. So this is the flow at its fastest: it, the broker and the console share the machine's cores. Many
short rounds, as what a transaction costs differs by a tenth from one ten seconds to the next, whatever runs beside.

A console that had not all alerts, or whose queue sent no rows, would cost less than one in service: then there is no
figure, but a line that says so.
"""

import argparse
import contextlib
import json
import os
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.console import cpu
from benchmarks.measured_flow import Flow, TooManyAlerts
from benchmarks.payments import Payments
from benchmarks.queue_watcher import QueueWatcher
from benchmarks.stage import RESULTS, Counter, add_model_option, default_model, machine
from dataflow.settings import Settings
from tests.console.running import RunningConsole, run_console
from tests.support.kafka_server import KafkaServer

USERS: Final = 10_000
ROUNDS_BEFORE: Final = 3
"""How often every user has paid before anything is counted: the flow knows them, and is warm."""
GONE_SECONDS: Final = 11.0
"""Until the console has given up the page of somebody who looked at its queue: it waits 10 s for them to come back."""
STORED_SECONDS: Final = 120.0
"""Until the console has stored what the flow has found, at most."""
ALONE, BESIDE, WATCHED = "alone", "console", "console_watched"
CASES: Final = {ALONE: "the flow alone", BESIDE: "a console beside it", WATCHED: "and somebody looks at its queue"}

Run = dict[str, Any]


class IdleConsoleError(RuntimeError):
    """The console did not do what it does in service."""


class Stage:
    """A flow under measure, and the console beside it."""

    def __init__(self, kafka: KafkaServer, model: Path, scratch: Path):
        self.flow = Flow(kafka, "beside", model, scratch)
        self._folder = scratch / "console"
        self._folder.mkdir()
        topics = self.flow.job.environment
        self._settings = Settings(
            brokers=kafka.bootstrap, alerts_topic=topics["ALERTS_TOPIC"], feedback_topic=topics["FEEDBACK_TOPIC"],
            classified_topic=topics["CLASSIFIED_TOPIC"],
        )  # fmt: skip
        self._count_alerts = Counter(kafka.bootstrap, [self._settings.alerts_topic])

    @contextlib.contextmanager
    def console(self) -> Iterator[RunningConsole]:
        """A console that has stored all alerts there are."""
        flow_metrics = self.flow.job.environment["METRICS_ADDRESS"]
        with run_console(
            self._settings, self._folder, CONSOLE_FLOW_METRICS=flow_metrics, PYTHONWARNINGS="ignore"
        ) as running:
            self.await_stored()
            yield running
            running.stop()

    def await_stored(self) -> None:
        """Until the console has stored all alerts.

        Raises:
            IdleConsoleError: it does not.
        """
        wanted, deadline = self._count_alerts(), time.monotonic() + STORED_SECONDS
        with contextlib.closing(sqlite3.connect(f"file:{self._folder / 'console.db'}?mode=ro", uri=True)) as database:
            while (stored := database.execute("SELECT count(*) FROM alerts").fetchone()[0]) < wanted:
                if time.monotonic() > deadline:
                    msg = f"the console has stored {stored:,} of {wanted:,} alerts after {STORED_SECONDS:g} s"
                    raise IdleConsoleError(msg)
                time.sleep(0.05)

    def run(self, case: str, console: RunningConsole, payments: Payments, count: int) -> Run:
        """One measure of a case."""
        flow = self.flow
        with contextlib.ExitStack() as beside:
            watcher = beside.enter_context(QueueWatcher(console.url)) if case == WATCHED else None
            flow.freeze(payments.anyone(count), count)
            before, sent = cpu(console.pid), watcher.rows if watcher else 0
            if case == ALONE:
                beside.enter_context(stopped(console.pid))
            seconds, spent = flow.thaw()
            run: Run = {"case": case, "per_second": count / seconds, "cpu_seconds_per_million": spent / count * 1e6}
            if case != ALONE:
                run["console_cpu_share"] = (cpu(console.pid) - before) / seconds
                self.await_stored()
                run["console_cpu_seconds"] = cpu(console.pid) - before
            if watcher:
                run["rows_sent"] = watcher.rows - sent
                check_rows(run["rows_sent"])
        self.await_stored()
        if watcher:
            time.sleep(GONE_SECONDS)
        run["alerts"] = flow.alert_share(CASES[case])
        return run


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Keeps a process from doing anything."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def check_rows(rows: int) -> None:
    """Refuses a queue that nobody was shown.

    Raises:
        IdleConsoleError: no row was sent.
    """
    if not rows:
        msg = "the console has sent no row of its queue while the flow was measured: use more payments (--count)"
        raise IdleConsoleError(msg)


def measure(count: int, rounds: int, given: Path | None, scratch: Path) -> list[Run]:
    """All runs of all rounds after the first, which is a warm-up."""
    console = Console(stderr=True)
    model = default_model(given, scratch)
    payments = Payments(USERS)
    found: list[Run] = []
    with KafkaServer(lasting=True) as kafka:
        stage = Stage(kafka, model, scratch)
        try:
            stage.flow.start()
            stage.flow.send(payments.everyone(ROUNDS_BEFORE), ROUNDS_BEFORE * USERS)
            stage.flow.wait()
            stage.flow.alert_share("before anything is measured")
            with stage.console() as running:
                for number in range(rounds + 1):
                    first = number % len(CASES)
                    for case in [*CASES][first:] + [*CASES][:first]:
                        run = {"round": number, **stage.run(case, running, payments, count)}
                        pace, cpu_seconds = f"{run['per_second']:,.0f}/s", run["cpu_seconds_per_million"]
                        console.print(f"round {number}: {CASES[case]} {pace}, {cpu_seconds:.1f} CPU-s a million")
                        if number:
                            found.append(run)
        finally:
            stage.flow.job.stop()
    return found


def summary(runs: list[Run]) -> list[Run]:
    """A row for each case: medians, lowest and highest; and the ratios to the flow alone, each within its round."""
    alone = {run["round"]: run for run in runs if run["case"] == ALONE}
    rows = []
    for case, title in CASES.items():
        of_case = [run for run in runs if run["case"] == case]
        row: Run = {"row": case, "title": title, "rounds": len(of_case)}
        for name in ("per_second", "cpu_seconds_per_million"):
            row |= _spread(name, [run[name] for run in of_case])
            if case != ALONE:
                row |= _spread(f"{name}_to_alone", [run[name] / alone[run["round"]][name] for run in of_case])
        for name in ("console_cpu_share", "console_cpu_seconds", "rows_sent", "alerts"):
            if name in of_case[0]:
                row |= _spread(name, [run[name] for run in of_case])
        rows.append(row)
    return rows


def _spread(name: str, values: list[float]) -> Run:
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def show(rows: list[Run]) -> None:
    table = Table("median (lowest to highest)", *CASES.values())
    for title, name, form in (
        ("transactions/s", "per_second", ",.0f"),
        ("÷ the flow alone", "per_second_to_alone", ".3f"),
        ("the flow's CPU-s a million", "cpu_seconds_per_million", ".2f"),
        ("÷ the flow alone", "cpu_seconds_per_million_to_alone", ".3f"),
        ("the console's CPU meanwhile, of a core", "console_cpu_share", ".2f"),
        ("its CPU-s until all is stored", "console_cpu_seconds", ".2f"),
        ("rows of the queue that it sent", "rows_sent", ",.0f"),
        ("alerts", "alerts", ".2%"),
    ):
        cells = [
            f"{row[name]:{form}} ({row[f'{name}_min']:{form}} to {row[f'{name}_max']:{form}})" if name in row else ""
            for row in rows
        ]
        table.add_row(title, *cells)
    Console(width=150).print(table)


def _count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or not int(text):
        msg = f"{text!r} is no whole number above 0"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.console_beside", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=_count, default=150_000, help="payments of each measure (default 150,000)")
    parser.add_argument("--rounds", type=_count, default=12, help="after a warm-up (default 12)")
    parser.add_argument("--out", type=Path, default=RESULTS / "console_beside.jsonl")
    add_model_option(parser)
    arguments = parser.parse_args()
    where = machine()
    with tempfile.TemporaryDirectory(prefix="redflag-bench-") as scratch:
        try:
            runs = measure(arguments.count, arguments.rounds, arguments.model, Path(scratch))
        except (TooManyAlerts, IdleConsoleError) as error:
            sys.exit(str(error))
    rows = summary(runs)
    show(rows)
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text("".join(json.dumps(line) + "\n" for line in [{"machine": where}, *rows, *runs]))


if __name__ == "__main__":
    main()
