"""What a ruleset would have done: runs history through the detection flow's own graph and reports.

`python -m training.backtest --rules NEW.toml` tries one ruleset on a history, with `--against OLD.toml` two, and says
what the new one adds and drops.
"""

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dataflow.errors import UserError
from dataflow.events.transaction import DAY
from dataflow.rules import RuleSet, load_rules
from dataflow.settings import Settings
from training.backtesting.report import Report, Side, compare, show, to_html, to_json
from training.backtesting.run import FromFile, FromTopic, Messages, Tally, run
from training.cli import Parser, days, delay, whole
from training.histories.history import LABEL_COLUMN_HELP, find_label_column, read_history
from training.histories.kafka_history import PREFIX, KafkaHistory
from training.histories.labels import read_truth

USERS, DAYS, SEED = 2_000, 14.0, 42  # of the simulated history: 84,000 transactions


class Options(NamedTuple):
    """What the command line says."""

    rules: Path
    against: Path | None
    history: str | None
    label_column: str | None  # as the user names it
    model: Path | None
    labels: str | None
    html: Path | None
    json: Path | None
    warm_up: float  # seconds
    labels_after: float | None  # seconds until the history's own labels come back as feedback; None: they do not
    feedback: str | None  # a topic of it
    users: int
    days: float
    seed: int
    settings: Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Backtests as the command line says; returns the exit status: 2 for a user's mistake, told in one line."""
    try:
        options = parse(argv)
        sets = [load_rules(path) for path in (options.rules, options.against) if path is not None]
        with tempfile.TemporaryDirectory(prefix="redflag-") as scratch:
            report = backtest(options, sets, Path(scratch), Console(stderr=True))
            show(report, Console())
            if options.html is not None:
                _write(options.html, to_html(report).encode())
                print(f"The same with plots: {options.html}")
            if options.json is not None:
                _write(options.json, to_json(report))
    except UserError as error:
        print(f"redflag: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("redflag: stopped, nothing was written", file=sys.stderr)
        return 130
    return 0


def backtest(options: Options, sets: Sequence[RuleSet], scratch: Path, console: Console) -> Report:
    """Runs each ruleset in a process of its own, all at the same time, and compares what they decided.

    Raises:
        UserError: the history, the labels or the model are wrong.
    """
    begin = time.monotonic()
    paths = [path for path in (options.rules, options.against) if path is not None]
    spools = [scratch / f"alerts-{number}" for number in range(len(paths))]
    messages = open_history(options)
    tallies = _in_processes(options, messages, paths, spools, console)
    sides = [
        Side(str(path), rules, tally, spool)
        for path, rules, tally, spool in zip(paths, sets, tallies, spools, strict=True)
    ]
    source = messages.source
    new, old = sides[0], sides[1] if len(sides) > 1 else None
    if new.tally.decided.total == 0:
        reason = f"; refused, {new.tally.invalid.most_common(1)[0][0]}" if new.tally.invalid else ""
        left = f" beyond a warm-up of {options.warm_up / DAY:g} days" if new.tally.warm_up else ""
        msg = f"the history ({source}) holds no transaction{left}{reason}: name another, or an earlier time"
        raise UserError(msg)
    return Report(source, time.monotonic() - begin, new, old, compare(new, old) if old is not None else None)


def open_history(options: Options) -> Messages:
    """The history as messages.

    Raises:
        UserError: it cannot be read.
    """
    if options.history is not None and options.history.startswith(PREFIX):
        where = None if options.feedback is None else options.feedback.removeprefix(PREFIX)
        feedback = () if where is None else KafkaHistory(where, options.settings)
        return FromTopic(KafkaHistory(options.history.removeprefix(PREFIX), options.settings), feedback)
    path = None if options.history is None else Path(options.history)
    label_column = None
    if path is not None and (options.labels is None or options.labels_after is not None):
        label_column = find_label_column(path, options.label_column)
    history = read_history(path, seed=options.seed, users=options.users, days=options.days, label_column=label_column)
    return FromFile(history, options.labels_after, options.settings.feedback_topic)


def run_one(options: Options, topic: FromTopic | None, rules: Path, spool: Path, done: Any) -> Tally:
    """One ruleset on the whole history; `done` is a shared number that follows the progress, 0 to 1.

    `topic` is the history where it stands on one: as far as it reached when it was opened, for all rulesets alike.

    Raises:
        UserError: the history, the labels or the model are wrong.
    """
    from dataflow.scoring.loading import load_model

    def report(share: float) -> None:
        done.value = share

    settings = options.settings
    messages = open_history(options) if topic is None else topic
    if isinstance(messages, FromTopic):
        from msgspec.structs import replace

        # A transaction without an id is named after its topic.
        feedback = (options.feedback or settings.feedback_topic).removeprefix(PREFIX)
        settings = replace(settings, transactions_topic=messages.topic, feedback_topic=feedback)
    labels = read_truth(options.labels, settings) if options.labels is not None else None
    model = load_model(options.model or settings.model_file)
    with spool.open("wb") as file:
        return run(messages, rules, model, settings, file, labels=labels, warm_up=options.warm_up, progress=report)


def _in_processes(
    options: Options, messages: Messages, paths: Sequence[Path], spools: Sequence[Path], console: Console
) -> list[Tally]:
    context = multiprocessing.get_context("spawn")
    topic = messages if isinstance(messages, FromTopic) else None
    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with ExitStack() as closing:
        progress = closing.enter_context(Progress(*columns, console=console, disable=not console.is_terminal))
        running = []
        for path, spool in zip(paths, spools, strict=True):
            done = context.Value("d", 0.0, lock=False)
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(options, topic, path, spool, done, theirs), daemon=True)
            process.start()
            theirs.close()
            closing.callback(_end, process)
            running.append((process, ours, done, progress.add_task(path.name[:24], total=1.0)))
        results: dict[int, Tally] = {}
        while len(results) < len(running):
            for number, (process, ours, done, task) in enumerate(running):
                progress.update(task, completed=done.value)
                if number not in results and ours.poll(0.1):
                    results[number] = _received(process, ours)
                    progress.update(task, completed=1.0)
        return [results[number] for number in range(len(running))]


