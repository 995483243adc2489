"""`make profile`: where a transaction's microseconds go, step by step, in one process without Kafka and Bytewax.

Each step of `dataflow.detect` is timed over whole batches of 500, CPU time of its thread (half of the rows are scored
on another), the median over all batches; what Kafka and Bytewax take is the rest of the CPU time of `make bench`.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.stage import transactions
from dataflow.lifecycle import calm_collector
from dataflow.live_rules import LiveRules
from dataflow.scoring import load_model
from dataflow.settings import Settings
from dataflow.steps import Steps, is_fraudulent, key_by_merchant, key_by_user
from dataflow.transaction import Transaction
from tests.builders import message

BATCH = 500  # the default of MAX_BATCH


def keyed(step: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[Iterable[tuple[str, Any]]], list[tuple[str, Any]]]:
    """A stateful step over a batch, with a dict for Bytewax's state."""
    states: dict[str, Any] = {}

    def run(items: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
        out = []
        for key, item in items:
            states[key], result = step(states.get(key), item)
            out.append((key, result))
        return out

    return run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flow_profile", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--model", type=Path, default=Path("fraud_model.pkl"))
    arguments = parser.parse_args()
    settings = Settings()
    rules = LiveRules(settings.rules_file, check_every=1.0)
    steps = Steps(load_model(arguments.model), rules, settings)
    messages = [message(value, offset=n) for n, (_, value) in enumerate(transactions(arguments.count))]
    stages: list[tuple[str, Callable[[Any], Any]]] = [
        ("parse", lambda batch: [t for t in steps.parse(batch) if type(t) is Transaction]),
        ("key by user", key_by_user),
        ("user's profile: facts, update", keyed(steps.update_user_profile)),
        ("key by merchant", key_by_merchant),
        ("merchant's profile: facts, update", keyed(steps.update_merchant_profile)),
        ("score", steps.score),
        ("check rules", steps.check),
        ("branch", lambda batch: [d for d in batch if is_fraudulent(d) or True]),
        ("route: splice, record", steps.to_classified),
    ]
    calm_collector()
    taken: dict[str, list[float]] = {name: [] for name, _ in stages}
    for begin in range(0, len(messages), BATCH):
        batch: Any = messages[begin : begin + BATCH]
        for name, stage in stages:
            before = time.thread_time()
            batch = stage(batch)
            taken[name].append((time.thread_time() - before) / BATCH * 1e6)
    medians = {name: statistics.median(values[len(values) // 5 :]) for name, values in taken.items()}
    total = sum(medians.values())
    table = Table("step", "µs a transaction", "share")
    for name, value in medians.items():
        table.add_row(name, f"{value:.2f}", f"{value / total:.0%}")
    table.add_row("together", f"{total:.2f}", "100%")
    Console().print(table)


if __name__ == "__main__":
    main()
