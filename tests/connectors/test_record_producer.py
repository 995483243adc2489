"""What is handed to the producer: each record with the headers of its origin, none dropped where the queue is full."""

from typing import Any

import pytest
from confluent_kafka import KafkaException

from dataflow.connectors.record_producer import produce_records, size_at_most, source_headers
from dataflow.events.output_record import Header, Record, producer_headers, read_origin


class Producer:
    def __init__(self, refusals: dict[int, Exception], sure_bytes: int = 1_000_000, takes: bool = True):
        self.refusals = refusals
        self.sure_bytes = sure_bytes
        self.takes = takes
        self.tried = 0
        self.taken: list[tuple[Any, ...]] = []
        self.watched: list[int] = []

    def produce_at_once(self, topic: str, value: bytes, key: bytes, partition: int, headers: list[Any]) -> None:
        self.tried += 1
        if self.tried in self.refusals:
            raise self.refusals[self.tried]
        self.taken.append((topic, value, key, partition, headers))

    def produce_watched(self, record: Record, partition: int, headers: list[Header]) -> bool:
        self.watched.append(record.offset)
        if self.takes:
            self.taken.append((record.topic, record.value, record.key, partition, headers))
        return self.takes


PARTITIONS = {"a": 3, "b": 1}
COMMON = source_headers("transactions", "id", 3)
RECORDS = [
    Record("a", b"k1", b"v1", "transactions", 3, 7, 1_000),
    Record("b", None, b"v2", "transactions", 3, 8, 1_000, [("error", b"bad")]),
    Record("a", b"k3", None, "transactions", 3, 0, 2_000),
    Record("a", b"k4", b"v4", "transactions", 3, 9, -1),
]


def origin(offset: bytes, at: bytes) -> list[tuple[str, bytes]]:
    return [
        ("source_topic", b"transactions"),
        ("source_partition", b"3"),
        ("source_topic_id", b"id"),
        ("source_offset", offset),
        ("source_timestamp", at),
    ]


@pytest.mark.parametrize("refusals", [{}, {1: BufferError(), 3: KafkaException()}])
def test_each_record_goes_out_once_in_its_order_with_its_origin(refusals: dict[int, Exception]) -> None:
    producer = Producer(refusals)
    assert produce_records(RECORDS, PARTITIONS, COMMON, producer) == {"a": 3, "b": 1}
    assert producer.taken == [
        ("a", b"v1", b"k1", 3, origin(b"7", b"1000")),
        ("b", b"v2", None, 1, [("error", b"bad"), *origin(b"8", b"1000")]),
        ("a", None, b"k3", 3, origin(b"0", b"2000")),
        ("a", b"v4", b"k4", 3, origin(b"9", b"-1")),
    ]


def test_nothing_is_nothing() -> None:
    assert produce_records([], PARTITIONS, COMMON, Producer({})) == {}


def test_what_may_be_too_large_is_watched_and_counts_only_if_it_was_taken() -> None:
    large = Record("a", b"k", b"x" * 2000, "transactions", 3, 10, 1_000)
    headed = Record("a", b"k", b"x", "transactions", 3, 11, 1_000, [("trace", b"x" * 2000)])
    producer = Producer({}, sure_bytes=2000, takes=False)
    assert produce_records([RECORDS[0], large, headed], PARTITIONS, COMMON, producer) == {"a": 1}
    assert producer.watched == [10, 11]


def test_where_the_limits_are_not_known_every_record_is_watched() -> None:
    producer = Producer({}, sure_bytes=-1)
    assert produce_records(RECORDS, PARTITIONS, COMMON, producer) == {"a": 3, "b": 1}
    assert producer.watched == [7, 8, 0, 9]


def test_the_size_is_that_of_all_that_a_record_carries() -> None:
    small = Record("a", b"k" * 100, b"v" * 200, "t", 0, 0, 0)
    headed = Record("a", b"k" * 100, b"v" * 200, "t", 0, 0, 0, [("h", b"x" * 5000), ("none", None)])
    assert 300 <= size_at_most(small) <= 300 + 1000
    assert 5000 <= size_at_most(headed) - size_at_most(small) <= 5100


def test_a_producers_headers_are_kept_and_never_taken_for_ours() -> None:
    sent: list[Header] = [("trace", b"7"), ("source_offset", b"0"), ("source_topic_id", b"other"), ("error", b"none")]
    kept = producer_headers(sent)
    assert kept == [
        ("trace", b"7"),
        ("producer_source_offset", b"0"),
        ("producer_source_topic_id", b"other"),
        ("producer_error", b"none"),
    ]
    assert producer_headers(None) is None
    assert producer_headers([]) is None
    # Even were they handed over as they came: ours stand behind them.
    producer = Producer({})
    produce_records([Record("a", b"k", b"v", "transactions", 3, 7, 5, sent)], PARTITIONS, COMMON, producer)
    assert read_origin(producer.taken[0][4]) == ("transactions", "id", 3, 7, 5)


@pytest.mark.parametrize(
    "lacking",
    [
        {"source_topic": None},
        {"source_offset": None},
        {"source_timestamp": b"soon"},
        {"source_partition": b"-1"},
        {"source_offset": "१".encode()},
        {"source_offset": b"9" * 30},
        {"source_topic": b"\xff"},
        {"source_topic_id": b"\xff"},
    ],
    ids=str,
)
def test_half_of_our_headers_is_told_from_all_and_from_none(lacking: dict[str, bytes | None]) -> None:
    headers = dict(origin(b"7", b"1000"))
    assert read_origin(list(headers.items())) == ("transactions", "id", 3, 7, 1000)
    with pytest.raises(ValueError):
        read_origin(list({**headers, **lacking}.items()))
    for name, value in lacking.items():
        if value is None:
            del headers[name]
            with pytest.raises(ValueError):
                read_origin(list(headers.items()))
    assert read_origin([("trace", b"7")]) is None
    assert read_origin(None) is None


def test_an_older_versions_record_has_no_topic_id() -> None:
    headers = dict(origin(b"7", b"-1"))
    del headers["source_topic_id"]
    assert read_origin(list(headers.items())) == ("transactions", "", 3, 7, -1)
