"""What is kept of lanes, through crashes, lost writes and damaged files; against a plain dict."""

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataflow.errors import UserError
from dataflow.state.disk import Disk
from dataflow.state.lane import Lane, LanePace
from dataflow.state.loading import load_lane
from dataflow.state.log import MOST_OPEN
from dataflow.state.store import Store
from tests.state.support import (
    COUNTS,
    EAGER,
    STEP,
    Died,
    Engine,
    FailingDisk,
    LossyDisk,
    Plain,
    ShortDisk,
    batch_of,
    contents,
    count,
    read_rows,
)
from tests.support.mapped_lanes import MappedTables


def items_of(seed: int, number: int) -> list[tuple[str, int]]:
    chance = random.Random(seed)
    return [(f"user {chance.randrange(40)}", value) for value in range(number)]


def expected(items: list[tuple[str, int]]) -> Plain:
    plain = Plain()
    for key, value in items:
        plain.take(key, value)
    return plain


def run(engine: Engine, items: list[tuple[str, int]], epochs: int) -> None:
    size = -(-len(items) // epochs)
    for begin in range(0, len(items), size):
        for at in range(begin, min(begin + size, len(items)), 10):
            engine.take(items[at : min(at + 10, begin + size)])
        engine.end_epoch()


def test_a_resumed_lane_holds_what_the_last_committed_epoch_left(tmp_path: Path) -> None:
    items = items_of(1, 400)
    engine = Engine(tmp_path / "r")
    run(engine, items, 8)
    engine.take([("user 1", 1000)])  # of an epoch that never ends
    engine.close()
    resumed = Engine(tmp_path / "r")
    assert resumed.contents() == expected(items).states
    resumed.close()


def test_an_epochs_end_writes_what_no_flush_has_written(tmp_path: Path) -> None:
    items = items_of(11, 100)
    engine = Engine(tmp_path / "r", pace=LanePace(flush_seconds=1000))
    for at in range(0, 100, 20):
        engine.take(items[at : at + 20])
        engine.end_epoch()
    engine.close()
    resumed = Engine(tmp_path / "r")
    assert resumed.contents() == expected(items).states
    resumed.close()


def test_what_comes_of_items_is_the_same_with_and_without_a_stop_between(tmp_path: Path) -> None:
    items, plain = items_of(2, 300), Plain()
    made = []
    for begin in range(0, 300, 50):
        engine = Engine(tmp_path / "r")
        made += engine.take(items[begin : begin + 50])
        engine.end_epoch()
        engine.close()
    assert made == [plain.take(key, value) for key, value in items]


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 80))])
def test_a_crash_that_loses_unsynced_writes_loses_no_committed_epoch(tmp_path: Path, seed: int) -> None:
    crash_and_resume(tmp_path, seed, LossyDisk)


def crash_and_resume(tmp_path: Path, seed: int, make_disk: Callable[[int, Path], LossyDisk]) -> None:
    chance = random.Random(seed)
    items, done = items_of(seed, 600), 0
    for execution in range(100):
        disk = make_disk(seed * 1000 + execution, tmp_path / "aside")
        engine = Engine(tmp_path / "r", disk=disk)
        plain = expected(items[:done])
        assert engine.contents() == plain.states, f"seed {seed}, execution {execution}, at {done}"
        if done == len(items):
            engine.close()
            return
        try:
            at = done
            for _ in range(chance.randint(1, 6)):
                for _ in range(chance.randint(1, 4)):
                    batch = items[at : at + chance.randint(1, 25)]
                    assert engine.take(batch) == [plain.take(*item) for item in batch]
                    at += len(batch)
                engine.end_epoch(die_after=chance.choice([-1, -1, -1, -1, 0, 1, 2, 3]))
                done = at
        except Died:
            pass
        disk.crash()
        engine.close()
    pytest.fail("it did not get to the end")


