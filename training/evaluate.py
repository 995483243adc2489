"""Measures detection: trains on what was known at a moment, and decides what came after, with labels that come late.

`python -m training.evaluate --history FILE --label-delay 7d --train-from A --test-from B --test-until C --out DIR`
writes scores.csv (its columns: `decisions.scores_columns`), metrics.json and report.html. The history is replayed
through the profiles of the flow, with each label coming in when it comes: a test holds the two equal, number by number.
With `--weeks N` the test window is N weeks, and the model is trained anew for each, as the "Reproducible Machine
Learning for Credit Card Fraud Detection" handbook does. The operating point is chosen anew for each week, too, in its
training window alone; for the first seed only, whose models decide.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from dataflow.errors import UserError
from dataflow.events.transaction import DAY
from dataflow.profiles.amounts import AmountPrior
from dataflow.rules import load_rules
from dataflow.scoring.tiers import TieredModel
from training.evaluation.decisions import summarise as summarise_decisions
from training.evaluation.decisions import write_scores
from training.evaluation.evaluation import BATCH, Replayed, Result, collect, day, train_and_test
from training.evaluation.measures import Measures
from training.evaluation.options import Options, parse, windows
from training.evaluation.report import write_report
from training.fitting.tiers import amount_prior
from training.histories.history import History, Past, after, find_label_column, read_history
from training.histories.labels import read_labels, relabelled

SHOWN = {
    "average precision": "average_precision",
    "ROC AUC": "roc_auc",
    "card precision 100": "card_precision_100",
    "recall at 0.1% FPR": "recall_at_0.001",
    "recall at 1% FPR": "recall_at_0.01",
    "alerts a day": "alerts_a_day",
    "calibration error": "calibration_error",
}
"""The figures that are printed, by what they are called there; metrics.json has all."""
AT_ONCE = 4
"""Windows and seeds that are trained and tested side by side, at most: each takes copies of its window's rows."""
DECIDED = {
    "rules alone": "rules_alone",
    "model alone": "model_alone",
    "both: fraud_alerts": "all",
    "of them blocked": "blocked",
}
"""The alerts whose figures are printed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates as the command line says; returns the exit status, 2 for a user's mistake."""
    try:
        options = parse(argv)
        run(options, Console(stderr=True))
    except UserError as error:
        print(f"redflag: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: Options, console: Console) -> None:
    """Replays the history once, trains and tests each week and seed, and writes the three files."""
    label_time = after(options.delay)
    rules = load_rules(options.rules)
    if options.labels is None:
        column = find_label_column(options.history, options.label_column)
        history = read_history(options.history, label_column=column)
    else:
        history = read_history(options.history, label_column=None)
        history, label_time = relabelled(history, read_labels(options.labels, timed=True))
    parts = windows(options)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), console=console
    ) as progress:
        task = progress.add_task("learn what amounts are like", total=1.0)
        prior = amount_prior(_between(history, options.train_from, options.test_from, progress, task))
        progress.update(task, completed=1.0)
        replayed = collect(history, options, prior, label_time, rules, progress)
        results = _results(replayed, options, prior, parts, progress)
    notes = [note for result in results for note in result.notes]
    options.out.mkdir(parents=True, exist_ok=True)
    of_first_seed = [result for result in results if result.seed == options.seeds[0]]
    decided = write_scores(options.out / "scores.csv", replayed, of_first_seed, rules)
    decisions = summarise_decisions(replayed, decided, rules) | {"notes": notes}
    metrics = summarise(options, results) | {"decisions": decisions}
    (options.out / "metrics.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(metrics, order="sorted"), indent=2) + b"\n"
    )
    write_report(options.out / "report.html", metrics, [(r.measures, r.week, r.seed) for r in results])
    for each in (table(metrics), decisions_table(metrics), weeks_table(metrics)):
        Console().print(each, "")
    for line in notes:
        Console().print(line, markup=False, highlight=False)


def _results(
    replayed: Replayed, options: Options, prior: AmountPrior, parts: list[tuple[float, float]], progress: Progress
) -> list[Result]:
    """Each part of the test by each seed; some side by side, as fitting lets go of the interpreter's lock.

    Raises:
        UserError: a part holds too little to train on, to choose by or to test; no further one is begun then.
    """
    task = progress.add_task("train and test", total=len(parts) * len(options.seeds))
    workers = ThreadPoolExecutor(min(os.cpu_count() or 1, AT_ONCE))
    try:
        # The first seed's take twice as long, so they come first: at the end no core waits for the other.
        running = {
            (part, seed): workers.submit(
                train_and_test, replayed, options, prior, *part, seed, choosing=seed == options.seeds[0]
            )
            for seed in options.seeds
            for part in parts
        }
        for each in running.values():
            each.result()
            progress.advance(task)
        return [running[part, seed].result() for part in parts for seed in options.seeds]
    finally:
        workers.shutdown(cancel_futures=True)


