"""How old the last snapshot is, and how long one held a worker up."""

import math
import threading

import pytest

from dataflow.metrics import BatchHistogram, Metric
from dataflow.state.snapshot_times import SnapshotTimes


class Timed:
    """Snapshot times on a clock that the test moves."""

    def __init__(self, *, recovery: bool = True) -> None:
        self.now = 100.0
        self.pauses = BatchHistogram(Metric("x", "histogram", "seconds", (), "X"), (0.5, 1.5, 2.5), None)
        self.times = SnapshotTimes(recovery, self.pauses, lambda: self.now)


@pytest.fixture
def timed() -> Timed:
    return Timed()


def in_another_worker(call: object) -> None:
    thread = threading.Thread(target=call)  # type: ignore[arg-type]
    thread.start()
    thread.join()


def test_the_age_counts_from_the_first_turn_then_from_when_work_goes_on_after_a_snapshot(timed: Timed) -> None:
    assert math.isnan(timed.times.age())
    timed.times.activated()
    timed.now += 3
    timed.times.activated()
    assert timed.times.age() == 3
    timed.times.closed()
    timed.now += 1
    timed.times.closed()  # of its next part
    timed.now += 1
    assert timed.times.age() == 5  # not committed yet
    timed.times.activated()
    assert timed.times.age() == 0
    assert timed.pauses.counts() == [0, 0, 1, 0]


def test_the_oldest_of_several_workers_counts_until_it_ends(timed: Timed) -> None:
    in_another_worker(timed.times.activated)
    timed.now += 4
    timed.times.activated()
    assert timed.times.age() == 4
    timed.times.ended()
    assert timed.times.age() == 4


def test_without_recovery_there_is_no_age_and_no_pause() -> None:
    timed = Timed(recovery=False)
    timed.times.activated()
    timed.times.closed()
    timed.now += 1
    timed.times.activated()
    assert math.isnan(timed.times.age())
    assert sum(timed.pauses.counts()) == 0
