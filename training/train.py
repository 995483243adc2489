"""Trains the model: replays a history through the flow's own profiles and facts, and fits an Isolation Forest and more.

`python -m training.train` writes fraud_model.pkl, and beside it fraud_model.json (what it is, see `scoring.Metadata`)
and fraud_model.png (how the scores are spread, and where the threshold lies). How good it is, is measured on time that
lies after what was learned: a model of the same kind is fitted to the first three quarters of the transactions, and
decides the last one. The model that is written is fitted to all of them.
"""

import hashlib
import io
import os
import platform
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from dataflow.profile import ANYONE, Population
from dataflow.scoring import FORMAT, ISOLATION_FOREST, Floats, Metadata, Window, agrees, fingerprint
from dataflow.settings import UserError
from dataflow.tiers import SUPERVISED, TieredModel
from training.fitting import (
    BATCH,
    CannotFitError,
    Replayed,
    collect,
    features_of,
    figures,
    fit,
    iso,
    make_model,
    scores,
)
from training.fraud_factors import common_values
from training.history import DAY, History, Past, find_label_column, read_history
from training.tiers import FEWEST_FRAUDS, MAX_SAMPLES, population
from training.tiers import TREES as TIER_TREES
from training.train_options import Options, parse

LATER = 0.25
"""The share of the transactions, the last in time, that the figures are measured on."""
WIDTH = 80
_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
_LIBRARIES = ("scikit-learn", "numpy", "joblib", "onnx", "onnxruntime")


