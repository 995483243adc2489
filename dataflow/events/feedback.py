"""Feedback: what an analyst found out about a transaction, as it arrives, and how it is told and parsed."""

import math
from typing import Final

import msgspec

from dataflow.events.parsing import credible, event_time, explain, too_deep
from dataflow.events.transaction import MAX_AHEAD, MAX_LEAD, Rejection, Text
from dataflow.metrics import AHEAD

AHEAD_LABELS: Final = AHEAD.labels("feedback")


class Feedback(msgspec.Struct, gc=False, frozen=True):
    """A label: whether a transaction was fraud; times in seconds since 1970 UTC, as they count.

    The label of a transaction_id that stands on several payments is one label, and speaks of all of them.
    """

    transaction_id: str
    user: str
    merchant: str
    at: float  # event time of the transaction
    fraud: bool
    labelled_at: float
    message: Rejection | None = None  # as which its message goes to the dead letters if a step fails on it


class _Wire(msgspec.Struct, gc=False, omit_defaults=True):
    transaction_id: Text
    user: Text
    merchant: Text
    timestamp: str
    fraud: bool
    labelled_at: str
    analyst: Text | None = None


_decode = msgspec.json.Decoder(_Wire).decode
_encode = msgspec.json.Encoder().encode


def feedback_to_json(
    transaction_id: str,
    user: str,
    merchant: str,
    timestamp: str,
    fraud: bool,
    labelled_at: str,
    analyst: str | None = None,
) -> bytes:
    """A label as a message of the feedback topic; both times in ISO 8601, `timestamp` that of the transaction."""
    return _encode(_Wire(transaction_id, user, merchant, timestamp, fraud, labelled_at, analyst))


def parse_feedback(
    value: bytes | None,
    key: bytes | None,
    partition: int,
    offset: int,
    record_ms: int,
    now: float = math.inf,
    lead: float = MAX_LEAD,
) -> Feedback | Rejection:
    """Parses one message of the feedback topic; never raises for a bad one.

    Neither time may lie more than a day ahead of the record's own Kafka timestamp, where it has one, nor the label
    before the transaction that it is about. `now` and `lead` as in `parsing.parse`.
    """

    def rejected(what: str, where: str = "") -> Rejection:
        return Rejection(what, where, partition, offset, record_ms, key, value)

    if value is None:
        return rejected("the message has no value (a tombstone)")
    try:
        wire = _decode(value)
    except msgspec.ValidationError as error:
        return rejected(*explain(str(error)))
    except UnicodeDecodeError:
        return rejected("not valid UTF-8")
    except msgspec.DecodeError as error:
        return rejected(f"not JSON: {error}" if value else "the value is empty")
    except RecursionError:
        return rejected("nested too deeply")
    if too_deep(value):
        return rejected("nested too deeply")
    limit = record_ms / 1000 + MAX_AHEAD if record_ms > 0 else math.inf
    times = {}
    for name in ("timestamp", "labelled_at"):
        try:
            times[name] = event_time(getattr(wire, name))
        except (ValueError, OverflowError):
            return rejected("not an ISO 8601 time", name)
        if times[name] > limit:
            return rejected("more than a day ahead of the record's own time", name)
    if times["labelled_at"] < times["timestamp"]:
        return rejected("before the transaction itself", "labelled_at")
    labelled_at = credible(times["labelled_at"], record_ms, now, lead)
    at = min(credible(times["timestamp"], record_ms, now, lead), labelled_at)
    if labelled_at != times["labelled_at"] or at != times["timestamp"]:
        AHEAD_LABELS.inc()
    return Feedback(wire.transaction_id, wire.user, wire.merchant, at, wire.fraud, labelled_at)
