r"""Dead letters in a file, to be mended by hand: JSON, one object a line.

    {"topic": "transactions", "partition": 3, "offset": 1234, "timestamp": 1772454000000,
     "error": "Expected float >= 0", "field": "amount", "key": "ann", "value": "{\"user\": \"ann\", ...}"}

`value` is what to mend; `error` and `field` say what is wrong; the others say which message it is, and stay as they
are. A key or value that is not UTF-8 stands in `key_base64` or `value_base64` instead; one that is absent, in neither.
"""

import base64
import binascii
import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from dataflow.dead_letters.cases import Case, DeadLetters, State
from dataflow.dead_letters.ledger import Letter, Place
from dataflow.errors import UserError
from dataflow.events.feedback import parse_feedback
from dataflow.events.parsing import parse
from dataflow.events.transaction import Rejection
from dataflow.settings import Settings


class Line(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One dead letter in the file."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    error: str = ""
    field: str = ""
    origin: str | None = None  # where it first stood, if this is not its first rejection
    key: str | None = None
    key_base64: str | None = None
    value: str | None = None
    value_base64: str | None = None


class Mended(NamedTuple):
    """A line of the file, read."""

    number: int
    topic: str
    place: Place
    key: bytes | None
    value: bytes | None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode


def export(path: Path, topic: str, cases: Sequence[Case]) -> None:
    """Writes cases to a new file, which only its owner may read: there are transactions in it.

    Raises:
        UserError: the file is there already, or cannot be written.
    """
    try:
        # Never over a file that is there: somebody may have mended it.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        msg = f"{path} is there already, and may hold what was mended: name another file"
        raise UserError(msg) from error
    except OSError as error:
        msg = f"{path} cannot be written ({error.strerror})"
        raise UserError(msg) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            for case in cases:
                file.write(_encode(_line(topic, case)) + b"\n")
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        msg = f"{path} cannot be written ({error.strerror})"
        raise UserError(msg) from error


def _line(topic: str, case: Case) -> Line:
    bad = case.newest
    line = Line(topic, bad.place.partition, bad.place.offset, bad.place.timestamp, bad.error, bad.field)
    if case.state is State.AGAIN:
        line.origin = case.origin.name(topic)
    line.key, line.key_base64 = _as_text(bad.key)
    line.value, line.value_base64 = _as_text(bad.value)
    return line


def read_file(path: Path) -> list[Mended]:
    """The lines of a file; empty ones do not count.

    Raises:
        UserError: the file cannot be read, or a line of it is wrong; with its number.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror})"
        raise UserError(msg) from error
    mended = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = _decode(text)
            place = Place(line.partition, line.offset, line.timestamp)
            key, value = _as_bytes("key", line.key, line.key_base64), _as_bytes("value", line.value, line.value_base64)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise _wrong(path, number, str(error)) from error
        mended.append(Mended(number, line.topic, place, key, value))
    return mended


def match(
    path: Path, mended: Sequence[Mended], settings: Settings, topic: str, letters: DeadLetters
) -> tuple[list[Letter], list[Mended]]:
    """The messages to send back, and the lines whose message was sent back already.

    Raises:
        UserError: a line is about no dead letter, or would be rejected again; with its number.
    """
    cases = {case.newest.place: case for case in letters.cases}
    seen: dict[Place, int] = {}
    found, already = [], []
    for line in mended:
        name = line.place.name(line.topic)
        if line.topic != topic:
            other = " (--feedback is for that of feedback)" if line.topic == settings.feedback_topic else ""
            raise _wrong(path, line.number, f"{name} is not a message of {topic}{other}")
        if line.place in seen:
            raise _wrong(path, line.number, f"{name} stands on line {seen[line.place]} already")
        seen[line.place] = line.number
        if line.place in letters.sent:
            already.append(line)
            continue
        case = cases.get(line.place)
        if case is None:
            raise _wrong(path, line.number, f"{name} of that timestamp is not among the rejected messages")
        if line.key != case.newest.key:
            raise _wrong(path, line.number, f"the key of {name} is not the original's, which it keeps")
        fault = _fault(settings, topic, line)
        if fault:
            raise _wrong(path, line.number, f"{name} would be rejected again: {fault}; mend it, or take the line out")
        found.append(Letter(line.place, case.origin, line.key, line.value, case.newest.headers, mended=True))
    return found, already


def _fault(settings: Settings, topic: str, line: Mended) -> str:
    """What the flow would say of it, were it sent now; empty where it would be decided."""
    now_ms = time.time_ns() // 1_000_000
    partition, offset = line.place.partition, line.place.offset
    if topic == settings.feedback_topic:
        parsed: object = parse_feedback(line.value, line.key, partition, offset, now_ms)
    else:
        parsed = parse(line.value, line.key, topic, partition, offset, now_ms)
    if not isinstance(parsed, Rejection):
        return ""
    return f"{parsed.error} (field {parsed.field})" if parsed.field else parsed.error


def _wrong(path: Path, number: int, what: str) -> UserError:
    return UserError(f"{path}:{number}: {what}; nothing was sent")


def _as_text(data: bytes | None) -> tuple[str | None, str | None]:
    """The two forms in which bytes may stand in a line: text, base64."""
    if data is None:
        return None, None
    try:
        return data.decode(), None
    except UnicodeDecodeError:
        return None, base64.b64encode(data).decode()


def _as_bytes(name: str, text: str | None, encoded: str | None) -> bytes | None:
    if text is not None and encoded is not None:
        msg = f"both {name} and {name}_base64 are there: one of them says it"
        raise ValueError(msg)
    if encoded is None:
        return None if text is None else text.encode()
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        msg = f"{name}_base64 is not base64"
        raise ValueError(msg) from error
