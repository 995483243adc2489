"""Epochs end together on all workers, so that what one closes late is not waited for in every epoch after it."""

import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import cluster_main
from confluent_kafka import Message

from dataflow.connectors import kafka_source
from dataflow.connectors.kafka_clients import TopicIdentity
from dataflow.errors import UserError
from dataflow.process import lifecycle
from dataflow.process.execution import Execution
from dataflow.settings import Settings
from dataflow.state.epochs import GUARD, Closings, EpochPace, epoch_pace
from tests.connectors.test_kafka_source import LEADER, FakeConsumer

INTERVAL = 1.0


class Worker:
    """A worker as Bytewax runs it, in a time of its own: it closes an epoch when activated and an interval is over."""

    def __init__(self, clock: "Clock", step: float, paced: bool, closings: Closings):
        self._clock = clock
        self._step = step  # seconds between its activations: by a sleep, or a long batch
        self.pace = EpochPace(INTERVAL, closings, clock=clock, sleep=clock.sleep) if paced else None
        if self.pace is not None:
            self.pace.began(0)
        self.started = clock()
        self.closed = 0
        self.closed_at = clock()
        self.next = clock() + step
        self.stalls: list[float] = []

    def activate(self, released: bool) -> None:
        if not released:  # another worker has not closed the epoch yet
            self.next = self._clock() + 0.001
            return
        if self.stalls and self.stalls[-1] < 0.0:
            self.stalls[-1] += self._clock()
        now = self._clock()
        if self.pace is not None:
            self.pace.activated()
        if now - self.started >= INTERVAL:
            self.started = now
            self.closed += 1
            self.closed_at = now
            if self.pace is not None:
                self.pace.closed(0)
            self.stalls.append(-self._clock())
        rest = self.pace.rest() if self.pace is not None else self._step
        self.next = self._clock() + max(min(self._step, rest), 0.0005)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def simulate(paced: bool, steps: tuple[float, ...], epochs: int, tmp_path: Path) -> list[list[float]]:
    """The stalls of each worker in its epochs: from closing one until all have. One process each."""
    clock = Clock()
    closings = [Closings(tmp_path, n, len(steps)) for n in range(len(steps))]
    # Each has a clock of its own to sleep by, as they sleep at the same time.
    workers = [Worker(Clock(), step, paced, closing) for step, closing in zip(steps, closings, strict=True)]
    while min(worker.closed for worker in workers) < epochs:
        worker = min(workers, key=lambda each: each.next)
        clock.now = max(clock.now, worker.next)
        worker._clock.now = max(worker._clock.now, worker.next)
        worker.activate(all(other.closed >= worker.closed for other in workers))
    return [[stall for stall in worker.stalls if stall >= 0.0] for worker in workers]


def test_without_pace_the_stalls_grow_up_to_a_whole_interval_and_with_it_they_do_not(tmp_path: Path) -> None:
    drifting = simulate(False, (0.001, 0.02, 0.1), 60, tmp_path)
    assert max(drifting[0][-20:]) > 0.5
    paced = simulate(True, (0.001, 0.02, 0.1), 60, tmp_path)
    assert max(max(stalls[-20:]) for stalls in paced) < 0.12
    assert max(paced[0][-20:]) <= max(paced[0][:20]) + 0.01


def test_a_worker_that_fell_behind_is_waited_for_once(tmp_path: Path) -> None:
    clock = Clock()
    first, second = Closings(tmp_path, 0, 2), Closings(tmp_path, 1, 2)
    early = EpochPace(INTERVAL, first, clock=clock, sleep=clock.sleep)
    early.began(0)
    began = clock.now
    clock.now = began + INTERVAL
    early.activated()
    early.closed(0)
    second.closed(1, began + INTERVAL + 0.7)  # it closed that epoch 0.7 s later
    clock.now = began + 2 * INTERVAL - GUARD / 2  # at which Bytewax would soon close the next one
    early.activated()
    assert clock.now == pytest.approx(began + 2 * INTERVAL + 0.7, rel=0, abs=1e-6)


def test_parts_that_were_built_one_after_the_other_are_closed_together(tmp_path: Path) -> None:
    """On resume Bytewax builds them as their states are read, and counts the first epoch of each from then."""
    clock = Clock()
    pace = EpochPace(INTERVAL, Closings(), alone=True, clock=clock, sleep=clock.sleep)
    began = clock.now
    pace.began(0)
    clock.now += 0.3
    pace.began(1)
    clock.now = began + INTERVAL - GUARD / 2
    pace.activated()
    assert clock.now == pytest.approx(began + 0.3 + INTERVAL, rel=0, abs=1e-6)
    pace.closed(0)
    pace.closed(1)
    closed = clock.now
    clock.now = closed + INTERVAL
    pace.activated()
    assert clock.now == closed + INTERVAL  # from here on nobody has to wait


def test_a_clock_that_was_set_makes_nobody_wait(tmp_path: Path) -> None:
    clock = Clock()
    pace = EpochPace(INTERVAL, Closings(tmp_path, 0, 2), clock=clock, sleep=clock.sleep)
    pace.began(0)
    Closings(tmp_path, 1, 2).closed(0, clock.now + 3600.0)
    for _ in range(2):
        clock.now += INTERVAL
        before = clock.now
        pace.activated()
        assert clock.now == before
        pace.closed(0)
        clock.now -= 40.0
        before = clock.now
        pace.activated()
        assert clock.now == before


