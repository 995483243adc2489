"""Trains the model: replays a history through the flow's own profiles and facts, and fits an Isolation Forest.

`python -m training.train` writes fraud_model.pkl, and beside it fraud_model.json (what it is, see `scoring.Metadata`)
and fraud_model.png (how the scores are spread, and where the threshold lies).
"""

import argparse
import hashlib
import io
import math
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from dataflow.features import FIELDS
from dataflow.profile import ANYONE, Population
from dataflow.scoring import (
    FORMAT,
    ISOLATION_FOREST,
    TIERS,
    Bools,
    Columns,
    Floats,
    Metadata,
    Model,
    Rows,
    Window,
    agrees,
    fingerprint,
)
from dataflow.settings import UserError
from dataflow.simulation import POPULATIONS
from dataflow.tiers import FEEDBACK, SUPERVISED, TieredModel, needed
from training.history import DAY, History, LabelTime, Past, after, read_history, replay
from training.tiers import FOREST_FEATURES, MAX_SAMPLES, SUPERVISED_FEATURES, TooFewLabelsError, all_tiers, population
from training.tiers import TREES as TIER_TREES
from training.tiers import fit as fit_tiers

FEATURES = ("amount", "txn_per_hour")
USERS, DAYS, SEED = 2_000, 14.0, 42  # of the simulated history: 84,000 transactions
TIER_DAYS = 28.0  # of a model of several tiers: labels come a week late
TREES = 100  # of a forest alone
CONTAMINATION = 0.01  # the share of the history that the threshold calls anomalous
BATCH = 4_096  # transactions that become rows at a time

_LIBRARIES = ("scikit-learn", "numpy", "joblib", "onnx", "onnxruntime")


# The tutorial's three users at the generator's default pace of 2 transactions a second, from their first on: trained at
# a natural pace, or on the later hours alone, the forest would take every transaction of a new run for an outlier.
TUTORIAL_USERS, TUTORIAL_DAYS = 57_600, 0.0625


class Options(NamedTuple):
    """What the command line says."""

    history: Path | None
    out: Path
    trees: int
    contamination: float | str  # a share, or "auto": scikit-learn's fixed threshold of 0.5
    features: tuple[str, ...]
    seed: int
    users: int
    days: float
    population: str
    tiers: list[str]
    label_delay: float  # seconds


class Replayed(NamedTuple):
    """A history as the model sees it: one row a transaction, and what is known of it."""

    rows: Rows  # (n, features), finite but for NaN
    fraud: Bools  # (n,)
    labelled: Bools  # (n,), whether `fraud` is known
    times: Floats  # (n,), event times, ascending
    window: Window


