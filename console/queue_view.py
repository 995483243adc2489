"""The queue: which cases wait, in which order, and what of them is shown."""

from typing import Any, Final, Literal

import msgspec

from console.cases import Pivot
from console.database import Connection, Dialect, Row

Order = Literal["newest", "riskiest"]
State = Literal["waiting", "mine", "closed", "suppressed"]

SHOWN: Final = 200
"""Rows of the queue; the other cases are counted."""
COUNTED: Final = 10_000
"""Cases are counted up to here."""
GROUPED: Final = 5_000
"""Of the newest alerts, how many are grouped by device, merchant or address."""

_ORDERS: Final[dict[Order, str]] = {
    "newest": "c.last_alert DESC",
    "riskiest": "c.score DESC, c.amount DESC, c.last_alert DESC",
}


class View(msgspec.Struct, frozen=True):
    """What an analyst wants to see; an empty filter lets everything through."""

    order: Order = "newest"
    group: Pivot = "user"
    state: State = "waiting"
    analyst: str = ""  # of "mine"
    rule: str = ""
    scenario: str = ""
    merchant: str = ""
    action: str = ""
    at_least: float | None = None  # amount
    at_most: float | None = None
    score_from: float | None = None
    search: str = ""


class Page(msgspec.Struct, frozen=True):
    """What is shown of a view."""

    rows: list[dict[str, Any]]
    count: int  # of all that the view lets through, up to COUNTED + 1


def page(connection: Connection, view: View) -> Page:
    """The first rows of a view, and how many cases it lets through."""
    if view.group != "user":
        return _groups(connection, view)
    where, values = _condition(view, connection.dialect)
    rows = connection.execute(
        "SELECT c.*, a.transaction_id, a.merchant, a.device, a.ip, a.location, a.why, a.scenario, a.label "
        f"FROM cases c JOIN alerts a ON a.number = c.top_alert WHERE {where} "
        f"ORDER BY {_ORDERS[view.order]} LIMIT {SHOWN}",
        values,
    ).fetchall()
    (count,) = connection.execute(
        f"SELECT count(*) FROM (SELECT 1 FROM cases c WHERE {where} LIMIT {COUNTED + 1}) counted",
        values,
    ).fetchone()
    return Page([_row(each) for each in rows], count)


def _row(case: Row) -> dict[str, Any]:
    shown = (
        "number", "user", "state", "analyst", "last", "last_alert", "score", "action", "amount", "alerts", "merchant",
        "location", "device", "ip", "scenario", "label", "outcome",
    )  # fmt: skip
    return {**{name: case[name] for name in shown}, "why": case["why"].split("\n")}


def _condition(view: View, dialect: Dialect) -> tuple[str, list[Any]]:
    """The condition on a case `c`, and its values."""
    parts: list[str] = []
    values: list[Any] = []
    if view.state == "waiting":
        parts.append("c.live")
    elif view.state == "mine":
        parts.append("c.live AND c.analyst = ?")
        values.append(view.analyst)
    else:
        parts.append("c.state = ?")
        values.append(view.state)
    # What no case without such an alert has, asked of the case itself: of a million, most need no look at their alerts.
    for number, condition in ((view.score_from, "c.score >= ?"), (view.at_least, "c.amount >= ?")):
        if number is not None:
            parts.append(condition)
            values.append(number)
    of_alert, alert_values = _alert_condition(view)
    if of_alert and view.merchant:  # by its index: of all alerts, those of one merchant are few
        parts.append(f"c.number IN (SELECT x.case_number FROM alerts x WHERE {of_alert})")
        values += alert_values
    elif of_alert:
        parts.append(f"EXISTS (SELECT 1 FROM alerts x WHERE x.case_number = c.number AND {of_alert})")
        values += alert_values
    if query := dialect.text_query(view.search):
        parts.append(f"c.number IN (SELECT case_number FROM alerts WHERE number IN ({dialect.text_matches}))")
        values.append(query)
    return " AND ".join(parts), values


def _alert_condition(view: View) -> tuple[str, list[Any]]:
    """The condition on one alert `x` of a case, and its values; "" if there is none."""
    parts, values = [], []
    for text, condition in (
        (view.merchant, "x.merchant = ?"),
        (view.scenario, "x.scenario = ?"),
        (view.action, "x.action = ?"),
        (view.rule and f" {view.rule} ", "instr(x.rules, ?) > 0"),
    ):
        if text:
            parts.append(condition)
            values.append(text)
    numbers: list[Any] = values
    for number, condition in (
        (view.at_least, "x.amount >= ?"),
        (view.at_most, "x.amount <= ?"),
        (view.score_from, "x.score >= ?"),
    ):
        if number is not None:
            parts.append(condition)
            numbers.append(number)
    return " AND ".join(parts), numbers


def _groups(connection: Connection, view: View) -> Page:
    """Live cases by what their alerts share, of the newest alerts; those with the riskiest or newest alert first."""
    column = {"device": "device", "merchant": "merchant", "ip": "ip"}[view.group]
    where, values = _condition(view, connection.dialect)
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
        values,
    ).fetchall()
    return Page([dict(row) for row in rows], len(rows))


def cases_of_group(connection: Connection, group: Pivot, name: str) -> list[int]:
    """The live cases with an alert that shares this, the newest first."""
    column = {"user": "user", "device": "device", "merchant": "merchant", "ip": "ip"}[group]
    rows = connection.execute(
        f"SELECT DISTINCT c.number FROM alerts a JOIN cases c ON c.number = a.case_number "
        f"WHERE a.{column} = ? AND c.live ORDER BY c.number DESC LIMIT {SHOWN}",
        [name],
    )
    return [row[0] for row in rows]
