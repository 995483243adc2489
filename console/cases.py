"""Cases: the alerts of one user that are worked together, and who works them.

Each action on a case is a compare-and-set: it is done only if the case still is as whoever asked believes. Of two
analysts who take the same case at once, one gets it and the other hears who has it.
"""

from typing import Final, Literal

import msgspec

from console.audit import note_down
from console.database import Connection, Row

Outcome = Literal["fraud", "genuine", "unsure"]
Pivot = Literal["user", "device", "merchant", "ip"]
"""What alerts can be grouped and suppressed by."""
PIVOTS: Final[tuple[Pivot, ...]] = ("user", "device", "merchant", "ip")


class ConflictError(Exception):
    """The case is no longer as whoever acts on it believes; the text says how it is, in a sentence."""


class Rules(msgspec.Struct, frozen=True):
    """When an alert opens no case of its own."""

    quiet_seconds: float = 3600.0  # after a case was closed as genuine


def suppress(connection: Connection, kind: Pivot, name: str, until: float, analyst: str, now: float, case: int) -> None:
    """From now on until a time, s since 1970, alerts of this user, device, merchant or address open no case."""
    connection.execute(
        "INSERT INTO suppressions VALUES (?, ?, ?, ?) "
        "ON CONFLICT (kind, name) DO UPDATE SET until = excluded.until, analyst = excluded.analyst",
        [kind, name, until, analyst],
    )
    note_down(connection, now, analyst, "suppressed", case, None, f"{kind} {name} for {(until - now) / 3600:g} h")


def suppressions(connection: Connection, now: float) -> list[Row]:
    """What is suppressed for now, what ends first first."""
    return connection.execute("SELECT * FROM suppressions WHERE until > ? ORDER BY until, kind, name", [now]).fetchall()


def lift(connection: Connection, kind: Pivot, name: str, analyst: str, now: float) -> None:
    """Ends a suppression before its time: from now on such alerts open cases again."""
    ended = connection.execute("DELETE FROM suppressions WHERE kind = ? AND name = ? AND until > ?", [kind, name, now])
    if ended.rowcount:
        note_down(connection, now, analyst, "lifted suppression", None, None, f"{kind} {name}")


def take(connection: Connection, case: int, analyst: str, now: float) -> None:
    """Gives a case that nobody has to an analyst.

    Raises:
        ConflictError: somebody has it, or it is closed.
    """
    changed = connection.execute(
        "UPDATE cases SET state = 'taken', analyst = ? WHERE number = ? AND state IN ('open', 'suppressed')",
        [analyst, case],
    )
    if changed.rowcount != 1:
        raise ConflictError(_how_it_is(connection, case))
    connection.execute("UPDATE cases SET live = TRUE WHERE number = ?", [case])
    note_down(connection, now, analyst, "took", case)


def take_over(connection: Connection, case: int, analyst: str, before: str, now: float) -> None:
    """Gives an analyst the case that another has, or has closed, as whoever that is may be away; it is open again then.

    Raises:
        ConflictError: it is no longer the case of `before`.
    """
    changed = connection.execute(
        "UPDATE cases SET state = 'taken', live = TRUE, analyst = ?, closed = NULL, outcome = NULL "
        "WHERE number = ? AND state IN ('taken', 'closed') AND analyst = ?",
        [analyst, case, before],
    )
    if changed.rowcount != 1:
        raise ConflictError(_how_it_is(connection, case))
    note_down(connection, now, analyst, "took over", case, None, f"from {before}")


def hand_over(connection: Connection, case: int, analyst: str, to: str, now: float) -> None:
    """Gives an analyst's case to another; to "" it is given back to the queue.

    Raises:
        ConflictError: the analyst does not have it.
    """
    changed = connection.execute(
        "UPDATE cases SET state = ?, analyst = ? WHERE number = ? AND state = 'taken' AND analyst = ?",
        ["taken" if to else "open", to or None, case, analyst],
    )
    if changed.rowcount != 1:
        raise ConflictError(_how_it_is(connection, case))
    note_down(connection, now, analyst, "handed over" if to else "gave back", case, None, to)


def close(connection: Connection, case: int, analyst: str, now: float) -> Outcome:
    """Closes an analyst's case; its outcome is fraud if an alert in it was, else genuine if one was, else unsure.

    Raises:
        ConflictError: the analyst does not have it.
    """
    labels = {row[0] for row in connection.execute("SELECT DISTINCT label FROM alerts WHERE case_number = ?", [case])}
    outcome: Outcome = "fraud" if "fraud" in labels else "genuine" if "genuine" in labels else "unsure"
    changed = connection.execute(
        "UPDATE cases SET state = 'closed', live = FALSE, closed = ?, outcome = ? "
        "WHERE number = ? AND state = 'taken' AND analyst = ?",
        [now, outcome, case, analyst],
    )
    if changed.rowcount != 1:
        raise ConflictError(_how_it_is(connection, case))
    note_down(connection, now, analyst, "closed", case, None, outcome)
    return outcome


def must_be_workable_by(connection: Connection, case: int, analyst: str, now: float) -> None:
    """Sees to it that an analyst may work on a case: one that nobody has becomes theirs.

    Raises:
        ConflictError: another analyst has it, or it is another's closed case.
    """
    row = connection.execute("SELECT * FROM cases WHERE number = ?", [case]).fetchone()
    if row is not None and row["analyst"] == analyst:
        return
    take(connection, case, analyst, now)


def _how_it_is(connection: Connection, case: int) -> str:
    row = connection.execute("SELECT * FROM cases WHERE number = ?", [case]).fetchone()
    if row is None:
        return f"Case {case} is no longer kept."
    if row["state"] == "closed":
        return f"{row['analyst']} has closed case {case}."
    if row["state"] == "taken":
        return f"{row['analyst']} has case {case}."
    return f"Nobody has case {case}: take it first."
