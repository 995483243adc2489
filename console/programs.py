"""Programs that an analyst starts from a page: each in a process of its own, one at a time, after all else in turn.

So the pages stay as quick as they were, and the console as small. A program that is under way ends with the console.
"""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from dataflow.errors import UserError

NICE: Final = 10
"""How much a program stands back where others want the processor."""
MOST_SECONDS: Final = 3600.0
RESULT: Final = "result.json"

Arguments = Callable[[Path], Sequence[str]]
"""Makes a program's arguments, given a folder for its files that is there until it ends."""


class Run(msgspec.Struct):
    """A program that runs, or has run."""

    who: str
    title: str
    began: float  # s since 1970
    ended: float | None = None
    result: Any = None  # what the program wrote with --json
    error: str = ""  # why there is none, in one line


class Programs:
    """Starts programs, and keeps what the last of each kind has found, for whoever opens the page."""

    def __init__(self) -> None:
        self._last: dict[str, Run] = {}
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None

    def last(self, kind: str) -> Run | None:
        """The newest run of a kind."""
        return self._last.get(kind)

    @property
    def under_way(self) -> Run | None:
        """What runs now."""
        return next((run for run in self._last.values() if run.ended is None), None)

    def start(self, kind: str, who: str, title: str, module: str, arguments: Arguments) -> Run:
        """Starts a module of ours, to be called on the pages' thread.

        Raises:
            UserError: one is under way.
        """
        if (other := self.under_way) is not None:
            msg = f"{other.title} of {other.who} is under way: wait for it, or stop it"
            raise UserError(msg)
        run = self._last[kind] = Run(who, title, time.time())
        self._task = asyncio.get_running_loop().create_task(self._run(run, module, arguments))
        return run

    def stop(self) -> None:
        """Ends what is under way, and the processes that it has started."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself meanwhile
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _run(self, run: Run, module: str, arguments: Arguments) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="redflag-") as folder:
                run.result = await self._result(module, arguments, Path(folder))
        except UserError as error:
            run.error = str(error)
        except OSError as error:
            run.error = f"{run.title} could not be started: {error.strerror}"
        finally:
            run.ended = time.time()
            self._process = None

    async def _result(self, module: str, arguments: Arguments, folder: Path) -> Any:
        given = await asyncio.to_thread(arguments, folder)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, *given, "--json", str(folder / RESULT),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(folder), "METRICS_ADDRESS": "off"}, start_new_session=True,
        )  # fmt: skip
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.setpriority(os.PRIO_PROCESS, self._process.pid, NICE)
        try:
            _, told = await asyncio.wait_for(self._process.communicate(), MOST_SECONDS)
        except TimeoutError:
            self.stop()
            msg = f"it was stopped, as it had not ended after {MOST_SECONDS / 60:g} minutes: take fewer days"
            raise UserError(msg) from None
        if self._process.returncode == 0:
            return msgspec.json.decode((folder / RESULT).read_bytes())
        if self._process.returncode == -signal.SIGKILL:
            msg = "it was stopped"
            raise UserError(msg)
        lines = [line for line in told.decode(errors="replace").splitlines() if line.startswith("redflag: ")]
        msg = lines[-1].removeprefix("redflag: ") if lines else f"it ended with status {self._process.returncode}"
        raise UserError(msg)
