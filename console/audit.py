"""The audit trail: who did what, when; it is only ever added to."""

import sqlite3


def note_down(
    connection: sqlite3.Connection,
    at: float,
    who: str,
    what: str,
    case: int | None = None,
    alert: int | None = None,
    detail: str = "",
) -> None:
    """Adds an entry; at: s since 1970."""
    connection.execute(
        "INSERT INTO audit (at, who, what, case_number, alert, detail) VALUES (?, ?, ?, ?, ?, ?)",
        [at, who, what, case, alert, detail],
    )


def of_case(connection: sqlite3.Connection, case: int) -> list[sqlite3.Row]:
    """What was done in a case, the newest first."""
    return connection.execute("SELECT * FROM audit WHERE case_number = ? ORDER BY number DESC", [case]).fetchall()


def of_no_case(connection: sqlite3.Connection, most: int) -> list[sqlite3.Row]:
    """What was done to rules and thresholds, the newest first."""
    return connection.execute(
        "SELECT * FROM audit WHERE case_number IS NULL ORDER BY number DESC LIMIT ?", [most]
    ).fetchall()
