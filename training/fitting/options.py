"""The command line of `python -m training.train`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dataflow.events.transaction import DAY
from dataflow.features.catalogue import FIELDS
from dataflow.scoring.metadata import ISOLATION_FOREST, TIERS
from dataflow.scoring.tiers import FEEDBACK, SUPERVISED
from dataflow.settings import Settings
from dataflow.simulation.simulator import POPULATIONS
from training.cli import Parser, days, delay, number, whole
from training.fitting.tiers import TREES as TIER_TREES
from training.fitting.tiers import all_tiers
from training.histories.history import LABEL_COLUMN_HELP
from training.operating_points.operating_points import Choice, add_arguments, option_given, read_choice

FEATURES = ("amount", "txn_per_hour")
USERS, DAYS, SEED = 2_000, 14.0, 42  # of the simulated history: 84,000 transactions
# Of one to learn from labels, which come a week late. 2,000 users over 28 days gave .56 average precision on people
# that it did not know, these .61; and their ten compromised merchants were too few to choose an operating point by.
SUPERVISED_USERS, SUPERVISED_DAYS = 3_000, 49.0
LABEL_DELAY = 7 * DAY
TREES = 100  # of a forest alone
CONTAMINATION = 0.01  # the share of the history that the threshold calls anomalous

# The tutorial's three users at the generator's default pace of 2 transactions a second, from their first on: trained at
# a natural pace, or on the later hours alone, the forest would take every transaction of a new run for an outlier.
TUTORIAL_USERS, TUTORIAL_DAYS = 57_600, 0.0625


class Options(NamedTuple):
    """What the command line says."""

    history: Path | None
    label_column: str | None  # as the user names it
    out: Path
    force: bool  # replace a model that is there
    trees: int
    contamination: float | str  # a share, or "auto": scikit-learn's fixed threshold of 0.5
    features: tuple[str, ...]
    seed: int
    users: int
    days: float
    population: str
    tiers: list[str]
    label_delay: float  # seconds
    rules: Path  # whose alerts a budget counts, too
    choice: Choice  # of the operating point
    tier_by_default: bool  # the last tier was not named: where it cannot learn, the one below takes its place
    fallback: str = ""  # why it has, if so


def parse(argv: Sequence[str] | None) -> Options:
    """Reads the command line.

    Raises:
        UserError: an argument is wrong.
    """
    parser = Parser(prog="python -m training.train", description="Train the model that the flow scores with.")
    parser.add_argument("--history", type=Path, metavar="FILE", help="a .csv, .csv.gz or .parquet; default: simulated")
    parser.add_argument("--label-column", metavar="NAME", help=LABEL_COLUMN_HELP)
    parser.add_argument("--out", type=Path, default=Path("fraud_model.pkl"), metavar="FILE", help="default %(default)s")
    parser.add_argument("--force", action="store_true", help="replace a model that is there; default: refuse to")
    parser.add_argument(
        "--tiers",
        choices=[tiers[-1] for tiers in TIERS],
        help=f"the last tier of the model; default {SUPERVISED} where the history has labels enough to learn from, "
        f"else {FEEDBACK}; but {ISOLATION_FOREST} with --features, --trees or --population tutorial",
    )
    parser.add_argument(
        "--trees",
        type=whole(1, 10_000),
        metavar="N",
        help=f"of {ISOLATION_FOREST} alone; default {TREES}; with other tiers it is always {TIER_TREES}",
    )
    parser.add_argument(
        "--features",
        type=_features,
        metavar="A,B",
        help=f"of {ISOLATION_FOREST} alone; default {','.join(FEATURES)}; other tiers have their own",
    )
    parser.add_argument(
        "--contamination",
        type=_contamination,
        default=CONTAMINATION,
        metavar="SHARE",
        help="share of the history above the threshold, up to 0.5, or auto; default %(default)s",
    )
    parser.add_argument(
        "--label-delay",
        type=delay,
        default=LABEL_DELAY,
        metavar="7d",
        help=f"how long after its transaction a label comes; default {LABEL_DELAY / DAY:g}d",
    )
    parser.add_argument("--seed", type=whole(0, 2**32 - 1), default=SEED, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--rules",
        type=Path,
        default=Settings().rules_file,
        metavar="FILE",
        help="whose alerts a budget counts, too; default: the rules that ship",
    )
    add_arguments(parser)
    simulated = parser.add_argument_group("simulated history")
    simulated.add_argument("--population", choices=POPULATIONS, help=f"default {POPULATIONS[0]}")
    simulated.add_argument(
        "--users",
        type=whole(1, 10_000_000),
        metavar="N",
        help=f"default {SUPERVISED_USERS} to learn from labels, else {USERS}; with --population tutorial "
        f"{TUTORIAL_USERS}",
    )
    simulated.add_argument(
        "--days",
        type=days,
        metavar="N",
        help=f"default {SUPERVISED_DAYS:g} to learn from labels, else {DAYS:g}; with --population tutorial "
        f"{TUTORIAL_DAYS:g}",
    )
    given = parser.parse_args(argv)
    plain = given.features is not None or given.population == "tutorial" or given.trees is not None
    last = given.tiers or (ISOLATION_FOREST if plain else SUPERVISED)
    if last != ISOLATION_FOREST and (given.features is not None or given.trees is not None):
        parser.error(
            "argument --tiers: --features and --trees are for isolation_forest alone, the others fix their own"
        )
    users, days_lived = simulated_size(last, tutorial=given.population == "tutorial")
    option = option_given(given)
    if last == ISOLATION_FOREST and option is not None:
        parser.error(
            f"argument {option}: {ISOLATION_FOREST} alone alerts where scikit-learn's own threshold lies, which "
            "--contamination moves; an option of this kind is for the other --tiers"
        )
    if given.history is not None:
        for name in ("population", "users", "days"):
            if getattr(given, name) is not None:
                parser.error(f"argument --{name}: is for a simulated history, and --history names a file")
    elif given.label_column is not None:
        parser.error("argument --label-column: is for a file, and there is no --history")
    if given.out.suffix in ("", ".json", ".png"):
        parser.error("argument --out: name the pickle, fraud_model.pkl say; .json and .png are put beside it")
    if not given.out.parent.is_dir():
        parser.error(f"argument --out: there is no folder {given.out.parent}")
    return Options(
        history=given.history,
        label_column=given.label_column,
        out=given.out,
        force=given.force,
        trees=given.trees or TREES,
        contamination=given.contamination,
        features=given.features or FEATURES,
        seed=given.seed,
        users=given.users or users,
        days=given.days or days_lived,
        population=given.population or POPULATIONS[0],
        tiers=all_tiers(last),
        label_delay=given.label_delay,
        rules=given.rules,
        choice=read_choice(given),
        tier_by_default=given.tiers is None and not plain,
    )


def simulated_size(last_tier: str, *, tutorial: bool) -> tuple[int, float]:
    """Users and days of a simulated history unless they are named, by the last tier of the model and the population."""
    if tutorial:
        return TUTORIAL_USERS, TUTORIAL_DAYS
    return (SUPERVISED_USERS, SUPERVISED_DAYS) if last_tier == SUPERVISED else (USERS, DAYS)


def _contamination(text: str) -> float | str:
    if text != "auto" and not 0 < number(text) <= 0.5:
        msg = f"{text!r} is neither auto nor a share above 0 and up to 0.5"
        raise argparse.ArgumentTypeError(msg)
    return text if text == "auto" else float(text)


def _features(text: str) -> tuple[str, ...]:
    numbers = [field.name for field in FIELDS if field.kind == "number"]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in numbers:
            msg = f"{name!r} is none of the features that are numbers: {', '.join(numbers)}"
            raise argparse.ArgumentTypeError(msg)
        if names.count(name) > 1:
            msg = f"{name!r} stands there twice"
            raise argparse.ArgumentTypeError(msg)
    return tuple(names)
