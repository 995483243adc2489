"""How records are handed to the producer, with the headers of their origin."""

from collections.abc import Callable
from typing import Any, Final, Protocol

from confluent_kafka import KafkaException

from dataflow.events.output_record import (
    SOURCE_OFFSET,
    SOURCE_PARTITION,
    SOURCE_TIMESTAMP,
    SOURCE_TOPIC,
    SOURCE_TOPIC_ID,
    Header,
    Record,
)

OVERHEAD: Final = 768  # bytes that a batch of one record has at most besides key, value and the producer's headers
HEADER_OVERHEAD: Final = 16  # bytes that a header has at most besides its name and value


class Delivery(Protocol):
    """The two ways in which a producer takes a record."""

    produce_at_once: Callable[..., Any]  # raises where it would have to wait
    sure_bytes: int  # a record up to this size (see `size_at_most`) is never too large for its topic

    def produce_watched(self, record: Record, partition: int, headers: list[Header]) -> bool:
        """Waits while the queue is full, and takes note if the record is too large; whether it was handed over."""


def source_headers(topic: str, topic_id: str, partition: int) -> list[Header]:
    """The headers that all records from one partition of a source have in common."""
    headers: list[Header] = [(SOURCE_TOPIC, topic.encode()), (SOURCE_PARTITION, str(partition).encode())]
    if topic_id:
        headers.append((SOURCE_TOPIC_ID, topic_id.encode()))
    return headers


def size_at_most(record: Record) -> int:
    """The bytes of a batch with only this record in it, uncompressed, or a few hundred more."""
    size = OVERHEAD
    if record.value is not None:
        size += len(record.value)
    if record.key is not None:
        size += len(record.key)
    if record.headers is not None:
        for name, value in record.headers:
            size += HEADER_OVERHEAD + 4 * len(name)  # of UTF-8
            if value is not None:
                size += len(value)
    return size


def produce_records(
    records: list[Record], partitions: dict[str, int], common: list[Header], delivery: Delivery
) -> dict[str, int]:
    """Hands the records of one source partition over, in their order; how many went to each topic.

    `partitions`: of each output topic the one to write; `common`: see `source_headers`. Those headers stand last, so
    that they are the ones that a reader finds, whatever else a record carries.

    Raises:
        UserError: of the delivery.
    """
    counts: dict[str, int] = {}
    produce = delivery.produce_at_once
    sure_bytes = delivery.sure_bytes
    written_ms = -1
    at = (SOURCE_TIMESTAMP, b"-1")
    for record in records:
        record_ms = record.record_ms
        if record_ms != written_ms:  # neighbours often have it in common
            written_ms = record_ms
            at = (SOURCE_TIMESTAMP, str(record_ms).encode())
        more = record.headers
        headers: list[Header] = [*common, (SOURCE_OFFSET, str(record.offset).encode()), at]
        if more is not None:
            headers = more + headers
        topic = record.topic
        handed_over = True
        if size_at_most(record) > sure_bytes:
            handed_over = delivery.produce_watched(record, partitions[topic], headers)
        else:
            try:
                # By position: 0.2 µs less than by name.
                produce(topic, record.value, record.key, partitions[topic], headers=headers)
            except (BufferError, KafkaException):  # nothing was taken: once more, the patient way
                handed_over = delivery.produce_watched(record, partitions[topic], headers)
        if handed_over:
            counts[topic] = counts.get(topic, 0) + 1
    return counts
