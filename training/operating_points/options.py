"""The command line of `python -m training.threshold`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dataflow.settings import Settings
from dataflow.simulation.simulator import POPULATIONS
from training.cli import Parser, days, delay, number, whole
from training.histories.history import LABEL_COLUMN_HELP
from training.operating_points.operating_points import Choice, add_arguments, option_given, read_choice


class Options(NamedTuple):
    """What the command line says."""

    model: Path
    rules: Path
    choice: Choice | None  # None where `at` names the point
    at: float | None
    block_at: float | None
    history: Path | None
    label_column: str | None  # as the user names it
    label_delay: float | None  # seconds; None: that of the model's training
    topics: bool
    last: float | None  # seconds: only decisions on the topics that are no older; None: all
    users: int | None  # of a simulation, as all below; None: the default of the model's population
    days: float | None
    seed: int | None
    population: str | None
    trial: bool  # write nothing
    json: Path | None
    settings: Settings


def parse(argv: Sequence[str] | None) -> Options:
    """Reads the command line and the settings.

    Raises:
        UserError: an argument or a setting is wrong.
    """
    parser = Parser(prog="python -m training.threshold", description="Move the operating point of a model in service.")
    parser.add_argument("--model", type=Path, metavar="FILE", help="default: MODEL_FILE")
    parser.add_argument(
        "--rules", type=Path, metavar="FILE", help="whose alerts a budget counts, too; default: RULES_FILE"
    )
    parser.add_argument("--at", type=_threshold, metavar="THRESHOLD", help="a risk, 0 to 1, from which it alerts")
    parser.add_argument("--block-at", type=_threshold, metavar="THRESHOLD", help="with --at: from which it blocks")
    add_arguments(parser)
    source = parser.add_argument_group("what it is chosen on", "default: a simulation; with --at nothing")
    source.add_argument("--history", type=Path, metavar="FILE", help="a .csv, .csv.gz or .parquet")
    source.add_argument("--label-column", metavar="NAME", help=LABEL_COLUMN_HELP)
    source.add_argument(
        "--label-delay",
        type=delay,
        metavar="7d",
        help="how long after its transaction a label comes; default: as when the model was trained",
    )
    source.add_argument(
        "--topics", action="store_true", help="the model's own decisions on Kafka, and the feedback on them"
    )
    source.add_argument("--last", type=delay, metavar="7d", help="with --topics: what was decided in that time alone")
    parser.add_argument("--try", dest="trial", action="store_true", help="say what it would give, and write nothing")
    parser.add_argument("--json", type=Path, metavar="OUT.json", help="write the figures for a program, too")
    simulated = parser.add_argument_group("simulation", "default: like that of training, by another seed")
    simulated.add_argument("--population", choices=POPULATIONS)
    simulated.add_argument("--users", type=whole(1, 10_000_000), metavar="N")
    simulated.add_argument("--days", type=days, metavar="N")
    simulated.add_argument("--seed", type=whole(0, 2**32 - 1), metavar="N")
    given = parser.parse_args(argv)
    _check(parser, given)
    settings = Settings.load()
    return Options(
        model=given.model or settings.model_file,
        rules=given.rules or settings.rules_file,
        choice=read_choice(given) if given.at is None else None,
        at=given.at,
        block_at=given.block_at,
        history=given.history,
        label_column=given.label_column,
        label_delay=given.label_delay,
        topics=given.topics,
        last=given.last,
        users=given.users,
        days=given.days,
        seed=given.seed,
        population=given.population,
        trial=given.trial,
        json=given.json,
        settings=settings,
    )


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Refuses options that contradict each other."""
    chosen = option_given(given)
    if given.at is None and chosen is None:
        parser.error(
            "say where the model is to raise an alert: --alerts-per-day, --alert-rate, --precision, --cost-of-alert, "
            "or --at"
        )
    if given.at is not None and chosen is not None:
        parser.error(f"argument --at: names the threshold, and {chosen} chooses it: give one of them")
    if given.at is not None and given.block_precision is not None:
        parser.error(
            "argument --block-precision: chooses a threshold, and --at names it: name this one with --block-at"
        )
    if given.block_at is not None and given.at is None:
        parser.error("argument --block-at: goes with --at; with the others it is --block-precision")
    if given.block_at is not None and given.block_at < given.at:
        parser.error(
            f"argument --block-at: {given.block_at:g} lies below --at {given.at:g}: what is blocked is an alert, too"
        )
    if given.topics and given.history is not None:
        parser.error("argument --topics: --history names transactions, too: give one of them")
    if given.last is not None and not given.topics:
        parser.error("argument --last: is for decisions on the topics, and --topics is not given")
    if given.json is not None and not given.json.parent.is_dir():
        parser.error(f"argument --json: there is no folder {given.json.parent}")
    if given.label_column is not None and given.history is None:
        parser.error("argument --label-column: is for a file, and there is no --history")
    if given.topics and given.label_delay is not None:
        parser.error("argument --label-delay: is for what is replayed; on --topics labels are as late as they came")
    simulates = given.history is None and not given.topics and given.at is None
    for name in ("population", "users", "days", "seed", "label_delay"):
        if getattr(given, name) is not None and not simulates and not (name == "label_delay" and given.history):
            option = name.replace("_", "-")
            parser.error(
                f"argument --{option}: is for a simulation, and there is none with --history, --topics or --at"
            )


def _threshold(text: str) -> float:
    value = number(text)
    if not 0 <= value <= 1:
        msg = f"{text!r} is no threshold from 0 to 1"
        raise argparse.ArgumentTypeError(msg)
    return value