def summarise(options: Options, results: list[Result]) -> dict[str, Any]:
    """The figures of each tier: mean and spread over weeks and seeds, and each by itself."""
    tiers = {}
    for tier in results[0].measures:
        figures = [result.measures[tier].figures for result in results]
        tiers[tier] = {
            name: {
                "mean": float(np.mean([each[name] for each in figures])),
                "std": float(np.std([each[name] for each in figures])),
            }
            for name in figures[0]
        }
    return {
        "history": options.history.name,
        "train_from": day(options.train_from),
        "test_from": day(options.test_from),
        "test_until": day(options.test_until),
        "label_delay_days": options.delay / DAY,
        "weeks": options.weeks,
        "seeds": options.seeds,
        "known_cards_removed": not options.keep_known_cards,
        "tiers": tiers,
        "runs": [
            {"week": result.week, "seed": result.seed, "tier": tier, **measures.figures}
            for result in results
            for tier, measures in result.measures.items()
        ],
        "by_scenario": {tier: by_scenario([result.measures[tier] for result in results]) for tier in tiers},
        "importance": importance(results[0].model),
    }


def by_scenario(measures: list[Measures]) -> dict[str, dict[str, float]]:
    """The figures of each kind of fraud, mean over the windows and seeds in which it took place."""
    kinds = sorted({kind for each in measures for kind in each.by_scenario})
    figures = {}
    for kind in kinds:
        rows = [each.by_scenario[kind] for each in measures if kind in each.by_scenario]
        known = {name: [row[name] for row in rows if not np.isnan(row[name])] for name in rows[0]}
        figures[kind] = {name: float(np.mean(values)) if values else float("nan") for name, values in known.items()}
    return figures


def importance(model: TieredModel) -> dict[str, float]:
    """How much each feature matters to the supervised tier, its share of the splits' gain; empty without one."""
    return dict(sorted(model.importance.items(), key=lambda item: -item[1]))


def table(metrics: dict[str, Any]) -> Table:
    """The figures for people: one line a figure, one column a tier, within 80 columns."""
    title = f"{metrics['history']}: {metrics['test_from']} to {metrics['test_until']}"
    found = _table(title, *(tier.replace("_", "\n") for tier in metrics["tiers"]))
    for name, figure in SHOWN.items():
        figures = [tier[figure] for tier in metrics["tiers"].values()]
        found.add_row(name, *(_spread(each["mean"], each["std"]) for each in figures))
    return found


def decisions_table(metrics: dict[str, Any]) -> Table:
    """How good the alerts are, within 80 columns: of the rules, the model, both."""
    decisions = metrics["decisions"]
    found = _table(
        f"Decisions, {decisions['chosen_by']}", "alerts\na day", "precision", "recall", "caught\na day", "missed\na day"
    )
    for name, key in DECIDED.items():
        figures = decisions[key]
        found.add_row(
            name,
            f"{figures['alerts_a_day']:,.1f}",
            *(shown(figures[each]) for each in ("precision", "recall")),
            *(f"{figures[each]:,.0f}" for each in ("money_caught_a_day", "money_missed_a_day")),
        )
    return found


def weeks_table(metrics: dict[str, Any]) -> Table:
    """What each window's operating point promised, with its 95 % interval, and what came; within 80 columns."""
    found = _table(
        "Promised, and what came", "alerts a day", "came", "precision", "came", "recall", "came", names="window from"
    )
    for week in metrics["decisions"]["weeks"]:
        promised, came = week["promised"], week["came"]
        alerts = promised["alerts_a_day"]
        cells = [
            f"{alerts['value']:,.1f} ({alerts['low']:,.0f}-{alerts['high']:,.0f})",
            f"{came['alerts_a_day']:,.1f}",
        ]
        for name in ("precision", "recall"):
            interval = promised.get(name)
            cells += [shown(None if interval is None else interval["value"]), shown(came[name])]
        found.add_row(week["week"], *cells)
    return found


def shown(share: float | None) -> str:
    """A share as it is printed."""
    return "-" if share is None else f"{share:.3f}"


def _table(title: str, *columns: str, names: str = "") -> Table:
    found = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True
    )
    found.add_column(names, no_wrap=True)
    for column in columns:
        found.add_column(column, justify="right")
    return found


def _spread(mean: float, std: float) -> str:
    digits = 3 if mean < 10 else 1 if mean < 1000 else 0
    return f"{mean:,.{digits}f} ± {std:,.{digits}f}"


def _between(history: History, begin: float, end: float, progress: Progress, task: Any) -> Iterator[Past]:
    for number, past in enumerate(history):
        if number % BATCH == 0:
            progress.update(task, completed=history.progress)
        if past.transaction.at >= end:
            return
        if past.transaction.at >= begin:
            yield past


if __name__ == "__main__":
    sys.exit(main())
