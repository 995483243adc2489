"""Epochs that end at the same moment on all workers.

Bytewax closes an epoch of a source when it is activated and `interval` has passed since that source closed the one
before; no source begins the next epoch before all have closed this one. So what one worker closes later, by a long
batch or a sleep, all others wait for; and as each counts from its own last closing, the gap is there again in every
epoch, and grows with each further delay: at 1,000 transactions a second with an interval of 1 s, decisions took 33 ms
at the start and 21 s a minute later.

Here every part and every worker counts from the last closing of all. The workers of a process tell each other in
memory, processes in small files in the recovery directory. One that is early sleeps over the moments in which Bytewax
would close its epoch, which is as long as it would have waited afterwards, once.
"""

import math
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dataflow.errors import UserError
from dataflow.process import lifecycle
from dataflow.process.execution import Execution
from dataflow.state.disk import private

FILE = "epoch.{process}"
_ENTRY = struct.Struct("<qd")  # epochs closed in this execution, and when the last was: seconds since 1970
GUARD = 0.002
"""Seconds before an epoch may be closed in which an activation is the last before it: a batch takes about as long."""


class Closings:
    """When each worker of the cluster closed its epochs last.

    Args:
        directory: of the recovery data, which all processes share; None where there is but one process.
        process: the number of this one.
        processes: how many there are.
    """

    def __init__(self, directory: Path | None = None, process: int = 0, processes: int = 1):
        self._lock = threading.Lock()
        self._here: dict[int, tuple[int, float]] = {}  # worker thread: epochs closed, and when the last was
        self._mine = directory / FILE.format(process=process) if directory and processes > 1 else None
        self._others = (
            [directory / FILE.format(process=other) for other in range(processes) if other != process]
            if directory and processes > 1
            else []
        )
        self._tell(0, -math.inf)  # what an earlier execution left is not this one's

    def closed(self, number: int, at: float) -> None:
        """This worker has closed its epoch of that number, counted from the start of the execution.

        Raises:
            UserError: the disk is full or broken.
        """
        with self._lock:
            self._here[threading.get_ident()] = number, at
            # The file says when the last of this process closed the newest epoch.
            newest = max(count for count, _ in self._here.values())
            self._tell(newest, max(when for count, when in self._here.values() if count == newest))

    def latest(self, number: int) -> float:
        """When the last of all workers closed the epoch of that number, as far as is known; -inf if none has."""
        with self._lock:
            found = [at for count, at in self._here.values() if count == number]
        for path in self._others:
            count, at = _read(path)
            if count == number:
                found.append(at)
        return max(found, default=-math.inf)

    def _tell(self, number: int, at: float) -> None:
        if self._mine is not None:
            try:
                with open(self._mine, "wb", opener=private) as file:
                    file.write(_ENTRY.pack(number, at))
            except OSError as error:
                msg = (
                    f"{self._mine}: {error.strerror or error}: see to the disk and its room, then start again; nothing "
                    "is lost, what was not kept is decided anew"
                )
                raise UserError(msg) from error


def _read(path: Path) -> tuple[int, float]:
    try:
        entry = path.read_bytes()
    except FileNotFoundError:
        return 0, -math.inf
    # While it is being written it is empty: then the others are not waited for, this once.
    return _ENTRY.unpack(entry) if len(entry) == _ENTRY.size else (0, -math.inf)


class EpochPace:
    """Of one worker: keeps the epochs of its source's parts in step with each other and with those of other workers.

    Bytewax counts the first epoch of each part from when that part was built, and on resume it builds one after the
    other, as their states are read: so the parts of one worker have to be brought together, too.

    Args:
        interval: seconds between two snapshots, as Bytewax knows it.
        closings: what the workers know of each other.
        alone: there are no other workers.
        clock: seconds since 1970, as Bytewax itself goes by the wall clock.
        sleep: takes seconds.
    """

    def __init__(
        self,
        interval: float,
        closings: Closings,
        *,
        alone: bool = False,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = lifecycle.wait_for_stop,
    ):
        self.alone = alone
        self._interval = interval
        self._closings = closings
        self._clock = clock
        self._sleep = sleep
        self._activated = clock()
        self._parts: dict[int, tuple[int, float]] = {}  # epochs that each part has closed, and when the last was
        self._due: float | None = None

    def began(self, part: int) -> None:
        """A part was built: its first epoch begins."""
        self._parts[part] = 0, self._clock()
        self._due = None

    def ended(self, part: int) -> None:
        """A part is read no more."""
        del self._parts[part]

    def activated(self) -> None:
        """To be called first in each activation of the source: sleeps if an epoch would be closed too early."""
        now = self._clock()
        if now >= self._may_close() - GUARD:
            wait = self.due() - now
            # More than the interval itself: a clock was set meanwhile, and no wait may depend on that.
            if 0.0 < wait <= self._interval:
                self._sleep(wait)
                now = self._clock()
        self._activated = now

    def due(self) -> float:
        """When the epoch under way should be closed: an interval after the last of all closed the one before."""
        if self._due is None:
            # By the time that it may be closed, all have begun it, so all have closed the one before.
            number, _ = min(self._parts.values())
            mine = max(at for _, at in self._parts.values())
            self._due = max(self._closings.latest(number), mine) + self._interval
        return self._due

    def rest(self) -> float:
        """Seconds in which the worker may wait for messages without closing its epoch late."""
        return max(0.0, self._may_close() - GUARD / 2 - self._clock())

    def closed(self, part: int) -> None:
        """To be called with each snapshot of a part."""
        number = self._parts[part][0] + 1
        self._parts[part] = number, self._activated
        self._due = None
        if all(count >= number for count, _ in self._parts.values()):
            self._closings.closed(number, self._activated)

    def _may_close(self) -> float:
        return min((at for _, at in self._parts.values()), default=math.inf) + self._interval


def epoch_pace(execution: Execution) -> Callable[[], EpochPace]:
    """Makes the pace of each worker."""
    closings = Closings(execution.directory, execution.process, execution.processes)
    return lambda: EpochPace(execution.epoch_seconds, closings, alone=execution.alone)
