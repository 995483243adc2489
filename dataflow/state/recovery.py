"""Recovery data: made if missing, refused if it is not this flow's, held by one running flow at a time."""

import contextlib
import fcntl
import json
import logging
import os
import platform
import sqlite3
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from dataflow.errors import UserError
from dataflow.process import lifecycle
from dataflow.process.execution import Execution
from dataflow.state.disk import DIRECTORY as STATE
from dataflow.state.disk import private

MANIFEST = "redflag.json"
ROOM_NEEDED = 1_000_000  # bytes free under the directory: with less, SQLite fails or, on a tmpfs, crashes
ROOM_CHECK_SECONDS = 1.0
_OURS = ("part-*.sqlite3*", "lock.*", MANIFEST, STATE, f"{STATE}/*")
_log = logging.getLogger("redflag.recovery")
_held: list[Any] = []  # open lock files: the kernel lets go of them when this process ends, however it ends


class Held(NamedTuple):
    """The recovery directory that this process holds."""

    directory: Path
    partitions: int
    resumed: bool  # whether a flow has run on it before


class FlowIdentity(NamedTuple):
    """What tells this flow from another of the same topics."""

    flow: str  # of its recovery directory, for good; without one of this start, or of the addresses of a cluster
    place: str  # of the lock file that it holds, on this kernel: in a copy of the directory another; "" without
    directory: str  # "" without
    process: int  # of the cluster
    held: Held | None  # the recovery directory, None without


