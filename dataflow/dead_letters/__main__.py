"""The command for dead letters: shows what stands on `invalid_transactions`, and sends it back to where it came from.

    python -m dataflow.dead_letters                          counts by error; nothing is sent
    python -m dataflow.dead_letters --error "day ahead"      what this would choose
    python -m dataflow.dead_letters --error "day ahead" --send
    python -m dataflow.dead_letters --field amount --export amounts.jsonl
    python -m dataflow.dead_letters --import amounts.jsonl

A message goes back with its key, to its partition; as it was, or with the value that was mended in the file. It goes
back once: each one that does is recorded (see `ledger`). What comes back invalid again is counted, and not sent again.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dataflow.dead_letters.cases import Case, Choice, DeadLetters, State, read_dead_letters
from dataflow.dead_letters.ledger import Letter, Sender
from dataflow.dead_letters.mending import export, match, read_file
from dataflow.errors import UserError
from dataflow.events.parsing import event_time
from dataflow.process import lifecycle
from dataflow.process.terminal import printable
from dataflow.settings import Settings


def counts_table(cases: Sequence[Case], chosen: Sequence[Case]) -> Table:
    """Counts by error and field: all, by what became of them, and those chosen."""
    table = Table()
    for column in ("error", "field"):
        table.add_column(column, overflow="fold")
    for column in ("messages", "sent back", "rejected again", "chosen"):
        table.add_column(column, justify="right")
    counts: dict[tuple[str, str], Counter[State | str]] = {}
    for case in cases:
        counts.setdefault((case.newest.error, case.newest.field), Counter()).update(["all", case.state])
    for case in chosen:
        counts[case.newest.error, case.newest.field]["chosen"] += 1
    for kind, count in sorted(counts.items(), key=lambda item: -item[1]["all"]):
        numbers = (count["all"], count[State.SENT], count[State.AGAIN], count["chosen"])
        table.add_row(*(escape(printable(text)) for text in kind), *(f"{number:,}" for number in numbers))
    return table


def show(topic: str, letters: DeadLetters, chosen: Sequence[Case], count: int) -> None:
    """Prints the counts, and the first chosen messages."""
    console = Console()
    console.print(counts_table(letters.cases, chosen))
    for case in chosen[:count]:
        when = datetime.fromtimestamp(case.newest.at, UTC).isoformat(timespec="milliseconds")
        value = (case.newest.value or b"").decode(errors="replace")
        line = f"{case.origin.name(topic)} {when} {case.newest.error}: {value}"
        console.print(printable(line), markup=False, highlight=False)
    parts = sum(not case.newest.whole for case in letters.cases)
    if parts:
        print(f"{parts} of them are only the beginning of a message too large: those cannot be sent back from here")
    if letters.strangers:
        print(f"{letters.strangers} other records there do not say where they come from: they are left out")


def import_file(settings: Settings, topic: str, path: Path) -> None:
    """Sends the mended messages of a file back, all of them or, where a line of it is wrong, none.

    Raises:
        UserError: a line is wrong; or they could not all be sent, and how many were.
    """
    mended = read_file(path)
    sender = Sender(settings, topic)
    found, already = match(path, mended, settings, topic, read_dead_letters(settings, topic))
    if already:
        first = f"{already[0].place.name(topic)}, line {already[0].number}"
        more = f", and {len(already) - 1} more" if len(already) > 1 else ""
        print(f"redflag: {path}: sent back already, and left out: {first}{more}", file=sys.stderr)
    sender.send(found)
    print(f"{len(found)} of {len(mended)} messages of {path} sent back to {topic}")


def send(settings: Settings, topic: str, choice: Choice, limit: int | None, count: int) -> None:
    """Sends the chosen messages back as they are.

    Raises:
        UserError: they could not all be sent, and how many were.
    """
    sender = Sender(settings, topic)
    letters = read_dead_letters(settings, topic)  # once no other sender can add to what was sent back
    chosen = [case for case in letters.cases if choice.takes(case)][:limit]
    show(topic, letters, chosen, count)
    sender.send([Letter(c.newest.place, c.origin, c.newest.key, c.newest.value, c.newest.headers) for c in chosen])
    print(f"{len(chosen)} of {len(letters.cases)} messages sent back to {topic}")


def _moment(text: str) -> float:
    try:
        return event_time(text)
    except (ValueError, OverflowError) as error:
        msg = f"{text!r} is not an ISO 8601 time"
        raise argparse.ArgumentTypeError(msg) from error


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    if not first.isdecimal() or (last and not last.isdecimal()):
        msg = f"{text!r} is neither an offset nor two, as in 10-20"
        raise argparse.ArgumentTypeError(msg)
    return int(first), int(last or first)


def _limit(text: str) -> int:
    if not text.isdecimal():
        msg = f"{text!r} is not a number of messages"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dataflow.dead_letters",
        description="Shows what stands on invalid_transactions, and sends chosen messages back, each once.",
    )
    choose = parser.add_argument_group("which messages")
    choose.add_argument("--error", action="append", default=[], metavar="TEXT", help="whose error has TEXT in it")
    choose.add_argument("--field", action="append", default=[], metavar="NAME", help="whose error is about the field")
    choose.add_argument("--partition", action="append", default=[], type=int, help="which first stood in the partition")
    choose.add_argument("--offset", type=_range, metavar="N[-M]", help="which first stood at the offset, or in between")
    choose.add_argument("--since", type=_moment, metavar="TIME", help="produced then or later; ISO 8601, else UTC")
    choose.add_argument("--until", type=_moment, metavar="TIME", help="produced before")
    choose.add_argument("--limit", type=_limit, metavar="N", help="at most so many, the first")
    choose.add_argument(
        "--rejected-again", action="store_true", help="sent back and rejected again, to be mended; not those never sent"
    )
    parser.add_argument("--feedback", action="store_true", help="rejected feedback instead of transactions")
    parser.add_argument("--show", type=_limit, default=0, metavar="N", help="also print the first N chosen messages")
    act = parser.add_mutually_exclusive_group()
    act.add_argument("--send", action="store_true", help="send them back as they are; without it, nothing is sent")
    act.add_argument("--export", type=Path, metavar="FILE", help="write them to a new file, to mend them there")
    act.add_argument("--import", dest="mended", type=Path, metavar="FILE", help="send back what is in a mended file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Shows what was rejected; sends the chosen back, or writes them to a file, or sends what was mended there."""
    parser = _parser()
    options = parser.parse_args(argv)
    state = State.AGAIN if options.rejected_again else State.OPEN
    choice = Choice(
        options.error, options.field, options.partition, options.since, options.until, options.offset, state
    )
    if options.mended and (choice != Choice([], [], []) or options.limit is not None or options.show):
        parser.error("--import sends all of its file: what is not to go back, take out there")
    if options.send and options.rejected_again:
        parser.error("--send does not send again what was rejected again: --export it, mend it, --import it")
    try:
        settings = Settings.load()
        lifecycle.warn_of_unknown(settings)
        topic = settings.feedback_topic if options.feedback else settings.transactions_topic
        if options.mended:
            import_file(settings, topic, options.mended)
            return 0
        if options.send:
            send(settings, topic, choice, options.limit, options.show)
            return 0
        letters = read_dead_letters(settings, topic)
        chosen = [case for case in letters.cases if choice.takes(case)][: options.limit]
        show(topic, letters, chosen, options.show)
        chosen_of_all = f"{len(chosen)} of {len(letters.cases)} messages chosen"
        if options.export is None:
            print(f"{chosen_of_all}; nothing was sent: --send sends them to {topic}, --export writes them to a file")
        elif not chosen:
            print(f"{chosen_of_all}; {options.export} is not written")
        else:
            export(options.export, topic, chosen)
            print(f"{chosen_of_all}, written to {options.export}: mend the values, then --import sends them to {topic}")
    except UserError as error:
        lifecycle.complain(error)
        return 2
    except KeyboardInterrupt:  # the transaction under way was aborted
        print("redflag: stopped; what was not sent is still to be sent", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    lifecycle.report_mistakes()
    sys.exit(main())
