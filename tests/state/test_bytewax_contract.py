"""What the state takes for granted of Bytewax 0.21.1, tried on Bytewax itself."""

import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, TestingSource, cluster_main, run_main

from dataflow.state.lane_names import lane_names, route_hash
from dataflow.state.log import BEGINNING, ChunkId, Place, Token
from dataflow.state.store import Store
from tests.state.killed_flow import PACE, Job, mapper, prepare
from tests.state.support import COUNTS, STEP, Plain, count
from tests.state.test_killed_flow import NO_CRASH, check, execute, logs
from tests.support.mapped_lanes import PICKLED, Codec, LaneBatch, decode_pickled, encode_pickled, stateful_map_items

pytestmark = pytest.mark.slow

READER = """
import json, sys
from pathlib import Path
from dataflow.state.committed import committed_tokens
for _ in sys.stdin:
    tokens = committed_tokens(Path(sys.argv[1])).values()
    print(json.dumps([(token.lane, token.chunk.version) for token in tokens]), flush=True)
"""


ENOUGH = 24


class Ticking(StatefulSourcePartition[Any, int]):
    """Items of all lanes, some a millisecond, until enough was seen."""

    def __init__(self, part: int, seconds: float):
        self._part = part
        self._end = datetime.now(UTC) + timedelta(seconds=seconds)
        self._count = 0

    def next_batch(self) -> list[Any]:
        if len(Watching.seen) >= ENOUGH or datetime.now(UTC) > self._end:
            raise StopIteration
        self._count += 1
        return [(name, self._part) for name in lane_names(4)]

    def next_awake(self) -> datetime:
        return datetime.now(UTC) + timedelta(milliseconds=1)

    def snapshot(self) -> int:
        return self._count


class TickingSource(FixedPartitionedSource[Any, int]):
    def __init__(self, seconds: float):
        self._seconds = seconds

    def list_parts(self) -> list[str]:
        return ["0", "1", "2"]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> Ticking:
        return Ticking(int(for_part), self._seconds)


class Watching(StatefulBatchLogic[Any, Any, Token]):
    """A lane's tokens, numbered; looks into the rows at the first batch after a snapshot, and while it is pickled."""

    lock = threading.Lock()
    asking = threading.Lock()
    seen: list[str]
    given: dict[int, int]  # the version of each lane's newest token
    recovery: Path
    reader: subprocess.Popen[str]

    @classmethod
    def rows(cls) -> dict[int, int]:
        """The version of each lane's newest row; read in another process, as Bytewax has the files open in this."""
        with cls.asking:
            assert cls.reader.stdin is not None
            assert cls.reader.stdout is not None
            cls.reader.stdin.write("\n")
            cls.reader.stdin.flush()
            return dict(json.loads(cls.reader.stdout.readline()))

    def __init__(self, token: Token | None):
        self.lane = -1 if token is None else token.lane
        self.waiting = False

    def on_batch(self, values: list[Any]) -> tuple[list[Any], bool]:
        if self.lane < 0:
            with self.lock:
                self.lane = len(self.given)
                self.given[self.lane] = 0
        if self.waiting:
            self.waiting = False
            with self.lock:
                rows = self.rows()
                # This lane's, and those of all other lanes and workers, too: theirs may be newer already.
                late = rows.get(self.lane) != self.given[self.lane] or len(rows) < len(self.given)
                self.seen.append("not committed" if late else "committed")
        return [], False

    def on_notify(self) -> tuple[list[Any], bool]:
        return [], False

    def on_eof(self) -> tuple[list[Any], bool]:
        return [], False

    def notify_at(self) -> None:
        return None

    def snapshot(self) -> Token:
        self.waiting = True
        with self.lock:
            self.given[self.lane] += 1
            return WatchedToken(self.lane, ChunkId(self.given[self.lane], Place(1, 0, 0)))


class WatchedToken(Token):
    def __reduce__(self) -> tuple[Any, ...]:
        rows = Watching.rows()
        Watching.seen.append("row before its token" if rows.get(self.lane, 0) >= self.chunk.version else "token first")
        return super().__reduce__()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[type[Watching]]:
    init_db_dir(tmp_path, 2)
    Watching.seen, Watching.given, Watching.recovery = [], {}, tmp_path
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as Watching.reader:
        yield Watching
        Watching.reader.kill()


