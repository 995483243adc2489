"""A flow with lanes that runs by itself, and kills itself, or all of its processes, at a point of the state.

`run` is called in processes of their own. What comes of each item is written to a file of each execution and process,
a line an item: partition, number, result.
"""

import os
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import cluster_main

from dataflow.state.lane import LanePace
from dataflow.state.log import BEGINNING
from dataflow.state.store import Store
from tests.state.executions import Crash, arm, arm_helper
from tests.state.support import COUNTS, STEP, Plain, contents, count
from tests.support.mapped_lanes import Codec, LaneBatch, decode_pickled, encode_pickled, stateful_map_items

PARTITIONS = 4
EPOCH = 0.03
PACE = LanePace(flush_seconds=0.01, compact_part=0.5, compact_bytes=0, log_bytes=20_000, retry_seconds=0.01)


class Job(NamedTuple):
    """What all executions have in common."""

    folder: Path
    items: int  # of each partition
    keys: int
    lanes: int
    seed: int


def item(job: Job, partition: int, number: int) -> tuple[str, int]:
    """A key is of one partition only, so what comes of its items does not depend on how partitions meet."""
    return f"{partition}/{random.Random(f'{job.seed}/{partition}/{number}').randrange(job.keys)}", number


def expected(job: Job) -> tuple[dict[str, Any], dict[tuple[int, int], int]]:
    """The states at the end, and what comes of each item."""
    plain, made = Plain(), {}
    for partition in range(PARTITIONS):
        for number in range(job.items):
            made[partition, number] = plain.take(*item(job, partition, number))
    return plain.states, made


class _Part(StatefulSourcePartition[Any, int]):
    def __init__(self, job: Job, partition: int, begin: int, rest: float):
        self._job, self._partition, self._at, self._rest = job, partition, begin, timedelta(seconds=rest)
        self._awake = datetime.now(UTC)

    def next_batch(self) -> list[Any]:
        if self._at >= self._job.items:
            raise StopIteration
        begin, self._at = self._at, min(self._at + 7, self._job.items)
        self._awake = datetime.now(UTC) + self._rest
        return [
            (key, (self._partition, number))
            for key, number in (item(self._job, self._partition, number) for number in range(begin, self._at))
        ]

    def next_awake(self) -> datetime:
        return self._awake

    def snapshot(self) -> int:
        return self._at


class Numbers(FixedPartitionedSource[Any, int]):
    def __init__(self, job: Job, rest: float):
        self._job = job
        self._rest = rest

    def list_parts(self) -> list[str]:
        return [str(partition) for partition in range(PARTITIONS)]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _Part:
        return _Part(self._job, int(for_part), resume_state or 0, self._rest)


class _Lines(StatelessSinkPartition[Any]):
    def __init__(self, path: Path):
        self._file = path.open("a", buffering=1)

    def write_batch(self, items: list[Any]) -> None:
        self._file.write("".join([f"{partition} {number} {made}\n" for _, (partition, number, made) in items]))


class Lines(DynamicSink[Any]):
    def __init__(self, path: Path):
        self._path = path

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Lines:
        return _Lines(self._path)


def mapper(tables: Any, rows: Any, values: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    made = count(tables, rows, [number for _, number in values])
    return [(*value, result) for value, result in zip(values, made, strict=True)]


class CountedBatch:
    """How often batches were asked for what they are between processes, and how often they were encoded for it."""

    encoded = 0
    asked = 0

    @staticmethod
    def encode(values: list[Any]) -> bytes:
        CountedBatch.encoded += 1
        return encode_pickled(values)

    @staticmethod
    def count_asked() -> None:
        reduce = LaneBatch.__reduce__

        def counted(batch: LaneBatch) -> tuple[Any, ...]:
            CountedBatch.asked += 1
            return reduce(batch)

        LaneBatch.__reduce__ = counted  # type: ignore[method-assign]


def run(job: Job, execution: int, process: int, addresses: list[str], workers: int, crash: Crash) -> None:
    """One process of one execution, until the input ends or it is killed."""
    os.dup2(os.open(job.folder / f"log.{execution}.{process}", os.O_CREAT | os.O_WRONLY), 2)
    recovery = job.folder / "recovery"
    if process == 0:
        arm(crash)
    store = Store.open(recovery, job.lanes, file_bytes=6_000)
    if process == 0:
        arm_helper(crash, store)
    CountedBatch.count_asked()
    codec = Codec(CountedBatch.encode, decode_pickled)
    flow = Dataflow("flow")
    items = op.input("read", flow, Numbers(job, 0.02 if crash.slowly else 0.002))
    made = stateful_map_items(STEP, items, mapper, COUNTS, store, codec=codec, pace=PACE)
    op.output("write", made, Lines(job.folder / f"out.{execution}.{process}"))
    config = RecoveryConfig(str(recovery))
    cluster_main(
        flow,
        addresses,
        process,
        recovery_config=config,
        epoch_interval=timedelta(seconds=EPOCH),
        worker_count_per_proc=workers,
    )
    store.close()
    (job.folder / f"reduced.{execution}.{process}").write_text(f"{CountedBatch.encoded} {CountedBatch.asked}\n")
    (job.folder / f"ended.{execution}.{process}").touch()
    os._exit(0)


def read_states(job: Job) -> dict[str, Any]:
    """What the recovery data holds of all keys."""
    from dataflow.state.committed import committed_tokens
    from dataflow.state.loading import load_lane

    found: dict[str, Any] = {}
    for token in committed_tokens(job.folder / "recovery").values():
        loaded = load_lane(job.folder / "recovery" / "state", STEP, token.lane, token.chunk, COUNTS)
        assert token.chunk != BEGINNING
        found |= contents(loaded.tables)
    return found


def prepare(job: Job) -> None:
    (job.folder / "recovery").mkdir(parents=True)
    init_db_dir(job.folder / "recovery", 2)