def test_what_an_earlier_execution_left_is_not_this_ones(tmp_path: Path) -> None:
    Closings(tmp_path, 1, 2).closed(3, 500.0)
    here = Closings(tmp_path, 0, 2)
    assert here.latest(3) == 500.0
    Closings(tmp_path, 1, 2)
    assert here.latest(3) == float("-inf")
    assert (tmp_path / "epoch.1").stat().st_mode & 0o777 == 0o600


def test_a_disk_that_fails_at_an_epochs_end_is_one_line(tmp_path: Path) -> None:
    closings = Closings(tmp_path, 0, 2)
    (tmp_path / "epoch.0").unlink()
    (tmp_path / "epoch.0").mkdir()
    with pytest.raises(UserError, match=r"epoch\.0: Is a directory: see to the disk") as failed:
        closings.closed(1, 500.0)
    assert "\n" not in str(failed.value)


def test_a_worker_knows_whether_it_is_alone() -> None:
    assert epoch_pace(Execution(None, 0, 1, 1, 10.0))().alone
    assert not epoch_pace(Execution(None, 0, 1, 2, 10.0))().alone
    assert not epoch_pace(Execution(None, 0, 2, 1, 10.0))().alone


# ------------------------------------------------------------------------------------------------------- in a cluster

EPOCH = 0.25
EPOCHS = 28
IDLE = 0.05


class Feed(FakeConsumer):
    """A busy partition, which never waits, or an idle one."""

    def __init__(self, polls: dict[int, list[float]]):
        super().__init__()
        self._polls = polls
        self._number = -1

    def incremental_assign(self, partitions: list[Any]) -> None:
        self._number = partitions[0].partition

    def consume(self, count: int, timeout: float) -> list[Any]:
        self._polls.setdefault(self._number, []).append(time.monotonic())
        time.sleep(0.0005)
        return [Message(topic=LEADER, partition=0, offset=0, value=b"", timestamp=(1, 1))] if self._number == 0 else []

    def poll(self, timeout: float) -> None:
        time.sleep(timeout)


class Source(FixedPartitionedSource[Message, Any]):
    def __init__(self, pace: Callable[[], EpochPace] | None):
        self.polls: dict[int, list[float]] = {}
        self._pace = pace

    def list_parts(self) -> list[str]:
        return ["00000", "00001"]

    def build_part(self, step_id: str, for_part: str, resume_state: Any) -> Any:
        fetcher = kafka_source._Fetcher(Settings(), (LEADER,), {LEADER: 2}, self._pace() if self._pace else None, None)
        fetcher.add(int(for_part), {LEADER: 0})
        identities = {LEADER: TopicIdentity("", "")}
        return kafka_source._SourcePart(fetcher, int(for_part), identities, {LEADER: 0}, lambda: 0.0)


class Nowhere(DynamicSink[Any]):
    def build(self, step_id: str, worker_index: int, worker_count: int) -> StatelessSinkPartition[Any]:
        return _Nowhere()


class _Nowhere(StatelessSinkPartition[Any]):
    def write_batch(self, items: list[Any]) -> None:
        pass


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    lifecycle._stopping.clear()
    yield lifecycle._stopping
    lifecycle._stopping.clear()


def usual_stall(paced: bool, tmp_path: Path, stop: threading.Event, monkeypatch: pytest.MonkeyPatch) -> float:
    """Of the busy one of two workers, the other of which mostly sleeps, in the second half of a run: the longest stall
    of each two epochs, and of these the middle one, as other work on the machine comes in bursts."""
    monkeypatch.setattr(kafka_source, "SHARED_IDLE_SECONDS", IDLE)
    monkeypatch.setattr(kafka_source, "IDLE_SECONDS", IDLE)
    pace = epoch_pace(Execution(None, 0, 1, 2, EPOCH)) if paced else None
    source = Source(pace)
    monkeypatch.setattr(kafka_source, "make_consumer", lambda *_: Feed(source.polls))
    flow = Dataflow("epochs")
    op.output("write", op.input("read", flow, source), Nowhere())
    directory = Path(tempfile.mkdtemp(dir=tmp_path))
    init_db_dir(directory, 1)
    timer = threading.Timer(EPOCHS * EPOCH, stop.set)
    timer.start()
    config = RecoveryConfig(str(directory), timedelta(0))
    interval = timedelta(seconds=EPOCH)
    cluster_main(flow, [], 0, worker_count_per_proc=2, epoch_interval=interval, recovery_config=config)
    timer.join()
    stop.clear()
    times = source.polls[0]
    longest: dict[int, float] = {}
    for before, after in itertools.pairwise(times):
        place = int((before - times[0]) / (2 * EPOCH))
        longest[place] = max(longest.get(place, 0.0), after - before)
    return statistics.median(list(longest.values())[len(longest) // 2 :])


@pytest.mark.slow
def test_the_stalls_of_a_busy_worker_do_not_grow(
    tmp_path: Path, stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    drifting = usual_stall(False, tmp_path, stop, monkeypatch)
    # Without pace it comes to wait for nearly all of each epoch. A ratio, as other work on the machine stretches both.
    assert drifting > 0.5 * EPOCH
    assert usual_stall(True, tmp_path, stop, monkeypatch) < drifting / 2
