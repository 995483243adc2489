"""The rules of a running flow: reloaded when a file changes, at a batch's boundary, all at once or not at all."""

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from prometheus_client import Counter

from dataflow.errors import UserError
from dataflow.events.decision import Action
from dataflow.metrics import DECISIONS, RULE_HITS, RULES_RELOAD_ERRORS, RULES_RELOADS
from dataflow.process.file_watch import FileWatch, Stamps, stamp
from dataflow.rules.lists import ListFiles, Pause, no_pause
from dataflow.rules.rules_file import load_rules
from dataflow.rules.ruleset import Rule, RuleSet

_log = logging.getLogger("redflag.rules")

WORK_SECONDS = 0.001
"""A load beside a flow pauses as long after so much work."""

SWITCH_SECONDS = 0.0005
"""How long a load keeps the interpreter while the flow waits for it; Python's 5 ms would delay each step of a batch."""


class LiveRules(FileWatch):
    """Holds the current ruleset; the workers of a process share one, so that all change over together.

    A change is read and compiled on the thread that looks, which pauses between small steps, so that the flow goes on,
    and then swaps one reference.
    """

    def __init__(
        self,
        path: Path,
        check_every: float,
        clock: Callable[[], float] = time.monotonic,
        check: Callable[[RuleSet], None] = lambda rules: None,
    ):
        """Loads the rules. A change is taken once it has stood still for `check_every` seconds of `clock`.

        `check` sees each ruleset before it is used; a `UserError` of it refuses the ruleset.

        Raises:
            UserError: the file, or a list that it names, cannot be used.
        """
        super().__init__("redflag-rules", check_every, clock)
        self._path = path
        self._check = check
        self._files = ListFiles()
        self._count = _Hits()
        self._rules = self._load(no_pause)
        self._seen = self._used

    def current(self) -> RuleSet:
        """The ruleset for the next batch."""
        return self._rules

    def _reload(self) -> None:
        switch_seconds = sys.getswitchinterval()
        sys.setswitchinterval(min(switch_seconds, SWITCH_SECONDS))
        try:
            rules = self._load(_Pauses())
            if rules.version != self._rules.version:
                self._rules = rules
                RULES_RELOADS.inc()
                _log.info("rules %s from %s", rules.version, self._path)
        except UserError as error:
            self._refuse(str(error))
        except Exception as error:  # no memory left, or a fault of ours: the looks must go on
            self._refuse(f"{self._path}: {type(error).__name__}: {error}")
        finally:
            sys.setswitchinterval(switch_seconds)

    def _refuse(self, why: str) -> None:
        RULES_RELOAD_ERRORS.inc()
        _log.warning("the changed rules are not used, the old ones stay: %s", why)

    def _load(self, pause: Pause) -> RuleSet:
        found = stamp(self._path)  # before reading: a file that changes meanwhile differs from it, and is read again
        try:
            rules = load_rules(self._path, self._files, pause)
            self._check(rules)
        finally:
            self._used = (found, *self._files.asked.values())
        self._files.forget_others()
        rules.count = self._count
        rules.count_actions = _count_actions
        return rules

    def _stamps(self) -> Stamps:
        """Of the rules file, and of the lists that it named when it was last read."""
        return tuple(stamp(file) for file in (self._path, *self._files.asked))


class _Pauses:
    """Sleeps a little whenever the load has worked a little."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def __call__(self) -> None:
        if time.perf_counter() - self._since >= WORK_SECONDS:
            time.sleep(WORK_SECONDS)
            self._since = time.perf_counter()


class _Hits:
    """Counts how often each rule fired."""

    def __init__(self) -> None:
        self._counters: dict[tuple[str, str], Counter] = {}

    def __call__(self, rule: Rule, times: int) -> None:
        key = rule.id, rule.effect
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = RULE_HITS.labels(*key)
        counter.inc(times)


_DECISIONS = {
    action: DECISIONS.labels("genuine" if action == "approve" else "fraudulent", action) for action in get_args(Action)
}


def _count_actions(action: Action, times: int) -> None:
    _DECISIONS[action].inc(times)
