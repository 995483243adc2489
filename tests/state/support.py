"""A step with lanes as the tests drive it: a table of counts, Bytewax's rows written by hand, disks that fail."""

import contextlib
import errno
import functools
import os
import pickle
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bytewax.recovery import init_db_dir

from dataflow.state.batches import lane_of
from dataflow.state.compaction import Compacted, make_image
from dataflow.state.disk import Disk
from dataflow.state.lane import Lane, LanePace
from dataflow.state.log import ChunkId, Token
from dataflow.state.store import Step, Store
from dataflow.tables.table import Layout, Numbers, Tables
from tests.support.mapped_lanes import PICKLED, LaneBatch, Limits, MappedTables

COUNTS = Layout(
    {
        "counts": np.dtype([("at", "f8"), ("n", "i8"), ("digest", "u8"), ("place", "u4"), ("last", "f4", 3)]),
        "places": np.dtype([("used", "i4")]),
        "long": np.dtype([("all", "i4", 8)]),
    },
    references={("counts", "place"): "places"},
    followers=("long",),
)
STEP = "count"
EAGER = LanePace(flush_seconds=0, compact_part=0.5, compact_bytes=0, log_bytes=20_000, retry_seconds=0)
"""A lane that writes at each batch, and wants images all the time."""


def mixed(digest: int, number: int) -> int:
    """The digest of a key's history, of which each item changes every bit after it."""
    return (digest * 6364136223846793005 + number + 1) & (1 << 64) - 1


def count(tables: Tables, rows: Numbers, values: list[int]) -> list[int]:
    """A key's history in three tables; what comes of a value is the digest after it."""
    counts, places, long = tables["counts"], tables["places"], tables["long"]
    made = []
    for row, value in zip(rows.tolist(), values, strict=True):
        state = counts.rows[row]
        state["at"] = value
        state["n"] += 1
        state["digest"] = mixed(int(state["digest"]), value)
        place = int(places.find([f"place {value % 5}"])[0])
        places.rows["used"][place] += 1
        places.mark(place)
        state["place"] = place
        state["last"][value % 3] = value
        if state["n"] % 4 == 0:  # some keys have a row in the second table
            key = counts.keys[row]
            assert key is not None
            other = int(long.find([key])[0])
            long.rows["all"][other][value % 8] += 1
            long.mark(other)
        made.append(int(state["digest"]))
    return made


class Plain:
    """What `count` makes of the same items, in a plain dict."""

    def __init__(self) -> None:
        self.states: dict[str, tuple[Any, ...]] = {}

    def take(self, key: str, value: int) -> int:
        _, n, digest, place, last, every = self.states.get(key, (0.0, 0, 0, "", (0.0,) * 3, (0,) * 8))
        n, digest, place = n + 1, mixed(digest, value), f"place {value % 5}"
        last = (*last[: value % 3], float(value), *last[value % 3 + 1 :])
        if n % 4 == 0:
            every = (*every[: value % 8], every[value % 8] + 1, *every[value % 8 + 1 :])
        self.states[key] = float(value), n, digest, place, last, every
        return int(digest)


def contents(tables: Tables) -> dict[str, tuple[Any, ...]]:
    """What a lane's tables hold, as `Plain` has it."""
    counts, places, long = tables["counts"], tables["places"], tables["long"]
    found = {}
    for key in [key for key in counts.keys if key is not None]:
        at, n, digest, place, last = counts.rows[counts.row(key)].tolist()
        other = long.row(key)
        every = tuple(long.rows["all"][other].tolist()) if other is not None else (0,) * 8
        found[key] = at, n, digest, places.keys[place], tuple(last), every
    return found


def batch_of(lane: int, items: Iterable[tuple[str, Any]]) -> LaneBatch:
    batch = LaneBatch(lane, PICKLED)
    for key, value in items:
        batch.keys.append(key)
        batch.values.append(value)
    return batch


class Inline:
    """Makes images at once, in this process."""

    helper = None

    def __init__(self, directory: Path, layouts: dict[str, Layout], disk: Disk):
        self._directory, self._layouts, self._disk = directory, layouts, disk
        self._answers: dict[tuple[str, int], Compacted | None] = {}
        self.held: list[bool] = []
        self.hurried = False

    def hurry(self) -> None:
        self.hurried = True

    def hold(self, held: bool) -> None:
        self.held.append(held)

    def ask(self, step: str, lane: int, chunk: ChunkId) -> None:
        try:
            made: Compacted | None = make_image(self._directory, step, lane, chunk, self._layouts[step], self._disk)
        except OSError:
            made = None
        self._answers[step, lane] = made

    def answer(self, step: str, lane: int) -> tuple[bool, Compacted | None]:
        if (step, lane) not in self._answers:
            return False, None
        return True, self._answers.pop((step, lane))

    def close(self) -> None:
        pass


