"""The command line of `python -m training.evaluate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dataflow.events.transaction import DAY
from dataflow.scoring.tiers import SUPERVISED
from dataflow.settings import Settings
from training.cli import Parser, delay, moment
from training.fitting.tiers import all_tiers
from training.histories.history import LABEL_COLUMN_HELP
from training.operating_points.operating_points import Choice, add_arguments, read_choice


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
    rules: Path
    choice: Choice  # of the operating point
    out: Path


def parse(argv: Sequence[str] | None) -> Options:
    """Reads the command line.

    Raises:
        UserError: an argument is wrong.
    """
    parser = Parser(prog="python -m training.evaluate", description="Measure detection on a labelled history.")
    parser.add_argument("--history", type=Path, required=True, metavar="FILE", help="a .csv, .csv.gz or .parquet")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="transaction_id, fraud, labelled_at; what is not in it is not known"
    )
    parser.add_argument("--label-column", metavar="NAME", help=LABEL_COLUMN_HELP)
    parser.add_argument(
        "--label-delay",
        type=delay,
        default=7 * DAY,
        metavar="7d",
        help="how long after its transaction a label of the history comes; default 7d",
    )
    parser.add_argument("--train-from", type=moment, required=True, metavar="A")
    parser.add_argument("--test-from", type=moment, required=True, metavar="B")
    parser.add_argument("--test-until", type=moment, required=True, metavar="C")
    parser.add_argument(
        "--weeks", type=int, default=1, metavar="N", help="parts of the test window, each trained for; default 1"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N", help="default 1 2 3")
    parser.add_argument(
        "--tiers", choices=all_tiers(SUPERVISED)[1:], default=SUPERVISED, help=f"the last tier; default {SUPERVISED}"
    )
    parser.add_argument(
        "--keep-known-cards", action="store_true", help="measure the ranking of cards known as compromised, too"
    )
    parser.add_argument(
        "--rules", type=Path, default=Settings().rules_file, metavar="FILE", help="default: the rules that ship"
    )
    add_arguments(parser)
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
        given.rules,
        read_choice(given),
        given.out,
    )


def windows(options: Options) -> list[tuple[float, float]]:
    """Begin and end of each part of the test."""
    length = (options.test_until - options.test_from) / options.weeks
    return [(options.test_from + n * length, options.test_from + (n + 1) * length) for n in range(options.weeks)]
