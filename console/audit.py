"""The audit trail: who did what, when; it is only ever added to."""

from console.database import Connection, Row


def note_down(
    connection: Connection,
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


def of_case(connection: Connection, case: int) -> list[Row]:
    """What was done in a case, the newest first."""
    return connection.execute("SELECT * FROM audit WHERE case_number = ? ORDER BY number DESC", [case]).fetchall()


def of_no_case(connection: Connection, most: int) -> list[Row]:
    """What was done to rules, thresholds and suppressions, the newest first."""
    return connection.execute(
        "SELECT * FROM audit WHERE case_number IS NULL ORDER BY number DESC LIMIT ?", [most]
    ).fetchall()
