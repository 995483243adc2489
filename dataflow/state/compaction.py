"""Compaction: a helper process makes a new image of a lane's old one and the chunks since, from files only.

So the flow does not stand still meanwhile, and what comes of it does not depend on what the flow has in memory. It
goes up to a token that is known to be committed, so that the image is an ancestor of every token that can be resumed.
A helper that dies or hangs is replaced; until then the chain grows longer, and nothing else comes of it.
"""

import contextlib
import json
import logging
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dataflow.errors import UserError
from dataflow.state.crash_points import Point, reached
from dataflow.state.disk import Disk
from dataflow.state.image import ImageId, write_image
from dataflow.state.loading import images_of, load_lane
from dataflow.state.log import ChunkId, Place
from dataflow.tables.table import Layout, undescribe

HANG_SECONDS = 120.0
"""A helper that has not made an image by then is taken to hang: one of 200 MB takes two."""
NICENESS = 10
"""The helper gives way to the flow where both want a core; but not where it has fallen behind (`Compactor.hurry`)."""
HOLD, GO_ON = b"hold\n", b"go on\n"
"""Lines to the helper that are no requests: to leave the disk to the flow, while an epoch ends, or not any more."""
HOLD_SECONDS = 0.6
"""For so long at most, as the flow may have nothing to do when the next epoch begins, and then tells nothing."""

_log = logging.getLogger("redflag.state")


class SharedDisk(Disk):
    """A disk that the flow can have for itself for a while."""

    def __init__(self) -> None:
        self._free = threading.Event()
        self._free.set()
        self._held_until = 0.0  # by the monotonic clock

    def hold(self, held: bool) -> None:
        """From now on each write waits, for `HOLD_SECONDS` in all; or does not any more."""
        if held:
            self._held_until = time.monotonic() + HOLD_SECONDS
            self._free.clear()
        else:
            self._free.set()

    def write(self, fd: int, parts: Sequence[bytes | memoryview]) -> int:
        """See `Disk.write`."""
        if not self._free.is_set():
            self._free.wait(max(0.0, self._held_until - time.monotonic()))
        return super().write(fd, parts)


class Compacted(NamedTuple):
    """The image that a lane stands on now."""

    chunk: ChunkId
    size: int  # bytes


def make_image(
    directory: Path, step: str, lane: int, last: ChunkId, layout: Layout, disk: Disk | None = None
) -> Compacted:
    """Makes the image of a lane as of a committed token, then removes those before it.

    Raises:
        UserError: something of the lane is missing or damaged.
        OSError: the disk is full or broken; then the old image is still there.
    """
    disk = disk or Disk()
    tables = load_lane(directory, step, lane, last, layout).tables
    image = ImageId(step, lane, last.version)
    _, size = write_image(directory, image, last, tables, disk)
    for old in images_of(directory, step, lane):
        if old.version < image.version:
            disk.remove(directory / old.name)
            reached(Point.OLD_IMAGE_REMOVED)
    return Compacted(last, size)