def prepare(directory: Path, partitions: int) -> None:
    """Makes the directory and its recovery partitions, if they are not there yet; nobody else may read them.

    Raises:
        UserError: it cannot be written.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_room(directory)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".probe"):
            pass
        with _open_private(directory / "lock.prepare", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the processes of a cluster may start at the same time
            if _complete(directory):
                found = len(list(directory.glob("part-*.sqlite3")))
                if found != partitions:
                    _log.warning(
                        "RECOVERY_PARTITIONS=%d, but recovery directory %s was made with %d, and keeps them: "
                        "another number takes a new directory, and with it a new beginning",
                        partitions,
                        directory,
                        found,
                    )
                _shut(directory)
                return
            # Made aside and moved in: a kill in between leaves a set that is seen to be incomplete, and made again.
            from bytewax.recovery import init_db_dir  # late: `dataflow.launch` seldom gets here

            with tempfile.TemporaryDirectory(dir=directory, prefix=".new") as new:
                init_db_dir(Path(new), partitions)  # type: ignore[no-untyped-call]
                for part in Path(new).glob("part-*.sqlite3"):
                    part.replace(directory / part.name)
            _shut(directory)
    except OSError as error:
        msg = f"RECOVERY_DIR={directory}: {error.strerror}: name a directory that this user can write, with room in it"
        raise UserError(msg) from error


def _open_private(path: Path, mode: str) -> IO[str]:
    """Opens a file that, if it is made by this, only this user can read."""
    return open(path, mode, opener=private)


def _shut(directory: Path) -> None:
    """Takes reading away from all other users: the files hold what is known of each user, and where they pay.

    SQLite gives the files that it makes beside a partition the partition's own mode.
    """
    paths = [path for pattern in _OURS for path in directory.glob(pattern)]
    if set(directory.iterdir()) <= {*paths, *directory.glob(".*")}:  # else others keep things there too
        paths.append(directory)
    for path in paths:
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            try:
                path.chmod(mode & 0o700)
            except OSError as error:
                _log.warning("%s can be read by others, and that cannot be changed: %s", path, error.strerror)


def lock_and_verify(
    own: Mapping[str, Any], argv: Sequence[str], environ: Mapping[str, str] = os.environ
) -> FlowIdentity:
    """Checks and holds the recovery directory that `bytewax.run` was given in `argv` or the environment, if any.

    Raises:
        UserError: it is another flow's, topic's or version's, or a flow that still runs holds it.
    """
    execution = Execution.read(argv, environ)
    directory, process, processes = execution.directory, execution.process, execution.processes
    if directory is None:
        return FlowIdentity(execution.addresses or uuid.uuid4().hex, "", "", process, None)
    try:
        with _open_private(directory / "lock.prepare", "w") as one_at_a_time:
            fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
            resumed = _has_run(directory)
            lock = _hold(directory, process, processes)
            flow = _check(directory, own)
            if not _anyone_runs(directory, process, processes):
                _forget_abandoned(directory)
    except OSError as error:
        msg = f"recovery directory {directory}: {error.strerror}: name one that exists and that this user can write"
        raise UserError(msg) from error
    threading.Thread(target=_watch_room, args=(directory,), name="redflag-room", daemon=True).start()
    held = Held(directory, len(list(directory.glob("part-*.sqlite3"))), resumed)
    return FlowIdentity(flow, _place(lock), str(directory.resolve()), process, held)


def _place(lock: IO[str]) -> str:
    found = os.fstat(lock.fileno())
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        kernel = platform.node()
    return f"{kernel}:{found.st_dev}:{found.st_ino}"


def _check_room(directory: Path) -> None:
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize
    if found.f_blocks and free < ROOM_NEEDED:  # some file systems do not count
        msg = (
            f"recovery directory {directory}: {free} bytes are free there, {ROOM_NEEDED} are needed: make room, then "
            "start again; what is not decided yet is decided then"
        )
        raise UserError(msg)


def _watch_room(directory: Path) -> None:
    """Ends the flow with a reason while it still can give one: Bytewax dies of a full disk without naming it."""
    while True:
        time.sleep(ROOM_CHECK_SECONDS)
        with contextlib.suppress(OSError):
            try:
                _check_room(directory)
            except UserError as error:
                lifecycle.fail(error)


def _hold(directory: Path, process: int, processes: int) -> IO[str]:
    """Takes this process's lock, and sees that no process of a larger, earlier cluster still holds one.

    A flow that was cut off but still lives would write what we decide again: two must never share a directory.
    """
    lock = _open_private(directory / f"lock.{process}", "a+")
    others = [path for path in directory.glob("lock.[0-9]*") if int(path.suffix[1:]) >= processes]
    for file in (lock, *(path.open("a+") for path in others)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().split()
            msg = (
                f"recovery directory {directory} is in use by process {holder[0] if holder else 'unknown'}: stop it "
                "first, or give this one a directory of its own"
            )
            raise UserError(msg) from error
        if file is not lock:
            file.close()
    _tell(lock, "starting")
    lifecycle.when_running(lambda: _tell(lock, "running"))
    _held.append(lock)
    return lock


def _tell(lock: IO[str], state: str) -> None:
    lock.truncate(0)
    lock.write(f"{os.getpid()} {state}\n")
    lock.flush()


def _anyone_runs(directory: Path, process: int, processes: int) -> bool:
    """Whether a process of the cluster still runs that will end, as this one is missing in it.

    Those that only start wait for us, and touch nothing before.
    """
    for path in (directory / f"lock.{other}" for other in range(processes) if other != process):
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                if "running" in file.read():
                    return True
    return False


def _forget_abandoned(directory: Path) -> None:
    """Removes the snapshots that the last execution took beyond the epoch at which this one resumes.

    Bytewax 0.21 leaves them: a worker that was ahead when the flow was killed has written some. This execution does
    not load them, but counts its epochs on from there; the one after it would take a user's state of the abandoned
    epoch for one of its predecessor's, though other transactions lay in that. So each start removes them, in the
    last process that starts: before that, one of the old may still write.
    """
    parts = sorted(directory.glob("part-*.sqlite3"))
    executions: dict[int, tuple[int, int]] = {}
    reached: dict[tuple[int, int], int] = {}
    for part in parts:
        for number, workers, resumed in _rows(part, "SELECT ex_num, worker_count, resume_epoch FROM exs"):
            executions[number] = workers, resumed
        for number, worker, epoch in _rows(part, "SELECT ex_num, worker_index, worker_frontier FROM fronts"):
            reached[number, worker] = max(epoch, reached.get((number, worker), 0))
    resume = 1
    if executions:
        last = max(executions)
        workers, resumed = executions[last]
        resume = min(max(resumed, reached.get((last, worker), 0)) for worker in range(workers))
    for part in parts:
        try:
            with contextlib.closing(sqlite3.connect(part, timeout=10)) as db, db:
                db.execute("DELETE FROM snaps WHERE snap_epoch >= ?", (resume,))
        except sqlite3.Error as error:
            msg = f"{part} cannot be written ({error}): see that this user can write there, and that there is room"
            raise UserError(msg) from error


def _check(directory: Path, own: Mapping[str, Any]) -> str:
    """Checks the manifest, makes it if there is none, and returns the flow's id."""
    manifest = directory / MANIFEST
    try:
        found = json.loads(manifest.read_text())
    except FileNotFoundError:
        if _has_run(directory):
            msg = f"recovery directory {directory} holds the data of another program: give this flow one of its own"
            raise UserError(msg) from None
        found = dict(own)
    except ValueError as error:
        msg = f"{manifest} is damaged: restore it from a backup, or use an empty recovery directory"
        raise UserError(msg) from error
    for key, value in own.items():
        known = found.get(key)
        if known != value:
            msg = (
                f"recovery directory {directory} belongs to {key} {json.dumps(known)}, but this flow has "
                f"{json.dumps(value)}: name another directory in RECOVERY_DIR, or go back to the settings, or the "
                "version, that it was made with"
            )
            raise UserError(msg)
    if "id" not in found:
        found["id"] = uuid.uuid4().hex
        with tempfile.NamedTemporaryFile("w", dir=directory, prefix=".manifest", delete=False) as new:
            json.dump(found, new, indent=2)
        Path(new.name).rename(manifest)
    return str(found["id"])


def _complete(directory: Path) -> bool:
    parts = list(directory.glob("part-*.sqlite3"))
    return bool(parts) and len(parts) >= _ask(parts[0], "SELECT max(part_count) FROM parts")


def _has_run(directory: Path) -> bool:
    return any(_ask(part, "SELECT count(*) FROM exs") for part in directory.glob("part-*.sqlite3"))


def _ask(part: Path, query: str) -> int:
    return int(_rows(part, query)[0][0] or 0)


def _rows(part: Path, query: str) -> list[tuple[int, ...]]:
    try:
        with contextlib.closing(sqlite3.connect(f"file:{part}?mode=ro", uri=True)) as db:
            return db.execute(query).fetchall()
    except sqlite3.Error as error:
        msg = f"{part} is no recovery partition ({error}): restore it from a backup, or use an empty recovery directory"
        raise UserError(msg) from error
