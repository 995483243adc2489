"""Whether this process works: `live` says that its workers go round, `ready` that decisions come out."""

import threading
import time
from collections.abc import Callable
from typing import Final

HUNG_SECONDS: Final = 60.0
"""A worker that has not gone round for so long has hung: what it may take for a batch, a table that grows or a snapshot
is far less, and while it waits for the broker it says so."""

Check = Callable[[], str | None]
"""What keeps the process from being ready, in a few words; None if nothing does."""

_rounds: dict[int, float] = {}  # worker thread that reads: when it last went round


def goes_round() -> None:
    """To be called by a worker's thread each time that it turns to its source; .1 µs."""
    _rounds[threading.get_ident()] = time.monotonic()


def waits_for_broker() -> None:
    """To be called meanwhile where it waits for the broker; a worker that reads nothing is not watched."""
    worker = threading.get_ident()
    if worker in _rounds:
        _rounds[worker] = time.monotonic()


def stops_going_round() -> None:
    """To be called by a worker's thread that has nothing to read any more."""
    _rounds.pop(threading.get_ident(), None)


class Health:
    """What is checked; each check is asked whenever somebody asks for the whole, on another thread than the workers."""

    def __init__(self, hung_seconds: float = HUNG_SECONDS):
        self._hung_seconds = hung_seconds
        self._checks: list[Check] = [self._reading, self.hung]

    def requires(self, check: Check) -> None:
        """To be ready takes this, too."""
        self._checks.append(check)

    def hung(self) -> str | None:
        """Which worker has hung, if one has; one that has not begun to read has not."""
        rounds = list(_rounds.values())
        silent = time.monotonic() - min(rounds) if rounds else 0.0
        return f"a worker has not gone round for {silent:.0f} s" if silent > self._hung_seconds else None

    def not_ready(self) -> list[str]:
        """What keeps the process from being ready; empty if it is."""
        return [found for check in self._checks if (found := check()) is not None]

    def _reading(self) -> str | None:
        return None if _rounds else "it does not read"