class Engine:
    """Does with a step's lanes what Bytewax does, in this process: batches, snapshots, rows, a commit.

    Args:
        recovery: its directory.
        lanes: of the store.
        disk: what is written with.
    """

    def __init__(
        self,
        recovery: Path,
        lanes: int = 3,
        disk: Disk | None = None,
        pace: LanePace = EAGER,
        limits: Limits | None = None,
        mapper: Callable[..., list[Any]] = count,
        file_bytes: int = 4_000,
        layout: Layout = COUNTS,
        clock: Callable[[], float] | None = None,
    ):
        self.recovery = recovery
        recovery.mkdir(exist_ok=True)
        if not (recovery / "part-0.sqlite3").exists():
            shutil.copy(_empty_rows(), recovery)
        disk = disk or HastyDisk()
        self.store = Store.open(recovery, lanes, disk, file_bytes)
        assert self.store.directory is not None
        self.directory = self.store.directory
        self.step: Step = self.store.step(STEP, layout)
        self.store.compactor = Inline(self.directory, self.store.layouts, disk)  # type: ignore[assignment]

        def make_state(tables: Tables) -> MappedTables:
            return MappedTables(STEP, layout, tables, mapper, limits)

        self._make = lambda token: Lane(self.step, make_state, token, pace, *([clock] if clock is not None else []))
        self.epoch, rows = read_rows(recovery)
        self.lanes = {token.lane: self._make(token) for token in rows}
        self._awoken: set[int] = set()

    def take(self, items: Sequence[tuple[str, Any]]) -> list[Any]:
        """A batch, divided by lane; what comes of each item, in order."""
        made: list[Any] = [None] * len(items)
        by_lane: dict[int, list[int]] = {}
        for place, (key, _) in enumerate(items):
            by_lane.setdefault(lane_of(key, self.store.lanes), []).append(place)
        for lane, places in by_lane.items():
            logic = self.lanes.setdefault(lane, self._make(None)) if lane not in self.lanes else self.lanes[lane]
            self._awoken.add(lane)
            out, _ = logic.on_batch([batch_of(lane, [items[place] for place in places])])
            for place, value in zip(places, out[0].values, strict=True):
                made[place] = value
        return made

    def end_epoch(self, die_after: int = -1) -> None:
        """Snapshots, rows, commit; `die_after` so many rows the process is gone, and nothing is committed."""
        tokens = {lane: self.lanes[lane].snapshot() for lane in sorted(self._awoken)}
        rows = []
        for number, (lane, token) in enumerate(tokens.items()):
            if number == die_after:
                raise Died
            rows.append((self.store.names[lane], pickle.dumps(token)))
        if die_after >= len(tokens):
            raise Died
        write_rows(self.recovery, self.epoch, rows)
        self.epoch += 1
        self._awoken.clear()

    def contents(self) -> dict[str, tuple[Any, ...]]:
        found: dict[str, tuple[Any, ...]] = {}
        for lane in self.lanes.values():
            found |= contents(lane.state.tables)
        return found

    def close(self) -> None:
        self.store.close()


class HastyDisk(Disk):
    """A disk that does not wait for itself: the tests' machines do not lose power."""

    def sync(self, fd: int) -> None:
        pass

    def sync_directory(self, path: Path) -> None:
        pass


@functools.cache
def _empty_rows() -> Path:
    made = Path(tempfile.mkdtemp())
    init_db_dir(made, 1)
    return made / "part-0.sqlite3"


class Died(Exception):
    """The process is gone, as a test wanted it."""


def write_rows(recovery: Path, epoch: int, rows: Sequence[tuple[str, bytes]]) -> None:
    """Writes an epoch's rows and commits it, as Bytewax does with one worker."""
    with contextlib.closing(sqlite3.connect(recovery / "part-0.sqlite3")) as db, db:
        db.execute("PRAGMA synchronous=OFF")
        db.execute("INSERT OR IGNORE INTO exs (ex_num, worker_count, resume_epoch) VALUES (0, 1, 1)")
        for name, change in rows:
            db.execute(
                "INSERT OR REPLACE INTO snaps (step_id, state_key, snap_epoch, ser_change) VALUES (?, ?, ?, ?)",
                (f"flow.{STEP}.stateful_batch", name, epoch, change),
            )
        db.execute(
            "INSERT OR REPLACE INTO fronts (ex_num, worker_index, worker_frontier) VALUES (0, 0, ?)", (epoch + 1,)
        )
        for name, _ in rows:
            db.execute("DELETE FROM snaps WHERE state_key = ? AND snap_epoch < ?", (name, epoch))


