"""Moves the operating point of a model in service, without training it anew; a running flow takes it up.

`python -m training.threshold --alerts-per-day 85 --history FILE` chooses it on transactions of the past, replayed as
the flow would have seen them, with labels as late as they come; with `--topics` on the decisions that the model has
made and the feedback on them; with neither on a simulation. `--at THRESHOLD` names it. What is written is the JSON
beside the model, and nothing of it but the operating point; with `--try` nothing is.
"""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from rich.console import Console

from dataflow.errors import UserError
from dataflow.events.transaction import DAY
from dataflow.process.whole_files import put_in_place
from dataflow.rules import load_rules
from dataflow.scoring.loading import load_model
from dataflow.scoring.metadata import Metadata, beside, read_metadata
from dataflow.scoring.operating_point import OperatingPoint
from training.operating_points.operating_points import Choice, Scored, choose, reads_model
from training.operating_points.options import Options, parse
from training.operating_points.report import table, told
from training.operating_points.sources import scored_by_replay, scored_on_topics

WIDTH = 80
ROWS = 8
"""Of the curve, around the new threshold, that are shown."""


def main(argv: Sequence[str] | None = None) -> int:
    """Moves the operating point as the command line says; returns the exit status: 2 for a user's mistake."""
    try:
        options = parse(argv)
        for line in move(options, Console(stderr=True)):
            print(line)
    except UserError as error:
        print(f"redflag: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("redflag: stopped, nothing was written", file=sys.stderr)
        return 130
    return 0


def move(options: Options, console: Console) -> list[str]:
    """Chooses the new operating point, writes it, and tells of the old and the new one in lines of 80 columns.

    Raises:
        UserError: there is no such model, the point cannot be chosen on these transactions, or it cannot be written.
    """
    model = load_model(options.model)
    rules = load_rules(options.rules)
    before = model.operating_point
    notes: list[str] = []
    scored: Scored | None = None
    if options.topics:
        scored = scored_on_topics(model, rules, options, notes.append)
    elif options.history is not None or options.choice is not None:
        scored = scored_by_replay(model, rules, options, console)
    if options.choice is not None and scored is not None:
        after = choose(scored, options.choice, notes.append)
        if after.block is None and before.block is not None:
            after = replace(after, block=max(before.block, after.alert))
            notes.append("the point from which it blocks stays, as no labels say where else it should be")
    else:
        after = _named(options, before, scored)
        if options.block_at is None and before.block is not None and after.block != before.block:
            notes.append("the point from which it blocks lay below that, and rises with it")
    if not reads_model(rules):
        notes.append(f"no active rule of {options.rules} reads model_alert: the model by itself alerts on nothing")
    if options.json is not None:
        _write_figures(options.json, model.version, _measured(before, scored), after, scored, notes)
    if not options.trial:
        write(options.model, model.metadata, after)
    return _lines(options.model, model.version, before, after, notes, trial=options.trial)


def _named(options: Options, before: OperatingPoint, scored: Scored | None) -> OperatingPoint:
    """The point that --at names, with what it gives on the transactions, where there are any."""
    assert options.at is not None  # noqa: S101 (the options see to it)
    block = options.block_at
    if block is None and before.block is not None:
        block = max(before.block, options.at)
    chosen_by = f"--at {options.at:g}" + (f" --block-at {options.block_at:g}" if options.block_at is not None else "")
    if scored is not None:
        # As for a forest whose verdict stays the alert, whatever the choice: here the verdict is that of the threshold.
        verdict = scored._replace(anomaly=scored.risk >= options.at)
        measured = choose(verdict, Choice(), of_forest=options.at)
        return replace(measured, block=block, of_forest=False, chosen_by=chosen_by)
    # The curve says what every threshold of this model gives; what this one gives was not measured.
    return replace(before, alert=options.at, block=block, of_forest=False, chosen_by=chosen_by, expected=None)


class Figures(msgspec.Struct, frozen=True):
    """What a threshold would give beside the one in service, for a program."""

    model: str  # its version
    before: OperatingPoint  # as the model has it, what it gives measured on the same transactions, where there are any
    after: OperatingPoint
    frauds: int | None  # known among the transactions; None where none were read
    fraud_money: float | None  # their amounts
    days: float | None  # from the first transaction to the last, by event time
    notes: list[str]


def _measured(before: OperatingPoint, scored: Scored | None) -> OperatingPoint:
    """The point in service with what its threshold gives on these transactions, not on those that it was chosen on."""
    if scored is None:
        return before
    verdict = scored._replace(anomaly=scored.risk >= before.alert)
    measured = choose(verdict, Choice(), of_forest=before.alert)
    return replace(before, expected=measured.expected, measured_on=scored.measured_on, curve=[])


def _write_figures(
    path: Path, model: str, before: OperatingPoint, after: OperatingPoint, scored: Scored | None, notes: list[str]
) -> None:
    frauds = money = days = None
    if scored is not None:
        known = scored.fraud & scored.labelled
        frauds, money = int(known.sum()), float(scored.amounts[known].sum())
        days = float(scored.times.max() - scored.times.min()) / DAY
    put_in_place({path: msgspec.json.encode(Figures(model, before, after, frauds, money, days, notes))})


def write(model: Path, own: Metadata, point: OperatingPoint) -> None:
    """Puts the operating point into the JSON beside a model, at once, and leaves the rest of it as it is.

    Raises:
        UserError: the JSON is no longer that of the model `own`, or cannot be written.
    """
    found = read_metadata(model)
    if found.identity != own.identity:
        msg = f"{model} was replaced by another model meanwhile, so nothing was written: start again"
        raise UserError(msg)
    path = beside(model).resolve()  # a link stays one
    fields: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    fields["operating_point"] = msgspec.to_builtins(point)
    put_in_place({path: msgspec.json.format(msgspec.json.encode(fields), indent=2) + b"\n"})


def _lines(
    model: Path, version: str, before: OperatingPoint, after: OperatingPoint, notes: Sequence[str], *, trial: bool
) -> list[str]:
    parts = [("in service" if trial else "before", told(before)), ("tried" if trial else "now", told(after))]
    if after.measured_on:
        parts.append(("curve of" if after.expected is None else "as", after.measured_on))
    shown = table(around(after))
    end = "Nothing was written: this was a trial." if trial else "A flow in service takes it up by itself."
    lines = [f"{beside(model)}: the operating point of model {version}"]
    for name, text in [*parts, *(("note", note) for note in notes)]:
        lines += _wrapped(name, text)
    return [*lines, *(["", *shown, ""] if shown else []), *_wrapped("", end)]


def around(point: OperatingPoint) -> OperatingPoint:
    """The point with those rows of its curve only that lie about its threshold."""
    thresholds = np.array([each.threshold for each in point.curve])
    nearest = np.argsort(np.abs(thresholds - point.alert), kind="stable")[:ROWS]
    return replace(point, curve=[point.curve[place] for place in sorted(nearest.tolist())])


def _wrapped(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {name:<11}", subsequent_indent=" " * 13)


if __name__ == "__main__":
    sys.exit(main())
