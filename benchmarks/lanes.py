"""State in lanes by itself: Bytewax, no Kafka; rows of 600 bytes.

    python -m benchmarks.lanes [--users 1000000] [--items 2000000] [--lanes 16] [--interval 5]

Prints, for 10,000 users and for as many as are asked for: CPU time of an item with snapshots on, of the flow and of its
helper; the longest pause of the source at 1,000 and 5,000 items/s; how long stop and resume take; memory.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import numpy as np
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import run_main

from dataflow.state.store import Store
from dataflow.tables.table import Layout, Numbers, Tables
from tests.support.mapped_lanes import stateful_map_items

ROW = np.dtype([("at", "f8"), ("n", "i8"), ("sums", "f4", 96), ("rest", "u4", 50)], align=True)
LAYOUT = Layout({"profiles": ROW})
BATCH = 500


def update(tables: Tables, rows: Numbers, values: list[float]) -> list[float]:
    """Touches three places of each row."""
    table = tables["profiles"].rows
    np.add.at(table["n"], rows, 1)
    table["at"][rows] = values
    table["rest"][rows, 49] = 1
    return values


class _Part(StatefulSourcePartition[Any, int]):
    """Each user once, then users at random; `rate` items a second, 0 for as many as the flow takes."""

    def __init__(self, given: argparse.Namespace, begin: int):
        self.keys = [f"user{number:07}" for number in range(given.users)]
        self.random = random.Random(given.seed)
        self.left, self.rate, self.fill = given.items, given.rate, given.fill
        self.due = time.time()
        self.at = begin
        self.called: list[float] = []
        MEASURED["part"] = self

    def next_batch(self) -> list[Any]:
        MEASURED.setdefault("cpu", time.process_time())
        self.called.append(time.perf_counter())
        if self.left <= 0:
            MEASURED["eof"] = time.perf_counter()
            raise StopIteration
        if self.rate:
            number = max(1, self.rate // 200)
            self.due += number / self.rate
        else:
            number = BATCH
        every, at = self.keys, self.at
        keys = every[at : at + number] if self.fill else self.random.choices(every, k=number)
        self.at += number
        self.left -= number
        return [(key, 1.0) for key in keys]

    def next_awake(self) -> datetime | None:
        return datetime.fromtimestamp(self.due, UTC) if self.rate else None

    def snapshot(self) -> int:
        return self.at


class _Source(FixedPartitionedSource[Any, int]):
    def __init__(self, given: argparse.Namespace):
        self.given = given

    def list_parts(self) -> list[str]:
        return ["0"]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _Part:
        return _Part(self.given, 0)


class _Nowhere(DynamicSink[Any]):
    def build(self, step_id: str, worker_index: int, worker_count: int) -> StatelessSinkPartition[Any]:
        class Part(StatelessSinkPartition[Any]):
            def write_batch(self, items: list[Any]) -> None:
                MEASURED.setdefault("first", time.perf_counter())

        return Part()


MEASURED: dict[str, Any] = {}


def run(given: argparse.Namespace) -> dict[str, float]:
    """One execution."""
    recovery = Path(given.directory)
    if not list(recovery.glob("part-*")):
        init_db_dir(recovery, 1)
    begun = time.perf_counter()
    store = Store.open(recovery, given.lanes)
    flow = Dataflow("lanes")
    items = op.input("read", flow, _Source(given))
    op.output("write", stateful_map_items("update", items, update, LAYOUT, store, in_order=True), _Nowhere())
    interval = timedelta(seconds=given.interval)
    run_main(flow, epoch_interval=interval, recovery_config=RecoveryConfig(str(recovery)))
    ended = time.perf_counter()
    cpu = time.process_time() - MEASURED["cpu"]
    store.close()
    helper = resource.getrusage(resource.RUSAGE_CHILDREN)
    called = np.diff(MEASURED["part"].called)
    return {
        "cpu_us": cpu / given.items * 1e6,
        "helper_us": (helper.ru_utime + helper.ru_stime) / given.items * 1e6,
        "longest_ms": float(called.max() * 1e3),
        "stop_s": ended - MEASURED["eof"],
        "resume_s": MEASURED["first"] - begun,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "longest_sync_ms": store.log.longest_sync * 1e3 if store.log is not None else 0.0,
    }


def child(given: argparse.Namespace, **changed: Any) -> dict[str, float]:
    """One execution in a process of its own."""
    options = {**vars(given), **changed}
    command = [sys.executable, "-m", "benchmarks.lanes", "--child", json.dumps(options)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=2_000_000)
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--interval", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each paced run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        sys.stdout.write(json.dumps(run(argparse.Namespace(**json.loads(given.child)))) + "\n")
        return
    sys.stdout.write(f"rows of {ROW.itemsize} bytes, {given.lanes} lanes, snapshots every {given.interval:g} s\n")
    for users in (10_000, given.users):
        with tempfile.TemporaryDirectory(dir=".", prefix=".lanes") as directory:
            base = {"users": users, "directory": directory, "fill": False, "rate": 0}
            lines = [("fill", {"items": users, "fill": True}), ("cost", {})]
            lines += [(f"{rate}/s", {"rate": rate, "items": int(rate * given.seconds)}) for rate in (1_000, 5_000)]
            lines += [("resume", {"items": BATCH})]
            for name, changed in lines:
                found = child(given, **{**base, **changed})
                told = "  ".join(f"{key} {value:9.2f}" for key, value in found.items())
                sys.stdout.write(f"{users:>9} users  {name:<7} {told}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
