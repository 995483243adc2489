"""Measures detection: trains on what was known at a moment, and decides what came after, with labels that come late.

`python -m training.evaluate --history FILE --label-delay 7d --train-from A --test-from B --test-until C --out DIR`
writes scores.csv (its columns: `scores_columns`), metrics.json and report.html. The history is replayed through the
functions that the flow's steps call, in their order, with each label coming in when it comes: a test holds the two
equal, number by number. With `--weeks N` the test window is N weeks, and the model is trained anew for each, as the
"Reproducible Machine Learning for Credit Card Fraud Detection" handbook does.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import msgspec
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from dataflow.decision import combined
from dataflow.features import FIELDS, Facts
from dataflow.parsing import event_time
from dataflow.profile import Population
from dataflow.rules import RuleSet, load_rules
from dataflow.scoring import Bools, Columns, Floats, Indices, Metadata, Rows, Window
from dataflow.settings import Settings, UserError
from dataflow.tiers import COMPROMISED, GRADED, SUPERVISED, TieredModel
from training.history import (
    DAY,
    LABEL_COLUMN_HELP,
    History,
    LabelTime,
    Past,
    after,
    find_label_column,
    read_history,
    replay,
)
from training.measures import Measures, measure
from training.report import write_report
from training.tiers import (
    FOREST_FEATURES,
    SUPERVISED_FEATURES,
    TooFewLabelsError,
    all_tiers,
    fit,
    population,
)

BATCH = 4096
LABEL_COLUMNS = ("transaction_id", "fraud", "labelled_at")
CARDS_DAYS = 7
"""The handbook's training window: cards defrauded in it, as far as known, are not tested, however long we train."""
SHOWN = {
    "average precision": "average_precision",
    "ROC AUC": "roc_auc",
    "card precision 100": "card_precision_100",
    "recall at 0.1% FPR": "recall_at_0.001",
    "recall at 1% FPR": "recall_at_0.01",
    "alerts a day": "alerts_a_day",
}
"""The figures that are printed, by what they are called there; metrics.json has all."""
FEATURES = list(dict.fromkeys([*FOREST_FEATURES, *GRADED, COMPROMISED, *SUPERVISED_FEATURES]))


class Options(NamedTuple):
    """What the command line says; times in seconds since 1970 UTC."""

    history: Path
    labels: Path | None
    label_column: str | None  # as the user names it
    delay: float
    train_from: float
    test_from: float
    test_until: float
    weeks: int
    seeds: list[int]
    tiers: list[str]
    keep_known_cards: bool
    out: Path


class Replayed(NamedTuple):
    """The history as facts, one row a transaction, and what is known of each and from when on."""

    ids: list[str]
    users: "np.ndarray[Any, np.dtype[np.int32]]"  # numbered in the order in which they first came
    at: Floats
    rows: Rows  # (n, len(FEATURES))
    fraud: Bools
    labelled: Bools
    label_at: Floats  # infinite where no label ever comes
    scenario: list[str]
    tested: dict[int, Facts]  # of the rows from the start of the test on, for the rules


class Result(NamedTuple):
    """One model on one test window."""

    week: str
    seed: int
    measures: dict[str, Measures]  # of each tier
    window: Indices  # its rows, all of them
    tested: Bools  # those among them that are measured: whose truth is known, and not of cards known as compromised
    model: TieredModel


