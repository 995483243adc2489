"""The rules of a running flow: reloaded when a file changes, at a batch's boundary, all at once or not at all."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import Counter

from dataflow.rules import RuleSet, load_rules
from dataflow.settings import UserError

RELOADS = Counter("redflag_rules_reloads_total", "Changed rules files that were taken")
RELOAD_ERRORS = Counter(
    "redflag_rules_reload_errors_total", "Changed rules files that were refused: the old rules stay"
)


class LiveRules:
    """Holds the current ruleset; the workers of a process share one, so that all change over together."""

    def __init__(self, path: Path, check_every: float, clock: Callable[[], float] = time.monotonic):
        """Loads the rules.

        Raises:
            UserError: the file, or a list that it names, cannot be used.
        """
        self._path = path
        self._check_every = check_every
        self._clock = clock
        self._seen = self._stamp(())  # of the file alone: the first check loads once more, and knows the lists' files
        self._rules = load_rules(path)
        self._due = clock() + check_every

    def current(self) -> RuleSet:
        """The ruleset for the next batch; looks for a changed file at most every `check_every` seconds."""
        if self._clock() >= self._due:
            self._due = self._clock() + self._check_every
            self._reload()
        return self._rules

    def _reload(self) -> None:
        # Taken before reading: a file that changes while it is read is read again next time.
        stamp = self._stamp(self._rules.files)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            rules = load_rules(self._path)
        except UserError as error:
            RELOAD_ERRORS.inc()
            print(f"redflag: the changed rules are not used, the old ones stay: {error}", file=sys.stderr, flush=True)
            return
        changed = rules.version != self._rules.version
        self._rules = rules
        if changed:
            RELOADS.inc()
            print(f"redflag: rules {rules.version} from {self._path}", file=sys.stderr, flush=True)

    def _stamp(self, files: tuple[Path, ...]) -> tuple[tuple[int, int, int] | None, ...]:
        stamps: list[tuple[int, int, int] | None] = []
        for file in (self._path, *files):
            try:
                found = file.stat()
            except OSError:
                stamps.append(None)
            else:
                stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
        return tuple(stamps)
