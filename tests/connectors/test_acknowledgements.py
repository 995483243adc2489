"""How long records took until they were acknowledged, as counted by what a producer still has."""

import random

import pytest

from dataflow.connectors.acknowledgements import LOOK_SECONDS, Acknowledgements
from dataflow.events.output_record import Record
from dataflow.metrics import BatchHistogram, Metric

BOUNDS = (0.5, 1.5, 2.5, 3.5, 4.5)


class Producer:
    """Has so many records."""

    waiting = 0

    def __len__(self) -> int:
        return self.waiting


class Watched:
    """Acknowledgements of a producer that the test plays, on a clock that it moves."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.producer = Producer()
        self.histogram = BatchHistogram(Metric("x", "histogram", "seconds", (), "X"), BOUNDS, None)
        clock = lambda: self.now  # noqa: E731
        self.seen = Acknowledgements(self.producer, self.histogram, clock, clock)

    def hand_over(self, *times: float) -> None:
        """Records whose messages have these timestamps."""
        self.producer.waiting += len(times)
        self.seen.handed_over([Record("out", None, b"", "in", 0, 0, round(at * 1000)) for at in times])

    def acknowledge(self, count: int) -> None:
        self.producer.waiting -= count
        self.seen.look()


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_a_record_counts_from_its_messages_timestamp_to_when_the_producer_has_it_no_more(watched: Watched) -> None:
    watched.hand_over(1_000.0, 999.0)
    watched.seen.look()
    assert sum(watched.histogram.counts()) == 0
    watched.now += 2
    watched.acknowledge(2)
    assert watched.histogram.counts() == [0, 0, 1, 1, 0, 0]


def test_of_a_batch_that_is_acknowledged_in_parts_each_part_counts_when_it_is(watched: Watched) -> None:
    watched.hand_over(1_000.0, 1_000.0, 1_000.0)
    watched.hand_over(1_000.0)
    watched.now += 1
    watched.acknowledge(2)
    watched.now += 1
    watched.acknowledge(0)
    watched.now += 1
    watched.acknowledge(2)
    assert watched.histogram.counts() == [0, 2, 0, 2, 0, 0]
    assert watched.seen.waiting_seconds() is None


def test_a_message_without_a_timestamp_or_of_a_clock_that_is_ahead_takes_no_negative_time(watched: Watched) -> None:
    watched.hand_over(-0.001, 0.0, 1_007.0)
    watched.acknowledge(3)
    assert watched.histogram.counts() == [1, 0, 0, 0, 0, 0]


def test_a_pointer_that_is_sent_besides_moves_no_other_records_time_for_good(watched: Watched) -> None:
    watched.hand_over(1_000.0, 1_000.0)
    watched.producer.waiting += 1  # not one of ours
    watched.now += 1
    watched.acknowledge(1)
    assert sum(watched.histogram.counts()) == 0
    watched.acknowledge(2)
    assert watched.histogram.counts() == [0, 2, 0, 0, 0, 0]


def test_number_and_mean_are_right_in_whatever_order_acknowledgements_come(watched: Watched) -> None:
    rng = random.Random(3)
    handed: list[float] = []
    expected = 0.0
    for _ in range(200):
        watched.now += rng.random()
        for _ in range(rng.randrange(4)):
            at = float(int(watched.now * 1000) - rng.randrange(3000)) / 1000
            watched.hand_over(at)
            handed.append(at)
        rng.shuffle(handed)
        done = rng.randrange(len(handed) + 1)
        expected += sum(watched.now - at for at in handed[:done])
        del handed[:done]
        watched.acknowledge(done)
    expected += sum(watched.now - at for at in handed)
    watched.acknowledge(len(handed))
    (family,) = watched.histogram.collect()
    total = next(sample.value for sample in family.samples if sample.name == "x_sum")
    assert total == pytest.approx(expected, rel=1e-6)


def test_a_worker_looks_again_soon_at_first_and_less_often_the_longer_it_waits(watched: Watched) -> None:
    assert watched.seen.look_again_seconds() is None
    watched.hand_over(1_000.0)
    assert watched.seen.look_again_seconds() == 0
    watched.acknowledge(0)
    assert watched.seen.look_again_seconds() == LOOK_SECONDS
    watched.now += 5
    assert watched.seen.look_again_seconds() == 0
    watched.acknowledge(0)
    assert watched.seen.look_again_seconds() == pytest.approx(0.5)
    watched.now += 0.2
    assert watched.seen.look_again_seconds() == pytest.approx(0.3 + 0.02)
    watched.now -= 0.2
    assert watched.seen.waiting_seconds() == 5
    watched.acknowledge(1)
    assert watched.seen.look_again_seconds() is None
