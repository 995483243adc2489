"""An output record, and the headers that say which message of the source it comes from."""

import functools
from typing import Final

import msgspec

# The timestamp is part of it: the same offset of a topic that was made anew is another transaction, and must not be
# skipped.
SOURCE_TOPIC: Final = "source_topic"
SOURCE_PARTITION: Final = "source_partition"
SOURCE_OFFSET: Final = "source_offset"
SOURCE_TIMESTAMP: Final = "source_timestamp"


class Record(msgspec.Struct, gc=False, frozen=True):
    """One output record, and the message of the source that it comes from."""

    topic: str
    key: bytes | None
    value: bytes | None
    source_topic: str
    partition: int  # of the source
    offset: int  # in the source
    record_ms: int  # Kafka timestamp in the source
    headers: list[tuple[str, bytes | None]] | None = None  # besides those of the origin


@functools.cache
def partition_key(partition: int) -> str:
    """A partition as a Bytewax key; zero-padded, as Bytewax orders parts as strings."""
    return f"{partition:05}"


@functools.cache
def source_key(topic: str, partition: int) -> str:
    """A partition of a source topic as a Bytewax key; zero-padded, as Bytewax orders parts as strings."""
    return f"{topic}:{partition:05}"
