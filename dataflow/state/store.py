"""The directory in which a flow's lanes are kept: what it belongs to, who holds it, which of its files are needed."""

import contextlib
import fcntl
import json
import math
import os
import re
import threading
from pathlib import Path
from typing import IO, Any

from dataflow.errors import UserError
from dataflow.metrics import PROFILE_BYTES, PROFILES
from dataflow.state.committed import committed_tokens
from dataflow.state.compaction import Compactor
from dataflow.state.crash_points import Point, reached
from dataflow.state.disk import DIRECTORY, Disk, private, write_all
from dataflow.state.image import image_id
from dataflow.state.lane_names import lane_names
from dataflow.state.loading import Chain, Loaded, chain_of, load_lane
from dataflow.state.log import BEGINNING, FILE_BYTES, ChunkId, Log, LogReader, Token, log_name
from dataflow.tables.table import Layout, Tables, first_table

MANIFEST = "state.json"
UNFINISHED = "importing"
"""Is in a directory while profiles are imported into it."""
LANES = 8
"""Lanes of a new directory: enough for 8 workers; each further one splits every batch into smaller pieces."""
FORMAT = 1
"""Of log, images and manifest."""
MOST_LANES = 1000

_STEP = re.compile(r"[\w-]+")


class Step:
    """One step of the flow: its layout, and its lanes' files."""

    def __init__(self, store: "Store", name: str, layout: Layout):
        self.store = store
        self.name = name
        self.layout = layout

    def load(self, lane: int, chunk: ChunkId) -> Loaded:
        """The tables of a lane as of a token, and the chain that they were read from.

        Raises:
            UserError: something of it is missing or damaged.
        """
        if self.store.directory is None:
            msg = "there is a token, but no recovery directory"
            raise UserError(msg)
        loaded = load_lane(self.store.directory, self.name, lane, chunk, self.layout)
        reached(Point.LANE_RESUMED)
        return loaded