class Label(NamedTuple):
    """What a labels file says of a transaction."""

    fraud: bool
    at: float  # when it came, seconds since 1970 UTC


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
    if options.labels is None:
        column = find_label_column(options.history, options.label_column)
        history = read_history(options.history, label_column=column)
    else:
        history = read_history(options.history, label_column=None)
        history, label_time = relabelled(history, read_labels(options.labels))
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), console=console
    ) as progress:
        task = progress.add_task("learn what amounts are like", total=1.0)
        among_all = population(_between(history, options.train_from, options.test_from, progress, task))
        progress.update(task, completed=1.0)
        replayed = collect(history, options, among_all, label_time, progress)
        results = []
        windows = _windows(options)
        task = progress.add_task("train and test", total=len(windows) * len(options.seeds))
        for begin, end in windows:
            for seed in options.seeds:
                results.append(train_and_test(replayed, options, among_all, begin, end, seed))
                progress.advance(task)
    options.out.mkdir(parents=True, exist_ok=True)
    rules = load_rules(Settings().rules_file)
    of_first_seed = [result for result in results if result.seed == options.seeds[0]]
    decided = write_scores(options.out / "scores.csv", replayed, of_first_seed, rules)
    metrics = summarise(options, results) | {"decisions": decided}
    (options.out / "metrics.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(metrics, order="sorted"), indent=2) + b"\n"
    )
    write_report(options.out / "report.html", metrics, [(r.measures, r.week, r.seed) for r in results])
    Console().print(table(metrics))


def collect(
    history: History, options: Options, among_all: Population, label_time: LabelTime, progress: Progress
) -> Replayed:
    """Replays the history up to the end of the test, and keeps the models' columns."""
    columns = Columns(FEATURES)
    task = progress.add_task("replay the history", total=1.0)
    numbers: dict[str, int] = {}
    ids: list[str] = []
    users, at, scenario = [], [], []
    blocks, truth, label_at = [], [], []
    tested: dict[int, Facts] = {}

    def until() -> Iterator[Past]:
        for past in history:
            if past.transaction.at >= options.test_until:
                return
            yield past

    replaying = replay(until(), among_all, label_time)
    while batch := list(islice(replaying, BATCH)):
        blocks.append(columns([facts for _, facts in batch]))
        for past, facts in batch:
            txn = past.transaction
            if txn.at >= options.test_from:
                tested[len(ids)] = facts
            ids.append(txn.transaction_id or "")
            users.append(numbers.setdefault(txn.user, len(numbers)))
            at.append(txn.at)
            truth.append(2 if past.fraud is None else int(past.fraud))
            comes = label_time(past)
            label_at.append(np.inf if comes is None else comes)
            scenario.append(past.scenario)
        progress.update(task, completed=history.progress)
    progress.update(task, completed=1.0)
    if not blocks:
        msg = f"{options.history} has no transaction before {_day(options.test_until)}"
        raise UserError(msg)
    rows = np.concatenate(blocks)
    rows[np.isinf(rows)] = np.float32(30 * DAY)  # "seconds since the last", where there was none
    known = np.array(truth, np.int8)
    return Replayed(
        ids=ids,
        users=np.array(users, np.int32),
        at=np.array(at),
        rows=rows,
        fraud=known == 1,
        labelled=known < 2,
        label_at=np.array(label_at),
        scenario=scenario,
        tested=tested,
    )


def train_and_test(
    replayed: Replayed, options: Options, among_all: Population, begin: float, end: float, seed: int
) -> Result:
    """Trains on what was known at `begin`, and scores what lies between `begin` and `end`.

    Raises:
        UserError: the window holds too little to train on or to test.
    """
    at = replayed.at
    shift = begin - options.test_from  # each week is trained on a window of the same length before it
    past = (at >= options.train_from + shift) & (at < begin)
    in_time = replayed.labelled & (replayed.label_at <= begin)
    try:
        rows = np.ascontiguousarray(replayed.rows[past])
        artifact = fit(
            options.tiers, rows, FEATURES, replayed.fraud[past], in_time[past], among_all, seed, 0.01, jobs=2
        )
    except TooFewLabelsError as error:
        advice = "take an earlier --train-from, or --tiers feedback"
        msg = f"cannot train for the window from {_day(begin)}: {error}: {advice}"
        raise UserError(msg) from None
    except ValueError as error:
        msg = f"cannot train for the window from {_day(begin)}: {error}"
        raise UserError(msg) from error
    # Cards known as compromised by then are not tested: they would be blocked. The handbook removes those that the
    # training knew, and day by day those that became known since.
    test = (at >= begin) & (at < end)
    window = np.flatnonzero(test)
    test &= replayed.labelled
    if not options.keep_known_cards:
        test &= ~known_cards(replayed, begin - options.delay - CARDS_DAYS * DAY, begin, end)
    chosen = np.flatnonzero(test)
    if not replayed.fraud[chosen].any() or replayed.fraud[chosen].all():
        msg = f"the test window from {_day(begin)} needs both fraud and genuine transactions"
        raise UserError(msg)
    model = TieredModel(_metadata(options, seed, begin), artifact)
    risk: dict[str, list[Floats]] = {}
    for start in range(0, len(chosen), BATCH):
        part = np.ascontiguousarray(replayed.rows[chosen[start : start + BATCH]])
        for tier, values in model.tiers(part).items():
            risk.setdefault(tier, []).append(values)
    scenario = [replayed.scenario[n] for n in chosen]
    measures = {
        tier: measure(np.concatenate(values), replayed.fraud[chosen], at[chosen], replayed.users[chosen], scenario)
        for tier, values in risk.items()
    }
    return Result(_day(begin), seed, measures, window, test[window], model)


