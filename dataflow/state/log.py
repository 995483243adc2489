"""The log: what changed in lanes, in append-only files; and the token, which Bytewax keeps in place of a lane's state.

A file belongs to one process and one execution, and is never appended to by another. A chunk names the one before it
of the same lane, so a token, which names a chunk, stands for the whole chain down to an image or to the lane's
beginning. What was written and is on no chain of a committed token does not count.
"""

import os
import struct
import threading
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dataflow.errors import UserError
from dataflow.state.crash_points import Point, reached
from dataflow.state.disk import Disk, write_all

FILE_BYTES = 64_000_000
"""A file that has grown to that is followed by another."""
SYNC_BYTES = 4_000_000
"""With so much written since, a sync begins before an epoch ends: one after each chunk fights Kafka for the disk."""

MOST_OPEN = 32
"""Log files that a reader keeps open at once: a chain may lie in as many as there were starts."""

MAGIC = b"RFC1"
# Magic, checksum of the head behind it, checksum of the payload, step, lane, version, length; the chunk before: file,
# offset, length.
_HEAD = struct.Struct("<4sIIIIQIQQI")
_CRC_END = 8
HEAD_BYTES = _HEAD.size


class Place(NamedTuple):
    """Where a chunk stands: the number of its file, its first byte, and the length of what follows its head."""

    file: int
    offset: int
    length: int

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + HEAD_BYTES + self.length


NOWHERE = Place(0, 0, 0)


class ChunkId(NamedTuple):
    """A chunk of a lane: its number in the lane's history, and where it stands; version 0 is the beginning."""

    version: int
    place: Place


BEGINNING = ChunkId(0, NOWHERE)


class LogDamagedError(UserError):
    """A chunk that a chain needs is missing or is not what was written."""


def step_number(step: str) -> int:
    """What stands for a step's id in a chunk."""
    return zlib.crc32(step.encode())


def log_name(file: int) -> str:
    """The name of a log file, by its number."""
    return f"{file:016x}.log"


def log_file(path: Path) -> int:
    """The number of a log file, by its name."""
    return int(path.stem, 16)


class Token:
    """What `snapshot()` gives to Bytewax: the lane and its last chunk. To pickle it waits until that is on disk.

    Bytewax pickles it in the worker's thread before it writes the row, so a row never names what could be lost.
    """

    __slots__ = ("chunk", "lane", "log", "position")

    def __init__(self, lane: int, chunk: ChunkId, log: "Log | None" = None, position: int = 0):
        self.lane = lane
        self.chunk = chunk
        self.log = log
        self.position = position  # of the chunk's end, among all that this process has written

    def __reduce__(self) -> tuple[Any, ...]:
        if self.log is not None:
            self.log.wait_synced(self.position)
        made = read_token, (self.lane, self.chunk.version, *self.chunk.place)
        reached(Point.TOKEN_PICKLED)
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Token) and (self.lane, self.chunk) == (other.lane, other.chunk)

    def __hash__(self) -> int:
        return hash((self.lane, self.chunk))

    def __repr__(self) -> str:
        return f"Token(lane={self.lane}, chunk={self.chunk})"


def read_token(lane: int, version: int, file: int, offset: int, length: int) -> Token:
    """A token as it was pickled: it is on disk. Its name is in recovery data, and stays."""
    return Token(lane, ChunkId(version, Place(file, offset, length)))


