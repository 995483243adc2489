"""How records are handed to the producer, with the headers of their origin."""

from collections.abc import Callable
from typing import Any, Protocol

from confluent_kafka import KafkaException

from dataflow.record import SOURCE_OFFSET, SOURCE_PARTITION, SOURCE_TIMESTAMP, SOURCE_TOPIC, Record

Header = tuple[str, bytes | None]


class Delivery(Protocol):
    """The two ways in which a producer takes a record: at once, or raising where it would have to wait; and waiting."""

    produce_at_once: Callable[..., Any]

    def produce(self, topic: str, **record: Any) -> None:
        """Waits while the queue is full."""


def hand_over(records: list[Record], partition: int, source_topic: bytes, delivery: Delivery) -> dict[str, int]:
    """Hands records of one output partition over, in their order; how many went to each topic.

    Raises:
        UserError: of the delivery.
    """
    counts: dict[str, int] = {}
    produce = delivery.produce_at_once
    from_topic = (SOURCE_TOPIC, source_topic)
    source, written_ms = -1, -1
    from_partition = (SOURCE_PARTITION, b"-1")
    at = (SOURCE_TIMESTAMP, b"-1")
    for record in records:
        if record.partition != source:
            source = record.partition
            from_partition = (SOURCE_PARTITION, str(source).encode())
        record_ms = record.record_ms
        if record_ms != written_ms:  # neighbours often have it in common
            written_ms = record_ms
            at = (SOURCE_TIMESTAMP, str(record_ms).encode())
        headers: list[Header] = [from_topic, from_partition, (SOURCE_OFFSET, str(record.offset).encode()), at]
        more = record.headers
        if more is not None:
            headers += more
        topic, value, key = record.topic, record.value, record.key
        try:
            # By position: 0.2 µs less than by name.
            produce(topic, value, key, partition, headers=headers)
        except (BufferError, KafkaException):  # nothing was taken: once more, the patient way
            delivery.produce(topic, value=value, key=key, partition=partition, headers=headers)
        counts[topic] = counts.get(topic, 0) + 1
    return counts
