"""`python -m benchmarks.explanations`: what it costs to explain an alert, by how many a batch holds.

The riskiest hundredth of a simulation are taken for alerts of the model given, and explained as the flow does: CPU time
of the process (the model is asked on several threads), the mean over all of them, best of a few rounds.
"""

import argparse
import time
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table as Shown

from dataflow.explanations.explainer import Explainer
from dataflow.features.batch import FeatureBatch
from dataflow.process.lifecycle import tune_gc
from dataflow.rules import LiveRules, RuleResult, RuleSet
from dataflow.scoring.loading import load_model
from dataflow.scoring.metadata import Scorer
from dataflow.scoring.operating_point import OperatingPoint
from dataflow.settings import Settings
from training.histories.history import read_history
from training.histories.replay import replay

SIZES = (1, 5, 50)
ROUNDS = 5
USERS = 5000


class Alerts(NamedTuple):
    """Alerts of one batch, and what the rules said of them."""

    batch: FeatureBatch
    results: list[RuleResult]

    def __len__(self) -> int:
        return len(self.results)

    def parts(self, size: int) -> list["Alerts"]:
        """The same, so many at a time."""
        found = []
        for begin in range(0, len(self), size):
            places = list(range(begin, min(begin + size, len(self))))
            found.append(Alerts(self.batch.part(places), [self.results[place] for place in places]))
        return found


def simulated(count: int, model: Scorer, rules: RuleSet) -> list[Alerts]:
    """The alerts of so many simulated transactions, if the riskiest hundredth are."""
    history = list(islice(read_history(None, users=USERS, days=count / USERS), count))
    scored = [(batch, *model.risk_first(batch.floats(model.features))) for _, batch in replay(history)]
    riskiest = float(np.quantile(np.concatenate([risks for _, risks, _ in scored]), 0.99))
    point = OperatingPoint(alert=riskiest)
    found = []
    for batch, risks, anomalies in scored:
        batch.put(point.columns(risks, anomalies))
        results = rules.evaluate(batch)
        places = [place for place, result in enumerate(results) if result.fraudulent]
        if places:
            found.append(Alerts(batch.part(places), [results[place] for place in places]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explanations", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50_000, help="transactions; one in a hundred is explained")
    parser.add_argument("--model", type=Path, default=Path("fraud_model.pkl"))
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    rules, explainer = LiveRules(Settings().rules_file, check_every=1.0).current(), Explainer(model)
    alerts = simulated(arguments.count, model, rules)
    count = sum(map(len, alerts))
    tune_gc()
    shown = Shown("alerts in a batch", "µs an alert")
    for size in SIZES:
        parts = [part for each in alerts for part in each.parts(size)]
        taken = []
        for _ in range(ROUNDS):
            before = time.process_time()
            for part in parts:
                explainer.explain(part.batch, part.results, rules)
            taken.append((time.process_time() - before) / count * 1e6)
        shown.add_row(str(size), f"{min(taken):.0f}")
    Console().print(shown)
    print(f"{count} alerts, {len(model.features)} features, tiers {', '.join(model.metadata.tiers)}")


if __name__ == "__main__":
    main()
