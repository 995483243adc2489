"""Changes a database that an earlier release made to the schema of this one, in the transaction of its caller."""

import logging
from typing import Final

from console.database import Connection
from console.schema import FOR_FILTERS, OLDEST_VERSION, VERSION, rule_ids

AT_ONCE: Final = 10_000

_log = logging.getLogger("redflag.console")


def can_be_upgraded(version: int) -> bool:
    """Whether a database of this version can be changed to this release's."""
    return OLDEST_VERSION <= version < VERSION


def statements(where: str, version: int) -> str:
    """What makes the tables that a database of an earlier version lacks, in the words of SQLite; the log says so."""
    _log.warning(
        "CONSOLE_DATABASE=%s is of version %d and is changed to version %d: some minutes where it has a million alerts",
        where, version, VERSION,
    )  # fmt: skip
    return FOR_FILTERS


def fill(connection: Connection) -> None:
    """Fills those tables."""
    after, rows = 0, [(0, 0, "")]
    while rows:
        rows = [
            tuple(row)
            for row in connection.execute(
                "SELECT number, case_number, rules FROM alerts WHERE number > ? ORDER BY number LIMIT ?",
                [after, AT_ONCE],
            )
        ]
        connection.executemany(
            "INSERT INTO alert_rules VALUES (?, ?, ?)",
            [(rule, number, case) for number, case, rules in rows for rule in rule_ids(rules)],
        )
        after = rows[-1][0] if rows else after
