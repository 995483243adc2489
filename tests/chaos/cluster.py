"""The flow's processes, each restarted by itself when it ends; and a small file system for their recovery data."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from dataflow.connectors import kafka_source
from tests.chaos.input import INPUT
from tests.support.kafka_server import free_ports

ROOT = Path(__file__).parent.parent.parent
STATE_MB = 512  # of the tmpfs for the recovery data


@dataclass
class Running:
    """A process of the flow."""

    process: subprocess.Popen[bytes]
    log: Path
    started: float

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def ready(self) -> bool:
        return f"{kafka_source.READY} {INPUT}[" in self.said()

    def reasons(self) -> list[str]:
        """The errors among what it said, and whatever is no line of its log, but for librdkafka's and Bytewax's."""
        found = []
        for line in self.said().splitlines():
            if not line.strip() or line.startswith(("%", "worker ")):
                continue
            try:
                event = json.loads(line)
            except ValueError:
                found.append(line)
            else:
                if event["level"] in ("error", "critical"):
                    found.append(event["message"])
        return found


class Cluster:
    """The flow's processes, each restarted by itself when it ends, as a service manager would."""

    def __init__(self, command: list[str], environ: Mapping[str, str], logs: Path, rng: Random):
        self._command = command
        self._environ = dict(environ)
        self._logs = logs
        self._rng = rng
        self._ports = free_ports(2)
        self._lock = threading.RLock()
        self._running: dict[int, Running] = {}
        self._held = True
        self._size = 2
        self._starts = 0
        self._excused_until = 0.0
        self.ended: list[tuple[int, Running]] = []  # exit status and process, of those that ended by themselves
        self.unexpected: list[str] = []
        self.extra: dict[str, str] = {}  # of the environment, for the processes that start from now on
        self._closing = False
        self._watch = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._watch.start()

    def _supervise(self) -> None:
        while not self._closing:
            time.sleep(0.05)
            with self._lock:
                if self._held:
                    continue
                for slot in range(self._size):
                    known = self._running.get(slot)
                    if known is not None:
                        code = known.process.poll()
                        if code is None:
                            continue
                        self._note(slot, code, known)
                    self._start(slot)

    def _note(self, slot: int, code: int, known: Running) -> None:
        self.ended.append((code, known))
        if time.monotonic() > self._excused_until:
            self.unexpected.append(f"process {slot} ended with {code}: {' / '.join(known.reasons()[-3:])[:600]}")

    def _start(self, slot: int) -> None:
        self._starts += 1
        log = self._logs / f"flow-{self._starts:04}-{slot}.log"
        addresses = ";".join(f"127.0.0.1:{port}" for port in self._ports)
        options = ["-i", str(slot), "-a", addresses] if self._size > 1 else []
        # Now and then records linger in the producer, so that a kill finds more of them unsent.
        linger = {"KAFKA_CONFIG_LINGER_MS": str(self._rng.choice((1, 1, 300)))}
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", *self._command, *options],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**linger, "LOG_FORMAT": "json", **self._environ, **self.extra},
                cwd=ROOT,
                start_new_session=True,
            )
        self._running[slot] = Running(process, log, time.monotonic())

    @property
    def size(self) -> int:
        return self._size

    def excuse(self, seconds: float) -> None:
        """Processes may end by themselves for so long: their peer was killed, the disk is full."""
        self._excused_until = max(self._excused_until, time.monotonic() + seconds)

    def expect_no_stops(self) -> None:
        """From now on, processes that end by themselves are counted."""
        self._excused_until = time.monotonic()

    def last_said(self, lines: int = 8) -> str:
        """The last lines of what runs, and of what ended last: enough to see why nothing comes."""
        with self._lock:
            shown = [("runs", each) for each in self._running.values()]
            shown += [(f"ended with {code}", each) for code, each in self.ended[-self._size :]]
        return "\n".join(
            line
            for how, each in shown
            for line in (f"{each.log.name}, which {how}:", *(each.said().splitlines()[-lines:] or ["(nothing)"]))
        )

    def ready(self) -> bool:
        with self._lock:
            return len(self._running) == self._size and all(
                running.process.poll() is None and running.ready() for running in self._running.values()
            )

    def kill(self, slots: Iterable[int]) -> tuple[int, int]:
        """SIGKILLs processes; returns how many these were, and how many of them had not started fully."""
        with self._lock:
            killed = starting = 0
            self.excuse(10)
            for slot in slots:
                running = self._running.get(slot)
                if running is not None and running.process.poll() is None:
                    starting += not running.ready()
                    running.process.kill()
                    running.process.wait()
                    killed += 1
                    del self._running[slot]
            return killed, starting

    def hold(self) -> None:
        """Starts nothing any more."""
        with self._lock:
            self._held = True

    def go_on(self, size: int | None = None) -> None:
        """Starts, and restarts, what is missing; `size` processes, if given: then none may run."""
        with self._lock:
            if size is not None:
                assert not self._running, "rescaling needs the flow stopped"
                self._size = size
            self._held = False

    def kill_all(self) -> tuple[int, int]:
        """SIGKILLs all and starts nothing any more."""
        self.hold()
        return self.kill(range(self._size))

    def stop(self) -> tuple[list[int], float]:
        """SIGTERMs all; returns their exit statuses and how long the slowest took. Starts nothing any more."""
        self.hold()
        with self._lock:
            running = list(self._running.values())
            for each in running:
                each.process.terminate()
            began = time.monotonic()
            codes = []
            for each in running:
                try:
                    codes.append(each.process.wait(30))
                except subprocess.TimeoutExpired:
                    each.process.kill()
                    codes.append(each.process.wait())
            self._running.clear()
            return codes, time.monotonic() - began

    def close(self) -> None:
        self._closing = True
        self.kill_all()
        self._watch.join()


def mount(directory: Path) -> bool:
    """Mounts a tmpfs; False where we are not allowed to."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={STATE_MB}m", "redflag-chaos", str(directory)]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def remount(directory: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(directory)], check=True, capture_output=True)


def unmount(directory: Path, mounted: bool) -> None:
    if mounted:
        subprocess.run(["umount", "-l", str(directory)], check=False, capture_output=True)
