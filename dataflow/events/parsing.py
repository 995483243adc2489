"""How a transaction is parsed from a message: what comes of it is a transaction or a rejection."""

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from dataflow.events.transaction import MAX_AHEAD, MAX_LEAD, RESERVED, Rejection, Transaction
from dataflow.metrics import AHEAD

AHEAD_TRANSACTIONS: Final = AHEAD.labels("transaction")

MAX_DEPTH: Final = 256
"""How deep a message may be nested, itself included. Well below what the interpreter's stack holds, wherever in a
program parsing is called: so whether a message is valid depends on nothing but the message."""

_decode = msgspec.json.Decoder(Transaction).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.encode

# Quotes in an object that has the seven required fields and no others: two for each key, two for each string.
_REQUIRED_QUOTES: Final = 7 * 2 + 6 * 2
_PATH = re.compile(r" - at `\$\.?([^`]*)`$")
_MISSING = re.compile(r"Object missing required field `([^`]*)`")
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|([\[{])|([\]}])', re.DOTALL)
_TIME_OFFSET = r"([Zz]|[+-]\d{2}(?::?\d{2}(?::?\d{2}(?:[.,]\d+)?)?)?)?"
_END_OF_DAY = re.compile(rf"(.{{8,10}}[Tt ])24((?::?00(?::?00(?:[.,]0+)?)?)?){_TIME_OFFSET}")
_LEAP_SECOND = re.compile(rf"(.{{8,10}}[Tt ]\d{{2}}:?\d{{2}}:?)60([.,]\d+)?{_TIME_OFFSET}")


def parse(
    value: bytes | None,
    key: bytes | None,
    topic: str,
    partition: int,
    offset: int,
    record_ms: int,
    now: float = math.inf,
    lead: float = MAX_LEAD,
) -> Transaction | Rejection:
    """Parses one message in a single pass; never raises for a bad one.

    `record_ms` is the record's own Kafka timestamp, 0 or less without one; an event time more than a day ahead of it
    is refused. Beyond that, whether a message is valid depends on nothing but its bytes, so it is the same whenever it
    is read.

    An event time that leads the record's by more than `lead` seconds counts at the record's, and the record's likewise
    if it leads `now`: see `credible`. `now` is the wall clock, seconds since 1970; infinite where the broker itself
    set the record's time.
    """
    if value is None:
        return Rejection("the message has no value (a tombstone)", "", partition, offset, record_ms, key, value)
    try:
        txn = _decode(value)
    except msgspec.ValidationError as error:
        what, where = explain(str(error))
        return Rejection(what, where, partition, offset, record_ms, key, value)
    except UnicodeDecodeError:
        return Rejection("not valid UTF-8", "", partition, offset, record_ms, key, value)
    except msgspec.DecodeError as error:
        return Rejection(
            f"not JSON: {error}" if value else "the value is empty", "", partition, offset, record_ms, key, value
        )
    except RecursionError:
        return Rejection("nested too deeply", "", partition, offset, record_ms, key, value)

    try:
        at = event_time(txn.timestamp)
    except (ValueError, OverflowError):
        return Rejection("not an ISO 8601 time", "timestamp", partition, offset, record_ms, key, value)
    if record_ms > 0 and at > record_ms / 1000 + MAX_AHEAD:
        return Rejection(
            "more than a day ahead of the record's own time", "timestamp", partition, offset, record_ms, key, value
        )

    quotes = _REQUIRED_QUOTES
    if txn.transaction_id is None:
        txn.transaction_id = f"{topic}-{partition}-{offset}"
        txn.id_is_ours = True
    else:
        txn.id_is_ours = False
        quotes += 4
    if txn.latitude is None:
        if txn.longitude is not None:
            return Rejection(
                "half a coordinate: latitude is missing", "latitude", partition, offset, record_ms, key, value
            )
    elif txn.longitude is None:
        return Rejection(
            "half a coordinate: longitude is missing", "longitude", partition, offset, record_ms, key, value
        )
    else:
        quotes += 4
    if txn.category is not None:
        quotes += 4
    if txn.ip is not None:
        quotes += 4

    txn.at = credible(at, record_ms, now, lead)
    if txn.at == at:
        txn.ahead_at = 0.0
    else:
        txn.ahead_at = at
        AHEAD_TRANSACTIONS.inc()
    txn.partition = partition
    txn.offset = offset
    txn.record_ms = record_ms
    # As many quotes as the fields that were decoded need: then there is no other field, no key twice, and the
    # original bytes can be kept (0.1 µs). Anything more, an escaped quote too, goes the careful way (2 µs).
    if value.count(b'"') == quotes:
        txn.body = value
    else:
        if too_deep(value):
            return Rejection("nested too deeply", "", partition, offset, record_ms, key, value)
        try:
            txn.body = _canonical(value)
        except UnicodeDecodeError:
            return Rejection("not valid UTF-8", "", partition, offset, record_ms, key, value)
        except RecursionError:  # called from deep in a program
            return Rejection("nested too deeply", "", partition, offset, record_ms, key, value)
    return txn


