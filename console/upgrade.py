"""Changes a database that an earlier release made to the schema of this one, in the transaction of its caller."""

import logging
from collections.abc import Iterator
from typing import Final

from console.database import Connection, Row
from console.schema import ALERT_RULES, BY_MERCHANT, FOR_FILTERS, OLDEST_VERSION, SEARCHED, VERSION, rule_ids
from console.shown_text import masked

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
    """Fills those tables, and brings what the others hold up to this version."""
    for alerts in _all_alerts(connection):
        if version < 2:
            connection.executemany(
                "INSERT INTO alert_rules (rule, case_number, number) VALUES (?, ?, ?)",
                [(rule, row["case_number"], row["number"]) for row in alerts for rule in rule_ids(row["rules"])],
            )
        for row in alerts:
            texts = [str(row[name]) for name in SEARCHED]
            if any(masked(text) != text for text in texts):
                connection.dialect.mask_text(connection, row["number"], texts)


def _all_alerts(connection: Connection) -> Iterator[list[Row]]:
    """All alerts, some at a time."""
    after, columns = 0, ", ".join(("number", "case_number", "rules", *SEARCHED))
    while rows := connection.execute(
        f"SELECT {columns} FROM alerts WHERE number > ? ORDER BY number LIMIT ?",
        [after, AT_ONCE],
    ).fetchall():
        yield rows
        after = rows[-1]["number"]