@pytest.mark.parametrize("call", ["write", "sync", "create", "sync_directory"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_ends_the_flow_with_a_line_and_nothing_committed_is_lost(
    tmp_path: Path, call: str, error: int
) -> None:
    items, done = items_of(3, 400), 0
    Engine(tmp_path / "r").close()
    disk = FailingDisk(call, 4 if call in ("write", "sync") else 0, error)
    engine = Engine(tmp_path / "r", disk=disk)
    engine.store.compactor = None  # images are another test's
    with pytest.raises(UserError, match="cannot be written") as failed:
        for at in range(0, 400, 10):
            engine.take(items[at : at + 10])
            engine.end_epoch()
            done = at + 10
    assert "\n" not in str(failed.value)
    resumed = Engine(tmp_path / "r")
    assert resumed.contents() == expected(items[:done]).states
    run(resumed, items[done:], 4)
    assert resumed.contents() == expected(items).states
    resumed.close()


def test_a_sync_that_failed_is_not_tried_again(tmp_path: Path) -> None:
    disk = FailingDisk("sync", 10**9, errno.EIO)
    engine = Engine(tmp_path / "r", disk=disk)
    engine.store.compactor = None
    engine.take([("ann", 1)])
    engine.end_epoch()
    disk.after, before = 0, disk.calls
    engine.take([("ann", 2)])
    for _ in range(3):
        with pytest.raises(UserError, match="cannot be written"):
            engine.end_epoch()
    assert disk.calls == before + 1
    disk.after = 10**9  # the disk would be sound again: what it dropped it does not say
    with pytest.raises(UserError, match="cannot be written"):
        engine.take([("ann", 3)])


@pytest.mark.parametrize("call", ["write", "sync", "create", "rename", "sync_directory"])
def test_an_image_that_cannot_be_written_leaves_the_old_one_and_is_tried_again(tmp_path: Path, call: str) -> None:
    items = items_of(4, 600)
    engine = Engine(tmp_path / "r", lanes=1)  # of several lanes each would try once
    broken = FailingDisk(call)
    compactor = engine.store.compactor
    assert compactor is not None
    run(engine, items[:200], 4)
    compactor._disk = broken  # type: ignore[attr-defined]
    run(engine, items[200:400], 4)
    assert broken.calls > 1
    assert not list(engine.directory.glob(".*.new"))
    engine.close()
    resumed = Engine(tmp_path / "r", lanes=1)
    assert resumed.contents() == expected(items[:400]).states
    run(resumed, items[400:], 4)
    resumed.close()
    resumed = Engine(tmp_path / "r", lanes=1)
    assert resumed.contents() == expected(items).states
    resumed.close()


@pytest.mark.parametrize("most", [1, 7, 100])
def test_short_writes_are_continued(tmp_path: Path, most: int) -> None:
    items = items_of(5, 200)
    engine = Engine(tmp_path / "r", disk=ShortDisk(most))
    run(engine, items, 4)
    engine.close()
    resumed = Engine(tmp_path / "r")
    assert resumed.contents() == expected(items).states
    resumed.close()


@pytest.mark.slow
def test_a_flipped_bit_anywhere_is_an_error_or_changes_nothing(tmp_path: Path) -> None:
    items = items_of(6, 300)
    engine = Engine(tmp_path / "r", lanes=1)
    run(engine, items, 6)
    engine.close()
    Engine(tmp_path / "r", lanes=1).close()  # removes what no chain needs: what is left is needed
    states, chance = expected(items).states, random.Random(7)
    files = [*(tmp_path / "r" / "state").glob("*.image"), *(tmp_path / "r" / "state").glob("*.log")]
    assert {path.suffix for path in files} == {".image", ".log"}
    refused = 0
    for number in range(30):
        path = files[number % len(files)]
        sound = path.read_bytes()
        at = chance.choice([place for place in range(len(sound)) if sound[place] or chance.random() < 0.001])
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 1 << chance.randrange(8)]) + sound[at + 1 :])
        try:
            resumed = Engine(tmp_path / "r", lanes=1)
            assert resumed.contents() == states
            resumed.close()
        except UserError as error:
            refused += 1
            assert path.name in str(error)
            assert "Restore" in str(error)
            assert "\n" not in str(error)
        assert path.exists()
        path.write_bytes(sound)
    assert refused > 12