def credible(at: float, record_ms: int, now: float, lead: float) -> float:
    """The time at which an event counts: its own, or the record's where its own leads that by more than `lead` seconds.

    A record's time that itself leads the wall clock `now` so far gives way to it, as does one that is missing. So no
    event moves a profile's clock further ahead than `lead`, whoever set its time.
    """
    record = record_ms / 1000 if record_ms > 0 else now
    if record > now + lead:
        record = now
    return at if at <= record + lead else record


def too_deep(value: bytes) -> bool:
    """Whether a JSON text is nested deeper than `MAX_DEPTH`."""
    if value.count(b"{") + value.count(b"[") <= MAX_DEPTH:
        return False
    depth = 0
    for found in _BRACKETS.finditer(value):
        if found[1]:
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif found[2]:
            depth -= 1
    return False


def _canonical(value: bytes) -> bytes:
    """The object with each key once (the last, which is the one that was judged) and no field of a decision.

    Values keep their bytes: a number of 40 digits, or 1.10, comes out as it came in.
    """
    value.decode()  # fields that are not ours were skipped unread: they may not be UTF-8
    fields = _decode_fields(value)
    for name in RESERVED:
        fields.pop(name, None)
    if bytes(fields.get("transaction_id", b"")) == b"null":
        del fields["transaction_id"]
    return _encode(fields)


def event_time(text: str) -> float:
    """Seconds since 1970 UTC of an ISO 8601 time; without an offset it is taken as UTC.

    The end of a day may be 24:00:00. A leap second, 23:59:60 UTC, is the second after it, as in POSIX time.

    Raises:
        ValueError: it is not one.
        OverflowError: it lies beyond what a datetime can hold.
    """
    # fromisoformat takes any character between date and time; ISO 8601 and RFC 3339 only these.
    if len(text) > 10 and text[10] not in "Tt " and text[4] == "-" and text[5] != "W":
        raise ValueError(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = _rare_time(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp()


def _rare_time(text: str) -> datetime:
    """What ISO 8601 and RFC 3339 know and `fromisoformat` of Python 3.11 does not: 24:00:00, 23:59:60, a small z."""
    end_of_day = _END_OF_DAY.fullmatch(text)
    if end_of_day:
        before, rest, offset = end_of_day.groups(default="")
        return datetime.fromisoformat(f"{before}00{rest}{offset.upper()}") + timedelta(days=1)
    leap = _LEAP_SECOND.fullmatch(text)
    if leap:
        before, fraction, offset = leap.groups(default="")
        moment = datetime.fromisoformat(f"{before}59{fraction}{offset.upper()}")
        at = moment if moment.tzinfo is None else moment.astimezone(UTC)
        if (at.hour, at.minute) != (23, 59):
            raise ValueError(text)
        return moment + timedelta(seconds=1)
    if text.endswith("z") and text[-2:-1].isdigit():
        return datetime.fromisoformat(text[:-1] + "Z")
    raise ValueError(text)


def explain(message: str) -> tuple[str, str]:
    """Splits msgspec's message into what is wrong and the field that it is about."""
    missing = _MISSING.match(message)
    if missing:
        return "missing", missing[1]
    path = _PATH.search(message)
    if path:
        return message[: path.start()].replace("`", ""), path[1]
    return message.replace("`", ""), ""
