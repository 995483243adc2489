"""What the rules cost: a transaction, a rule, a list of a million entries, a reload.

`python -m benchmarks.rules_benchmark` prints tables; each figure is the best of several runs. With `--reload` it prints
only how long batches of a flow last while rules are loaded beside it, and the most CPU time that the load took from one
of them: unlike the rest this does not depend on what else the machine does.
"""

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table as Shown

from dataflow.events.transaction import Transaction
from dataflow.features.batch import FeatureBatch
from dataflow.process.lifecycle import tune_gc
from dataflow.rules import LiveRules, RuleSet, load_rules
from dataflow.rules.lists import no_pause
from dataflow.rules.rules_file import MAX_RULES
from dataflow.scoring.operating_point import OperatingPoint
from training.histories.history import read_history
from training.histories.replay import replay

SECONDS = 0.3  # a run
RUNS = 5
RULES = (1, 12, 100)
BATCHES = (1, 10, 100, 1000)
MEASURED = 2000  # transactions, or a batch
ENTRIES = 1_000_000
CONDITIONS = (
    "amount > {x}",
    "amount > {x} and txn_per_hour >= 3",
    "location_changed and seconds_since_last <= 3600 and amount > {x}",
    'txn_type == "withdrawal" and amount > {x}',
    "amount > {x} / 100 * usual_amount and amount_to_largest > 2",
    "speed > {x} and amount > 10",
    "new_device and new_location and amount > {x}",
    'category in ["electronics", "jewellery"] and amount > {x}',
    "merchant in lists.flagged",
    "merchant_frauds_week >= 2 and amount > {x}",
    "(hour(timestamp) < 5 or txn_per_day > 20) and amount > {x}",
    "model_score > 0.7 and amount > {x}",
)


def rules_of(count: int, directory: Path, flagged: int = 2, threshold: int = 2000) -> Path:
    """A rules file of so many different rules that fire seldom, and its list."""
    (directory / "flagged.txt").write_text("".join(f"Flagged merchant {n}\n" for n in range(flagged)))
    entries = [
        f"[[rule]]\nid = 'r{n}'\nwhen = '''{CONDITIONS[n % len(CONDITIONS)].format(x=threshold + n)}'''\n"
        "reason = 'At {merchant}, {amount}'\n"
        for n in range(count)
    ]
    path = directory / "rules.toml"
    path.write_text("\n".join(["[lists]", "flagged = 'flagged.txt'", *entries]))
    return path


class Sample(NamedTuple):
    """Simulated transactions as the flow has them when it comes to the rules, with risks that stand for a model's."""

    txns: list[Transaction]
    last_locations: list[str]
    numbers: NDArray[np.float64]
    risks: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.txns)

    def batches(self, size: int) -> list[Callable[[], FeatureBatch]]:
        """Functions that make the batches, each anew, as the flow does: a batch keeps the columns that it made."""

        def make(part: slice, of_model: dict[str, Any]) -> FeatureBatch:
            batch = FeatureBatch(self.txns[part], self.last_locations[part], self.numbers[part])
            batch.put(of_model)
            return batch

        point = OperatingPoint(alert=0.5)
        parts = [slice(begin, begin + size) for begin in range(0, len(self), size)]
        return [
            partial(make, part, point.columns(self.risks[part], partial(np.greater, self.risks[part], 0.7)))
            for part in parts
        ]


def sample(count: int) -> Sample:
    """So many transactions, drawn from four times as many."""
    history = islice(read_history(None, users=200, days=60), 4 * count)
    ((_, batch),) = replay(history, batch=4 * count)
    drawn = Random(1).sample(range(len(batch)), count)
    last_locations = batch.column("last_location")
    return Sample(
        [batch.transactions[place] for place in drawn],
        [last_locations[place] for place in drawn],
        batch.numbers()[drawn],
        np.random.default_rng(1).beta(1, 20, count),
    )


def best(call: Callable[[], object], items: int) -> float:
    """Seconds of CPU time an item, of the fastest run: what else runs on the machine matters less to it."""
    fastest = float("inf")
    for _ in range(RUNS):
        calls, begin = 0, time.process_time()
        while (taken := time.process_time() - begin) < SECONDS or not calls:
            call()
            calls += 1
        fastest = min(fastest, taken / calls / items)
    return fastest