def known_cards(replayed: Replayed, since: float, begin: float, end: float) -> Bools:
    """Transactions of users of whom a fraud since `since` was known at the start of the transaction's day."""
    first_known = np.full(int(replayed.users.max()) + 1, np.inf)
    frauds = replayed.fraud & (replayed.at >= since) & (replayed.at < end) & np.isfinite(replayed.label_at)
    np.minimum.at(first_known, replayed.users[frauds], replayed.label_at[frauds])
    day = begin + (replayed.at - begin) // DAY * DAY
    known: Bools = first_known[replayed.users] <= day
    return known


def scores_columns(tiers: Sequence[str]) -> list[str]:
    """The columns of scores.csv, which has one line a transaction of the test, by the models of the first seed.

    transaction_id, user, amount; timestamp: the event time, ISO 8601, UTC. label: 1 fraud, 0 genuine, empty where it is
    not known; the truth, also where it became known after the test. score_TIER: 0 to 1, of each tier by itself. score:
    0 to 1, as the flow writes it, of the model's last tier and the rules that fired. fraudulent: 1 or 0, the decision.
    reason: why, with " | " between several.
    """
    of_tiers = [f"score_{tier}" for tier in tiers]
    return ["transaction_id", "user", "timestamp", "amount", "label", *of_tiers, "score", "fraudulent", "reason"]


