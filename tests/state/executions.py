"""Flows in processes of their own, one execution after the other, of which a process may kill itself."""

import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from dataflow.state import crash_points
from dataflow.state.compaction import Compactor
from dataflow.state.crash_points import Point
from dataflow.state.log import ChunkId
from dataflow.state.store import Store

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.state.preloaded"])


class Crash(NamedTuple):
    """Where a process is killed: the n-th time that it comes to a point; in the helper at its own points."""

    point: Point | None
    times: int = 1
    helper_only: str = ""  # "helper": it alone dies, and the flow lives on; "hang": it hangs
    most: int = 10**9  # points of any kind, after which the flow is killed all the same
    waits: bool = False  # for each image that it asks for, so that those of the helper are reached on a slow machine

    @property
    def in_helper(self) -> bool:
        """Whether it is the helper that comes to the point."""
        return bool(self.helper_only) or self.point in HELPERS_POINTS

    @property
    def slowly(self) -> bool:
        """Whether the source must rest: a helper takes a while to start, and the flow must not have ended by then."""
        return not self.waits and (self.in_helper or self.point in AFTER_AN_IMAGE)


NO_CRASH = Crash(None)
HELPERS_POINTS = {
    Point.IMAGE_WRITTEN,
    Point.IMAGE_SYNCED,
    Point.IMAGE_RENAMED,
    Point.OLD_IMAGE_REMOVED,
}
AFTER_AN_IMAGE = {Point.COMPACTION_KNOWN, Point.LOG_FILE_REMOVED}


class WaitingCompactor(Compactor):
    """Has an image made before the flow goes on."""

    def ask(self, step: str, lane: int, chunk: ChunkId) -> None:
        """Returns when the image is made, or is known to have failed."""
        super().ask(step, lane, chunk)
        while (step, lane) not in self._answers:
            time.sleep(0.001)


def arm(crash: Crash, passed: Callable[[Point], None] = lambda _point: None) -> None:
    """Has this process kill itself at the point, if it is one of the flow; `passed` is told of all points."""
    left, most = crash.times, crash.most

    def hook(point: Point) -> None:
        nonlocal left, most
        passed(point)
        most -= 1
        if point is crash.point and not crash.in_helper:
            left -= 1
        if left == 0 or most == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    crash_points.hook = hook


def arm_helper(crash: Crash, store: Store) -> None:
    """Gives the store a helper that kills itself, and mostly the flow with it, if the point is one of the helper's; and
    one that is waited for, if the crash says so."""
    assert store.directory is not None
    kind = WaitingCompactor if crash.waits else Compactor
    if crash.in_helper:
        whole = crash.helper_only or "all"
        command = [sys.executable, "-m", "tests.state.killed_helper", str(store.directory), str(crash.point), whole]
        store.compactor = kind(store.directory, store.layouts, 1.0, lambda: [*command, str(crash.times)])
    elif crash.waits:
        store.compactor = kind(store.directory, store.layouts)


def free_addresses(count: int) -> list[str]:
    """So many addresses on which nobody listens."""
    from tests.support.kafka_server import free_ports  # here, as the processes of an execution need no Kafka client

    return [f"127.0.0.1:{port}" for port in free_ports(count)]


def execute(
    run: Callable[..., None],
    job: Any,
    execution: int,
    crash: Crash = NO_CRASH,
    processes: int = 1,
    workers: int = 1,
    seconds: float = 120.0,
) -> list[int | None]:
    """Runs an execution; when one of its processes has ended otherwise than well, the others are killed.

    `run(job, execution, process, addresses, workers, crash)` is one process of it.

    Raises:
        TimeoutError: none has ended in so many seconds, or some have ended well and others have not.
    """
    addresses = free_addresses(processes) if processes > 1 else []
    running: list[BaseProcess] = [
        CONTEXT.Process(target=run, args=(job, execution, number, addresses, workers, crash))
        for number in range(processes)
    ]
    for each in running:
        each.start()
    until = time.monotonic() + seconds
    while any(each.is_alive() for each in running) and time.monotonic() < until:
        if any(each.exitcode for each in running):
            break
        time.sleep(0.01)
    hung = all(not each.exitcode for each in running) and any(each.is_alive() for each in running)
    for each in running:
        if each.is_alive():
            each.kill()
        each.join()
    if hung:
        msg = f"execution {execution} did not end within {seconds:g} s"
        raise TimeoutError(msg)
    return [each.exitcode for each in running]


def logs(folder: Path) -> str:
    """The last that each process said."""
    return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(folder.glob("log.*")))
