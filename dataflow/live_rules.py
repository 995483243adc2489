"""The rules of a running flow: reloaded when a file changes, at a batch's boundary, all at once or not at all."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import Counter

from dataflow.rule_lists import ListFiles, Stamp, stamp
from dataflow.rules import Rule, RuleSet, load_rules
from dataflow.settings import UserError

_log = logging.getLogger("redflag.rules")

RELOADS = Counter("redflag_rules_reloads_total", "Changed rules files that were taken")
RELOAD_ERRORS = Counter(
    "redflag_rules_reload_errors_total", "Changed rules files that were refused: the old rules stay"
)
HITS = Counter(
    "redflag_rule_hits_total",
    "Transactions on which a rule fired; of allow and deny lists, those on them",
    ["rule", "mode"],
)


Stamps = tuple[Stamp | None, ...]


class LiveRules:
    """Holds the current ruleset; the workers of a process share one, so that all change over together.

    A change counts once it has stood still from one look to the next, so that a file that is being written is not
    taken by halves. It is read and compiled beside the flow, in a thread, which then swaps one reference.
    """

    def __init__(
        self,
        path: Path,
        check_every: float,
        clock: Callable[[], float] = time.monotonic,
        check: Callable[[RuleSet], None] = lambda rules: None,
    ):
        """Loads the rules; looks for changes every `check_every` seconds of `clock`.

        `check` sees each ruleset before it is used; a `UserError` of it refuses the ruleset.

        Raises:
            UserError: the file, or a list that it names, cannot be used.
        """
        self._path = path
        self._check = check
        self._check_every = check_every
        self._clock = clock
        self._files = ListFiles()
        self._count = _Hits()
        self._used: Stamps = ()  # of the files as they were when they were last read, used or not
        self._rules = self._load()
        self._seen: Stamps = self._used  # at the last look
        self._due = clock() + check_every
        self._looking = threading.Lock()

    def current(self) -> RuleSet:
        """The ruleset for the next batch."""
        if self._clock() >= self._due and self._looking.acquire(blocking=False):
            self._due = self._clock() + self._check_every
            if self._changed():
                threading.Thread(target=self._reload, name="redflag-rules", daemon=True).start()
            else:
                self._looking.release()
        return self._rules

    def _changed(self) -> bool:
        before, self._seen = self._seen, self._stamps()
        return self._seen == before and self._seen != self._used

    def _reload(self) -> None:
        try:
            rules = self._load()
            if rules.version != self._rules.version:
                self._rules = rules
                RELOADS.inc()
                _log.info("rules %s from %s", rules.version, self._path)
        except UserError as error:
            RELOAD_ERRORS.inc()
            _log.warning("the changed rules are not used, the old ones stay: %s", error)
        finally:
            self._seen = self._used
            self._looking.release()

    def _load(self) -> RuleSet:
        found = stamp(self._path)  # before reading: a file that changes meanwhile differs from it, and is read again
        try:
            rules = load_rules(self._path, self._files)
            self._check(rules)
        finally:
            self._used = (found, *self._files.asked.values())
        self._files.forget_others()
        rules.count = self._count
        return rules

    def _stamps(self) -> Stamps:
        """Of the rules file, and of the lists that it named when it was last read."""
        return tuple(stamp(file) for file in (self._path, *self._files.asked))


class _Hits:
    """Counts how often each rule fired."""

    def __init__(self) -> None:
        self._counters: dict[tuple[str, str], Counter] = {}

    def __call__(self, rule: Rule, times: int) -> None:
        key = rule.id, rule.effect
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = HITS.labels(*key)
        counter.inc(times)
