"""The command line of the rules: checks a file, lists what a rule may read, and places a file where others edit it."""

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from operator import add
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dataflow.errors import UserError
from dataflow.features.batch import FeatureBatch
from dataflow.rules.fields import ALL_FIELDS, OF_FEEDBACK, OF_MODEL
from dataflow.rules.functions import FUNCTIONS
from dataflow.rules.placing import place
from dataflow.rules.rules_file import examine
from dataflow.rules.ruleset import RuleSet
from dataflow.scoring.operating_point import columns_without_model
from dataflow.settings import Settings

SAMPLE = 20_000
"""Transactions of the simulation, or of a history, on which the conditions are tried."""
BATCH = SAMPLE // 4
"""Of them at a time."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 2 where the file has mistakes, each told in one line."""
    parser = argparse.ArgumentParser(prog="python -m dataflow.rules", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="check a rules file, and try its rules on a sample")
    check.add_argument("file", type=Path, metavar="FILE")
    check.add_argument(
        "--history", type=Path, metavar="FILE", help=f"try the rules on its first {SAMPLE:,} rows; else simulated ones"
    )
    check.add_argument("--model", type=Path, metavar="FILE", help="default: MODEL_FILE, if it is there")
    commands.add_parser("fields", help="list the fields and functions that a condition may use")
    placing = commands.add_parser("place", help="put a rules file and its lists into a folder where others edit them")
    placing.add_argument("file", type=Path, metavar="FILE")
    placing.add_argument("folder", type=Path, metavar="FOLDER")
    given = parser.parse_args(argv)
    try:
        if given.command == "place":
            print(*place(given.file, given.folder), sep="\n")
            return 0
        if given.command == "fields":
            return show_fields(Console())
        return show_check(given.file, given.history, given.model, Console())
    except UserError as error:
        print(f"redflag: {error}", file=sys.stderr)
        return 2


def show_fields(console: Console) -> int:
    """Prints what a condition may use."""
    table = Table(title="Fields", title_justify="left")
    for column in ("name", "kind", "what it is"):
        table.add_column(column)
    for field in ALL_FIELDS:
        table.add_row(field.name, field.kind, Text(field.doc))
    console.print(table)
    functions = Table(title="Functions", title_justify="left")
    for column in ("name", "takes", "gives", "what it is"):
        functions.add_column(column)
    for name, function in FUNCTIONS.items():
        functions.add_row(name, ", ".join(function.takes), function.gives, function.doc)
    console.print(functions)
    console.print(Text(SYNTAX), soft_wrap=True)
    return 0


SYNTAX = """A condition compares (< <= == != >= >, in, not in), reckons (+ - * /) and joins (and, or, not, parentheses):
  amount > 5 * usual_amount and txn_per_hour >= 3
  merchant in lists.flagged_merchants or txn_type in ["withdrawal", "transfer"]
A division by zero is not a number: with it every comparison is false but != and not in.
Texts are read and compared without white space around them, composed (NFC); case counts, unless a list ignores it."""


def show_check(path: Path, history: Path | None, model: Path | None, console: Console) -> int:
    """Checks a file, tries its rules, and prints mistakes, warnings and a summary.

    Raises:
        UserError: the history or the model cannot be used.
    """
    rules, mistakes = examine(path)
    if rules is None:
        for mistake in mistakes:
            print(f"redflag: {mistake}", file=sys.stderr)
        return 2
    tried_on, source, scored = sample(rules, history, model)
    count = sum(map(len, tried_on))
    hits = [0] * len(rules.rules)
    for batch in tried_on:
        hits = list(map(add, hits, rules.matches(batch)))
    table = Table(title=f"{path}: {len(rules.rules)} rules, version {rules.version}", title_justify="left")
    for column in ("rule", "mode", "action", "weight", "cooldown", "meets it"):
        table.add_column(column, justify="left" if column in ("rule", "mode", "action") else "right")
    for rule, met_by, reads in zip(rules.rules, hits, rules.reads, strict=True):
        tried = rule.effect != "off" and (scored or not reads & OF_MODEL) and not reads & OF_FEEDBACK
        share = f"{met_by / count:.3%}" if tried and count else "not tried"
        cooldown = f"{rule.cooldown:g} s" if rule.cooldown else ""
        table.add_row(rule.id, rule.effect, rule.action, f"{rule.weight:g}", cooldown, share)
        # That a list has no one of the sample on it says nothing.
        if tried and rule.effect in ("active", "shadow") and met_by in (0, count):
            which = "none" if met_by == 0 else "every one"
            print(f"redflag: warning: {path}: rule {rule.id!r}: {which} of {source} meets it", file=sys.stderr)
    console.print(table)
    if not scored and any(reads & OF_MODEL for reads in rules.reads):
        said = "There is no model to try those with that read it: `make train`, or name one with --model."
        console.print(Text(said), soft_wrap=True)
    if any(reads & OF_FEEDBACK for reads in rules.reads):
        said = "Those that read feedback are tried by `python -m training.backtest` with --labels-after: here is none."
        console.print(Text(said), soft_wrap=True)
    console.print(Text(f"Tried on {source}. The file is right."), soft_wrap=True)
    return 0


def sample(rules: RuleSet, history: Path | None, model: Path | None) -> tuple[list[FeatureBatch], str, bool]:
    """Transactions to try the rules on, in batches, what they are, and whether a model scored them.

    Raises:
        UserError: the history or the model cannot be used.
    """
    from training.histories.history import read_history
    from training.histories.replay import replay

    past = read_history(history, users=750)
    # The later ones: by then people have a history.
    skip = 0 if history else SAMPLE // 2
    replaying = replay(islice(past, skip + SAMPLE), batch=BATCH)
    batches = [batch for _, batch in islice(replaying, skip // BATCH, None)]
    source = f"{sum(map(len, batches)):,} transactions ({past.source})"
    for batch in batches:
        batch.put(columns_without_model(len(batch)))
    path = model or Settings.load().model_file
    reads_model = any(reads & OF_MODEL for reads in rules.reads)
    if not batches or not reads_model or (model is None and not path.exists()):
        return batches, source, False
    from dataflow.scoring.loading import load_model

    loaded = load_model(path)
    for batch in batches:
        batch.put(loaded.operating_point.columns(*loaded.risk_first(batch.floats(loaded.features))))
    return batches, source, True


if __name__ == "__main__":
    sys.exit(main())
