"""Files that a running flow takes up when they change: looked at by the clock, once they have stood still."""

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

LOOKS = 4
"""Looks within the time that a changed file must have stood still: it is taken at most one look later than that."""

Stamp = tuple[int, int, int]
"""What tells a changed file: time of change in ns, size, and its number on the file system."""
Stamps = tuple[Stamp | None, ...]


def stamp(path: Path) -> Stamp | None:
    """What tells whether a file has changed; None where there is none."""
    try:
        return stamp_of(path.stat())
    except (OSError, ValueError):
        return None


def stamp_of(found: os.stat_result) -> Stamp:
    """The same of a file that was looked at."""
    return found.st_mtime_ns, found.st_size, found.st_ino


class FileWatch(ABC):
    """Notices that files have changed, and has them reloaded; what is reloaded is the subclass's.

    After `watch` a thread looks at the files by the clock, whether transactions come or not. A change counts once it
    has stood still, so that a file that is being written is not taken by halves.
    """

    def __init__(self, name: str, check_every: float, clock: Callable[[], float] = time.monotonic):
        """A change is reloaded once it has stood still for `check_every` seconds of `clock`; `name` is the thread's."""
        self._name = name
        self._check_every = check_every
        self._clock = clock
        self._used: Stamps = ()  # of the files as they were when they were last read, used or not
        self._seen: Stamps = ()  # at the last look
        self._since = clock()  # when they were first seen so
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @abstractmethod
    def _stamps(self) -> Stamps:
        """Of the files as they are now."""

    @abstractmethod
    def _reload(self) -> None:
        """Reads the changed files, uses them or refuses them, and sets `_used`; raises nothing."""

    def watch(self) -> Self:
        """Begins to look by the clock, on a thread of its own, until `stop` or the end of a `with` block."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._watch, name=self._name, daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """Ends the looks; waits for one that is under way."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def look(self) -> None:
        """Looks at the files once; has them reloaded if they have changed and stood still since."""
        now, found = self._clock(), self._stamps()
        if found != self._seen:
            self._seen, self._since = found, now
        elif found != self._used and now - self._since >= self._check_every:
            self._reload()
            self._seen = self._used

    def _watch(self) -> None:
        while not self._stop.wait(min(self._check_every / LOOKS, threading.TIMEOUT_MAX)):
            self.look()