def evaluating(rules: RuleSet, rows: Sample, size: int) -> float:
    batches = rows.batches(size)[: max(1, MEASURED // size)]
    measured = sum(len(make()) for make in batches)

    def call() -> None:
        for make in batches:
            rules.evaluate(make())

    return best(call, measured)


def firing(rules: RuleSet, rows: Sample) -> float:
    """On which share of the transactions a rule fires."""
    (everything,) = rows.batches(len(rows))
    return sum(bool(result.rules) for result in rules.evaluate(everything())) / len(rows)


def cost_of_rules(rows: Sample, directory: Path) -> Shown:
    table = Shown(title="Rules, µs", title_justify="left")
    for name in ("rules", "batch", "fires on", "a transaction", "a rule and transaction"):
        table.add_column(name, justify="right")
    for count in RULES:
        rules = load_rules(rules_of(count, directory))
        fired = firing(rules, rows)
        for batch in BATCHES:
            micros = evaluating(rules, rows, batch) * 1e6
            table.add_row(str(count), str(batch), f"{fired:.1%}", f"{micros:.3f}", f"{micros / count:.3f}")
    rules = load_rules(rules_of(12, directory, threshold=0))
    fired = firing(rules, rows)
    micros = evaluating(rules, rows, 1000) * 1e6
    table.add_row("12", "1000", f"{fired:.1%}", f"{micros:.3f}", f"{micros / 12:.3f}")
    return table


def cost_of_lists(rows: Sample, directory: Path) -> Shown:
    table = Shown(title="A list in one rule, batches of 1000", title_justify="left")
    for name in ("entries", "a transaction, µs", "first load, s", "rules file changed, s"):
        table.add_column(name, justify="right")
    for entries in (2, 1000, ENTRIES):
        path = rules_of(9, directory, entries)
        path.write_text(path.read_text().partition("[[rule]]")[0] + "[[rule]]\nid='r'\nreason='r'\n")
        with path.open("a") as file:
            file.write("when = 'merchant in lists.flagged'\n")
        begin = time.perf_counter()
        live = LiveRules(path, 1e9)
        load = time.perf_counter() - begin
        micros = evaluating(live.current(), rows, 1000) * 1e6
        begin = time.perf_counter()
        live._load(no_pause)
        table.add_row(f"{entries:,}", f"{micros:.3f}", f"{load:.3f}", f"{time.perf_counter() - begin:.4f}")
    return table


Batch = tuple[float, float]
"""How long a batch lasted, and the CPU time that the thread which loads the rules used meanwhile: both in seconds."""


@contextmanager
def pace(loader: threading.Thread | None = None) -> Iterator[list[Batch]]:
    """Batches of 1 ms of work each, one after another on a thread, while the block runs."""
    batches: list[Batch] = []
    done = threading.Event()
    clock = time.pthread_getcpuclockid(loader.ident) if loader is not None and loader.ident is not None else None

    def used() -> float:
        return time.clock_gettime(clock) if clock is not None else 0.0

    def work() -> None:
        while not done.is_set():
            begin, used_before = time.perf_counter(), used()
            while time.perf_counter() - begin < 0.001:
                pass
            batches.append((time.perf_counter() - begin, used() - used_before))

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield batches
    finally:
        done.set()
        worker.join()


def large_rules(directory: Path, threshold: int) -> Path:
    """As many rules as a file may hold, each nearly as long as one may be."""
    part = "(amount > {x} + {n} and txn_per_hour >= {n} and merchant in ['a{n}', 'b{n}'] and speed < {n})"
    entries = [
        f"[[rule]]\nid = 'r{rule}'\nreason = 'At {{merchant}}'\n"
        f"when = '''{' or '.join(part.format(x=threshold + rule, n=n) for n in range(18))}'''\n"
        for rule in range(MAX_RULES)
    ]
    path = directory / "large.toml"
    path.write_text("\n".join(entries))
    return path


def cost_of_reload(directory: Path) -> Shown:
    table = Shown(title="A flow's batches of 1 ms of work while rules are loaded, in ms", title_justify="left")
    for name in ("", "load, s", "median", "99 %", "longest", "most taken by the load"):
        table.add_column(name, justify="right")

    def row(name: str, seconds: float, batches: list[Batch]) -> None:
        milli = sorted(duration * 1000 for duration, _ in batches)
        figures = (
            milli[len(milli) // 2],
            milli[int(len(milli) * 0.99)],
            milli[-1],
            max(used for _, used in batches) * 1000,
        )
        table.add_row(name, f"{seconds:.2f}", *(f"{figure:.1f}" for figure in figures))

    def reload(name: str, path: Path, change: Callable[[], object]) -> None:
        with LiveRules(path, check_every=0.1).watch() as live:
            before = live.current().version
            change()
            with pace(live._thread) as batches:
                begin = time.perf_counter()
                while live.current().version == before:
                    time.sleep(0.01)
                seconds = time.perf_counter() - begin
                time.sleep(0.3)  # until the old rules and list are gone
            row(name, seconds, batches)

    with pace() as batches:
        time.sleep(2.0)
    row("alone", 2.0, batches)
    path, flagged = rules_of(12, directory, ENTRIES), directory / "flagged.txt"
    reload(f"a list of {ENTRIES:,}", path, lambda: flagged.write_text(flagged.read_text() + "One more\n"))
    reload(f"{MAX_RULES:,} large rules", large_rules(directory, 2000), lambda: large_rules(directory, 3000))
    return table


def main() -> None:
    console = Console()
    console.print(f"{datetime.now().astimezone():%Y-%m-%d}, Python {sys.version.split()[0]}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        if "--reload" not in sys.argv[1:]:
            rows = sample(10_000)
            console.print(cost_of_rules(rows, directory))
            console.print(cost_of_lists(rows, directory))
        tune_gc()  # as the flow does
        console.print(cost_of_reload(directory))


if __name__ == "__main__":
    main()