class Compactor:
    """Has a helper process make images, one after the other; lanes ask it from their workers' threads.

    Args:
        directory: of the log and the images.
        layouts: of each step.
        hang_seconds: a helper that takes longer for an image is killed.
        command: what starts a helper; it reads a request a line, and answers with a line.
    """

    def __init__(
        self,
        directory: Path,
        layouts: Mapping[str, Layout],
        hang_seconds: float = HANG_SECONDS,
        command: Callable[[], list[str]] | None = None,
    ):
        self._directory = directory
        self._layouts = layouts
        self._hang_seconds = hang_seconds
        self._command = command or self._own_command
        self._requests: queue.SimpleQueue[tuple[str, int, ChunkId] | None] = queue.SimpleQueue()
        self._answers: dict[tuple[str, int], Compacted | None] = {}
        self._helper: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._closing = False
        self._held = False
        self._niceness = NICENESS

    @property
    def helper(self) -> subprocess.Popen[bytes] | None:
        """The process that makes images, None if none runs."""
        return self._helper

    def hurry(self) -> None:
        """Has the helper, if none runs yet, take its share of the cores like the flow.

        To be called where a flow begins with a log that should have long been put into images. Where a machine had ten
        times as much to do as it has cores, and the flow was killed every 20 s, a helper that gives way came to none:
        after a quarter of an hour the log of 20,000 users had 480 MB.
        """
        self._niceness = 0

    def _own_command(self) -> list[str]:
        return [sys.executable, "-m", "dataflow.state.compaction", str(self._directory), str(self._niceness)]

    def ask(self, step: str, lane: int, chunk: ChunkId) -> None:
        """Has an image of a lane made, as of a committed token."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="redflag-compactor", daemon=True)
            self._thread.start()
        self._requests.put((step, lane, chunk))
        reached(Point.COMPACTION_ASKED)

    def answer(self, step: str, lane: int) -> tuple[bool, Compacted | None]:
        """Whether the lane's image was made or failed since it was asked for; and the image, None if it failed."""
        if (step, lane) not in self._answers:
            return False, None
        return True, self._answers.pop((step, lane))

    def hold(self, held: bool) -> None:
        """Has the helper leave the disk to the flow, or go on.

        Each sync of the flow waits for what the helper has just written: an epoch's end, which has eight or ten syncs
        one after the other, took 186 ms while images were made, and 30 without.
        """
        if held is self._held:
            return
        self._held = held
        helper = self._helper
        if helper is not None and helper.stdin is not None:
            with contextlib.suppress(OSError, ValueError):  # it has died, as whoever waits for its answer will find
                # One that hangs reads nothing, and the pipe gets full: the flow must not wait for it.
                if select.select([], [helper.stdin], [], 0)[1]:
                    helper.stdin.write(HOLD if held else GO_ON)
                    helper.stdin.flush()

    def close(self) -> None:
        """Ends the helper; an image under way is left undone."""
        self._closing = True
        if self._thread is not None:
            self._requests.put(None)
            self._end_helper()
            self._thread.join()
            self._end_helper()

    def _serve(self) -> None:
        while (request := self._requests.get()) is not None and not self._closing:
            step, lane, _ = request
            self._answers[step, lane] = self._have_made(*request)

    def _have_made(self, step: str, lane: int, chunk: ChunkId) -> Compacted | None:
        said = {"step": step, "lane": lane, "chunk": [chunk.version, *chunk.place]}
        why = f"the helper did not answer within {self._hang_seconds:g} s"
        try:
            helper = self._started()
            assert helper.stdin is not None and helper.stdout is not None  # noqa: S101
            helper.stdin.write(json.dumps({**said, "layout": self._layouts[step].described()}).encode() + b"\n")
            helper.stdin.flush()
            if select.select([helper.stdout], [], [], self._hang_seconds)[0]:
                answer = json.loads(helper.stdout.readline() or b'{"error": "the helper has died"}')
                if "size" in answer:
                    return Compacted(chunk, answer["size"])
                why = answer["error"]
        except (OSError, ValueError) as error:
            why = str(error)
        self._end_helper()
        if self._closing:
            return None
        _log.warning(
            "no new image of lane %d of %s (%s): its log is kept instead, and it is tried again", lane, step, why
        )
        return None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._helper is None:
            root = str(Path(__file__).parents[2])
            path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
            self._helper = subprocess.Popen(
                self._command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is the flow's; the helper ends with it
            )
        return self._helper

    def _end_helper(self) -> None:
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.kill()
            helper.wait()
            for pipe in (helper.stdin, helper.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


def read_layout(described: Mapping[str, Any]) -> Layout:
    """A layout from its description."""
    tables = {name: undescribe(fields) for name, fields in described["tables"].items()}
    references = {(of.partition(".")[0], of.partition(".")[2]): to for of, to in described["references"].items()}
    return Layout(tables, references, tuple(described["unkeyed"]), tuple(described["followers"]))


def serve(directory: Path, requests: Any = None, answers: Any = None) -> None:
    """The helper: makes an image for each line that it reads; the flow's end, however it comes, is its own."""
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    disk = SharedDisk()
    requests, answers = requests or sys.stdin.buffer, answers or sys.stdout.buffer

    def work() -> None:
        while True:
            request = json.loads(waiting.get())
            version, *place = request["chunk"]
            chunk, layout = ChunkId(version, Place(*place)), read_layout(request["layout"])
            try:
                made = make_image(directory, request["step"], request["lane"], chunk, layout, disk)
                answer: dict[str, Any] = {"size": made.size}
            except UserError as error:
                answer = {"error": str(error)}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()

    threading.Thread(target=work, daemon=True).start()
    for line in requests:
        if line in (HOLD, GO_ON):
            disk.hold(line == HOLD)
        else:
            waiting.put(line)
    os._exit(0)  # the flow is gone: an image under way is removed at its next start


if __name__ == "__main__":
    os.nice(int(sys.argv[2]))
    serve(Path(sys.argv[1]))
