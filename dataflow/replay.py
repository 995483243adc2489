"""The dead-letter tool: what stands on `invalid_transactions`, and a way back to where it came from.

    python -m dataflow.replay                          counts by error; nothing is sent
    python -m dataflow.replay --error "day ahead"      what this would choose
    python -m dataflow.replay --error "day ahead" --send

A message goes back as it was: value, key and partition. The header `replayed_from` says where it
first stood, and is what makes a second replay harmless: a message that was sent back already, and was not rejected
again since, is not sent again. One that was rejected again counts once, as the rejection of the message it first was.
"""

import argparse
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from confluent_kafka import OFFSET_END, Consumer, KafkaException, Message, TopicPartition
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dataflow import event_log, lifecycle, record
from dataflow.connectors import kafka_clients
from dataflow.connectors.delivery import Delivery
from dataflow.parsing import event_time
from dataflow.settings import Settings, UserError

REPLAYED_FROM = "replayed_from"
CLOCK_SLACK_MS = 3_600_000  # a replayed message may carry an earlier Kafka timestamp than its rejection, by so much
READ_SECONDS = 60.0  # without a message, until reading is given up

Place = tuple[int, int]  # partition and offset in the topic that the message came from


class Rejected(NamedTuple):
    """A message on the dead-letter topic."""

    source: Place  # where the message stood that was rejected
    error: str
    field: str
    at: float  # when it was produced, seconds since 1970 UTC
    key: bytes | None
    value: bytes | None


class Case(NamedTuple):
    """A message that was rejected, and what became of it."""

    root: Place  # where it first stood
    newest: Rejected
    waits: bool  # it was sent back and has not been rejected since: decided, or about to be


class Choice(NamedTuple):
    """Which cases to send back; what is None or empty chooses all."""

    errors: Sequence[str] = ()  # parts of the error's text, any of them
    fields: Sequence[str] = ()
    partitions: Sequence[int] = ()
    since: float | None = None  # seconds since 1970 UTC, of the message's own Kafka timestamp
    until: float | None = None  # likewise; itself not included
    offsets: tuple[int, int] | None = None  # first and last, both included

    def takes(self, case: Case) -> bool:
        """Whether a case is chosen; partition and offset are those where it first stood."""
        bad = case.newest
        partition, offset = case.root
        return (
            (not self.errors or any(part.lower() in bad.error.lower() for part in self.errors))
            and (not self.fields or bad.field in self.fields)
            and (not self.partitions or partition in self.partitions)
            and (self.since is None or bad.at >= self.since)
            and (self.until is None or bad.at < self.until)
            and (self.offsets is None or self.offsets[0] <= offset <= self.offsets[1])
        )


def read_cases(settings: Settings, topic: str) -> list[Case]:
    """What of `topic` was rejected so far, by where each message first stood, in that order.

    Raises:
        UserError: the broker or a topic cannot be read.
    """
    kafka_clients.count_partitions(settings, topic)
    rejected: dict[Place, Rejected] = {}
    wanted = topic.encode()
    oldest_ms: int | None = None
    for message in _read(settings, settings.invalid_topic, None):
        headers: dict[str, bytes] = dict(message.headers() or ())
        if headers.get(record.SOURCE_TOPIC) != wanted:
            continue
        source = int(headers[record.SOURCE_PARTITION]), int(headers[record.SOURCE_OFFSET])
        rejected[source] = Rejected(
            source,
            headers.get("error", b"").decode(),
            headers.get("field", b"").decode(),
            int(headers[record.SOURCE_TIMESTAMP]) / 1000,
            message.key(),
            message.value(),
        )
        written = message.timestamp()[1]
        oldest_ms = written if oldest_ms is None else min(oldest_ms, written)
    if not rejected:
        return []

    roots: dict[Place, Place] = {}  # of what was sent back: where it first stood
    for message in _read(settings, topic, (oldest_ms or 0) - CLOCK_SLACK_MS):
        for name, value in message.headers() or ():
            root = _place(value, topic) if name == REPLAYED_FROM else None
            if root is not None:
                roots[message.partition(), message.offset()] = root
    waiting = {root for place, root in roots.items() if place not in rejected}
    newest: dict[Place, Rejected] = {}
    for source in sorted(rejected):
        newest[roots.get(source, source)] = rejected[source]
    return [Case(root, newest[root], root in waiting) for root in sorted(newest)]


def send_back(settings: Settings, topic: str, cases: Sequence[Case]) -> None:
    """Sends messages back to where they came from; returns when all of them are acknowledged.

    Raises:
        UserError: one was not taken; those before it may be there, and the next replay leaves them alone.
    """
    producer = Delivery(settings)
    for case in cases:
        producer.produce(
            topic,
            key=case.newest.key,
            value=case.newest.value,
            partition=case.root[0],
            headers=[(REPLAYED_FROM, name_of(topic, case.root).encode())],
        )
        producer.poll()
    producer.flush()


def name_of(topic: str, place: Place) -> str:
    """`<topic>-<partition>-<offset>`: what a decision's transaction_id is, where the message carries none."""
    return f"{topic}-{place[0]}-{place[1]}"


def _place(value: bytes, topic: str) -> Place | None:
    name = value.decode(errors="replace")
    partition, _, offset = name.removeprefix(f"{topic}-").partition("-")
    if not name.startswith(f"{topic}-") or not partition.isdecimal() or not offset.isdecimal():
        return None
    return int(partition), int(offset)