class Store:
    """The lanes' directory as one process of the flow uses it; without a directory nothing is kept.

    Use `Store.open`.

    Attributes:
        epoch_seconds: how long an epoch is, infinite where that is not known: lanes write before it ends.
    """

    def __init__(self, directory: Path | None, names: list[str], disk: Disk, file_bytes: int):
        self.directory = directory
        self.names = names
        self.epoch_seconds = math.inf
        self.layouts: dict[str, Layout] = {}
        self.log = Log(directory, disk, file_bytes) if directory is not None else None
        self.compactor = Compactor(directory, self.layouts) if directory is not None else None
        self._disk = disk
        self._lock: IO[str] | None = None
        self._chunks: dict[int, int] = {}  # of each log file of this process: how many chunks are on a chain
        self._counting = threading.Lock()
        self.image_bytes: dict[tuple[str, int], int] = {}
        self.tables: dict[str, list[Tables]] = {}  # of each step those of its lanes in this process

    @classmethod
    def open(
        cls, recovery: Path | None, lanes: int | None = None, disk: Disk | None = None, file_bytes: int = FILE_BYTES
    ) -> "Store":
        """Makes the directory if it is not there, holds it, and removes the files that no chain needs.

        To be called before Bytewax runs, by each process of the flow.

        Args:
            recovery: the recovery directory; None to keep nothing.
            lanes: how many; None for as many as the directory has.
            disk: what files are written with.
            file_bytes: of a log file.

        Raises:
            UserError: it cannot be written, is damaged, or has another number of lanes.
        """
        disk = disk or Disk()
        if lanes is not None and not 1 <= lanes <= MOST_LANES:
            msg = f"{lanes} lanes are asked for: 1 to {MOST_LANES} can be had"
            raise UserError(msg)
        if recovery is None:
            return cls(None, lane_names(lanes or LANES), disk, file_bytes)
        directory = recovery / DIRECTORY
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = open(directory / "lock", "a", opener=private)  # noqa: SIM115 - held until the process ends
            alone = _try_lock(lock, fcntl.LOCK_EX)
            if not alone:
                # Another process of the flow that starts has it for as long as it cleans; or one that runs shares it.
                fcntl.flock(lock, fcntl.LOCK_SH)
            if (directory / UNFINISHED).exists():
                msg = f"an import into {recovery} was not finished: remove that directory, and import into a new one"
                raise UserError(msg)
            names = _identify(directory, lanes, disk)
            if alone:
                _clean(directory, names, committed_tokens(recovery), disk)
                fcntl.flock(lock, fcntl.LOCK_SH)
        except OSError as error:
            msg = f"{directory}: {error.strerror or error}: see that this user can write there, and that there is room"
            raise UserError(msg) from error
        store = cls(directory, names, disk, file_bytes)
        store._lock = lock
        return store

    @property
    def lanes(self) -> int:
        """How many there are."""
        return len(self.names)

    def step(self, name: str, layout: Layout) -> Step:
        """A step of the flow, whose rows are of that layout.

        Raises:
            UserError: the directory holds rows of another layout under that step.
        """
        if not _STEP.fullmatch(name):
            msg = f"a step with lanes is named with letters, digits, _ and -, not {name!r}"
            raise ValueError(msg)
        self.layouts[name] = layout
        if self.directory is not None:
            with open(self.directory / "lock.manifest", "a", opener=private) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._check_layout(self.directory, name, layout)
        return Step(self, name, layout)

    def holds(self, step: str, tables: Tables) -> None:
        """Says that these are the tables of a lane: from now on they count in the metrics of state."""
        with self._counting:
            held = self.tables.setdefault(step, [])
            held.append(tables)
        PROFILES.labels(step).set_function(lambda: sum(len(first_table(each)) for each in held))
        PROFILE_BYTES.labels(step).set_function(
            lambda: sum(table.bytes_held() for each in held for table in each.values())
        )

    def hold_alone(self) -> None:
        """Keeps every flow from the directory until this is closed.

        Raises:
            UserError: one runs on it.
        """
        if self._lock is not None and not _try_lock(self._lock, fcntl.LOCK_EX):
            msg = f"a flow runs on {self.directory}: stop it first, or name another recovery directory"
            raise UserError(msg)

    def close(self) -> None:
        """Ends the threads and the helper, and lets go of the directory; what was asked for is synced."""
        if self.log is not None:
            self.log.close()
        if self.compactor is not None:
            self.compactor.close()
        if self._lock is not None:
            self._lock.close()

    def needs(self, chunk: ChunkId) -> None:
        """Says that a chunk is on a lane's chain."""
        with self._counting:
            self._chunks[chunk.place.file] = self._chunks.get(chunk.place.file, 0) + 1

    def needs_no_more(self, chunks: list[ChunkId]) -> None:
        """Says that chunks are in an image now, and removes the log files of this process in which all are."""
        assert self.log is not None  # noqa: S101
        with self._counting:
            for chunk in chunks:
                self._chunks[chunk.place.file] -= 1
            for file in [file for file, count in self._chunks.items() if count == 0 and file in self.log.files]:
                self.log.drop_file(file)
                if file not in self.log.files:
                    del self._chunks[file]

    def _check_layout(self, directory: Path, name: str, layout: Layout) -> None:
        found = _read_manifest(directory / MANIFEST)
        assert found is not None  # noqa: S101
        described = layout.described()
        known = found["steps"].get(name)
        if known is None:
            found["steps"][name] = described
            _write_manifest(directory, found, self._disk)
        elif known != described:
            differ = _difference(known, described)
            msg = (
                f"{directory} holds {name} with other fields than this version keeps ({differ}): export it "
                "with the version that wrote it (python -m dataflow.state export) and import it into a new recovery "
                "directory, or go back to that version"
            )
            raise UserError(msg)


def _identify(directory: Path, lanes: int | None, disk: Disk) -> list[str]:
    """The names of the lanes, as the manifest has them; makes it if there is none."""
    with open(directory / "lock.manifest", "a", opener=private) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = _read_manifest(directory / MANIFEST)
        if found is None:
            if any(directory.glob("*.image")) or any(directory.glob("*.log")):
                msg = f"{directory / MANIFEST} is missing: restore the whole recovery directory from one backup"
                raise UserError(msg)
            found = {"format": FORMAT, "lanes": lane_names(lanes or LANES), "steps": {}}
            _write_manifest(directory, found, disk)
        names: list[str] = found["lanes"]
        if lanes is not None and lanes != len(names):
            msg = (
                f"{directory} is divided into {len(names)} lanes, and {lanes} are asked for: export it and import it "
                "into a new recovery directory (python -m dataflow.state), or ask for as many as it has"
            )
            raise UserError(msg)
        return names


