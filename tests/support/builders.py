"""Small builders for what the tests speak of: transactions, messages, named instants."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from confluent_kafka import Message

from dataflow.events.feedback import Feedback
from dataflow.events.output_record import Record
from dataflow.events.parsing import parse
from dataflow.events.transaction import Transaction
from dataflow.settings import Settings

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC).timestamp()
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0

if TYPE_CHECKING:
    from dataflow.steps import Routed

_numbers = iter(range(10**9))


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def fields(user: str = "ann", at: float = NOON, amount: float = 25.0, **others: Any) -> dict[str, Any]:
    """The JSON object of a transaction, as a producer would write it."""
    return {
        "user": user,
        "amount": amount,
        "timestamp": iso(at),
        "location": "US",
        "device": "mobile",
        "merchant": "Amazon",
        "txn_type": "purchase",
        **others,
    }


def raw(user: str = "ann", **others: Any) -> bytes:
    return msgspec.json.encode(fields(user, **others))


def txn(user: str = "ann", *, offset: int | None = None, partition: int = 0, **others: Any) -> Transaction:
    """A parsed transaction."""
    number = next(_numbers) if offset is None else offset
    parsed = parse(raw(user, **others), user.encode(), "transactions", partition, number, 0)
    assert isinstance(parsed, Transaction), parsed
    parsed.topic = "transactions"
    return parsed


def message(
    value: bytes | None,
    *,
    key: bytes | None = None,
    partition: int = 0,
    offset: int | None = None,
    topic: str = "transactions",
    headers: list[tuple[str, bytes]] | None = None,
) -> Message:
    """What the source hands to the flow."""
    number = next(_numbers) if offset is None else offset
    return Message(topic=topic, partition=partition, offset=number, key=key, value=value, headers=headers)


def split(routed: "list[Routed]") -> tuple[list[Record], list[Record]]:
    """What goes to the sink: the decisions, and the dead letters."""
    from dataflow.steps import written  # tests of profiles and features need no flow

    records = written(routed)
    invalid = Settings().invalid_topic
    return [r for r in records if r.topic != invalid], [r for r in records if r.topic == invalid]


def label(
    name: str, *, fraud: bool = True, at: float = NOON, after: float = DAY, user: str = "ann", merchant: str = "Amazon"
) -> Feedback:
    """The label of a transaction, which comes `after` seconds later."""
    return Feedback(name, user, merchant, at, fraud, at + after)