def _received(process: Any, ours: Connection) -> Tally:
    try:
        result = ours.recv()
    except EOFError:
        process.join()
        msg = f"the backtest's process ended by itself, status {process.exitcode}: is there enough memory?"
        raise UserError(msg) from None
    if isinstance(result, UserError):
        raise result
    assert isinstance(result, Tally)  # noqa: S101
    return result


def _end(process: Any) -> None:
    if process.is_alive():
        process.terminate()
    process.join()


def _child(options: Options, topic: FromTopic | None, rules: Path, spool: Path, done: Any, result: Connection) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; who started us ends us
    try:
        result.send(run_one(options, topic, rules, spool, done))
    except UserError as error:
        result.send(error)


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror}"
        raise UserError(msg) from None


def parse(argv: Sequence[str] | None) -> Options:
    """Reads the command line and the settings.

    Raises:
        UserError: an argument or a setting is wrong.
    """
    parser = Parser(prog="python -m training.backtest", description="Try a ruleset on transactions of the past.")
    parser.add_argument("--rules", type=Path, required=True, metavar="NEW.toml", help="the ruleset to try")
    parser.add_argument("--against", type=Path, metavar="OLD.toml", help="one to compare it with")
    parser.add_argument(
        "--history",
        metavar="FILE_OR_TOPIC",
        help="a .csv, .csv.gz or .parquet, or kafka:TOPIC, kafka:TOPIC@OFFSET, kafka:TOPIC@TIME; else simulated",
    )
    parser.add_argument("--label-column", metavar="NAME", help=LABEL_COLUMN_HELP)
    parser.add_argument("--model", type=Path, metavar="FILE", help="default: MODEL_FILE")
    parser.add_argument(
        "--labels",
        metavar="FILE_OR_TOPIC",
        help="a CSV of transaction_id, fraud, or kafka:TOPIC; else the history's own",
    )
    parser.add_argument("--html", type=Path, metavar="OUT.html", help="write a page with plots, too")
    parser.add_argument("--json", type=Path, metavar="OUT.json", help="write the tables for a program, too")
    parser.add_argument(
        "--warm-up",
        type=delay,
        default=0.0,
        metavar="7d",
        help="so much of the history, by event time, fills profiles only; default 0d",
    )
    parser.add_argument(
        "--labels-after",
        type=delay,
        metavar="7d",
        help="a file's own labels come back as feedback so long after their transactions; else there is no feedback",
    )
    parser.add_argument("--feedback", metavar="kafka:TOPIC", help="feedback as it came, for a history on a topic")
    simulated = parser.add_argument_group("simulated history")
    simulated.add_argument("--users", type=whole(1, 10_000_000), metavar="N", help=f"default {USERS}")
    simulated.add_argument("--days", type=days, metavar="N", help=f"default {DAYS:g}")
    simulated.add_argument("--seed", type=whole(0, 2**32 - 1), metavar="N", help=f"default {SEED}")
    given = parser.parse_args(argv)
    if given.history is not None:
        for name in ("users", "days", "seed"):
            if getattr(given, name) is not None:
                parser.error(f"argument --{name}: is for a simulated history, and --history names one")
    topic = given.history is not None and given.history.startswith(PREFIX)
    if given.label_column is not None and (given.history is None or topic):
        parser.error("argument --label-column: is for a file, and --history names none")
    if given.label_column is not None and given.labels is not None and given.labels_after is None:
        parser.error("argument --label-column: is for labels in the history, and --labels names others")
    if given.labels_after is not None and topic:
        parser.error("argument --labels-after: is for a file; name the topic of the feedback with --feedback")
    if given.feedback is not None and not (topic and given.feedback.startswith(PREFIX)):
        parser.error("argument --feedback: takes kafka:TOPIC, and --history must name a topic, too")
    for name in ("html", "json"):
        written = getattr(given, name)
        if written is not None and not written.parent.is_dir():
            parser.error(f"argument --{name}: there is no folder {written.parent}")
    return Options(
        rules=given.rules,
        against=given.against,
        history=given.history,
        label_column=given.label_column,
        model=given.model,
        labels=given.labels,
        html=given.html,
        json=given.json,
        warm_up=given.warm_up,
        labels_after=given.labels_after,
        feedback=given.feedback,
        users=given.users or USERS,
        days=given.days or DAYS,
        seed=SEED if given.seed is None else given.seed,
        settings=Settings.load(),
    )


if __name__ == "__main__":
    sys.exit(main())
