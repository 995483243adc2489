"""Which cases new alerts belong to: found for many alerts at once, made or changed accordingly."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from console.cases import PIVOTS, Pivot, Rules
from console.database import Connection, marks
from dataflow.events.decision import Action

_STRICTNESS: Final[dict[Action, int]] = {"approve": 0, "review": 1, "block": 2}
_CHANGED: Final = ("last", "last_alert", "top_alert", "score", "action", "amount", "alerts", "suppressed")
"""Columns that an alert which joins a case may change."""


class Case(msgspec.Struct):
    """A case as it is with the alerts that were assigned so far; the columns of its table."""

    user: str
    state: str
    live: bool
    opened: float
    last: float
    last_alert: int
    top_alert: int
    score: float
    action: Action
    amount: float
    alerts: int = 0
    suppressed: int = 0
    closed: float | None = None
    outcome: str | None = None
    number: int = 0  # 0 until it is written

    def join(self, alert: Mapping[str, Any], suppressed: bool) -> None:
        """Takes an alert in."""
        self.last, self.last_alert = alert["arrived"], alert["number"]
        if alert["score"] > self.score:
            self.score, self.top_alert = alert["score"], alert["number"]
        if _STRICTNESS[alert["action"]] > _STRICTNESS[self.action]:
            self.action = alert["action"]
        self.amount += alert["amount"]
        self.alerts += 1
        self.suppressed += suppressed


_MADE: Final = tuple(name for name in Case.__struct_fields__ if name not in ("closed", "outcome"))


class CaseAssignment:
    """The cases that some new alerts belong to, in one transaction of the database."""

    def __init__(self, connection: Connection, alerts: Sequence[Mapping[str, Any]], now: float, rules: Rules):
        """`alerts`: their columns, in their order; asks for all that decides which cases they belong to."""
        self._connection = connection
        self._now = now
        self._rules = rules
        self._last = _last_cases(connection, {alert["user"] for alert in alerts})
        self._suppressed = suppressed_names(connection, alerts, now)
        self._made: list[Case] = []
        self._changed: dict[int, Case] = {}

    def assign(self, alert: Mapping[str, Any], suppressed: bool) -> tuple[Case, bool]:
        """The case that a new alert belongs to, and whether the alert is suppressed; `suppressed`: the flow says so.

        An alert joins its user's live case. Without one it opens one, unless it is suppressed: then it joins the user's
        last case, and that stays closed; if there is none, it makes one that is not shown in the queue.
        """
        last = self._last.get(alert["user"])
        suppressed = (
            suppressed or any((kind, alert[kind]) in self._suppressed for kind in PIVOTS) or self._is_quiet(last)
        )
        if last is None or not (last.live or suppressed):
            state = "suppressed" if suppressed else "open"
            last = Case(
                alert["user"], state, not suppressed, self._now, self._now, alert["number"], alert["number"],
                alert["score"], alert["action"], 0.0,
            )  # fmt: skip
            self._last[alert["user"]] = last
            self._made.append(last)
        elif last.number:
            self._changed[last.number] = last
        last.join(alert, suppressed)
        return last, suppressed

    def _is_quiet(self, last: Case | None) -> bool:
        """Whether its user's last case was found genuine a short time ago."""
        return (
            last is not None
            and last.state == "closed"
            and last.outcome == "genuine"
            and last.closed is not None
            and self._now < last.closed + self._rules.quiet_seconds
        )

    def write(self) -> None:
        """Writes the cases; those that are new have their numbers then."""
        numbers = self._connection.dialect.next_case_numbers(self._connection, len(self._made))
        for case, number in zip(self._made, numbers, strict=True):
            case.number = number
        self._connection.insert("cases", _MADE, [[getattr(case, name) for name in _MADE] for case in self._made])
        self._connection.executemany(
            f"UPDATE cases SET {', '.join(f'{name} = ?' for name in _CHANGED)} WHERE number = ?",
            [[getattr(case, name) for name in (*_CHANGED, "number")] for case in self._changed.values()],
        )


def _last_cases(connection: Connection, users: Iterable[str]) -> dict[str, Case]:
    """Users' newest cases."""
    names = list(users)
    rows = connection.execute(
        # CROSS JOIN: SQLite goes from the left to the right.
        f"WITH named (name) AS (VALUES {marks(names, '(?)')}) "
        f"SELECT {', '.join(f'c.{name}' for name in Case.__struct_fields__)} FROM named CROSS JOIN cases c "
        "WHERE c.number = (SELECT max(number) FROM cases WHERE user = named.name)",
        names,
    )
    return {row["user"]: msgspec.convert(dict(zip(row.keys(), row, strict=True)), Case, strict=False) for row in rows}


def suppressed_names(connection: Connection, alerts: Iterable[Mapping[str, Any]], now: float) -> set[tuple[str, str]]:
    """What analysts have suppressed for now of these alerts' users, devices, merchants and addresses, with its kind."""
    named: dict[Pivot, set[str]] = {kind: {alert[kind] for alert in alerts} for kind in PIVOTS}
    any_of = " OR ".join(f"kind = '{kind}' AND name IN ({marks(names)})" for kind, names in named.items())
    rows = connection.execute(
        f"SELECT kind, name FROM suppressions WHERE until > ? AND ({any_of})",
        [now, *(name for names in named.values() for name in names)],
    )
    return {(row["kind"], row["name"]) for row in rows}