def read_manifest(recovery: Path) -> dict[str, Any]:
    """What the lanes of a recovery directory are: `lanes`, their names, and `steps`, their layouts.

    Raises:
        UserError: there are none, or they are of another version.
    """
    found = _read_manifest(recovery / DIRECTORY / MANIFEST)
    if found is None:
        msg = f"{recovery} holds no profiles: name a recovery directory on which a flow has run"
        raise UserError(msg)
    return found


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
        version = found["format"]
        if version == FORMAT:  # what another format has, this version does not know
            found["lanes"], found["steps"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{path} is damaged: restore the whole recovery directory from one backup, or use an empty one"
        raise UserError(msg) from error
    if version != FORMAT:
        msg = f"{path} is of format {version}, this version has {FORMAT}: use the version that wrote it to export it"
        raise UserError(msg)
    return dict(found)


def _write_manifest(directory: Path, manifest: dict[str, Any], disk: Disk) -> None:
    aside = directory / f".{MANIFEST}.{os.getpid()}.new"
    with contextlib.suppress(FileNotFoundError):
        aside.unlink()
    fd = disk.create(aside)
    try:
        write_all(disk, fd, [json.dumps(manifest, indent=1).encode()])
        disk.sync(fd)
    finally:
        disk.close(fd)
    disk.rename(aside, directory / MANIFEST)
    disk.sync_directory(directory)


def _difference(known: dict[str, Any], described: dict[str, Any]) -> str:
    """In words, the first fields that differ."""
    fields = [
        {(table, *map(str, field[:3])) for table, found in layout["tables"].items() for field in found}
        for layout in (known, described)
    ]
    lost = sorted({f"{table}.{name or 'size'}" for table, name, *_ in fields[0] ^ fields[1]})
    return ", ".join(lost[:3]) + (" and others" if len(lost) > 3 else "") if lost else "in another order"


def _try_lock(lock: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def chunks_of(
    directory: Path, names: list[str], tokens: dict[tuple[str, str], Token]
) -> dict[tuple[str, int], ChunkId]:
    """The chunk that each token names, by step and lane.

    Raises:
        UserError: a token is not of the lane that its row names.
    """
    found: dict[tuple[str, int], ChunkId] = {}
    numbers = {name: lane for lane, name in enumerate(names)}
    for (step, name), token in sorted(tokens.items()):
        if numbers.get(name) != token.lane:
            msg = (
                f"the recovery data has lane {name} of {step} for lane {token.lane} of {directory}: they are not "
                "of one time. Restore the whole recovery directory from one backup, or use an empty one"
            )
            raise UserError(msg)
        found[step, token.lane] = token.chunk
    return found


def _clean(directory: Path, names: list[str], tokens: dict[tuple[str, str], Token], disk: Disk) -> None:
    """Removes what no chain needs. Nobody else has the directory meanwhile."""
    kept: set[str] = set()
    if not tokens:  # the first execution did not get to its first commit; or the rows were moved away, and come back
        kept.update(path.name for path in directory.glob("*.log"))
    needed: dict[tuple[str, int], Chain] = {}
    with LogReader(directory) as reader:
        for (step, lane), chunk in chunks_of(directory, names, tokens).items():
            needed[step, lane] = chain_of(directory, reader, step, lane, chunk)
    for chain in needed.values():
        kept.update(log_name(chunk.place.file) for chunk in chain.chunks)
        if chain.image is not None:
            kept.add(chain.image.name)
    for path in directory.glob("*.image"):
        image = image_id(path)
        if image is not None and (image.step, image.lane) not in needed:
            if image.version:  # no row names its lane
                with LogReader(directory) as reader:
                    chain_of(directory, reader, image.step, image.lane, BEGINNING)
            kept.add(path.name)  # imported, and no snapshot was taken since
    for path in (*directory.glob("*.log"), *directory.glob("*.image"), *directory.glob(".*.new")):
        if path.name not in kept:
            disk.remove(path)
            reached(Point.CLEANING)
