"""An output record, and the headers that say which message of the source it comes from."""

import functools
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

Header = tuple[str, bytes | None]

SOURCE_TOPIC: Final = "source_topic"
# The same offset of a topic that was made anew is another message, and must not be skipped. Where the broker has no
# topic ids this header is missing, and the timestamp tells them apart.
SOURCE_TOPIC_ID: Final = "source_topic_id"
SOURCE_PARTITION: Final = "source_partition"
SOURCE_OFFSET: Final = "source_offset"
SOURCE_TIMESTAMP: Final = "source_timestamp"  # Kafka timestamp of the message, ms since 1970
ORIGIN: Final = (SOURCE_TOPIC, SOURCE_TOPIC_ID, SOURCE_PARTITION, SOURCE_OFFSET, SOURCE_TIMESTAMP)

ERROR: Final = "error"
FIELD: Final = "field"
STEP: Final = "step"
FULL_SIZE: Final = "full_size"  # bytes of the value of which a pointer has the first

OWN_HEADERS: Final = frozenset((*ORIGIN, ERROR, FIELD, STEP, FULL_SIZE))
"""The headers that only Redflag writes."""

RENAMED: Final = "producer_"  # begins the name under which a producer's header of such a name is kept


class Record(msgspec.Struct, gc=False, frozen=True):
    """One output record, and the message of the source that it comes from."""

    topic: str
    key: bytes | None  # the message's own
    value: bytes | None
    source_topic: str
    partition: int  # of the source
    offset: int  # in the source
    record_ms: int  # Kafka timestamp in the source
    headers: list[Header] | None = None  # besides those of the origin: the producer's own, then ours (error, field)


class Origin(NamedTuple):
    """Which message a record comes from, as its headers say."""

    topic: str
    topic_id: str  # "" where it does not say
    partition: int
    offset: int
    record_ms: int


@functools.cache
def source_key(topic: str, partition: int) -> str:
    """A partition of a source as a Bytewax key; zero-padded, as Bytewax orders parts as strings."""
    return f"{topic}-{partition:05}"


@functools.cache
def partition_key(partition: int) -> str:
    """A partition as a Bytewax key; zero-padded, as Bytewax orders parts as strings."""
    return f"{partition:05}"


def producer_headers(headers: Sequence[Header] | None) -> list[Header] | None:
    """A message's own headers, to be kept beside ours: one under a name of ours is renamed, so that it is none of ours.

    >>> producer_headers([("trace", b"7"), ("source_offset", b"0")])
    [('trace', b'7'), ('producer_source_offset', b'0')]
    """
    if not headers:
        return None
    return [(RENAMED + name if name in OWN_HEADERS else name, value) for name, value in headers]


def read_origin(headers: Sequence[Header] | None) -> Origin | None:
    """Which message a record on an output comes from; None if it has none of our headers.

    Raises:
        ValueError: some of our headers are missing or garbage: somebody else wrote it.
    """
    if not headers:
        return None
    found = dict(headers)  # of two with one name the last: ours are behind the producer's
    if not any(name in found for name in ORIGIN):
        return None
    topic, topic_id = found.get(SOURCE_TOPIC), found.get(SOURCE_TOPIC_ID, b"")
    partition, offset, at = found.get(SOURCE_PARTITION), found.get(SOURCE_OFFSET), found.get(SOURCE_TIMESTAMP)
    if not (topic and topic_id is not None and _is_number(partition) and _is_number(offset)):
        raise ValueError(headers)
    if not (at == b"-1" or _is_number(at)):
        raise ValueError(headers)
    # The checks above leave no None; int() takes what isdigit() takes.
    return Origin(topic.decode(), topic_id.decode(), int(partition or b""), int(offset or b""), int(at or b""))


def _is_number(value: bytes | None) -> bool:
    return value is not None and value.isdigit() and len(value) <= 19