def write_scores(path: Path, replayed: Replayed, results: list[Result], rules: RuleSet) -> dict[str, Any]:
    """One line a transaction of the windows (`scores_columns`), with the decision of the results' models and the rules.

    Gives how good these decisions are: alerts a day, precision and recall, in all and of each rule by itself; of the
    transactions that are measured.
    """
    tally: dict[str, list[int]] = {"": [0, 0]}  # by rule, "" for all: alerts, and frauds among them
    measured = frauds = 0
    names = [field.name for field in FIELDS]
    user, amount = names.index("user"), names.index("amount")
    tiers = list(results[0].measures)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(scores_columns(tiers))
        for result in results:
            for begin in range(0, len(result.window), BATCH):
                window = result.window[begin : begin + BATCH]
                block = np.ascontiguousarray(replayed.rows[window])
                risks, anomalies = result.model.score(block)
                model_fields = result.model.operating_point.columns(risks, anomalies)
                of_tiers = result.model.tiers(block)
                by_tier = zip(*(of_tiers[tier].tolist() for tier in tiers), strict=True)
                known = result.tested[begin : begin + BATCH].tolist()
                places, risks = window.tolist(), risks.tolist()
                rows = [
                    (*replayed.tested[row], *of_model)
                    for row, of_model in zip(places, zip(*model_fields.values(), strict=True), strict=True)
                ]
                outcomes = rules.evaluate(rows)
                for row, risk, scores, tested, outcome in zip(places, risks, by_tier, known, outcomes, strict=True):
                    facts = replayed.tested[row]
                    when = datetime.fromtimestamp(replayed.at[row], UTC).isoformat()
                    label = int(replayed.fraud[row]) if replayed.labelled[row] else ""
                    score = combined(outcome.doubt, risk)
                    reason = " | ".join(outcome.reasons)
                    decided = (*scores, score, int(outcome.fraudulent), reason)
                    writer.writerow((replayed.ids[row], facts[user], when, facts[amount], label, *decided))
                    if not tested:
                        continue
                    fraud = bool(replayed.fraud[row])
                    measured, frauds = measured + 1, frauds + fraud
                    for name in ("", *outcome.rules) if outcome.fraudulent else ():
                        of_rule = tally.setdefault(name, [0, 0])
                        of_rule[0] += 1
                        of_rule[1] += fraud
    days = sum(replayed.at[result.window[-1]] - replayed.at[result.window[0]] for result in results) / DAY

    def figures(alerts: int, right: int) -> dict[str, float | None]:
        return {
            "alerts": alerts,
            "alerts_a_day": alerts / max(float(days), 1.0),
            "precision": right / alerts if alerts else None,
            "recall": right / frauds,
            "false_positive_rate": (alerts - right) / (measured - frauds),
        }

    return {
        "ruleset_version": rules.version,
        "all": figures(*tally.pop("")),
        "by_rule": {name: figures(*counts) for name, counts in sorted(tally.items())},
    }


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
        "train_from": _day(options.train_from),
        "test_from": _day(options.test_from),
        "test_until": _day(options.test_until),
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
    """How much each fact matters to the random forest of the supervised tier; empty without one."""
    return dict(sorted(model.importance.items(), key=lambda item: -item[1]))


