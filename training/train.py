"""Trains the model: replays a history through the flow's own profiles, and fits an Isolation Forest and more.

`python -m training.train` writes fraud_model.pkl, and beside it fraud_model.json (what it is, see `scoring.Metadata`)
and fraud_model.png (how the scores are spread, and where the threshold lies). How good it is, is measured on time that
lies after what was learned: a model of the same kind is fitted to the first three quarters of the transactions, and
decides the last one; on that the operating point is chosen, too. The model that is written is fitted to all of them.
"""

import hashlib
import io
import platform
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain, starmap, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from dataflow.errors import UserError
from dataflow.events.transaction import DAY
from dataflow.process.whole_files import put_in_place
from dataflow.profiles.amounts import AmountPrior
from dataflow.profiles.profiles import NO_PRIOR
from dataflow.rules import RuleSet, load_rules
from dataflow.scoring.loading import agrees, ask
from dataflow.scoring.metadata import FORMAT, ISOLATION_FOREST, Metadata, Window, fingerprint
from dataflow.scoring.operating_point import OperatingPoint
from dataflow.scoring.tiers import FEEDBACK, SUPERVISED
from training.fitting.common_values import common_values
from training.fitting.fitting import (
    BATCH,
    collect,
    features_of,
    figures,
    fit,
    make_model,
    scored,
    scores,
)
from training.fitting.infinities import CannotFitError
from training.fitting.options import Options, parse
from training.fitting.tiers import FEWEST_FRAUDS, MAX_SAMPLES, all_tiers, amount_prior
from training.fitting.tiers import TREES as TIER_TREES
from training.histories.history import History, Past, find_label_column, read_history
from training.histories.replayed import Replayed, iso
from training.operating_points.operating_points import (
    FEWEST_TO_CARRY_OVER,
    Note,
    Scored,
    carried_over,
    choose,
    need_labels,
    part,
    reads_model,
)
from training.operating_points.report import draw, table, told
from training.plots import drawing, png