def read_rows(recovery: Path) -> tuple[int, list[Token]]:
    """The epoch to go on with, and the tokens to go on from."""
    from dataflow.state.committed import committed_tokens, resume_epoch

    return resume_epoch(recovery), list(committed_tokens(recovery).values())


class LossyDisk(Disk):
    """A disk that forgets, in a crash, what was not synced: some of it, as it likes, or puts rubbish in its place.

    Names made, changed and removed are forgotten, too, where their directory was not synced.
    """

    def __init__(self, seed: int, aside: Path):
        self._random = random.Random(seed)
        self._aside = aside
        aside.mkdir(exist_ok=True)
        self._paths: dict[int, Path] = {}
        self._synced: dict[Path, int] = {}
        self._undo: list[tuple[str, Path, Path]] = []  # since the directory was synced, in order
        self.syncs = 0

    def create(self, path: Path) -> int:
        fd = super().create(path)
        self._paths[fd] = path
        self._synced[path] = 0
        self._undo.append(("made", path, path))
        return fd

    def sync(self, fd: int) -> None:
        self.syncs += 1
        self._synced[self._paths[fd]] = os.fstat(fd).st_size

    def sync_directory(self, path: Path) -> None:
        self._undo.clear()

    def rename(self, old: Path, new: Path) -> None:
        kept = self._keep(new)
        super().rename(old, new)
        self._synced[new] = self._synced.pop(old)
        for fd, path in self._paths.items():
            if path == old:
                self._paths[fd] = new
        self._undo = [each for each in self._undo if each[1] != old]
        self._undo.append(("renamed", new, kept))

    def remove(self, path: Path) -> None:
        if path.exists():
            self._undo.append(("removed", path, self._keep(path)))
        super().remove(path)

    def crash(self) -> None:
        for path, size in self._synced.items():
            if path.exists() and path.stat().st_size > size:
                left = self._random.randint(size, path.stat().st_size)
                with path.open("r+b") as file:
                    file.truncate(left)
                    if left > size and self._random.random() < 0.5:
                        file.seek(size)
                        file.write(self._random.randbytes(left - size))
        for what, path, kept in reversed(self._undo):
            if self._random.random() < 0.4:  # a file system need not keep them in order
                continue
            if what == "made" or not kept.exists():
                path.unlink(missing_ok=True)
            else:
                shutil.copyfile(kept, path)

    def _keep(self, path: Path) -> Path:
        kept = self._aside / f"{len(list(self._aside.iterdir()))}"
        if path.exists():
            shutil.copyfile(path, kept)
        return kept


class FailingDisk(HastyDisk):
    """A disk on which one kind of call fails from the n-th on.

    Args:
        call: "write", "sync", "sync_directory", "rename" or "create".
        after: calls that are made as they should be.
        error: what then comes.
    """

    def __init__(self, call: str, after: int = 0, error: int = errno.ENOSPC):
        self._call = call
        self.after = after
        self._error = error
        self.calls = 0

    def _perhaps(self, call: str) -> None:
        if call == self._call:
            self.calls += 1
            if self.calls > self.after:
                raise OSError(self._error, os.strerror(self._error))

    def create(self, path: Path) -> int:
        self._perhaps("create")
        return super().create(path)

    def write(self, fd: int, parts: Sequence[bytes | memoryview]) -> int:
        try:
            self._perhaps("write")
        except OSError:
            super().write(fd, [bytes(parts[0])[:5]])  # a full disk takes what still fits
            raise
        return super().write(fd, parts)

    def sync(self, fd: int) -> None:
        self._perhaps("sync")
        super().sync(fd)

    def sync_directory(self, path: Path) -> None:
        self._perhaps("sync_directory")
        super().sync_directory(path)

    def rename(self, old: Path, new: Path) -> None:
        self._perhaps("rename")
        super().rename(old, new)


class ShortDisk(HastyDisk):
    """A disk that takes at most some bytes at once."""

    def __init__(self, most: int):
        self.most = most

    def write(self, fd: int, parts: Sequence[bytes | memoryview]) -> int:
        return os.write(fd, memoryview(parts[0])[: self.most])
