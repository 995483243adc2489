"""The step that marks repeats: alerts keyed by the lane of their user, of whom it is known which rules alerted when.

It is kept in lanes as profiles are: with a state a user, Bytewax kept a row of everybody who ever had an alert, and
looked at them all at the end of each epoch. That took 2 ms for each 1,000, in which nothing is decided.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from msgspec.structs import replace

from dataflow.events.decision import Decision
from dataflow.events.transaction import DAY, Rejection
from dataflow.metrics import EVICTED, SUPPRESSED
from dataflow.process.faults import Guard
from dataflow.profile_steps import FEWEST_SWEPT, SWEEPS
from dataflow.profiles.table import NAME, Names
from dataflow.rules.cooldown import RULES_KEPT, record_alert
from dataflow.rules.ruleset import Cooldowns
from dataflow.state.batches import lane_of
from dataflow.tables.table import Layout, TableChanges, Tables

ALERTED: Final = np.dtype(
    [
        ("rule", "i4", (RULES_KEPT,)),  # number in the dictionary of rules, the one that alerted longest ago first
        ("alerted_at", "f8", (RULES_KEPT,)),  # when it did last, seconds since 1970
        ("ends_at", "f8"),  # the last of their cooldowns
    ]
)
"""Of a user on whom rules with a cooldown alerted."""
LAYOUT: Final = Layout({"recent_alerts": ALERTED, "rules": NAME}, {("recent_alerts", "rule"): "rules"})
VERSION = 3
"""Of what is kept; a new meaning takes a new number, and old recovery data is refused."""
KEPT_AFTER = DAY
"""A user is kept so much longer than their last cooldown, for alerts that come late."""


class AlertPart(NamedTuple):
    """What of a batch of alerts belongs to a lane of users, in the order of the source."""

    lane: int
    alerts: Sequence[Decision | Rejection]


class RecentAlerts:
    """When each rule with a cooldown last made an alert on each user of a lane."""

    def __init__(self, tables: Tables, cap: int):
        """`cap`: users beyond whom those are forgotten whose cooldowns ended first."""
        self._table = tables["recent_alerts"]
        self._rules = Names(table=tables["rules"])
        self._tables = tables
        self._cap = cap
        self._newest = -math.inf  # alert, by event time
        self._looked_at = 0  # rows up to there, by the sweep under way
        self._too_many = EVICTED.labels("suppress_repeats", "too many")

    def __len__(self) -> int:
        return len(self._table)

    def times(self, user: str) -> dict[str, float]:
        """When each rule last alerted on a user, seconds since 1970; the one of longest ago first."""
        number = self._table.row(user)
        if number is None:
            return {}
        row = self._table.rows[number]
        kept = zip(row["rule"].tolist(), row["alerted_at"].tolist(), strict=True)
        return {self._rules.texts[rule] or "": at for rule, at in kept if rule}

    def repeats(self, user: str, cooldowns: Cooldowns, at: float) -> bool:
        """Whether an alert repeats one; it is remembered. See `record_alert`; without a cooldown nothing is kept."""
        if not cooldowns:
            return False
        before = self.times(user)
        times, repeats = record_alert(before, cooldowns, at)
        self._newest = max(self._newest, at)
        if times != before:
            self._put(user, times, max(times[rule] + seconds for rule, seconds in cooldowns if rule in times))
        return repeats

    def _put(self, user: str, times: Any, ends_at: float) -> None:
        (number,) = self._table.find([user])
        row = self._table.rows[number]
        row["rule"] = row["alerted_at"] = 0
        row["rule"][: len(times)] = self._rules.numbers_of(list(times))
        row["alerted_at"][: len(times)] = list(times.values())
        row["ends_at"] = max(row["ends_at"], ends_at)
        self._table.mark(number)

    def changes(self) -> list[TableChanges]:
        """What changed in each table of `LAYOUT`."""
        return [table.take_changes() for table in self._tables.values()]

    def forget(self) -> None:
        """Gives up users whose cooldowns have ended, a part at a time; and those beyond the cap."""
        table = self._table
        first = self._looked_at if self._looked_at < table.used else 0
        count = max(FEWEST_SWEPT, table.used // SWEEPS)
        self._looked_at = first + count
        table.free(table.below("ends_at", self._newest - KEPT_AFTER, first, count))
        beyond = len(table) - self._cap
        if beyond > 0:
            self._too_many.inc(beyond)
            table.free(table.oldest("ends_at", beyond))


class AlertLane:
    """Marks the repeats among the alerts of a lane of users."""

    def __init__(self, guard: Guard, cap: int, tables: Tables):
        self._guard = guard
        self._recent = RecentAlerts(tables, cap)

    def take(self, part: AlertPart, /) -> AlertPart:
        """The alerts, of which each is marked that repeats one; in place of one that fails its dead letter."""
        return AlertPart(part.lane, [self._marked(alert) for alert in part.alerts])

    def _marked(self, alert: Any) -> Decision | Rejection:
        try:
            repeats = self._recent.repeats(alert.transaction.user, alert.cooldowns, alert.transaction.at)
        except Exception as error:
            letter = self._guard.failed(alert, error)
            assert letter is not None  # noqa: S101 - an alert has a message
            return letter
        self._guard.in_a_row = 0
        if not repeats:
            return alert  # type: ignore[no-any-return]
        SUPPRESSED.inc()
        return replace(alert, verdict=replace(alert.verdict, suppressed=True))  # type: ignore[no-any-return]

    def changes(self) -> list[TableChanges]:
        """What changed in each table of `LAYOUT`."""
        return self._recent.changes()

    def tidy(self) -> None:
        """Gives up what is not needed any more."""
        self._recent.forget()


class AlertSteps:
    """The steps from decisions to alerts of which the repeats are marked.

    Args:
        names: of the lanes.
        cap: users whose alerts are remembered in each.
        dead_letter: what becomes of an alert that a step raises on: see `Guard`.
    """

    def __init__(self, names: Sequence[str], cap: int, dead_letter: Callable[[Any, str, str], Rejection | None]):
        self._names = names
        self._cap = cap
        self._guard = Guard("suppress_repeats", dead_letter)

    def key_by_user(self, alerts: list[Decision]) -> list[tuple[str, AlertPart]]:
        """Keys alerts by the lane of their user, in the order of the source: the merchants' lanes have lost it.

        A user's transactions are in one partition. With several workers, two that are decided at the same moment on
        different ones may still change places; then the other of the two is marked as the repeat.
        """
        by_lane = defaultdict[int, list[Decision]](list)
        for alert in sorted(alerts, key=lambda alert: alert.transaction.offset):
            by_lane[lane_of(alert.transaction.user, len(self._names))].append(alert)
        return [(self._names[lane], AlertPart(lane, of_lane)) for lane, of_lane in by_lane.items()]

    def lane(self, tables: Tables) -> AlertLane:
        """What is known of a lane's users, from its tables."""
        return AlertLane(self._guard, self._cap, tables)