def main(argv: Sequence[str] | None = None) -> int:
    """Trains as the command line says; returns the exit status: 2 for a user's mistake, told in one line."""
    try:
        options = parse(argv)
        if not options.force:
            refuse_to_replace(options.out)
        label_column = None
        if options.history is not None:
            label_column = find_label_column(options.history, options.label_column)
        history = read_history(
            options.history,
            seed=options.seed,
            users=options.users,
            days=options.days,
            population=options.population,
            label_column=label_column,
        )
        metadata = train(history, options, Console(stderr=True))
    except UserError as error:
        print(f"redflag: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("redflag: stopped, nothing was written", file=sys.stderr)
        return 130
    print(summary(options, metadata))
    return 0


def refuse_to_replace(out: Path) -> None:
    """Lets no model be replaced by accident: a flow may be using it, and takes the new one at its next start.

    Raises:
        UserError: there is a model of that name, or a part of one.
    """
    for path in (out, out.with_suffix(".json")):
        if path.exists():
            msg = (
                f"{path} is there already, and may be in service: replace it with --force (make train TRAIN=--force), "
                "or name another with --out (make train MODEL=other.pkl)"
            )
            raise UserError(msg)


def train(history: History, options: Options, console: Console) -> Metadata:
    """Replays, fits, measures, writes model, metadata and picture; the progress shows where the console is a terminal.

    The same history, options and library versions give the same pickle, byte for byte.

    Raises:
        UserError: the history is wrong or too short, or the files cannot be written.
    """
    import joblib

    with _progress(console) as progress:
        replayed, among_all = _replayed(history, options, progress)
        with _step(progress, "fit"):
            try:
                artifact = fit(replayed, options, among_all, replayed.times[-1])
            except CannotFitError as error:
                msg = f"--tiers {options.tiers[-1]}: {error}: {error.advice}"
                raise UserError(msg) from None
            buffer = io.BytesIO()
            joblib.dump(artifact, buffer)
            metadata = describe(buffer.getvalue(), options, replayed.window(history.source))
            model = make_model(metadata, artifact)
            if not (model.agrees(artifact) if isinstance(model, TieredModel) else agrees(model, artifact)):
                msg = "compiled, the model scores otherwise than in scikit-learn, so nothing was written: report this"
                raise UserError(msg)
        with _step(progress, "score the history") as tell:
            risk = scores(model, replayed.rows, tell)[ISOLATION_FOREST]
        known = replayed.known_by(replayed.times[-1], options.label_delay)
        metrics = {
            "threshold": model.threshold,
            "training_data": {
                "share_flagged": float(np.mean(risk > model.threshold)),
                "score_quantiles": {f"{q:g}": float(np.quantile(risk, q)) for q in _QUANTILES},
                "known_labels": int(known.sum()),
                "known_frauds": int((known & replayed.fraud).sum()),
            },
            "later_data": measure_later(history, options, replayed, metadata, progress),
        }
        values = common_values(replayed.rows, metadata.features, replayed.fraud, known)
        metadata = msgspec.structs.replace(metadata, metrics=metrics, common_values=values)
        with _step(progress, "write"):
            write(options.out, buffer.getvalue(), metadata, picture(risk, model.threshold, replayed))
    return metadata


def measure_later(
    history: History, options: Options, whole: Replayed, metadata: Metadata, progress: Progress
) -> dict[str, Any]:
    """How a model that is fitted to the earlier transactions decides the later ones, `LATER` of all.

    `window` and `fitted_to` say which these are; see `figures`. Nothing of the later part is known to that model: not
    its labels, not its amounts; while it decides, labels come in with their delay, as they would live. Where it cannot
    be fitted, `not_measured` says why.
    """
    moment = float(np.quantile(whole.times, 1 - LATER, method="higher"))
    first = int(np.searchsorted(whole.times, moment))
    try:
        if first < 2:
            why = f"only {first} transactions lie before the last quarter"
            raise CannotFitError(why, "take a longer history")
        replayed, among_all = whole, ANYONE
        if options.tiers != [ISOLATION_FOREST]:
            replayed, among_all = _replayed(history, options, progress, moment)
        earlier, later = replayed.part(slice(first)), replayed.part(slice(first, None))
        with _step(progress, "fit to the earlier part"):
            model = make_model(metadata, fit(earlier, options, among_all, moment))
    except CannotFitError as error:
        return {"not_measured": str(error)}
    with _step(progress, "score the later part") as tell:
        risks = scores(model, later.rows, tell)
    return {
        "window": later.window(history.source),
        "fitted_to": earlier.window(history.source),
        **figures(risks, model.threshold, later),
    }


def _replayed(
    history: History, options: Options, progress: Progress, until: float = np.inf
) -> tuple[Replayed, Population]:
    """The history as rows, and what amounts are like among all before `until`, which a forest alone does not ask."""
    among_all = ANYONE
    if options.tiers != [ISOLATION_FOREST]:
        with _step(progress, "learn what amounts are like") as tell:
            earlier = takewhile(lambda past: past.transaction.at < until, history)
            among_all = population(_watched(earlier, history, tell))
    with _step(progress, "replay the history") as tell:
        return collect(history, options, among_all, tell), among_all


def _watched(past: Iterable[Past], history: History, tell: Callable[[float], None]) -> Iterator[Past]:
    for number, each in enumerate(past):
        if number % BATCH == 0:
            tell(history.progress)
        yield each


def describe(pickled: bytes, options: Options, window: Window) -> Metadata:
    """The metadata of a pickled model, without metrics."""
    features = features_of(options)
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
        title=f"Scores over the training window, {iso(replayed.times[0])[:10]} to {iso(replayed.times[-1])[:10]}",
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


def summary(options: Options, metadata: Metadata) -> str:
    """What was trained, for people, in lines of 80 columns."""
    out, window, metrics = options.out, metadata.window, metadata.metrics
    on_training, later = metrics["training_data"], metrics["later_data"]
    parts = [
        ("features", ", ".join(metadata.features)),
        ("fitted to", f"all {_span(window)} ({window.source})"),
        ("threshold", f"{metrics['threshold']:.4f}, {on_training['share_flagged']:.2%} of them above it"),
    ]
    frauds = on_training["known_frauds"]
    if SUPERVISED not in metadata.tiers and frauds >= FEWEST_FRAUDS and frauds < on_training["known_labels"]:
        parts.append(
            ("labels", f"{frauds:,} frauds are known, enough for a tier that learns from them: --tiers {SUPERVISED}")
        )
    if "not_measured" in later:
        parts.append(("measured", f"not: {later['not_measured']}"))
    else:
        parts.append(
            ("measured", f"on the later {_span(later['window'])}, after a fit to the {_span(later['fitted_to'])}")
        )
        parts.append(("", f"{later['share_flagged']:.2%} above that fit's threshold"))
        if labelled := later.get("labelled"):
            parts[-1] = ("", f"{parts[-1][1]}; of {labelled['rows']:,} labels {labelled['fraud_share']:.2%} fraud")
        for tier, ranking in later.get("tiers", {}).items():
            figures = f"average precision {ranking['average_precision']:.3f}, ROC AUC {ranking['roc_auc']:.3f}"
            parts.append(("", f"{tier:<16} {figures}"))
    parts.append(("beside it", f"{out.with_suffix('.json').name}, {out.with_suffix('.png').name}"))
    title = (
        f"{out}: {', '.join(metadata.tiers)}; {metadata.hyperparameters['trees']} isolation trees; version "
        f"{metadata.fingerprint[:12]}"
    )
    return "\n".join([*_wrapped(title, "", "  "), *chain(*(_wrapped(t, f"  {n:<11}", " " * 13) for n, t in parts))])


def _wrapped(text: str, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )


def _span(window: Window) -> str:
    return f"{window.rows:,} transactions from {window.first[:16]} to {window.last[:16]}"


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description:28}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress


@contextmanager
def _step(progress: Progress, name: str) -> Iterator[Callable[[float], None]]:
    """A line of the progress; what it gives takes how much is done, 0 to 1."""
    task = progress.add_task(name, total=1.0)
    yield lambda done: progress.update(task, completed=done)
    progress.update(task, completed=1.0)


if __name__ == "__main__":
    sys.exit(main())
