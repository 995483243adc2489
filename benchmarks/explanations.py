"""`python -m benchmarks.explanations`: what it costs to explain an alert, by how many a batch holds.

The riskiest hundredth of a simulation are taken for alerts of the model given, and explained as the flow does: CPU time
of the process (the model is asked on several threads), the mean over all of them, best of a few rounds.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table as Shown

from benchmarks.stage import transactions
from dataflow.events.transaction import Transaction
from dataflow.explanations.explainer import Explainer
from dataflow.process.lifecycle import tune_gc
from dataflow.rules import LiveRules
from dataflow.scoring.loading import load_model
from dataflow.scoring.operating_point import OperatingPoint
from dataflow.settings import Settings
from dataflow.steps import Profiled, Steps, key_by_merchant
from tests.support.builders import message

SIZES = (1, 5, 50, 500)
ROUNDS = 5


def profiled(steps: Steps, count: int) -> list[Profiled]:
    """Simulated transactions with what the profiles knew before each."""
    users, merchants, found = {}, {}, []
    for number, (_, value) in enumerate(transactions(count)):
        (txn,) = [each for each in steps.parse([message(value, offset=number)]) if isinstance(each, Transaction)]
        users[txn.user], payment = steps.update_user_profile(users.get(txn.user), txn)
        for key, item in key_by_merchant([(txn.user, payment)]):
            merchants[key], known = steps.update_merchant_profile(merchants.get(key), item)
            if isinstance(known, tuple):
                found.append(known)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explanations", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50_000, help="transactions; one in a hundred is explained")
    parser.add_argument("--model", type=Path, default=Path("fraud_model.pkl"))
    arguments = parser.parse_args()
    settings = Settings()
    model = load_model(arguments.model)
    live = LiveRules(settings.rules_file, check_every=1.0)
    steps = Steps(model, live, settings)
    known = profiled(steps, arguments.count)
    table = steps.score(known)
    model.operating_point = OperatingPoint(alert=float(np.quantile(table.column("model_score"), 0.99)))
    rules, explainer = live.current(), Explainer(model)
    results = rules.evaluate(steps.score(known))
    places = [place for place, result in enumerate(results) if result.fraudulent]
    tune_gc()
    shown = Shown("alerts in a batch", "µs an alert")
    table = steps.score(known)
    for size in SIZES:
        batches = [places[begin : begin + size] for begin in range(0, len(places), size)]
        taken = []
        for _ in range(ROUNDS):
            before = time.process_time()
            for batch in batches:
                explainer.explain(table.part(batch), [results[place] for place in batch], rules)
            taken.append((time.process_time() - before) / len(places) * 1e6)
        shown.add_row(str(size), f"{min(taken):.0f}")
    Console().print(shown)
    print(f"{len(places)} alerts, {len(model.features)} features, tiers {', '.join(model.metadata.tiers)}")


if __name__ == "__main__":
    main()
