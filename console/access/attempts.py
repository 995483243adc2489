"""How often somebody may try to log in."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

FREE: Final = 5
"""Failures in a row until one has to wait; then twice as long each time."""
LONGEST: Final = 900.0
"""Seconds of waiting at most; after as long without a failure all is forgotten."""
MOST: Final = 10_000
"""Addresses and names that are remembered."""


class Attempts:
    """Failed log-ins, by address and by name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._failed: OrderedDict[str, tuple[int, float]] = OrderedDict()  # how often, and when last
        self._lock = threading.Lock()

    def wait(self, *keys: str) -> float:
        """Seconds until one of these may try again; 0 if it may now."""
        with self._lock:
            return max((self._wait(key) for key in keys), default=0.0)

    def _wait(self, key: str) -> float:
        failures, last = self._failed.get(key, (0, 0.0))
        if failures < FREE:
            return 0.0
        return max(last + min(2.0 ** (failures - FREE + 1), LONGEST) - self._clock(), 0.0)

    def failed(self, *keys: str) -> None:
        """One more failure."""
        with self._lock:
            now = self._clock()
            for key in keys:
                failures, last = self._failed.pop(key, (0, now))
                self._failed[key] = ((failures if now - last < LONGEST else 0) + 1, now)
                if len(self._failed) > MOST:
                    self._failed.popitem(last=False)

    def succeeded(self, *keys: str) -> None:
        """All earlier failures are forgotten."""
        with self._lock:
            for key in keys:
                self._failed.pop(key, None)
