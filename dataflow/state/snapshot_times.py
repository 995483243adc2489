"""How old the last committed snapshot is, and how long the workers were held up by it."""

import math
import threading
import time
from collections.abc import Callable

from dataflow.metrics import SNAPSHOT_AGE, SNAPSHOT_PAUSE, BatchHistogram


class SnapshotTimes:
    """When each worker's last snapshot was committed; the workers of a process share one.

    A worker is activated again only once the epoch that it closed is committed on all workers: see `Lane.on_batch`.

    Args:
        recovery: whether snapshots are kept at all.
        pauses: where it goes how long each held a worker up.
        clock: seconds since any moment.
    """

    def __init__(
        self,
        recovery: bool,
        pauses: BatchHistogram = SNAPSHOT_PAUSE,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._recovery = recovery
        self._pauses = pauses
        self._clock = clock
        self._began: dict[int, float] = {}  # worker thread: when it closed an epoch that is not known to be committed
        self._committed: dict[int, float] = {}  # worker thread: when it last knew that one is, or began to read
        if recovery:
            SNAPSHOT_AGE.set_function(self.age)

    def closed(self) -> None:
        """This worker closes an epoch; also called by each further part of its source."""
        if self._recovery:
            self._began.setdefault(threading.get_ident(), self._clock())

    def activated(self) -> None:
        """This worker goes on with the next epoch, or with this one."""
        worker = threading.get_ident()
        began = self._began.pop(worker, None)
        if began is not None:
            now = self._clock()
            self._committed[worker] = now
            self._pauses.add([now - began])
        elif worker not in self._committed:
            self._committed[worker] = self._clock()

    def ended(self) -> None:
        """This worker reads no more."""
        self._committed.pop(threading.get_ident(), None)

    def age(self) -> float:
        """Seconds since the last snapshot, of the worker whose is the oldest; NaN where there are none."""
        committed = list(self._committed.values())
        return self._clock() - min(committed) if committed and self._recovery else math.nan
