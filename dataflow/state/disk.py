"""The few things that the state asks of the disk, in one place: so that a test can let each of them fail."""

import os
from collections.abc import Sequence
from pathlib import Path

DIRECTORY = "state"
"""Of the lanes' files, in the recovery directory."""


class Disk:
    """The real disk. A test puts in its place one that fails, writes short, or forgets what was not synced."""

    def create(self, path: Path) -> int:
        """A new file that only this user can read, open for appending; FileExistsError if there is one."""
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, fd: int, parts: Sequence[bytes | memoryview]) -> int:
        """Writes as much as the system takes at once, and returns how many bytes that were."""
        return os.writev(fd, parts)

    def sync(self, fd: int) -> None:
        """Returns when all that was written to the file is on disk."""
        os.fdatasync(fd)

    def sync_directory(self, path: Path) -> None:
        """Returns when the names of the files in the directory are on disk."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def set_size(self, fd: int, size: int) -> None:
        """Lengthens a file with a hole, which takes no room."""
        os.ftruncate(fd, size)

    def rename(self, old: Path, new: Path) -> None:
        """Puts a file in the place of another, in one step."""
        os.replace(old, new)

    def remove(self, path: Path) -> None:
        """Removes a file; none there is no mistake."""
        path.unlink(missing_ok=True)

    def close(self, fd: int) -> None:
        """Closes a file."""
        os.close(fd)


def write_all(disk: Disk, fd: int, parts: Sequence[bytes | memoryview]) -> int:
    """Writes all parts, however little the system takes at once; returns how many bytes that were.

    Raises:
        OSError: the disk is full or broken; then a part of it may have been written.
    """
    left = [view for part in parts if len(view := memoryview(part).cast("B"))]
    total = sum(map(len, left))
    while left:
        written = disk.write(fd, left)
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = left[0][written:]
    return total


def private(path: str, flags: int) -> int:
    """The `opener` of an `open` whose file, if it is made by that, only this user can read."""
    return os.open(path, flags, 0o600)