def _read(settings: Settings, topic: str, since_ms: int | None) -> Iterator[Message]:
    """All messages of a topic from a time on (or from its beginning) to where it ends now."""
    partitions = kafka_clients.count_partitions(settings, topic)
    with contextlib.closing(kafka_clients.make_consumer(settings)) as consumer:
        try:
            starts = _starts(consumer, topic, partitions, since_ms)
            left = {}
            for start in starts:
                low, high = consumer.get_watermark_offsets(TopicPartition(topic, start.partition), timeout=10)
                start.offset = max(low, start.offset) if start.offset != OFFSET_END else high
                if start.offset < high:
                    left[start.partition] = high
            consumer.assign([start for start in starts if start.partition in left])
        except KafkaException as error:
            msg = f"cannot read {topic!r} on {settings.brokers} ({error.args[0].str()}): is the broker up?"
            raise UserError(msg) from error
        deadline = time.monotonic() + READ_SECONDS
        while left:
            # consume() alone would wait until it has all it may take: one is awaited, the rest is what is there.
            first = consumer.poll(0.2)
            for message in [] if first is None else [first, *consumer.consume(10_000, 0)]:
                if message.error() is not None:
                    continue
                deadline = time.monotonic() + READ_SECONDS
                end = left.get(message.partition())
                if end is not None:
                    if message.offset() < end:
                        yield message
                    if message.offset() + 1 >= end:
                        del left[message.partition()]
            for number in [n for n in left if _position(consumer, topic, n) >= left[n]]:
                del left[number]  # the last records are control records, which nobody gets to see
            if time.monotonic() > deadline:
                msg = f"{topic!r} could not be read to its end for {READ_SECONDS:g} s: is the broker up?"
                raise UserError(msg)


def _starts(consumer: Consumer, topic: str, partitions: int, since_ms: int | None) -> list[TopicPartition]:
    if since_ms is None:
        return [TopicPartition(topic, number, 0) for number in range(partitions)]
    asked = [TopicPartition(topic, number, max(since_ms, 0)) for number in range(partitions)]
    return list(consumer.offsets_for_times(asked, timeout=10))


def _position(consumer: Consumer, topic: str, partition: int) -> int:
    return int(consumer.position([TopicPartition(topic, partition)])[0].offset)


def counts_table(cases: Sequence[Case], chosen: Sequence[Case]) -> Table:
    """Counts by error and field: all, waiting for their decision or decided, chosen."""
    table = Table()
    for column in ("error", "field"):
        table.add_column(column, overflow="fold")
    for column in ("messages", "sent back already", "chosen"):
        table.add_column(column, justify="right")
    all_of = Counter((case.newest.error, case.newest.field) for case in cases)
    waits = Counter((case.newest.error, case.newest.field) for case in cases if case.waits)
    picked = Counter((case.newest.error, case.newest.field) for case in chosen)
    for kind, count in all_of.most_common():
        error, field = (escape("".join(c if c.isprintable() else "?" for c in text)) for text in kind)
        table.add_row(error, field, f"{count:,}", f"{waits[kind]:,}", f"{picked[kind]:,}")
    return table


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


def main(argv: Sequence[str] | None = None) -> int:
    """Shows what was rejected; with --send, sends the chosen back."""
    parser = argparse.ArgumentParser(
        prog="python -m dataflow.replay",
        description="Shows what stands on invalid_transactions, and sends chosen messages back. One at a time, please.",
    )
    parser.add_argument("--error", action="append", default=[], metavar="TEXT", help="whose error has TEXT in it")
    parser.add_argument("--field", action="append", default=[], metavar="NAME", help="whose error is about the field")
    parser.add_argument("--partition", action="append", default=[], type=int, help="which first stood in the partition")
    parser.add_argument("--offset", type=_range, metavar="N[-M]", help="which first stood at the offset, or in between")
    parser.add_argument("--since", type=_moment, metavar="TIME", help="produced then or later; ISO 8601, else UTC")
    parser.add_argument("--until", type=_moment, metavar="TIME", help="produced before")
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many, the first")
    parser.add_argument("--feedback", action="store_true", help="rejected feedback instead of transactions")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="also print the first N chosen messages")
    parser.add_argument("--send", action="store_true", help="send them back; without it, nothing is sent")
    options = parser.parse_args(argv)
    event_log.set_up()
    try:
        settings = Settings.load()
        lifecycle.warn_of_unknown(settings)
        topic = settings.feedback_topic if options.feedback else settings.transactions_topic
        cases = read_cases(settings, topic)
        choice = Choice(options.error, options.field, options.partition, options.since, options.until, options.offset)
        chosen = [case for case in cases if not case.waits and choice.takes(case)][: options.limit]
        console = Console()
        console.print(counts_table(cases, chosen))
        for case in chosen[: options.show]:
            when = datetime.fromtimestamp(case.newest.at, UTC).isoformat(timespec="milliseconds")
            value = (case.newest.value or b"").decode(errors="replace")
            line = f"{name_of(topic, case.root)} {when} {case.newest.error}: {value}"
            console.print("".join(c if c.isprintable() else "?" for c in line), markup=False, highlight=False)
        if not options.send:
            print(f"{len(chosen)} of {len(cases)} messages chosen; nothing was sent: --send sends them to {topic}")
            return 0
        send_back(settings, topic, chosen)
    except UserError as error:
        lifecycle.complain(error)
        return 2
    print(f"{len(chosen)} of {len(cases)} messages sent back to {topic}")
    return 0


if __name__ == "__main__":
    lifecycle.report_mistakes()
    sys.exit(main())
