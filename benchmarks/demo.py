"""How well the demo decides: `make run` for several seeds, its figures, their mean and spread.

`python -m benchmarks.demo` lives the 3,000 transactions of a minute at 50 a second, ten times as fast, so that five
seeds take about three minutes: the same transactions and labels at the same event times. `--faster 1` is the demo's
own pace. Settings (MODEL_FILE, RULES_FILE, ...) come from the environment, as for `make run`.
"""

import argparse
import io
import os
import statistics
import sys
from collections.abc import Sequence

from rich.console import Console

from dataflow.demo.__main__ import LABEL_DELAY, RATE, Result, run
from dataflow.demo.figures import Count, Figures, Scenario
from dataflow.errors import UserError
from dataflow.process import event_log, lifecycle
from dataflow.settings import Settings

START = "2026-03-02T00:00:00+00:00"
"""Event time at which the live part begins: with it a seed always gives the same transactions."""


def live(seed: int, seconds: float, rate: float, faster: float, label_delay: float) -> Result:
    """One run: `seconds` at `rate` transactions a second, labels so late, all in a `faster`th of the time.

    Raises:
        UserError: it could not run.
    """
    wishes = {
        "GENERATOR_SEED": str(seed),
        "GENERATOR_RATE": str(rate * faster),
        "GENERATOR_LABEL_DELAY": str(label_delay / faster),
        "GENERATOR_START": START,
    }
    environ = os.environ | wishes
    settings = Settings.load(environ)
    return run(settings, seconds / faster, Console(file=io.StringIO(), width=200), environ)


def line(name: str, figures: Figures) -> str:
    """The figures of one run, for people."""
    return (
        f"{name:<8}{figures.frauds.number:>8}{figures.caught.number:>8}{figures.false_alarms.number:>14}"
        f"{figures.precision:>11.2f}{figures.recall:>8.2f}{_money_caught(figures):>14.2f}"
    )


def _money_caught(figures: Figures) -> float:
    return figures.caught.money / figures.frauds.money if figures.frauds.money else float("nan")


def _counts(scenarios: Sequence[Scenario]) -> tuple[list[Count], list[Count]]:
    return [each.frauds for each in scenarios], [each.caught for each in scenarios]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of some runs."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def main() -> None:
    """Runs the seeds; exits with 1 if one of the runs did not add up, 2 on a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], metavar="SEED")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each run; default %(default)s")
    parser.add_argument("--rate", type=float, default=RATE, help="transactions a second; default %(default)s")
    parser.add_argument("--faster", type=float, default=10.0, help="how much faster it is run; default %(default)s")
    parser.add_argument("--label-delay", type=float, default=LABEL_DELAY, help="seconds; default %(default)s")
    options = parser.parse_args()
    event_log.set_up()
    print(
        f"{'seed':<8}{'frauds':>8}{'caught':>8}{'false alarms':>14}{'precision':>11}{'recall':>8}{'money caught':>14}"
    )
    results = []
    try:
        for seed in options.seeds:
            result = live(seed, options.seconds, options.rate, options.faster, options.label_delay)
            print(line(str(seed), result.figures), flush=True)
            results.append(result)
    except UserError as error:
        lifecycle.complain(error)
        sys.exit(2)
    figures = [result.figures for result in results]
    print(f"precision {spread([each.precision for each in figures])}")
    print(f"recall    {spread([each.recall for each in figures])}")
    for name in sorted({name for each in figures for name in each.by_scenario}):
        of_all = [each.by_scenario[name] for each in figures if name in each.by_scenario]
        frauds, caught = (sum(count.number for count in counts) for counts in _counts(of_all))
        print(f"{name:<22}{caught:>5} of {frauds:>4} caught")
    print(f"start     {spread([result.start_seconds for result in results])} s until the first live transaction")
    incomplete = [seed for seed, result in zip(options.seeds, results, strict=True) if not result.complete]
    if incomplete:
        print(f"not all was decided once: seeds {incomplete}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
