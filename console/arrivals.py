"""Takes new alerts in, many at once: each question is asked of the database once for all of them, not once an alert."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from console import labels
from console.case_assignment import CaseAssignment
from console.cases import Rules
from console.database import Connection, marks
from console.figures import Counts
from console.records import Alert
from console.schema import SEARCHED, rule_ids

AT_ONCE: Final = 500
"""Alerts that one statement asks for: a database takes only so many values."""


def add(connection: Connection, alerts: Sequence[Alert], now: float, counts: Counts, rules: Rules) -> int:
    """Stores the alerts that are not there yet, in their order, and counts them; returns how many that were."""
    added = 0
    for first in range(0, len(alerts), AT_ONCE):
        new = list(_new(connection, alerts[first : first + AT_ONCE]))
        if new:
            _add(connection, new, now, rules)
        for each in new:
            decision = each.decision
            counts.add_alert(now, decision.rules, decision.scenario or "", decision.score, decision.amount)
            counts.add_fired(now, decision.rules, decision.shadow_rules)
        added += len(new)
    return added


def _new(connection: Connection, alerts: Iterable[Alert]) -> Iterator[Alert]:
    """Those that are not stored yet, each once."""
    of_partition: dict[tuple[str, int], dict[int, Alert]] = {}
    for each in alerts:
        of_partition.setdefault((each.identity, each.partition), {}).setdefault(each.offset, each)
    known = {
        (*place, row[0])
        for place, found in of_partition.items()
        for row in connection.execute(
            f"SELECT offset FROM alerts WHERE identity = ? AND partition = ? AND offset IN ({marks(found)})",
            [*place, *found],
        )
    }
    for each in alerts:
        key = (each.identity, each.partition, each.offset)
        if key not in known:
            known.add(key)
            yield each


def _add(connection: Connection, alerts: list[Alert], now: float, rules: Rules) -> None:
    numbers = connection.dialect.next_alert_numbers(connection, len(alerts))
    rows = [_row(connection, alert, now) | {"number": n} for alert, n in zip(alerts, numbers, strict=True)]
    cases = CaseAssignment(connection, rows, now, rules)
    assigned = [cases.assign(row, alert.decision.suppressed) for row, alert in zip(rows, alerts, strict=True)]
    cases.write()
    for row, (case, suppressed) in zip(rows, assigned, strict=True):
        row |= {"case_number": case.number, "suppressed": suppressed}
    connection.insert("alerts", tuple(rows[0]), [tuple(row.values()) for row in rows])
    by_rule = [(rule, row["case_number"], row["number"]) for row in rows for rule in rule_ids(row["rules"])]
    connection.insert("alert_rules", ("rule", "case_number", "number"), by_rule)
    connection.dialect.index_texts(connection, {row["number"]: [row[name] for name in SEARCHED] for row in rows})
    labels.apply_known(connection, {(row["transaction_id"], row["user"]) for row in rows})


def _row(connection: Connection, alert: Alert, now: float) -> dict[str, Any]:
    """An alert's columns, in the texts that the database keeps: what is looked up by them is found by them."""
    decision = alert.decision
    row = {
        "number": 0, "case_number": 0, "identity": alert.identity, "partition": alert.partition,
        "offset": alert.offset, "arrived": now, "decided": alert.decided_at, "at": alert.at,
        "transaction_id": decision.transaction_id, "user": decision.user, "merchant": decision.merchant,
        "device": decision.device, "ip": decision.ip or "", "location": decision.location,
        "txn_type": decision.txn_type, "scenario": decision.scenario or "", "amount": decision.amount,
        "score": decision.score, "action": decision.action, "rules": f" {' '.join(decision.rules)} ",
        "reasons": "\n".join(decision.reason), "why": "\n".join(alert.why), "suppressed": False,
        "raw": alert.raw,
    }  # fmt: skip
    kept = connection.dialect.kept
    return {name: kept(value) if isinstance(value, str) else value for name, value in row.items()}
