"""Changes a database that an earlier release made to the schema of this one, in the transaction of its caller."""

import logging
from typing import Final

from console.database import Connection
from console.schema import ALERT_RULES, BY_MERCHANT, FOR_FILTERS, OLDEST_VERSION, VERSION, rule_ids

AT_ONCE: Final = 10_000

RULES_TO_3: Final = f"""
ALTER TABLE alert_rules RENAME TO alert_rules_of_2;
{ALERT_RULES}
INSERT INTO alert_rules (rule, case_number, number)
    SELECT rule, case_number, number FROM alert_rules_of_2 ORDER BY rule, case_number, number;
DROP TABLE alert_rules_of_2;
"""
TO_3: Final = f"DROP INDEX alerts_by_merchant; {BY_MERCHANT}"

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
    if version < 2:
        return f"{FOR_FILTERS} {ALERT_RULES} {TO_3}"
    return f"{RULES_TO_3} {TO_3}"


def fill(connection: Connection, version: int) -> None:
    """Fills those tables, of what statements alone cannot."""
    if version >= 2:
        return
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
            "INSERT INTO alert_rules (rule, case_number, number) VALUES (?, ?, ?)",
            [(rule, case, number) for number, case, rules in rows for rule in rule_ids(rules)],
        )
        after = rows[-1][0] if rows else after
