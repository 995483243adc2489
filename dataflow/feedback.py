"""Feedback: what an analyst found out about a transaction, as it arrives, and how it is parsed from a message."""

import time
from collections.abc import Callable

import msgspec

from dataflow.parsing import event_time, explain
from dataflow.transaction import MAX_AHEAD, Rejection, Text


class Feedback(msgspec.Struct, gc=False, frozen=True):
    """A label: whether a transaction was fraud; times in seconds since 1970 UTC."""

    transaction_id: str
    user: str
    merchant: str
    at: float  # event time of the transaction
    fraud: bool
    labelled_at: float
    message: Rejection | None = None  # as which its message goes to the dead letters if a step fails on it


class _Wire(msgspec.Struct, gc=False):
    transaction_id: Text
    user: Text
    merchant: Text
    timestamp: str
    fraud: bool
    labelled_at: str
    analyst: Text | None = None


_decode = msgspec.json.Decoder(_Wire).decode


def parse_feedback(
    value: bytes | None,
    key: bytes | None,
    partition: int,
    offset: int,
    record_ms: int,
    clock: Callable[[], float] = time.time,
) -> Feedback | Rejection:
    """Parses one message of the feedback topic; never raises for a bad one.

    Neither time may lie more than a day ahead of the record's own Kafka timestamp, nor the label before the
    transaction that it is about.
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
    limit = (record_ms / 1000 if record_ms > 0 else clock()) + MAX_AHEAD
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
    return Feedback(wire.transaction_id, wire.user, wire.merchant, times["timestamp"], wire.fraud, times["labelled_at"])
