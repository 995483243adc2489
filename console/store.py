"""All that the console keeps, and all that can be done with it; every change is one transaction of the database."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from console import arrivals, audit, cases, figures, labels, queue_view
from console.cases import Outcome, Pivot, Rules
from console.database import Connection, Row
from console.open_database import open_database
from console.records import Alert
from console.schema import rule_ids
from console.view import View
from dataflow.events.feedback import Feedback
from dataflow.events.transaction import DAY

FORGOTTEN_AT_ONCE: Final = 200
"""Alerts that one transaction deletes: others wait no longer than that takes, of a million alerts 50 ms of CPU."""
SIBLINGS: Final = 20
"""Other alerts with the same device, merchant or address that are shown, of each."""

Place = tuple[str, int]
"""A topic and its partition."""


class Batch(msgspec.Struct, frozen=True):
    """Records that were read, and where to go on; stored together."""

    alerts: Sequence[Alert] = ()
    feedback: Sequence[Feedback] = ()
    confirmed: Sequence[int] = ()  # messages of the outbox among them
    next_offsets: Mapping[Place, tuple[str, int]] = {}  # identity of the topic, and the next offset
    transactions: int = 0  # how many were decided meanwhile
    fired: Sequence[tuple[Sequence[str], Sequence[str]]] = ()  # rules, and rules in shadow, that fired on some of them


class Limits(msgspec.Struct, frozen=True):
    """How much is kept."""

    alerts: int = 1_000_000
    days: float = 90.0


class Store:
    """The console's database in the words of its users."""

    def __init__(
        self,
        where: Path | str,
        limits: Limits | None = None,
        rules: Rules | None = None,
        clock: Callable[[], float] = time.time,
    ):
        """Opens the database, or makes it; `where`: as `CONSOLE_DATABASE` names it.

        Raises:
            UserError: see `open_database`.
        """
        self.database = open_database(where)
        self.limits = limits or Limits()
        self.rules = rules or Rules()
        self.clock = clock
        self._listeners: set[Callable[[], None]] = set()
        self._listening = threading.Lock()
        self.changes = 0
        """How often something changed; of two equal numbers the views in between are equal."""

    def close(self) -> None:
        """Ends it; what was asked for is done before."""
        self.database.close()

    # ------------------------------------------------------------------------------------------------------ listeners

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Has a function called after each change, on whatever thread made it; returns what ends that."""
        with self._listening:
            self._listeners.add(listener)

        def end() -> None:
            with self._listening:
                self._listeners.discard(listener)

        return end

    def _changed(self) -> None:
        with self._listening:
            self.changes += 1
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def _act(self, change: Callable[[Connection], Any]) -> Any:
        result = self.database.write(change)
        self._changed()
        return result

    # ------------------------------------------------------------------------------------------------ what comes in

    def ingest(self, batch: Batch) -> int:
        """Stores records with the offsets that they come from; returns how many alerts were new."""

        def change(connection: Connection) -> int:
            now = self.clock()
            counts = figures.Counts()
            new = arrivals.add(connection, batch.alerts, now, counts, self.rules)
            for feedback in batch.feedback:
                labels.hear(connection, feedback)
            if batch.feedback:
                labels.forget_early(connection)
            labels.confirm(connection, batch.confirmed, now)
            if batch.transactions:
                counts.add(now, "transactions", "", batch.transactions)
            for rules, shadow_rules in batch.fired:
                counts.add_fired(now, rules, shadow_rules)
            counts.write(connection)
            connection.executemany(
                "INSERT INTO offsets VALUES (?, ?, ?, ?) ON CONFLICT (topic, partition) "
                "DO UPDATE SET identity = excluded.identity, next = excluded.next",
                [(*place, identity, after) for place, (identity, after) in batch.next_offsets.items()],
            )
            return new

        new: int = self.database.write(change, lasting=False)
        if batch.alerts or batch.feedback or batch.confirmed or batch.transactions:
            self._changed()
        return new

    def offsets(self) -> dict[Place, tuple[str, int]]:
        """Where reading goes on: identity of the topic, and the next offset, by topic and partition."""
        rows = self.database.read().execute("SELECT * FROM offsets")
        return {(row["topic"], row["partition"]): (row["identity"], row["next"]) for row in rows}

    def forget(self) -> int:
        """Deletes a piece of what is beyond the limits; returns how many alerts that were.

        To be called until that is 0.
        """

        def change(connection: Connection) -> int:
            now = self.clock()
            # Each by itself: for both at once SQLite goes through all alerts.
            newest, oldest = connection.execute(
                "SELECT coalesce((SELECT max(number) FROM alerts), 0), coalesce((SELECT min(number) FROM alerts), 0)"
            ).fetchone()
            # Numbers have gaps only at their beginning: the oldest are deleted first.
            beyond = max(newest - self.limits.alerts, 0)
            doomed = connection.execute(
                "SELECT number, case_number, rules FROM alerts WHERE number < ? AND (number <= ? OR arrived < ?) "
                "ORDER BY number",
                [oldest + FORGOTTEN_AT_ONCE, beyond, now - self.limits.days * DAY],
            ).fetchall()
            connection.executemany(
                "DELETE FROM alert_rules WHERE rule = ? AND case_number = ? AND number = ?",
                [(rule, row["case_number"], row["number"]) for row in doomed for rule in rule_ids(row["rules"])],
            )
            connection.executemany("DELETE FROM alerts WHERE number = ?", [(row["number"],) for row in doomed])
            # A case goes with its last alert; its highest alert may go before, then its newest stands for it.
            touched = [(case,) for case in {row["case_number"] for row in doomed}]
            connection.executemany(
                "DELETE FROM cases WHERE number = ? AND NOT EXISTS "
                "(SELECT 1 FROM alerts WHERE case_number = cases.number)",
                touched,
            )
            connection.executemany(
                "UPDATE cases SET top_alert = last_alert WHERE number = ? AND NOT EXISTS "
                "(SELECT 1 FROM alerts WHERE number = top_alert)",
                touched,
            )
            figures.forget_old(connection, now)
            connection.execute("DELETE FROM suppressions WHERE until < ?", [now])
            connection.execute(
                "DELETE FROM outbox WHERE confirmed < ? AND number < (SELECT max(number) FROM outbox)",
                [now - self.limits.days * DAY],
            )
            return len(doomed)

        forgotten: int = self.database.write(change)
        if forgotten:
            self._changed()
        return forgotten

    # --------------------------------------------------------------------------------------- what analysts do

    def take(self, case: int, analyst: str) -> None:
        """See `cases.take`."""
        self._act(lambda connection: cases.take(connection, case, analyst, self.clock()))

    def take_over(self, case: int, analyst: str, before: str) -> None:
        """See `cases.take_over`."""
        self._act(lambda connection: cases.take_over(connection, case, analyst, before, self.clock()))

    def lift(self, kind: Pivot, name: str, analyst: str) -> None:
        """See `cases.lift`."""
        self._act(lambda connection: cases.lift(connection, kind, name, analyst, self.clock()))

    def suppressions(self) -> list[Row]:
        """See `cases.suppressions`."""
        return cases.suppressions(self.database.read(), self.clock())

    def hand_over(self, case: int, analyst: str, to: str) -> None:
        """See `cases.hand_over`."""
        self._act(lambda connection: cases.hand_over(connection, case, analyst, to, self.clock()))

    def close_case(self, case: int, analyst: str) -> Outcome:
        """See `cases.close`."""
        outcome: Outcome = self._act(lambda connection: cases.close(connection, case, analyst, self.clock()))
        return outcome

    def label(self, alerts: Sequence[int], found: Outcome, analyst: str, note: str = "") -> int:
        """See `labels.label`."""
        labelled: int = self._act(
            lambda connection: labels.label(connection, alerts, found, analyst, note, self.clock())
        )
        return labelled

    def label_case(self, case: int, found: Outcome, analyst: str, note: str = "") -> int:
        """Labels the alerts of a case that have no label yet; all of them, if none is without."""

        def change(connection: Connection) -> int:
            rows = connection.execute("SELECT number, label FROM alerts WHERE case_number = ?", [case]).fetchall()
            open_ones = [row["number"] for row in rows if row["label"] is None]
            chosen = open_ones or [row["number"] for row in rows]
            return labels.label(connection, chosen, found, analyst, note, self.clock())

        labelled: int = self._act(change)
        return labelled

    def suppress(self, kind: Pivot, name: str, seconds: float, analyst: str, case: int) -> None:
        """See `cases.suppress`."""

        def change(connection: Connection) -> None:
            now = self.clock()
            cases.suppress(connection, kind, name, now + seconds, analyst, now, case)

        self._act(change)

    def note_cards_seen(self, case: int, alert: int, analyst: str) -> None:
        """Puts into the audit trail that somebody was shown whole card numbers."""
        self._act(
            lambda connection: audit.note_down(connection, self.clock(), analyst, "saw card numbers", case, alert)
        )

    # ------------------------------------------------------------------------------------------- what is looked at

    def page(self, view: View) -> queue_view.Page:
        """See `queue_view.page`."""
        return queue_view.page(self.database.read(), view)

    def case(self, number: int) -> Row | None:
        """A case; None where it is not kept (any more)."""
        row: Row | None = self.database.read().execute("SELECT * FROM cases WHERE number = ?", [number]).fetchone()
        return row

    def alerts_of(self, case: int, most: int = 200) -> list[Row]:
        """The newest alerts of a case, the newest first."""
        return (
            self.database.read()
            .execute("SELECT * FROM alerts WHERE case_number = ? ORDER BY number DESC LIMIT ?", [case, most])
            .fetchall()
        )

    def alert(self, number: int) -> Row | None:
        """An alert; None where it is not kept (any more)."""
        row: Row | None = self.database.read().execute("SELECT * FROM alerts WHERE number = ?", [number]).fetchone()
        return row

    def siblings(self, alert: Row) -> dict[Pivot, list[Row]]:
        """The newest other alerts, of other users, that share an alert's device, merchant or address."""
        found: dict[Pivot, list[Row]] = {}
        for pivot in ("device", "merchant", "ip"):
            if not alert[pivot]:
                continue
            rows = self.database.read().execute(
                f"SELECT number, case_number, user, merchant, device, ip, amount, score, label, at "
                f"FROM alerts WHERE {pivot} = ? AND {pivot} <> '' AND user <> ? ORDER BY number DESC LIMIT {SIBLINGS}",
                [alert[pivot], alert["user"]],
            )
            if same := rows.fetchall():
                found[pivot] = same
        return found

    def count_live_cases(self) -> int:
        """How many cases are open or taken."""
        (count,) = self.database.read().execute("SELECT count(*) FROM cases WHERE live").fetchone()
        return int(count)

    def check_that_it_writes(self, seconds: float) -> None:
        """Writes when this was, to see that the database takes it.

        Raises:
            DatabaseError: it does not.
            TimeoutError: it takes longer than `seconds`.
        """
        now = str(self.clock())
        self.database.write(
            lambda connection: connection.execute(
                "INSERT INTO about VALUES ('checked', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", [now]
            ),
            seconds,
        )

    def audit_of(self, case: int) -> list[Row]:
        """What was done in a case, the newest first."""
        return audit.of_case(self.database.read(), case)