@pytest.mark.parametrize("suffix", [".image", ".log"])
def test_a_missing_file_is_an_error_and_never_a_skip(tmp_path: Path, suffix: str) -> None:
    engine = Engine(tmp_path / "r", lanes=1)
    run(engine, items_of(8, 300), 6)
    engine.close()
    Engine(tmp_path / "r", lanes=1).close()
    for path in (tmp_path / "r" / "state").glob(f"*{suffix}"):
        path.rename(tmp_path / "away")
        with pytest.raises(UserError, match="Restore the whole recovery directory from one backup"):
            Engine(tmp_path / "r", lanes=1)
        (tmp_path / "away").rename(path)
    Engine(tmp_path / "r", lanes=1).close()


def test_a_restored_old_backup_of_the_rows_alone_is_refused_with_one_line(tmp_path: Path) -> None:
    items = items_of(9, 900)
    engine = Engine(tmp_path / "r")
    run(engine, items[:300], 6)
    engine.close()
    shutil.copytree(tmp_path / "r", tmp_path / "backup")
    engine = Engine(tmp_path / "r")
    run(engine, items[300:], 12)
    engine.close()
    shutil.copytree(tmp_path / "r", tmp_path / "later")
    shutil.copy(tmp_path / "backup" / "part-0.sqlite3", tmp_path / "r")
    with pytest.raises(UserError, match="not of one time") as refused:
        Engine(tmp_path / "r")
    assert "\n" not in str(refused.value)
    whole = Engine(tmp_path / "backup")  # a backup of all of it is as good as the day it was made
    assert whole.contents() == expected(items[:300]).states
    whole.close()


def test_images_without_rows_are_refused(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "r")
    run(engine, items_of(10, 300), 6)
    engine.close()
    (tmp_path / "r" / "part-0.sqlite3").unlink()
    with pytest.raises(UserError, match="no row in the recovery data"):
        Engine(tmp_path / "r")


def test_rows_that_were_away_for_one_start_find_their_log_again(tmp_path: Path) -> None:
    items = items_of(12, 30)
    engine = Engine(tmp_path / "r", pace=EAGER._replace(compact_bytes=10**9, log_bytes=10**9))
    run(engine, items, 3)
    engine.close()
    (tmp_path / "r" / "part-0.sqlite3").rename(tmp_path / "away")
    Engine(tmp_path / "r").close()
    (tmp_path / "away").rename(tmp_path / "r" / "part-0.sqlite3")
    resumed = Engine(tmp_path / "r")
    assert resumed.contents() == expected(items).states
    resumed.close()


def test_rows_of_another_lane_are_refused(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "r")
    engine.take([(f"user {n}", n) for n in range(40)])
    names = engine.store.names
    engine.store.names = [names[1], names[2], names[0]]
    engine.end_epoch()
    engine.close()
    with pytest.raises(UserError, match="has lane"):
        Engine(tmp_path / "r")


def test_log_files_that_no_chain_needs_go_while_the_flow_runs_and_at_its_start(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "r")
    sizes = []
    for begin in range(0, 3000, 200):
        run(engine, items_of(begin, 200), 2)
        sizes.append(sum(path.stat().st_size for path in engine.directory.glob("*.log")))
    assert max(sizes[8:]) <= 2 * max(sizes[:5])
    engine.close()
    needed = set(engine.directory.glob("*.log"))
    (engine.directory / ".image.new").write_bytes(b"left behind")
    abandoned = Engine(tmp_path / "r")
    abandoned.take(items_of(1, 50))
    abandoned.close()
    assert needed < set(abandoned.directory.glob("*.log"))
    again = Engine(tmp_path / "r")
    assert set(again.directory.glob("*.log")) <= needed
    assert not list(again.directory.glob(".*.new"))
    again.close()


def test_a_quiet_lane_does_not_keep_the_log_of_the_others(tmp_path: Path) -> None:
    pace = EAGER._replace(compact_bytes=10**9, log_bytes=30_000)  # by its own size none would be compacted
    engine = Engine(tmp_path / "r", pace=pace)
    for epoch in range(120):
        engine.take(items_of(epoch, 60))
        engine.end_epoch()
    assert sum(path.stat().st_size for path in engine.directory.glob("*.log")) < 120_000
    assert engine.store.log is not None
    assert engine.store.log.appended > 250_000
    engine.close()