LATER = 0.25
"""The share of the transactions, the last in time, that the figures are measured on."""
WIDTH = 80
_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
_LIBRARIES = ("scikit-learn", "numpy", "joblib", "numba")


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
        if options.history is not None and label_column is None:
            need_labels(options.choice, str(options.history))
            if options.tier_by_default:
                options = options._replace(tiers=all_tiers(FEEDBACK))
        trained = train(history, options, Console(stderr=True))
    except UserError as error:
        print(f"redflag: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("redflag: stopped, nothing was written", file=sys.stderr)
        return 130
    print(summary(options, trained))
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


class Trained(NamedTuple):
    """What was written, and what the user should know of it."""

    metadata: Metadata
    notes: list[str]


def train(history: History, options: Options, console: Console) -> Trained:
    """Replays, fits, measures, writes model, metadata and picture; the progress shows where the console is a terminal.

    The same history, options and library versions give the same pickle, byte for byte.

    Raises:
        UserError: the history is wrong or too short, or the files cannot be written.
    """
    import joblib

    choice_notes: list[str] = []
    with _progress(console) as progress:
        rules = load_rules(options.rules)
        replayed, prior = _replayed(history, options, rules, progress)
        with _step(progress, "fit"):
            artifact, options, replayed = _fit(replayed, options, prior)
            buffer = io.BytesIO()
            joblib.dump(artifact, buffer)
            metadata = describe(buffer.getvalue(), options, replayed.window(history.source))
            model = make_model(metadata, artifact)
            if not agrees(model, ask(metadata, artifact)):
                msg = "compiled, the model scores otherwise than in scikit-learn, so nothing was written: report this"
                raise UserError(msg)
        with _step(progress, "score the history") as tell:
            whole = scored(model, replayed, tell, "")
            forest = scores(model, replayed.rows, tell)[ISOLATION_FOREST]
        later = score_later(history, options, replayed, metadata, rules, progress)
        point = choose_point(later, whole, options, model.threshold, choice_notes.append)
        known = replayed.known_by(replayed.times[-1], options.label_delay)
        metrics = {
            "threshold": model.threshold,
            "training_data": {
                "share_flagged": float(np.mean(forest > model.threshold)),
                "score_quantiles": {f"{q:g}": float(np.quantile(forest, q)) for q in _QUANTILES},
                "known_labels": int(known.sum()),
                "known_frauds": int((known & replayed.fraud).sum()),
            },
            "later_data": {"not_measured": later} if isinstance(later, str) else later.figures,
        }
        values = common_values(replayed.rows, metadata.features, replayed.fraud, known)
        metadata = msgspec.structs.replace(metadata, metrics=metrics, operating_point=point, common_values=values)
        with _step(progress, "write"):
            write(options.out, buffer.getvalue(), metadata, picture(whole, point, options))
    return Trained(metadata, [*notes_on(options, rules), *choice_notes])


def _fit(replayed: Replayed, options: Options, prior: AmountPrior) -> tuple[Any, Options, Replayed]:
    """What is fitted; and to which rows, by which options: without the supervised tier where it was but the default."""
    try:
        return fit(replayed, options, prior, replayed.times[-1]), options, replayed
    except CannotFitError as error:
        if not options.tier_by_default or options.tiers[-1] != SUPERVISED:
            msg = f"--tiers {options.tiers[-1]}: {error}: {error.advice}"
            raise UserError(msg) from None
        lower = options._replace(tiers=all_tiers(FEEDBACK), fallback=str(error))
        return _fit(replayed.with_features(features_of(options), features_of(lower)), lower, prior)


class Later(NamedTuple):
    """The last transactions of a history, scored by a model that was fitted to those before them."""

    begin: int  # their place in the whole history
    scored: Scored
    figures: dict[str, Any]  # for the metadata: `window`, `fitted_to`, and see `fitting.figures`


def score_later(
    history: History, options: Options, whole: Replayed, metadata: Metadata, rules: RuleSet, progress: Progress
) -> Later | str:
    """How a model that is fitted to the earlier transactions decides the later ones, `LATER` of all.

    Nothing of the later part is known to that model: not its labels, not its amounts; while it decides, labels come in
    with their delay, as they would live. Where it cannot be fitted, this says why.
    """
    moment = float(np.quantile(whole.times, 1 - LATER, method="higher"))
    first = int(np.searchsorted(whole.times, moment))
    try:
        if first < 2:
            why = f"only {first} transactions lie before the last quarter"
            raise CannotFitError(why, "take a longer history")
        replayed, prior = whole, NO_PRIOR
        if options.tiers != [ISOLATION_FOREST]:
            replayed, prior = _replayed(history, options, rules, progress, moment)
        earlier, later = replayed.part(slice(first)), replayed.part(slice(first, None))
        with _step(progress, "fit to the earlier part"):
            model = make_model(metadata, fit(earlier, options, prior, moment))
    except CannotFitError as error:
        return str(error)
    window, fitted_to = later.window(history.source), earlier.window(history.source)
    with _step(progress, "score the later part") as tell:
        risks = scores(model, later.rows, tell)
        seen = scored(model, later, tell, f"{_span(window)}, by a model of the {fitted_to.rows:,} before them")
    return Later(first, seen, {"window": window, "fitted_to": fitted_to, **figures(risks, model.threshold, later)})


def choose_point(
    later: Later | str, whole: Scored, options: Options, forest_threshold: float, note: Note
) -> OperatingPoint:
    """The operating point of the model that has scored the `whole` history to which it was fitted.

    It is chosen on the later part, by the scores of the model of the earlier part, and carried over by the transactions
    that neither model has learned from: those whose labels have not come by the end. Where there is no such model, it
    is chosen on these alone, and where they are too few, on the training scores.

    Raises:
        UserError: the choice needs what the history does not have.
    """
    forest = forest_threshold if options.tiers == [ISOLATION_FOREST] else None
    supervised = options.tiers[-1] == SUPERVISED
    unseen = ~whole.labelled | (whole.times + options.label_delay > whole.times[-1])
    if isinstance(later, Later):
        chosen = choose(later.scored, options.choice, note, of_forest=forest)
        shared = unseen[later.begin :] if supervised else np.ones(len(later.scored.risk), np.bool_)
        if forest is not None or shared.sum() < FEWEST_TO_CARRY_OVER:
            return chosen
        return carried_over(chosen, later.scored.risk[shared], whole.risk[later.begin :][shared])
    if supervised and unseen.sum() >= FEWEST_TO_CARRY_OVER:
        rest = part(whole, unseen)
        told = f"the {len(rest.risk):,} transactions whose labels had not come by the end ({later})"
        return choose(rest._replace(measured_on=told), options.choice, note)
    told = f"the {len(whole.risk):,} transactions that it was trained on ({later})"
    if supervised:  # what it has learned by heart is no measure of its precision
        whole = whole._replace(labelled=np.zeros(len(whole.risk), np.bool_))
    return choose(whole._replace(measured_on=told), options.choice, note, of_forest=forest)


def notes_on(options: Options, rules: RuleSet) -> list[str]:
    """What else the user should know of these options."""
    notes = []
    if options.fallback:
        notes.append(f"--tiers {SUPERVISED}, the default, was not to be had: {options.fallback}; so it is {FEEDBACK}")
    if not reads_model(rules):
        notes.append(f"no active rule of {options.rules} reads model_alert, so the model by itself alerts on nothing")
    return notes


def _replayed(
    history: History, options: Options, rules: RuleSet, progress: Progress, until: float = np.inf
) -> tuple[Replayed, AmountPrior]:
    """The history as rows, and what amounts are like among all before `until`, which a forest alone does not ask."""
    prior = NO_PRIOR
    if options.tiers != [ISOLATION_FOREST]:
        with _step(progress, "learn what amounts are like") as tell:
            earlier = takewhile(lambda past: past.transaction.at < until, history)
            prior = amount_prior(_watched(earlier, history, tell))
    with _step(progress, "replay the history") as tell:
        return collect(history, options, prior, rules, tell), prior


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


def picture(whole: Scored, point: OperatingPoint, options: Options) -> bytes:
    """A PNG: how the risks of the training window are spread, fraud apart where it is known, and the point's curve."""
    figure, (axes, beside) = drawing(13, 4.5, columns=2)
    risk = whole.risk
    bins = np.linspace(risk.min(), max(risk.max(), risk.min() + 1e-6), 80).tolist()
    axes.hist(risk, bins, color="#9aa5b1", label=f"all {len(risk):,} transactions", log=True)
    fraud = whole.fraud & whole.labelled
    if fraud.any():
        axes.hist(risk[fraud], bins, color="#c0392b", label=f"{int(fraud.sum()):,} known frauds", log=True)
    share = float(np.mean(point.alerts(risk, lambda: whole.anomaly)))
    axes.axvline(point.alert, color="black", linestyle="--", label=f"alerts from {point.alert:.3f}: {share:.2%}")
    if point.block is not None:
        axes.axvline(point.block, color="black", linestyle=":", label=f"blocks from {point.block:.3f}")
    axes.set(
        xlabel=f"risk ({options.tiers[-1]})",
        ylabel="transactions, log scale",
        title=f"Risks over the training window, {iso(whole.times[0])[:10]} to {iso(whole.times[-1])[:10]}",
    )
    axes.legend(frameon=False)
    draw(beside, point)
    beside.set_title(f"What other thresholds would give; {point.chosen_by}")
    return png(figure)


def write(out: Path, pickled: bytes, metadata: Metadata, picture: bytes) -> None:
    """Puts the three files in place, each whole or not at all.

    Were the machine to stop between two renames, the digests would not match, and the flow would refuse the pair.
    """
    put_in_place(
        {
            out.with_suffix(".png"): picture,
            out: pickled,
            out.with_suffix(".json"): msgspec.json.format(msgspec.json.encode(metadata), indent=2) + b"\n",
        }
    )


def summary(options: Options, trained: Trained) -> str:
    """What was trained, for people, in lines of 80 columns."""
    metadata = trained.metadata
    out, window, metrics, point = options.out, metadata.window, metadata.metrics, metadata.operating_point
    on_training, later = metrics["training_data"], metrics["later_data"]
    parts = [
        ("features", ", ".join(metadata.features)),
        ("fitted to", f"all {_span(window)} ({window.source})"),
        ("forest", f"threshold {metrics['threshold']:.4f}, {on_training['share_flagged']:.2%} of them above it"),
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
    curve: list[str] = []
    if point is not None:
        parts.append(("alerts", told(point)))
        parts.append(("", f"as {point.measured_on}"))
        curve = ["", *table(point), ""]
    parts += [("note", note) for note in trained.notes]
    beside = ("beside it", f"{out.with_suffix('.json').name}, {out.with_suffix('.png').name}")
    title = (
        f"{out}: {', '.join(metadata.tiers)}; {metadata.hyperparameters['trees']} isolation trees; version "
        f"{metadata.fingerprint[:12]}"
    )

    def told_in_lines(name: str, text: str) -> list[str]:
        return _wrapped(text, f"  {name:<11}", " " * 13)

    return "\n".join(
        [*_wrapped(title, "", "  "), *chain(*starmap(told_in_lines, parts)), *curve, *told_in_lines(*beside)]
    )


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
