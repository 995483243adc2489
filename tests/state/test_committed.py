"""Which tokens count: those of epochs that all workers have recorded to be past."""

import contextlib
import pickle
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from bytewax.recovery import init_db_dir

from dataflow.state.committed import committed_tokens, resume_epoch
from dataflow.state.log import ChunkId, Place, Token

STEP = "flow.update_user_profile.stateful_batch"


def token(version: int) -> Token:
    return Token(0, ChunkId(version, Place(1, version, 10)))


def insert(store: Path, part: int, table: str, rows: Iterable[dict[str, Any]]) -> None:
    with contextlib.closing(sqlite3.connect(store / f"part-{part}.sqlite3")) as db, db:
        for row in rows:
            names, marks = ", ".join(row), ", ".join("?" * len(row))
            db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(row.values()))  # noqa: S608


def reached(execution: int, worker: int, frontier: int) -> dict[str, Any]:
    return {"ex_num": execution, "worker_index": worker, "worker_frontier": frontier}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Of two workers that began with epoch 5 for the second time, in an execution that has written epochs 5 and 6."""
    init_db_dir(tmp_path, 2)
    for number, part in enumerate((0, 1)):
        insert(tmp_path, part, "exs", [{"ex_num": number + 1, "worker_count": 2, "resume_epoch": 5 * number}])
    insert(tmp_path, 0, "fronts", [reached(1, 0, 9), reached(1, 1, 5)])
    snaps = [
        {"step_id": STEP, "state_key": "0", "snap_epoch": epoch, "ser_change": pickle.dumps(token(epoch))}
        for epoch in (4, 5, 6)
    ]
    insert(tmp_path, 1, "snaps", snaps)
    return tmp_path


def test_what_no_worker_has_recorded_does_not_count(store: Path) -> None:
    assert resume_epoch(store) == 5
    assert committed_tokens(store) == {("update_user_profile", "0"): token(4)}


def test_what_one_worker_has_recorded_does_not_count(store: Path) -> None:
    insert(store, 0, "fronts", [reached(2, 1, 7)])
    assert committed_tokens(store) == {("update_user_profile", "0"): token(4)}


def test_what_all_workers_have_recorded_counts_as_far_as_the_slowest_is(store: Path) -> None:
    insert(store, 0, "fronts", [reached(2, 1, 7)])
    insert(store, 1, "fronts", [reached(2, 0, 6)])
    assert resume_epoch(store) == 6
    assert committed_tokens(store) == {("update_user_profile", "0"): token(5)}
