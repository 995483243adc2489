"""Labels: what analysts found out, and the messages that tell it.

A label, its audit entry and its message for the feedback topic are written together. The message waits in the table
`outbox` until it was read back from the topic (see `feedback_sender`).
"""

from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Final

from console.audit import note_down
from console.cases import Outcome, must_be_workable_by
from console.database import Connection, Row, marks
from console.figures import count_label
from console.records import decode_decision
from dataflow.events.feedback import Feedback, feedback_to_json

TOPIC: Final = "feedback topic"
"""In place of an analyst's name, of a label that came over the topic."""
EARLY_LABELS: Final = 100_000
"""Kept at most of transactions of which no alert has come."""
_STEP: Final = 0.001
"""Seconds by which a label is later than the one that it corrects, whatever the clock says."""


def label(connection: Connection, alerts: Iterable[int], found: Outcome, analyst: str, note: str, now: float) -> int:
    """Labels alerts, and returns how many got another label by that.

    Fraud and genuine go to the feedback topic; unsure is only kept here. An alert that has the label already is left
    as it is, so that what is clicked twice is told once; a note is kept all the same.

    Raises:
        ConflictError: another analyst has the case.
    """
    labelled = 0
    for number in alerts:
        alert = connection.execute("SELECT * FROM alerts WHERE number = ?", [number]).fetchone()
        if alert is None:
            continue
        case = int(alert["case_number"])
        must_be_workable_by(connection, case, analyst, now)
        if alert["label"] == found:
            if note:
                note_down(connection, now, analyst, "noted", case, number, note)
            continue
        # Never before the transaction, which would make it a dead letter, nor before what it corrects.
        at = max(now, alert["at"] + _STEP, (alert["labelled_at"] or 0.0) + _STEP)
        _set(connection, alert["transaction_id"], alert["user"], found, at, analyst)
        note_down(connection, now, analyst, found, case, number, note)
        if found != "unsure":
            connection.execute(
                "INSERT INTO outbox (key, value, written) VALUES (?, ?, ?)",
                [*_message(alert, found, at, analyst), now],
            )
        labelled += 1
    return labelled


def _message(alert: Row, found: Outcome, at: float, analyst: str) -> tuple[bytes, bytes]:
    """Key and value. What they name they name as the record does: a database may not take every character."""
    decision = decode_decision(alert["raw"])

    def iso(moment: float) -> str:
        return datetime.fromtimestamp(moment, UTC).isoformat()

    fraud = found == "fraud"
    return decision.user.encode(), feedback_to_json(
        decision.transaction_id, decision.user, decision.merchant, iso(alert["at"]), fraud, iso(at), analyst
    )


def _set(connection: Connection, transaction_id: str, user: str, found: str, at: float, analyst: str) -> bool:
    """Gives all alerts of a transaction a label, unless they have a later one; returns whether there are any."""
    alerts = connection.execute(
        "SELECT number, arrived, rules, amount, label, labelled_at FROM alerts WHERE transaction_id = ? AND user = ?",
        [transaction_id, user],
    ).fetchall()
    for alert in alerts:
        if alert["labelled_at"] is not None and alert["labelled_at"] >= at:
            continue
        if alert["label"] != found:
            count_label(connection, alert["arrived"], alert["rules"], alert["label"], -1, alert["amount"])
            count_label(connection, alert["arrived"], alert["rules"], found, 1, alert["amount"])
        connection.execute(
            "UPDATE alerts SET label = ?, labelled_at = ?, labelled_by = ? WHERE number = ?",
            [found, at, analyst, alert["number"]],
        )
    return bool(alerts)


def hear(connection: Connection, feedback: Feedback) -> bool:
    """Takes in a label from the topic; what no alert has come for waits. Returns whether an alert's label changed."""
    found = "fraud" if feedback.fraud else "genuine"
    if _set(connection, feedback.transaction_id, feedback.user, found, feedback.labelled_at, TOPIC):
        return True
    connection.execute(
        "INSERT INTO early_labels (transaction_id, user, label, labelled_at) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (transaction_id) DO UPDATE SET label = excluded.label, labelled_at = excluded.labelled_at "
        "WHERE excluded.labelled_at > early_labels.labelled_at",
        [feedback.transaction_id, feedback.user, found, feedback.labelled_at],
    )
    return False


def apply_known(connection: Connection, new: Collection[tuple[str, str]]) -> None:
    """Gives new alerts, by transaction and user, the labels that came before them, or that another alert of one has."""
    ids = list({transaction_id for transaction_id, _ in new})
    early = connection.execute(f"SELECT * FROM early_labels WHERE transaction_id IN ({marks(ids)})", ids).fetchall()
    for row in early:
        if (row["transaction_id"], row["user"]) in new:
            _set(connection, row["transaction_id"], row["user"], row["label"], row["labelled_at"], TOPIC)
            connection.execute("DELETE FROM early_labels WHERE number = ?", [row["number"]])
    known = connection.execute(
        "SELECT DISTINCT transaction_id, user, label, labelled_at, labelled_by FROM alerts "
        f"WHERE transaction_id IN ({marks(ids)}) AND label IS NOT NULL",
        ids,
    ).fetchall()
    for row in known:
        if (row["transaction_id"], row["user"]) in new:
            _set(connection, row["transaction_id"], row["user"], row["label"], row["labelled_at"], row["labelled_by"])


def forget_early(connection: Connection) -> None:
    """Drops the oldest early labels beyond `EARLY_LABELS`."""
    connection.execute(
        "DELETE FROM early_labels WHERE number <= (SELECT max(number) FROM early_labels) - ?", [EARLY_LABELS]
    )


def confirm(connection: Connection, numbers: Iterable[int], now: float) -> None:
    """Marks messages of the outbox that were read back from the topic."""
    connection.executemany(
        "UPDATE outbox SET confirmed = ? WHERE number = ? AND confirmed IS NULL", [(now, each) for each in numbers]
    )


def count_unconfirmed(connection: Connection) -> int:
    """How many messages of the outbox were not read back yet."""
    (count,) = connection.execute("SELECT count(*) FROM outbox WHERE confirmed IS NULL").fetchone()
    return int(count)


def oldest_unconfirmed(connection: Connection) -> float | None:
    """When the first of them was written, s since 1970; None without one."""
    (written,) = connection.execute("SELECT min(written) FROM outbox WHERE confirmed IS NULL").fetchone()
    return None if written is None else float(written)


def unconfirmed(connection: Connection, after: int, most: int) -> list[Row]:
    """Messages of the outbox beyond a number that were not read back yet, in order."""
    return connection.execute(
        "SELECT number, key, value FROM outbox WHERE confirmed IS NULL AND number > ? ORDER BY number LIMIT ?",
        [after, most],
    ).fetchall()
