"""Programs that run beside this one: started in order, watched through their logs, stopped in the reverse order."""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from dataflow.errors import UserError


class ChildProcesses:
    """The child processes, started in order and stopped in the reverse; each logs to a file of its own."""

    def __init__(self, environ: Mapping[str, str], logs: Path):
        self._environ = dict(environ)
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str, **environ: str) -> None:
        """Starts a Python module; in a session of its own, so that Ctrl-C reaches only us and we end it in order."""
        with (self._logs / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environ | environ,
                start_new_session=True,
            )

    def ended(self, name: str) -> bool:
        """Whether a child has ended by itself.

        Raises:
            UserError: it failed; with the last line it logged.
        """
        code = self._running[name].poll()
        if code:
            msg = f"the {name} ended with status {code}: {self.last_line(name)}"
            raise UserError(msg)
        return code is not None

    def last_line(self, name: str) -> str:
        """What the last line of a child's log says."""
        return next(reversed(self._messages(name)), "it logged nothing")

    def find(self, name: str, text: str) -> str:
        """What the first line of a child's log says that has `text` in it; "" if none does."""
        return next((message for message in self._messages(name) if text in message), "")

    def wait_for(self, name: str, text: str, seconds: float = 60) -> str:
        """Waits for a line of a child's log that has `text` in it, and returns what it says."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.ended(name):
            if found := self.find(name, text):
                return found
            time.sleep(0.02)
        msg = f"the {name} did not start within {seconds:g} s: {self.last_line(name)}"
        raise UserError(msg)

    def _messages(self, name: str) -> list[str]:
        """What each whole line of a child's log says, whether it is text or JSON (LOG_FORMAT)."""
        text = (self._logs / f"{name}.log").read_text(errors="replace")
        lines = [line.strip() for line in text.splitlines(keepends=True) if line.endswith("\n") and line.strip()]
        return [msgspec.json.decode(line)["message"] if line.startswith('{"time"') else line for line in lines]

    def stop(self, name: str) -> None:
        """Asks a child to end, and kills it if it has not within 15 s."""
        child = self._running.get(name)
        if child is None:
            return
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        del self._running[name]

    def stop_all(self) -> None:
        """Stops what runs, the last started first."""
        for name in reversed(list(self._running)):
            self.stop(name)
