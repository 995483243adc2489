"""What was rejected, and what became of each message since."""

import enum
from collections.abc import Sequence
from typing import NamedTuple

from confluent_kafka import Message

from dataflow.connectors.kafka_clients import count_partitions
from dataflow.connectors.topic_reader import read_topic
from dataflow.dead_letters.ledger import REPLAYED_FROM, Place, read_ledger
from dataflow.events.output_record import ERROR, FIELD, FULL_SIZE, OWN_HEADERS, RENAMED, Header, Origin, read_origin
from dataflow.settings import Settings


class Rejected(NamedTuple):
    """A message on the dead-letter topic."""

    place: Place  # where the message stood that was rejected
    error: str
    field: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[Header]  # of its producer
    whole: bool  # its value was not too large to be kept

    @property
    def at(self) -> float:
        """When it was produced, seconds since 1970 UTC."""
        return self.place.timestamp / 1000


class State(enum.Enum):
    """What became of a message."""

    OPEN = "never sent back"
    SENT = "sent back, and not rejected since: decided, or about to be"
    AGAIN = "sent back, and rejected again"


class Case(NamedTuple):
    """A message that was rejected, and what became of it."""

    origin: Place  # where it first stood
    newest: Rejected
    state: State


class DeadLetters(NamedTuple):
    """All rejected messages of one topic."""

    cases: list[Case]  # by origin; a message that was rejected several times is one
    sent: dict[Place, Place]  # each rejected message that was sent back, and where to
    strangers: int  # records that the flow did not write


class Choice(NamedTuple):
    """Which cases are meant; what is None or empty chooses all."""

    errors: Sequence[str] = ()  # parts of the error's text, any of them
    fields: Sequence[str] = ()
    partitions: Sequence[int] = ()
    since: float | None = None  # seconds since 1970 UTC, of the message's own Kafka timestamp
    until: float | None = None  # likewise; itself not included
    offsets: tuple[int, int] | None = None  # first and last, both included
    state: State = State.OPEN

    def takes(self, case: Case) -> bool:
        """Whether a case is chosen; partition and offset are those where it first stood."""
        bad = case.newest
        return (
            case.state is self.state
            and bad.whole
            and (not self.errors or any(part.lower() in bad.error.lower() for part in self.errors))
            and (not self.fields or bad.field in self.fields)
            and (not self.partitions or case.origin.partition in self.partitions)
            and (self.since is None or bad.at >= self.since)
            and (self.until is None or bad.at < self.until)
            and (self.offsets is None or self.offsets[0] <= case.origin.offset <= self.offsets[1])
        )


def read_dead_letters(settings: Settings, topic: str) -> DeadLetters:
    """What of `topic` was rejected so far.

    Raises:
        UserError: the broker or a topic cannot be read.
    """
    count_partitions(settings, topic)
    rejected: dict[Place, Rejected] = {}
    strangers = 0
    for message in read_topic(settings, settings.invalid_topic):
        try:
            origin = read_origin(message.headers())
        except ValueError:
            origin = None
        if origin is None:
            strangers += 1
        elif origin.topic == topic:
            bad = _rejected(message, origin)
            rejected[bad.place] = bad
    # The ledger after the dead letters: what is rejected in between is then not taken for a message of its own.
    entries = read_ledger(settings, topic)
    sent = {entry.rejected: entry.sent_to for entry in entries}
    origins = {entry.sent_to: entry.origin for entry in entries}
    cases = []
    for place, bad in rejected.items():
        if place not in sent:
            state = State.AGAIN if place in origins else State.OPEN
        elif sent[place] not in rejected:
            state = State.SENT
        else:
            continue  # the later rejection stands for it
        cases.append(Case(origins.get(place, place), bad, state))
    cases.sort(key=lambda case: (case.origin, case.newest.place))
    return DeadLetters(cases, sent, strangers)


def _rejected(message: Message, origin: Origin) -> Rejected:
    headers: list[Header] = message.headers()
    found = dict(headers)  # of two with one name the last: ours are behind the producer's
    return Rejected(
        Place(origin.partition, origin.offset, origin.record_ms),
        (found.get(ERROR) or b"").decode(errors="replace"),
        (found.get(FIELD) or b"").decode(errors="replace"),
        message.key(),
        message.value(),
        [(_given_name(name), value) for name, value in headers if name not in OWN_HEADERS and name != REPLAYED_FROM],
        FULL_SIZE not in found,
    )


def _given_name(name: str) -> str:
    """The name that the producer gave a header: one of ours was renamed when the message was rejected."""
    given = name.removeprefix(RENAMED)
    return given if given in OWN_HEADERS else name