class Log:
    """What one process writes. Several workers' threads may append to it.

    Args:
        directory: of the log files.
        disk: what they are written with.
        file_bytes: a file that has grown to that is followed by another.
        sync_bytes: with so much written since the last sync, the next begins.
    """

    def __init__(
        self, directory: Path, disk: Disk | None = None, file_bytes: int = FILE_BYTES, sync_bytes: int = SYNC_BYTES
    ):
        self._directory = directory
        self._disk = disk or Disk()
        self._file_bytes = file_bytes
        self._sync_bytes = sync_bytes
        self._lock = threading.Condition()
        self._appending = threading.Lock()
        self._file = 0  # the number of the file under way, 0: none
        self._fd = -1
        self._offset = 0
        self._appended = 0  # bytes of all files together
        self._synced = 0
        self._wanted = 0
        self._full: list[int] = []  # files that are written no more, and not closed yet
        self._unnamed = False  # a file was made since the directory was synced
        self._failure: str | None = None
        self._closed = False
        self.files: dict[int, int] = {}  # each file that this process wrote: where it begins, among all bytes
        self.longest_sync = 0.0  # seconds
        self._thread = threading.Thread(target=self._sync_when_asked, name="redflag-log", daemon=True)
        self._thread.start()

    @property
    def appended(self) -> int:
        """Bytes that this process has written."""
        return self._appended

    def append(self, step: str, lane: int, previous: ChunkId, parts: Sequence[bytes]) -> tuple[ChunkId, int]:
        """Writes a chunk, and returns what names it, and its end among all bytes written.

        Raises:
            UserError: the disk is full or broken; this log takes nothing from then on.
        """
        reached(Point.BEFORE_APPEND)
        length = sum(map(len, parts))
        version = previous.version + 1
        crc = 0
        for part in parts:
            crc = zlib.crc32(part, crc)
        head = _HEAD.pack(MAGIC, 0, crc, step_number(step), lane, version, length, *previous.place)
        head = MAGIC + zlib.crc32(head[_CRC_END:]).to_bytes(4, "little") + head[_CRC_END:]
        with self._appending:
            self._raise_failure()
            try:
                if self._fd < 0 or self._offset >= self._file_bytes:
                    self._begin_file()
                write_all(self._disk, self._fd, [head, *parts])
            except OSError as error:
                self._fail(error)
                self._raise_failure()
            place = Place(self._file, self._offset, length)
            self._offset = place.end
            self._appended += HEAD_BYTES + length
            position = self._appended
        reached(Point.AFTER_APPEND)
        if position - self._synced > self._sync_bytes:
            self.ask_sync()
        return ChunkId(version, place), position

    def ask_sync(self) -> None:
        """Lets a sync of all that was written begin, and does not wait for it."""
        with self._lock:
            if self._wanted < self._appended:
                self._wanted = self._appended
                self._lock.notify_all()

    def wait_synced(self, position: int) -> None:
        """Returns when all up to there is on disk.

        Raises:
            UserError: a sync failed, this one or an earlier one. It is not tried again: after a failure the system may
                count as written what it has dropped.
        """
        if self._synced >= position:
            return
        self.ask_sync()
        with self._lock:
            while self._synced < position and self._failure is None:
                self._lock.wait()
            if self._synced < position:
                self._raise_failure()

    def drop_file(self, file: int) -> None:
        """Removes a file of this process that no chain needs any more; not the one under way."""
        if file != self._file and self._synced >= self._end(file):
            del self.files[file]
            self._disk.remove(self._directory / log_name(file))
            reached(Point.LOG_FILE_REMOVED)

    def position(self, place: Place) -> int:
        """Where a chunk begins among all bytes that this process wrote; 0 for one of an earlier execution."""
        begin = self.files.get(place.file)
        return 0 if begin is None else begin + place.offset

    def close(self) -> None:
        """Ends the thread; what was asked for is synced before."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        self._thread.join()
        for fd in (*self._full, self._fd):
            if fd >= 0:
                self._disk.close(fd)
        self._full, self._fd = [], -1

    def _end(self, file: int) -> int:
        later = [begin for begin in list(self.files.values()) if begin > self.files[file]]
        return min(later, default=self._appended)

    def _begin_file(self) -> None:
        while True:
            # The time sorts them for people; the random half keeps a number from coming back after its file is gone.
            file = int(time.time()) << 32 | int.from_bytes(os.urandom(4), "little")
            try:
                fd = self._disk.create(self._directory / log_name(file))
                break
            except FileExistsError:
                continue
        reached(Point.NEW_LOG_FILE)
        with self._lock:
            if self._fd >= 0:
                self._full.append(self._fd)
            self._file, self._fd, self._offset = file, fd, 0
            self.files[file] = self._appended
            self._unnamed = True

    def _sync_when_asked(self) -> None:
        while True:
            with self._lock:
                while self._wanted <= self._synced and not self._closed:
                    self._lock.wait()
                if self._wanted <= self._synced or self._failure is not None:
                    return
            with self._appending:  # no file is begun meanwhile, and what counts as appended is wholly written
                end, fd = self._appended, self._fd
                full, self._full = self._full, []
                unnamed, self._unnamed = self._unnamed, False
            begun = time.perf_counter()
            try:
                reached(Point.BEFORE_SYNC)
                for each in full:
                    self._disk.sync(each)
                    self._disk.close(each)
                self._disk.sync(fd)
                if unnamed:
                    self._disk.sync_directory(self._directory)
            except OSError as error:
                self._fail(error)
                return
            reached(Point.AFTER_SYNC)
            self.longest_sync = max(self.longest_sync, time.perf_counter() - begun)
            with self._lock:
                self._synced = end
                self._lock.notify_all()

    def _fail(self, error: OSError) -> None:
        with self._lock:
            if self._failure is None:
                self._failure = (
                    f"the log of the profiles in {self._directory} cannot be written: {error.strerror or error}: see "
                    "to the disk and its room, then start again; nothing is lost, what was not kept is decided anew"
                )
            self._lock.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise UserError(self._failure)


class LogReader:
    """Reads chunks; keeps files open between them, `MOST_OPEN` at most."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._open: dict[int, int] = {}

    def __enter__(self) -> "LogReader":
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def chain(self, step: str, lane: int, last: ChunkId, bases: Sequence[ChunkId]) -> tuple[ChunkId, list[ChunkId]]:
        """The chunks of a lane up to `last`, oldest first, and the newest of `bases` that they build upon.

        With no base on the chain, it goes down to the lane's beginning, and that is the base. Reads heads only.

        Raises:
            LogDamagedError: a file is missing, or a chunk is not one of this chain.
        """
        found: list[ChunkId] = []
        wanted = set(bases)
        while last.version and last not in wanted:
            found.append(last)
            last = self._previous(step, lane, last)
        return last, found[::-1]

    def payload(self, step: str, lane: int, chunk: ChunkId) -> bytes:
        """What a chunk holds.

        Raises:
            LogDamagedError: it is not what was written.
        """
        place = chunk.place
        found = self._read(place, HEAD_BYTES + place.length)
        head, payload = found[:HEAD_BYTES], found[HEAD_BYTES:]
        crc, _ = self._check_head(step, lane, chunk, head)
        if zlib.crc32(payload) != crc:
            raise self._damaged(place, "its checksum is wrong")
        return payload

    def _previous(self, step: str, lane: int, chunk: ChunkId) -> ChunkId:
        head = self._read(chunk.place, HEAD_BYTES)
        _, previous = self._check_head(step, lane, chunk, head)
        return ChunkId(chunk.version - 1, previous)

    def _check_head(self, step: str, lane: int, chunk: ChunkId, head: bytes) -> tuple[int, Place]:
        """The checksum of the payload, and where the chunk before stands."""
        magic, head_crc, crc, of_step, of_lane, version, length, *previous = _HEAD.unpack(head)
        if zlib.crc32(head[_CRC_END:]) != head_crc:
            raise self._damaged(chunk.place, "the checksum of its head is wrong")
        found = magic, of_step, of_lane, version, length
        if found != (MAGIC, step_number(step), lane, chunk.version, chunk.place.length):
            raise self._damaged(chunk.place, f"it is not version {chunk.version} of lane {lane} of {step}")
        return crc, Place(*previous)

    def _read(self, place: Place, length: int) -> bytes:
        path = self._directory / log_name(place.file)
        try:
            fd = self._open.get(place.file)
            if fd is None:
                if len(self._open) >= MOST_OPEN:
                    os.close(self._open.pop(next(iter(self._open))))
                fd = self._open[place.file] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            found = os.pread(fd, length, place.offset)
        except FileNotFoundError as error:
            msg = (
                f"{path} is missing, which the recovery data needs: they are not of one time. Restore the whole "
                "recovery directory from one backup, or use an empty one"
            )
            raise LogDamagedError(msg) from error
        except OSError as error:
            raise self._damaged(place, error.strerror or str(error)) from error
        if len(found) != length:
            raise self._damaged(place, f"the file ends {length - len(found)} bytes too early")
        return found

    def _damaged(self, place: Place, why: str) -> LogDamagedError:
        msg = (
            f"{self._directory / log_name(place.file)} is damaged at byte {place.offset}: {why}. Restore the whole "
            "recovery directory from one backup, or use an empty one"
        )
        return LogDamagedError(msg)