def main(argv: Sequence[str] | None = None) -> int:
    """Trains as the command line says; returns the exit status: 2 for a user's mistake, told in one line."""
    try:
        options = parse(argv)
        history = read_history(
            options.history,
            seed=options.seed,
            users=options.users,
            days=options.days,
            population=options.population,
        )
        metadata = train(history, options, Console(stderr=True))
    except UserError as error:
        print(f"redflag: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("redflag: stopped, nothing was written", file=sys.stderr)
        return 130
    print(summary(options.out, metadata))
    return 0


def train(history: History, options: Options, console: Console) -> Metadata:
    """Replays, fits, writes model, metadata and picture; the progress shows where the console is a terminal.

    The same history, options and library versions give the same pickle, byte for byte.

    Raises:
        UserError: the history is wrong or too short, or the files cannot be written.
    """
    import joblib

    tiered = options.tiers != [ISOLATION_FOREST]
    features = needed(options.tiers, FOREST_FEATURES, SUPERVISED_FEATURES) if tiered else options.features
    with _progress(console) as progress:
        among_all = ANYONE
        if tiered:
            task = progress.add_task("learn what amounts are like", total=1.0)
            among_all = population(_watched(history, lambda done: progress.update(task, completed=done)))
        replayed = collect(history, features, progress, among_all, after(options.label_delay) if tiered else None)
        task = progress.add_task("fit", total=None)
        artifact: Any
        if tiered:
            # What the last days' labels will say is not known yet.
            in_time = replayed.labelled & (replayed.times + options.label_delay <= replayed.times[-1])
            names = list(features)
            try:
                artifact = fit_tiers(
                    options.tiers, replayed.rows, names, replayed.fraud, in_time, among_all, options.seed,
                    options.contamination,
                )  # fmt: skip
            except TooFewLabelsError as error:
                msg = f"--tiers {SUPERVISED}: {error}: take a longer history, or --tiers feedback"
                raise UserError(msg) from None
            features = needed(options.tiers, FOREST_FEATURES, SUPERVISED_FEATURES)
            replayed = replayed._replace(
                rows=np.ascontiguousarray(replayed.rows[:, [names.index(f) for f in features]])
            )
        else:
            artifact = fit(replayed.rows, options)
        buffer = io.BytesIO()
        joblib.dump(artifact, buffer)
        metadata = describe(buffer.getvalue(), options, replayed.window, features)
        progress.update(task, total=1, completed=1)

        task = progress.add_task("score the history", total=len(replayed.rows))
        model = TieredModel(metadata, artifact) if tiered else Model(metadata, artifact)
        if not (model.agrees(artifact) if isinstance(model, TieredModel) else agrees(model, artifact)):
            msg = "compiled, the model scores otherwise than in scikit-learn, so nothing was written: report this"
            raise UserError(msg)
        blocks: list[dict[str, Floats]] = []
        for begin in range(0, len(replayed.rows), BATCH):
            rows = replayed.rows[begin : begin + BATCH]
            tiers = model.tiers(rows) if isinstance(model, TieredModel) else {ISOLATION_FOREST: model.score(rows)[0]}
            blocks.append(tiers)
            progress.advance(task, len(rows))
        risks = {tier: np.concatenate([block[tier] for block in blocks]) for tier in blocks[0]}
        risk = risks[ISOLATION_FOREST]
        metrics = measure(risk, model.threshold, replayed)
        if tiered:
            metrics["tiers"] = {tier: rank(values, replayed) for tier, values in risks.items()}
        metadata = msgspec.structs.replace(metadata, metrics=metrics)
        progress.add_task("write", total=1, completed=1)
        write(options.out, buffer.getvalue(), metadata, picture(risk, model.threshold, replayed))
    return metadata


def _watched(history: History, tell: Callable[[float], None]) -> Iterator[Past]:
    for number, past in enumerate(history):
        if number % BATCH == 0:
            tell(history.progress)
        yield past


def rank(risk: Floats, replayed: Replayed) -> dict[str, float]:
    """How well a tier ranks the labelled transactions; empty where the labels are all of one kind."""
    known, fraud = risk[replayed.labelled], replayed.fraud[replayed.labelled]
    if not 0 < fraud.sum() < len(fraud):
        return {}
    from sklearn.metrics import average_precision_score, roc_auc_score

    return {
        "average_precision": float(average_precision_score(fraud, known)),
        "roc_auc": float(roc_auc_score(fraud, known)),
    }


def collect(
    history: History,
    features: Sequence[str],
    progress: Progress,
    among_all: Population = ANYONE,
    label_time: LabelTime | None = None,
) -> Replayed:
    """Replays the history and keeps the model's columns: 4 bytes a value, whatever the history's length."""
    columns = Columns(features)
    task = progress.add_task("replay the history", total=1.0)
    blocks: list[Rows] = []
    truth: list[bytes] = []
    times: list[float] = []
    replaying = replay(history, among_all, label_time)
    while batch := list(islice(replaying, BATCH)):
        blocks.append(columns([facts for _, facts in batch]))
        truth.append(bytes(2 if past.fraud is None else past.fraud for past, _ in batch))
        times += [past.transaction.at for past, _ in batch]
        progress.update(task, completed=history.progress)
    progress.update(task, completed=1.0)
    count = sum(map(len, blocks))
    if count < 2:
        msg = f"the history ({history.source}) holds {count} transactions: a model needs 2, and many to be good"
        raise UserError(msg)
    fraud = np.frombuffer(b"".join(truth), np.uint8)
    window = Window(source=history.source, first=_iso(times[0]), last=_iso(times[-1]), rows=count)
    return Replayed(bounded(np.concatenate(blocks), features), fraud == 1, fraud < 2, np.array(times), window)


def bounded(rows: Rows, features: Sequence[str]) -> Rows:
    """The rows with each infinite value put at its column's largest or smallest finite one.

    A tree cannot split between a number and infinity. Serving need not do this: every split lies below the largest
    value of its column, so an infinite value goes the same way as that.
    """
    for column, name in zip(rows.T, features, strict=True):
        infinite = np.isinf(column)
        if infinite.any():
            finite = column[np.isfinite(column)]
            if not len(finite):
                msg = f"the feature {name} has no finite value in this history: leave it out of --features"
                raise UserError(msg)
            column[infinite] = np.where(column[infinite] > 0, finite.max(), finite.min())
    return rows


def fit(rows: Rows, options: Options) -> Any:
    """A fitted `IsolationForest`."""
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(n_estimators=options.trees, contamination=options.contamination, random_state=options.seed)
    return forest.fit(rows)


def describe(pickled: bytes, options: Options, window: Window, features: Sequence[str]) -> Metadata:
    """The metadata of a pickled forest, without metrics."""
    sha256 = hashlib.sha256(pickled).hexdigest()
    return Metadata(
        format=FORMAT,
        tiers=options.tiers,
        features=list(features),
        sha256=sha256,
        fingerprint=fingerprint(options.tiers, features, sha256),
        versions={"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        window=window,
        hyperparameters=_hyperparameters(options),
        seed=options.seed,
        metrics={},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _hyperparameters(options: Options) -> dict[str, Any]:
    if options.tiers == [ISOLATION_FOREST]:
        return {"trees": options.trees, "contamination": options.contamination, "max_samples": "auto"}
    return {
        "trees": TIER_TREES,
        "contamination": options.contamination,
        "max_samples": MAX_SAMPLES,
        "label_delay_days": options.label_delay / DAY,
    }


def measure(risk: Floats, threshold: float, replayed: Replayed) -> dict[str, Any]:
    """Metrics on the training window itself; those that need labels only where both kinds are among them."""
    quantiles = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
    metrics: dict[str, Any] = {
        "measured_on": "the training window",
        "threshold": threshold,
        "share_flagged": float(np.mean(risk > threshold)),
        "score_quantiles": {f"{q:g}": float(np.quantile(risk, q)) for q in quantiles},
    }
    known, fraud = risk[replayed.labelled], replayed.fraud[replayed.labelled]
    if 0 < fraud.sum() < len(fraud):
        from sklearn.metrics import average_precision_score, roc_auc_score

        metrics["labelled"] = {
            "rows": len(fraud),
            "fraud_share": float(fraud.mean()),
            "average_precision": float(average_precision_score(fraud, known)),
            "roc_auc": float(roc_auc_score(fraud, known)),
            "precision_of_flagged": _share(fraud[known > threshold]),
            "recall_of_flagged": _share(known[fraud] > threshold),
        }
    return metrics


def picture(risk: Floats, threshold: float, replayed: Replayed) -> bytes:
    """A PNG of how the scores are spread, fraud apart where it is known, and of the threshold."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    bins = np.linspace(risk.min(), max(risk.max(), risk.min() + 1e-6), 80).tolist()
    axes.hist(risk, bins, color="#9aa5b1", label=f"all {len(risk):,} transactions", log=True)
    fraud = replayed.fraud & replayed.labelled
    if fraud.any():
        axes.hist(risk[fraud], bins, color="#c0392b", label=f"{int(fraud.sum()):,} known frauds", log=True)
    flagged = float(np.mean(risk > threshold))
    axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.3f}: {flagged:.2%} above it")
    axes.set(
        xlabel="score of the Isolation Forest (higher is riskier)",
        ylabel="transactions, log scale",
        title=f"Scores over the training window, {replayed.window.first[:10]} to {replayed.window.last[:10]}",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def write(out: Path, pickled: bytes, metadata: Metadata, png: bytes) -> None:
    """Puts the three files in place, each whole or not at all.

    They are written under other names and synced before any is renamed; were the machine to stop between two renames,
    the digests would not match, and the flow would refuse the pair.
    """
    contents = {
        out.with_suffix(".png"): png,
        out: pickled,
        out.with_suffix(".json"): msgspec.json.format(msgspec.json.encode(metadata), indent=2) + b"\n",
    }
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in contents}
    try:
        for path, content in contents.items():
            with temporary[path].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            temporary[path].replace(path)
    except OSError as error:
        msg = f"cannot write {error.filename or out}: {error.strerror}"
        raise UserError(msg) from None
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def summary(out: Path, metadata: Metadata) -> str:
    """What was trained, for people."""
    window, metrics = metadata.window, metadata.metrics
    lines = [
        f"{out}: {', '.join(metadata.tiers)}; {metadata.hyperparameters['trees']} isolation trees; version "
        f"{metadata.fingerprint[:12]}",
        f"  features   {', '.join(metadata.features)}",
        f"  history    {window.rows:,} transactions, {window.first[:10]} to {window.last[:10]} ({window.source})",
        f"  threshold  {metrics['threshold']:.4f}, {metrics['share_flagged']:.2%} of the history above it",
    ]
    if labelled := metrics.get("labelled"):
        lines.append(
            f"  labels     fraud {labelled['fraud_share']:.2%}; on the training window itself: average precision "
            f"{labelled['average_precision']:.3f}, ROC AUC {labelled['roc_auc']:.3f}"
        )
    for tier, ranking in metrics.get("tiers", {}).items():
        if ranking:
            lines.append(
                f"  {tier:<16} average precision {ranking['average_precision']:.3f}, ROC AUC {ranking['roc_auc']:.3f}"
            )
    return "\n".join([*lines, f"  beside it  {out.with_suffix('.json').name}, {out.with_suffix('.png').name}"])


def parse(argv: Sequence[str] | None) -> Options:
    """Reads the command line.

    Raises:
        UserError: an argument is wrong.
    """
    parser = _Parser(prog="python -m training.train", description="Train the model that the flow scores with.")
    parser.add_argument("--history", type=Path, metavar="FILE", help="a .csv, .csv.gz or .parquet; else simulated")
    parser.add_argument("--out", type=Path, default=Path("fraud_model.pkl"), metavar="FILE", help="default %(default)s")
    parser.add_argument("--trees", type=_whole(1, 10_000), metavar="N", help=f"default {TREES}")
    parser.add_argument(
        "--contamination",
        type=_contamination,
        default=CONTAMINATION,
        metavar="SHARE",
        help="share of the history above the threshold, up to 0.5, or auto; default %(default)s",
    )
    parser.add_argument("--features", type=_features, metavar="A,B", help=f"default {','.join(FEATURES)}")
    parser.add_argument("--seed", type=_whole(0, 2**32 - 1), default=SEED, metavar="N", help="default %(default)s")
    simulated = parser.add_argument_group("simulated history")
    simulated.add_argument("--population", choices=POPULATIONS, help=f"default {POPULATIONS[0]}")
    simulated.add_argument(
        "--users", type=_whole(1, 10_000_000), metavar="N", help=f"default {USERS}; tutorial {TUTORIAL_USERS}"
    )
    simulated.add_argument("--days", type=_days, metavar="N", help=f"default {DAYS:g}; tutorial {TUTORIAL_DAYS:g}")
    parser.add_argument(
        "--tiers",
        choices=[tiers[-1] for tiers in TIERS],
        help="the last tier of the model; default: feedback, where nothing is fitted to labels, or, with --features, "
        "--trees or the tutorial's population, isolation_forest",
    )
    parser.add_argument(
        "--label-delay",
        type=_delay,
        default=7 * DAY,
        metavar="7d",
        help="how long after its transaction a label comes; default 7d",
    )
    given = parser.parse_args(argv)
    plain = given.features is not None or given.population == "tutorial" or given.trees is not None
    last = given.tiers or (ISOLATION_FOREST if plain else FEEDBACK)
    if last != ISOLATION_FOREST and (given.features is not None or given.trees is not None):
        parser.error(
            "argument --tiers: --features and --trees are for isolation_forest alone, the others fix their own"
        )
    if given.history is not None:
        for name in ("population", "users", "days"):
            if getattr(given, name) is not None:
                parser.error(f"argument --{name}: is for a simulated history, and --history names a file")
    if given.out.suffix in ("", ".json", ".png"):
        parser.error("argument --out: name the pickle, fraud_model.pkl say; .json and .png are put beside it")
    if not given.out.parent.is_dir():
        parser.error(f"argument --out: there is no folder {given.out.parent}")
    return Options(
        history=given.history,
        out=given.out,
        trees=given.trees or TREES,
        contamination=given.contamination,
        features=given.features or FEATURES,
        seed=given.seed,
        users=given.users or (USERS if given.population != "tutorial" else TUTORIAL_USERS),
        days=given.days
        or (TUTORIAL_DAYS if given.population == "tutorial" else TIER_DAYS if last == SUPERVISED else DAYS),
        population=given.population or POPULATIONS[0],
        tiers=all_tiers(last),
        label_delay=given.label_delay,
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        msg = f"{message} (python -m training.train --help lists them all)"
        raise UserError(msg)


def _delay(text: str) -> float:
    match = re.fullmatch(r"(\d{1,4}(?:\.\d{1,3})?)([hd])", text)
    if match is None:
        msg = f"{text!r} is no time such as 12h or 7d"
        raise argparse.ArgumentTypeError(msg)
    return float(match[1]) * (DAY if match[2] == "d" else 3600.0)


def _whole(low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not re.fullmatch(r"\d{1,12}", text) or not low <= int(text) <= high:
            msg = f"{text!r} is no whole number from {low} to {high}"
            raise argparse.ArgumentTypeError(msg)
        return int(text)

    return convert


def _days(text: str) -> float:
    days = _number(text)
    if not 0 < days <= 3_660:
        msg = f"{text!r} is no number of days above 0 and up to 3660"
        raise argparse.ArgumentTypeError(msg)
    return days


def _contamination(text: str) -> float | str:
    if text != "auto" and not 0 < _number(text) <= 0.5:
        msg = f"{text!r} is neither auto nor a share above 0 and up to 0.5"
        raise argparse.ArgumentTypeError(msg)
    return text if text == "auto" else float(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _features(text: str) -> tuple[str, ...]:
    numbers = [field.name for field in FIELDS if field.kind == "number"]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in numbers:
            msg = f"{name!r} is none of the facts that are numbers: {', '.join(numbers)}"
            raise argparse.ArgumentTypeError(msg)
        if names.count(name) > 1:
            msg = f"{name!r} stands there twice"
            raise argparse.ArgumentTypeError(msg)
    return tuple(names)


def _share(of: Bools) -> float | None:
    return float(of.mean()) if len(of) else None


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description:24}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress


if __name__ == "__main__":
    sys.exit(main())
