"""What is handed to the producer: each record with the headers of its origin, none dropped where the queue is full."""

from typing import Any

import pytest
from confluent_kafka import KafkaException

from dataflow.outbox import hand_over
from dataflow.record import Record


class Producer:
    def __init__(self, refusals: dict[int, Exception]):
        self.refusals = refusals
        self.tried = 0
        self.taken: list[tuple[Any, ...]] = []

    def produce_at_once(self, topic: str, value: bytes, key: bytes, partition: int, headers: list[Any]) -> None:
        self.tried += 1
        if self.tried in self.refusals:
            raise self.refusals[self.tried]
        self.taken.append((topic, value, key, partition, headers))

    def produce(self, topic: str, value: bytes, key: bytes, partition: int, headers: list[Any]) -> None:
        self.taken.append((topic, value, key, partition, headers))


RECORDS = [
    Record("a", b"k1", b"v1", 3, 7, 1_000),
    Record("b", None, b"v2", 3, 8, 1_000, [("error", b"bad")]),
    Record("a", b"k3", None, 7, 0, 2_000),
    Record("a", b"k4", b"v4", 3, 9, -1),
]


def origin(partition: bytes, offset: bytes, at: bytes) -> list[tuple[str, bytes]]:
    return [
        ("source_topic", b"transactions"),
        ("source_partition", partition),
        ("source_offset", offset),
        ("source_timestamp", at),
    ]


@pytest.mark.parametrize("refusals", [{}, {1: BufferError(), 3: KafkaException()}])
def test_each_record_goes_out_once_in_its_order_with_its_origin(refusals: dict[int, Exception]) -> None:
    producer = Producer(refusals)
    assert hand_over(RECORDS, 3, b"transactions", producer) == {"a": 3, "b": 1}
    assert producer.taken == [
        ("a", b"v1", b"k1", 3, origin(b"3", b"7", b"1000")),
        ("b", b"v2", None, 3, [*origin(b"3", b"8", b"1000"), ("error", b"bad")]),
        ("a", None, b"k3", 3, origin(b"7", b"0", b"2000")),
        ("a", b"v4", b"k4", 3, origin(b"3", b"9", b"-1")),
    ]


def test_nothing_is_nothing() -> None:
    assert hand_over([], 0, b"transactions", Producer({})) == {}