def restart(folder: Path, times: int, pace: LanePace) -> set[str]:
    """Starts a flow so many times, each of which leaves little behind; the log files that are left."""
    for number in range(times):
        engine = Engine(folder, lanes=1, pace=pace)
        for value in range(3):
            engine.take([("ann", 3 * number + value)])
            engine.end_epoch()
        engine.close()
    return {path.name for path in engine.directory.glob("*.log")}


def test_a_chain_in_more_log_files_than_may_be_open_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = restart(
        tmp_path / "r", MOST_OPEN + 8, EAGER._replace(compact_bytes=10**9, log_bytes=10**9, old_files=10**9)
    )
    assert len(files) == MOST_OPEN + 8
    _, (token,) = read_rows(tmp_path / "r")
    open_now, most = set[int](), 0
    really_open, really_close = os.open, os.close

    def opened(path: Any, *rest: Any, **named: Any) -> int:
        nonlocal most
        fd = really_open(path, *rest, **named)
        if str(path).endswith(".log"):
            open_now.add(fd)
            most = max(most, len(open_now))
        return fd

    def closed(fd: int) -> None:
        open_now.discard(fd)
        really_close(fd)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "close", closed)
    found = load_lane(tmp_path / "r" / "state", STEP, 0, token.chunk, COUNTS)
    assert contents(found.tables) == expected([("ann", n) for n in range(3 * (MOST_OPEN + 8))]).states
    assert most == MOST_OPEN
    assert not open_now


def test_many_starts_of_a_lane_with_little_to_do_do_not_each_leave_a_log_file(tmp_path: Path) -> None:
    pace = EAGER._replace(compact_bytes=10**9, log_bytes=10**9, old_files=5)
    assert len(restart(tmp_path / "r", 40, pace)) <= 8
    resumed = Engine(tmp_path / "r", lanes=1)
    assert resumed.contents() == expected([("ann", n) for n in range(120)]).states
    resumed.close()


def test_an_image_is_made_of_committed_epochs_only(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "r", lanes=1)
    for at in range(20):
        engine.take([("ann", at)])
        assert not list(engine.directory.glob("*.image"))  # no epoch has ended
    engine.end_epoch()
    engine.take([("ann", 20)])
    engine.take([("ann", 21)])
    (image,) = engine.directory.glob("*.image")
    assert int(image.name.split(".")[2]) == 20
    engine.close()


def test_a_file_that_is_in_the_way_of_a_new_log_file_is_not_appended_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter([b"same", b"same", b"next"])
    monkeypatch.setattr("dataflow.state.log.os.urandom", lambda _: next(numbers))
    monkeypatch.setattr("dataflow.state.log.time.time", lambda: 1.0)
    first, second = Engine(tmp_path / "r"), Engine(tmp_path / "r")
    first.take([("ann", 1)])
    first.end_epoch()
    second.take([("ann", 1)])
    assert len(list(first.directory.glob("*.log"))) == 2
    first.close()
    second.close()


def test_a_directory_that_is_held_is_not_cleaned(tmp_path: Path) -> None:
    items = items_of(1, 400)
    first = Engine(tmp_path / "r")
    first.take(items[:20])
    first.end_epoch()
    for begin in range(20, 400, 20):
        first.take(items[begin : begin + 20])  # written, on no chain of a token that is committed
    names = sorted(first.directory.glob("*.log"))
    assert len(names) > 2
    second = Engine(tmp_path / "r")
    assert sorted(first.directory.glob("*.log")) == names
    second.close()
    first.end_epoch()
    first.close()
    third = Engine(tmp_path / "r")
    assert third.contents() == expected(items).states
    third.close()


def test_another_number_of_lanes_is_refused(tmp_path: Path) -> None:
    Engine(tmp_path / "r", lanes=3).close()
    with pytest.raises(UserError, match="divided into 3 lanes, and 4 are asked for"):
        Engine(tmp_path / "r", lanes=4)


def test_a_disk_is_not_needed_where_nothing_is_kept() -> None:
    store = Store.open(None, 2)
    lane = Lane(store.step(STEP, COUNTS), lambda tables: MappedTables(STEP, COUNTS, tables, count))
    (batch,), _ = lane.on_batch([batch_of(1, [("ann", 5)])])
    assert batch.values == [Plain().take("ann", 5)]
    assert lane.snapshot() is None
    assert isinstance(store._disk, Disk)