def table(metrics: dict[str, Any]) -> Table:
    """The figures for people: one line a figure, one column a tier, within 80 columns."""
    found = Table(
        title=f"{metrics['history']}: {metrics['test_from']} to {metrics['test_until']}",
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    found.add_column("", no_wrap=True)
    for tier in metrics["tiers"]:
        found.add_column(tier.replace("_", "\n"), justify="right")
    for title, name in SHOWN.items():
        figures = [tier[name] for tier in metrics["tiers"].values()]
        found.add_row(title, *(_spread(each["mean"], each["std"]) for each in figures))
    return found


def _spread(mean: float, std: float) -> str:
    digits = 3 if mean < 10 else 1 if mean < 1000 else 0
    return f"{mean:,.{digits}f} ± {std:,.{digits}f}"


def relabelled(history: History, labels: dict[str, Label]) -> tuple[History, LabelTime]:
    """The history with the truth of the labels alone, and when each came; of what they lack, nothing is known."""

    def rows() -> Iterator[Past]:
        for past in history:
            label = labels.get(past.transaction.transaction_id or "")
            yield Past(past.transaction, None if label is None else label.fraud, past.scenario)

    def label_time(past: Past) -> float | None:
        label = labels.get(past.transaction.transaction_id or "")
        return None if label is None else label.at

    return History(history.source, rows, lambda: history.progress), label_time


def read_labels(path: Path) -> dict[str, Label]:
    """The labels of a CSV (transaction_id, fraud, labelled_at) by transaction_id; of two, the last line counts.

    Raises:
        UserError: it cannot be read, or a line of it is wrong.
    """
    labels = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in LABEL_COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                msg = f"{path}: the column {missing[0]!r} is missing: it takes {', '.join(LABEL_COLUMNS)}"
                raise UserError(msg)
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                name, fraud, labelled_at = (row[column] or "" for column in LABEL_COLUMNS)
                if not name:
                    msg = f"{where}: there is no transaction_id: mend or remove that line"
                    raise UserError(msg)
                if fraud not in ("0", "1"):
                    msg = f"{where}: fraud is {fraud[:40]!r}, neither 0 nor 1: mend or remove that line"
                    raise UserError(msg)
                try:
                    labels[name] = Label(fraud == "1", event_time(labelled_at))
                except (ValueError, OverflowError):
                    msg = f"{where}: labelled_at {labelled_at[:40]!r} is no ISO 8601 time: mend or remove that line"
                    raise UserError(msg) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        msg = f"{path}: cannot be read as a CSV in UTF-8 ({error})"
        raise UserError(msg) from None
    return labels


def parse(argv: Sequence[str] | None) -> Options:
    """Reads the command line.

    Raises:
        UserError: an argument is wrong.
    """
    parser = _Parser(prog="python -m training.evaluate", description="Measure detection on a labelled history.")
    parser.add_argument("--history", type=Path, required=True, metavar="FILE", help="a .csv, .csv.gz or .parquet")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="transaction_id, fraud, labelled_at; what is not in it is not known"
    )
    parser.add_argument("--label-column", metavar="NAME", help=LABEL_COLUMN_HELP)
    parser.add_argument(
        "--label-delay",
        type=_days,
        default=7 * DAY,
        metavar="7d",
        help="how long after its transaction a label of the history comes; default 7d",
    )
    parser.add_argument("--train-from", type=_moment, required=True, metavar="A")
    parser.add_argument("--test-from", type=_moment, required=True, metavar="B")
    parser.add_argument("--test-until", type=_moment, required=True, metavar="C")
    parser.add_argument(
        "--weeks", type=int, default=1, metavar="N", help="parts of the test window, each trained for; default 1"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N", help="default 1 2 3")
    parser.add_argument(
        "--tiers", choices=all_tiers(SUPERVISED)[1:], default=SUPERVISED, help=f"the last tier; default {SUPERVISED}"
    )
    parser.add_argument("--keep-known-cards", action="store_true", help="test cards known as compromised, too")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    given = parser.parse_args(argv)
    if not given.train_from < given.test_from < given.test_until:
        parser.error("--train-from must lie before --test-from, and that before --test-until")
    if given.labels is not None and given.label_column is not None:
        parser.error("argument --label-column: is for labels in the history, and --labels names a file of them")
    if given.weeks < 1:
        parser.error("argument --weeks: it takes a whole number from 1")
    return Options(
        given.history,
        given.labels,
        given.label_column,
        given.label_delay,
        given.train_from,
        given.test_from,
        given.test_until,
        given.weeks,
        given.seeds,
        all_tiers(given.tiers),
        given.keep_known_cards,
        given.out,
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        msg = f"{message} (python -m training.evaluate --help lists them all)"
        raise UserError(msg)


def _moment(text: str) -> float:
    try:
        return event_time(text)
    except (ValueError, OverflowError):
        msg = f"{text!r} is no ISO 8601 time"
        raise argparse.ArgumentTypeError(msg) from None


def _days(text: str) -> float:
    number = text.removesuffix("d")
    if not text.endswith("d") or not number.replace(".", "", 1).isdigit():
        msg = f"{text!r} is no number of days such as 7d"
        raise argparse.ArgumentTypeError(msg)
    return float(number) * DAY


def _windows(options: Options) -> list[tuple[float, float]]:
    length = (options.test_until - options.test_from) / options.weeks
    return [(options.test_from + n * length, options.test_from + (n + 1) * length) for n in range(options.weeks)]


def _between(history: History, begin: float, end: float, progress: Progress, task: Any) -> Iterator[Past]:
    for number, past in enumerate(history):
        if number % BATCH == 0:
            progress.update(task, completed=history.progress)
        if past.transaction.at >= end:
            return
        if past.transaction.at >= begin:
            yield past


def _metadata(options: Options, seed: int, begin: float) -> Metadata:
    window = Window(source=options.history.name, first=_day(options.train_from), last=_day(begin), rows=0)
    return Metadata(
        format=1,
        tiers=options.tiers,
        features=FEATURES,
        sha256="",
        fingerprint="evaluation",
        versions={},
        window=window,
        hyperparameters={},
        seed=seed,
        metrics={},
        created_at="",
    )


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()


if __name__ == "__main__":
    sys.exit(main())