@pytest.mark.parametrize("workers", [1, 3])
def test_no_item_comes_before_the_epoch_before_is_committed_and_a_token_is_pickled_before_its_row(
    watched: type[Watching], workers: int
) -> None:
    flow = Dataflow("flow")
    items = op.input("read", flow, TickingSource(30.0))
    op.output("write", op.stateful_batch("stateful_batch", items, watched), TestingSink([]))
    cluster_main(
        flow,
        [],
        0,
        recovery_config=RecoveryConfig(str(watched.recovery)),
        epoch_interval=timedelta(milliseconds=20),
        worker_count_per_proc=workers,
    )
    assert set(watched.seen) == {"committed", "token first"}
    assert watched.seen.count("committed") >= ENOUGH // 6


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_lane_i_lies_on_worker_i_modulo_workers(workers: int) -> None:
    names = lane_names(12)
    flow = Dataflow("flow")
    items = op.input("read", flow, TestingSource([(name, None) for name in names]))
    threads = op.stateful_map("where", items, lambda _, __: (0, threading.get_ident()))
    found: list[tuple[str, int]] = []
    op.output("write", threads, TestingSink(found))
    cluster_main(flow, [], 0, worker_count_per_proc=workers)
    thread_of = {names.index(name): thread for name, thread in found}
    assert len(set(thread_of.values())) == workers
    assert all(thread_of[lane] == thread_of[lane % workers] for lane in range(12))


def test_names_of_lanes_are_right_for_every_number_of_workers_up_to_eight() -> None:
    names = lane_names(20)
    assert Store.open(None, 20).names == names
    assert len(set(names)) == 20
    for workers in range(1, 9):
        assert [route_hash(name) % workers for name in names] == [lane % workers for lane in range(20)]


def test_a_batch_is_encoded_once_though_it_is_asked_twice() -> None:
    calls = []

    def encode(values: list[Any]) -> bytes:
        calls.append(len(values))
        return encode_pickled(values)

    batch = LaneBatch(3, Codec(encode, decode_pickled))
    batch.keys, batch.values = ["ann", "bob"], [1, 2.5]
    read, (lane, keys, _, data) = first = batch.__reduce__()
    assert batch.__reduce__() is first
    assert calls == [2]
    restored = read(lane, keys, PICKLED, data)
    assert (restored.lane, restored.keys, restored.values) == (3, ["ann", "bob"], [1, 2.5])
    assert batch.__reduce__() is not first  # what was sent is not kept for ever


def test_bytewax_asks_a_batch_twice_between_processes(tmp_path: Path) -> None:
    job = Job(tmp_path, items=300, keys=40, lanes=6, seed=1)
    prepare(job)
    assert execute(job, 0, NO_CRASH, processes=2) == [0, 0], logs(job)
    check(job)
    counted = [line.split() for path in tmp_path.glob("reduced.*") for line in path.read_text().splitlines()]
    encoded, asked = (sum(int(line[place]) for line in counted) for place in (0, 1))
    assert asked == 2 * encoded > 0


def test_with_one_worker_items_come_out_in_the_order_in_which_they_came_in(tmp_path: Path) -> None:
    items = [(f"user {number % 37}", number) for number in range(3000)]
    init_db_dir(tmp_path, 1)
    store = Store.open(tmp_path, 8)
    flow = Dataflow("flow")
    read = op.input("read", flow, TestingSource(items, batch_size=400))
    made = stateful_map_items(STEP, read, count, COUNTS, store, in_order=True, pace=PACE)
    found: list[tuple[str, int]] = []
    op.output("write", made, TestingSink(found))
    run_main(flow, epoch_interval=timedelta(milliseconds=5), recovery_config=RecoveryConfig(str(tmp_path)))
    store.close()
    plain = Plain()
    assert found == [(key, plain.take(key, value)) for key, value in items]


@pytest.mark.parametrize("workers", [2, 3])
def test_with_several_workers_items_of_a_key_come_out_in_their_order(workers: int) -> None:
    items = [(f"user {number % 37}", (0, number)) for number in range(3000)]
    store = Store.open(None, 8)
    flow = Dataflow("flow")
    read = op.input("read", flow, TestingSource(items, batch_size=100))
    made = stateful_map_items(STEP, read, mapper, COUNTS, store, pace=PACE)
    found: list[tuple[str, tuple[int, int, int]]] = []
    op.output("write", made, TestingSink(found))
    cluster_main(flow, [], 0, worker_count_per_proc=workers)
    assert len(found) == 3000
    for key in {key for key, _ in items}:
        numbers = [number for found_key, (_, number, _) in found if found_key == key]
        assert numbers == sorted(numbers)


def test_a_token_comes_back_as_it_was() -> None:
    token = Token(7, ChunkId(12, Place(3, 4, 5)))
    assert pickle.loads(pickle.dumps(token)) == token
    assert pickle.loads(pickle.dumps(Token(0, BEGINNING))).chunk == BEGINNING
