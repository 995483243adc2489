"""The detection flow's own graph, over messages from memory, which kills itself at a point of the state.

`run` is called in processes of their own. What is decided is written to a file of each execution and process, a line a
message: partition, offset, topic, and what goes there.
"""

import functools
import os
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.recovery import RecoveryConfig
from bytewax.testing import cluster_main
from confluent_kafka import Message

from dataflow import detect
from dataflow.rules import LiveRules
from dataflow.scoring.loading import load_model
from dataflow.scoring.operating_point import OperatingPoint
from dataflow.state import recovery
from dataflow.state.crash_points import Point
from dataflow.state.lane import LanePace
from dataflow.state.lanes import stateful_map
from dataflow.state.store import Store
from dataflow.steps import Routed, written
from tests.chaos.comparison import LIMITS, RULES, THRESHOLDS, Output, decide
from tests.chaos.input import PARTITIONS, SETTINGS, STORY_EVERY, Event, story, transactions
from tests.state.executions import NO_CRASH, Crash, arm, arm_helper
from tests.support.builders import message

EPOCH = 0.05
BATCH = 20
PACE = LanePace(flush_seconds=0.02, compact_part=0.5, compact_bytes=5_000, log_bytes=300_000, retry_seconds=0.01)
FILE_BYTES = 100_000
STEP_EVERY = 40
"""Of so many transactions of ordinary users, all stories go a step on."""


class Job(NamedTuple):
    """What all executions have in common."""

    folder: Path
    model_file: Path
    transactions: int  # of ordinary users; stories of labelled ones come to that
    users: int
    seed: int

    @property
    def recovery(self) -> Path:
        return self.folder / "recovery"

    @property
    def rules_file(self) -> Path:
        return self.folder / "rules.toml"


def prepare(job: Job) -> None:
    """Makes what executions find."""
    recovery.prepare(job.recovery, 2)
    job.rules_file.write_text(RULES.format(limit=LIMITS[0]))


def _events(job: Job) -> Iterator[Event]:
    ordinary = transactions(job.seed, job.users)
    stories: list[Iterator[list[Event]]] = []
    for number in range(job.transactions):
        yield SETTINGS.transactions_topic, *next(ordinary)
        if number % STORY_EVERY == 0:
            stories.append(story(number // STORY_EVERY, Random(f"{job.seed}/{number}")))
        if number % STEP_EVERY == 0:
            for each in stories:
                yield from next(each, ())


@functools.cache
def messages(job: Job) -> dict[int, list[Message]]:
    """What is read, by partition; payments and labels in step, each with a number of its own for its offset."""
    found: dict[int, list[Message]] = {partition: [] for partition in range(PARTITIONS)}
    for topic, key, value in _events(job):
        there = found[zlib.crc32(key) % PARTITIONS]
        there.append(message(value, key=key, partition=zlib.crc32(key) % PARTITIONS, offset=len(there), topic=topic))
    return found


def expected(job: Job) -> dict[tuple[int, int], Output]:
    """What an uninterrupted run decides, whose state goes to `reference`."""
    given = [each for part in messages(job).values() for each in part]
    _, outputs = decide(given, job.model_file, job.rules_file, THRESHOLDS[0], job.folder / "reference")
    return {(partition, offset): output for (partition, offset, _), output in outputs.items()}


class _Part(StatefulSourcePartition[Any, int]):
    def __init__(self, given: list[Message], begin: int, rest: float):
        self._given, self._at, self._rest = given, begin, timedelta(seconds=rest)
        self._awake = datetime.now(UTC)

    def next_batch(self) -> list[Message]:
        if self._at >= len(self._given):
            raise StopIteration
        begin, self._at = self._at, min(self._at + BATCH, len(self._given))
        self._awake = datetime.now(UTC) + self._rest
        return self._given[begin : self._at]

    def next_awake(self) -> datetime:
        return self._awake

    def snapshot(self) -> int:
        return self._at


class Given(FixedPartitionedSource[Message, int]):
    """The messages of a job; each partition rests a while after each batch."""

    def __init__(self, job: Job, rest: float):
        self._given = messages(job)
        self._rest = rest

    def list_parts(self) -> list[str]:
        return [str(partition) for partition in self._given]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _Part:
        return _Part(self._given[int(for_part)], resume_state or 0, self._rest)


class _Lines(StatelessSinkPartition[Routed]):
    def __init__(self, path: Path):
        self._fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def write_batch(self, items: list[Routed]) -> None:
        lines = [
            f"{each.partition} {each.offset} {each.topic} {(each.value or b'').hex()}\n"
            for each in written(items)
            if each.source_topic == SETTINGS.transactions_topic
        ]
        os.write(self._fd, "".join(lines).encode())  # at once, so that no line is cut by a kill


class Lines(DynamicSink[Routed]):
    """Writes what is decided to a file."""

    def __init__(self, path: Path):
        self._path = path

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Lines:
        return _Lines(self._path)


def run(job: Job, execution: int, process: int, addresses: list[str], workers: int, crash: Crash) -> None:
    """One process of one execution, until the input ends or it is killed."""
    os.dup2(os.open(job.folder / f"log.{execution}.{process}", os.O_CREAT | os.O_WRONLY), 2)
    points = os.open(job.folder / f"points.{execution}.{process}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def passed(point: Point) -> None:
        os.write(points, f"{point.name}\n".encode())

    crash = crash if process == 0 else NO_CRASH
    arm(crash, passed)
    options = ["-r", str(job.recovery), "-i", str(process), "-w", str(workers)]
    options += ["-a", ";".join(addresses)] if addresses else []
    recovery.lock_and_verify(detect.recovery_identity(SETTINGS), options, {})
    store = Store.open(job.recovery, file_bytes=FILE_BYTES)
    arm_helper(crash, store)
    detect.stateful_map = functools.partial(stateful_map, pace=PACE)
    model = load_model(job.model_file)
    model.operating_point = OperatingPoint(alert=THRESHOLDS[0])
    flow = detect.build(
        Given(job, 0.05 if crash.slowly else 0.01),
        Lines(job.folder / f"out.{execution}.{process}"),
        model,
        LiveRules(job.rules_file, check_every=1e9),
        SETTINGS,
        store,
        max(1, len(addresses)) * workers,
    )
    cluster_main(
        flow,
        addresses,
        process,
        recovery_config=RecoveryConfig(str(job.recovery)),
        epoch_interval=timedelta(seconds=EPOCH),
        worker_count_per_proc=workers,
    )
    store.close()
    os._exit(0)


def points_passed(job: Job, point: Point) -> int:
    """How often processes of all executions came to a point; those of the helper are not counted."""
    return sum(path.read_text().splitlines().count(point.name) for path in job.folder.glob("points.*"))
