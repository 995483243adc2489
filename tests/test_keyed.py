"""Our stateful_map does what Bytewax's does: the same items, the same state kept, also after a crash."""

import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, TestingSource, cluster_main, run_main
from msgspec.structs import replace

from dataflow.faults import Guard
from dataflow.keyed import stateful_map
from dataflow.keyed_state import KeyedState
from dataflow.transaction import Rejection

draw = random.Random(3)
ITEMS = [(draw.choice("abcde"), draw.randrange(10)) for _ in range(500)]


def total(state: list[int] | None, value: int) -> tuple[list[int] | None, int]:
    """Adds up what came, in place; a 9 forgets it all."""
    state = [] if state is None else state
    state.append(value)
    return (None if value == 9 else state), sum(state)


def flow(mapped: Any, items: list[Any], out: list[Any], batch: int = 10) -> Dataflow:
    graph = Dataflow("keyed")
    keyed = op.input("in", graph, TestingSource(items, batch))
    op.output("out", mapped("total", keyed, total), TestingSink(out))
    return graph


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("batch", [1, 10, 500])
def test_what_comes_of_it_is_what_comes_of_bytewaxs_own(workers: int, batch: int) -> None:
    found: list[list[Any]] = [[], []]
    for mapped, out in zip((stateful_map, op.stateful_map), found, strict=True):
        cluster_main(flow(mapped, ITEMS, out, batch), [], 0, worker_count_per_proc=workers)
    ours, theirs = ([[v for k, v in out if k == key] for key in "abcde"] for out in found)
    assert ours == theirs  # keys may take turns otherwise, a key's own order is kept
    assert sum(map(len, ours)) == len(ITEMS)


def test_state_survives_a_crash_as_it_was_at_the_snapshot(tmp_path: Path) -> None:
    init_db_dir(tmp_path, 1)
    expected: list[Any] = []
    kept = [(key, value % 9 + 1) for key, value in ITEMS if value != 8]  # a key that forgets would hide a lost state
    run_main(flow(op.stateful_map, kept, expected))
    found: list[Any] = []
    items = [*kept[:200], TestingSource.ABORT(), *kept[200:]]
    for _ in range(2):
        run_main(
            flow(stateful_map, items, found),
            epoch_interval=timedelta(0),
            recovery_config=RecoveryConfig(str(tmp_path)),
        )
    for key in "abcde":
        whole = [value for k, value in expected if k == key]
        seen = [value for k, value in found if k == key]
        assert seen[-len(whole) // 3 :] == whole[-len(whole) // 3 :]
        assert len(seen) >= len(whole)


def test_where_the_mapper_raises_the_state_is_as_before_and_the_others_go_on() -> None:
    def faulty(state: list[int] | None, value: int) -> tuple[list[int] | None, int]:
        made = total(state, value)
        if value == 8:  # after it has changed the state
            raise ZeroDivisionError
        return made

    bad = Rejection("bad", "", 0, 0, 0, None, None)
    guard = Guard("total", lambda value, error, step: replace(bad, error=f"{value}: {error}", step=step))
    key = KeyedState(faulty, guard, None)
    assert key.on_batch([8, 1, 8, 2]) == (
        [replace(bad, error="8: ZeroDivisionError", step="total"), 1,
         replace(bad, error="8: ZeroDivisionError", step="total"), 3], False)  # fmt: skip
    assert guard.in_a_row == 0
    assert key.snapshot() == [1, 2]
    with pytest.raises(ZeroDivisionError):
        KeyedState(faulty, None, None).on_batch([8])


def test_a_snapshot_is_a_copy() -> None:
    key = KeyedState(total, None, None)
    assert key.on_batch([1, 2]) == ([1, 3], False)
    kept = key.snapshot()
    key.on_batch([4])
    assert kept == [1, 2]
    assert key.on_batch([9]) == ([16], True)
