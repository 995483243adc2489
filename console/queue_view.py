"""The queue: which cases wait, in which order, and what of them is shown."""

from typing import Any, Final

import msgspec

from console.cases import Pivot
from console.database import Connection, Row
from console.queue_filters import Filter, filters_of, has_one, matched, rarest, search_of
from console.view import Order, View

SHOWN: Final = 200
"""Rows of the queue; the other cases are counted."""
COUNTED: Final = 10_000
"""Cases that are looked at, at most, to count those that a view lets through."""
GROUPED: Final = 5_000
"""Of the newest alerts, how many are grouped by device, merchant or address."""

_ORDERS: Final[dict[Order, str]] = {
    "newest": "c.last_alert DESC",
    "riskiest": "c.score DESC, c.amount DESC, c.last_alert DESC",
}


_SHOWN_COLUMNS: Final = "c.*, a.transaction_id, a.merchant, a.device, a.ip, a.location, a.why, a.scenario, a.label"


class Page(msgspec.Struct, frozen=True):
    """What is shown of a view."""

    rows: list[dict[str, Any]]
    count: int  # of all that the view lets through, as far as they were counted
    more: bool = False  # whether there may be more


def page(connection: Connection, view: View) -> Page:
    """The first rows of a view, and how many cases it lets through."""
    if view.group != "user":
        return _groups(connection, view)
    filters, search = filters_of(view, connection.dialect), search_of(view, connection.dialect)
    driver = rarest(connection, [*filters, *([search] if search else [])])
    if driver is not None:
        return _from_alerts(connection, view, driver, filters, search)
    return _from_cases(connection, view, filters, search)


def _from_alerts(
    connection: Connection, view: View, driver: Filter, filters: list[Filter], search: Filter | None
) -> Page:
    """From the few alerts that one filter lets through."""
    found, found_values = matched(driver, [] if driver is search else [each for each in filters if each is not driver])
    parts, values = _of_case(view)
    if driver is search:
        search = None
        if filters:
            condition, more_values = has_one(filters)
            parts.append(condition)
            values += more_values
    if search is not None:
        condition, more_values = has_one([search])
        parts.append(condition)
        values += more_values
    rows = connection.execute(
        f"WITH matched AS MATERIALIZED ({found}) SELECT {_SHOWN_COLUMNS} FROM (SELECT c.*, count(*) OVER () AS counted "
        f"FROM matched CROSS JOIN cases c WHERE c.number = matched.case_number AND {' AND '.join(parts)} "
        f"ORDER BY {_ORDERS[view.order]} LIMIT {SHOWN}) c JOIN alerts a ON a.number = c.top_alert "
        f"ORDER BY {_ORDERS[view.order]}",
        [*found_values, *values],
    ).fetchall()
    return Page([_row(each) for each in rows], rows[0]["counted"] if rows else 0)


def _from_cases(connection: Connection, view: View, filters: list[Filter], search: Filter | None) -> Page:
    """Case by case, in the order of the queue."""
    of_case, case_values = _of_case(view)
    parts, values = _of_alerts(filters, search)
    where = " AND ".join([*of_case, *parts])
    rows = connection.execute(
        f"SELECT {_SHOWN_COLUMNS} FROM (SELECT * FROM cases c WHERE {where} ORDER BY {_ORDERS[view.order]} "
        f"LIMIT {SHOWN}) c JOIN alerts a ON a.number = c.top_alert ORDER BY {_ORDERS[view.order]}",
        [*case_values, *values],
    ).fetchall()
    looked_at = f"SELECT number FROM cases c WHERE {' AND '.join(of_case)} LIMIT {COUNTED + 1}"
    all_of_them, count = connection.execute(
        f"SELECT count(*), coalesce(sum(CASE WHEN {' AND '.join(parts) or 'TRUE'} THEN 1 ELSE 0 END), 0) "
        f"FROM ({looked_at}) c",
        [*values, *case_values],
    ).fetchone()
    return Page([_row(each) for each in rows], max(min(int(count), COUNTED), len(rows)), all_of_them > COUNTED)


def _of_alerts(filters: list[Filter], search: Filter | None) -> tuple[list[str], list[Any]]:
    """What a case's alerts must be for it to be let through, asked of a case `c`."""
    parts: list[str] = []
    values: list[Any] = []
    if filters:
        condition, values = has_one(filters)
        parts.append(condition)
    if search is not None:
        condition, more_values = has_one([search])
        parts.append(condition)
        values += more_values
    return parts, values


def _row(case: Row) -> dict[str, Any]:
    shown = (
        "number", "user", "state", "analyst", "last", "last_alert", "score", "action", "amount", "alerts", "merchant",
        "location", "device", "ip", "scenario", "label", "outcome",
    )  # fmt: skip
    return {**{name: case[name] for name in shown}, "why": case["why"].split("\n")}


def _of_case(view: View) -> tuple[list[str], list[Any]]:
    """The conditions on a case `c` itself, and their values."""
    parts: list[str] = []
    values: list[Any] = []
    if view.state == "waiting":
        parts.append("c.live")
    elif view.state == "mine":
        parts.append("c.live AND c.analyst = ?")
        values.append(view.analyst)
    else:
        parts.append("NOT c.live AND c.state = ?")
        values.append(view.state)
    # What no case without such an alert has, asked of the case itself: of a million, most need no look at their alerts.
    for number, condition in ((view.score_from, "c.score >= ?"), (view.at_least, "c.amount >= ?")):
        if number is not None:
            parts.append(condition)
            values.append(number)
    return parts, values


def _groups(connection: Connection, view: View) -> Page:
    """Live cases by what their alerts share, of the newest alerts; those with the riskiest or newest alert first."""
    column = {"device": "device", "merchant": "merchant", "ip": "ip"}[view.group]
    of_case, values = _of_case(view)
    of_alerts, alert_values = _of_alerts(filters_of(view, connection.dialect), search_of(view, connection.dialect))
    where = " AND ".join([*of_case, *of_alerts])
    order = "last_alert DESC" if view.order == "newest" else "score DESC, amount DESC, last_alert DESC"
    newest = (
        "(SELECT number, case_number, user, device, merchant, ip, score, amount, arrived FROM alerts "
        f"ORDER BY number DESC LIMIT {GROUPED})"
    )
    rows = connection.execute(
        f"SELECT a.{column} AS name, count(*) AS alerts, count(DISTINCT c.number) AS cases, "
        "count(DISTINCT a.user) AS users, max(a.score) AS score, sum(a.amount) AS amount, max(a.number) AS last_alert, "
        f"max(a.arrived) AS last FROM {newest} a JOIN cases c ON c.number = a.case_number "
        f"WHERE {where} AND a.{column} <> '' GROUP BY 1 ORDER BY {order} LIMIT {SHOWN}",
        [*values, *alert_values],
    ).fetchall()
    return Page([dict(row) for row in rows], len(rows))


def cases_of_group(connection: Connection, group: Pivot, name: str) -> list[int]:
    """The live cases with an alert that shares this, the newest first."""
    column = {"user": "user", "device": "device", "merchant": "merchant", "ip": "ip"}[group]
    rows = connection.execute(
        f"SELECT DISTINCT c.number FROM alerts a JOIN cases c ON c.number = a.case_number "
        f"WHERE a.{column} = ? AND a.{column} <> '' AND c.live ORDER BY c.number DESC LIMIT {SHOWN}",
        [name],
    )
    return [row[0] for row in rows]
