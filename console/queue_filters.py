"""What the queue's filters ask of alerts, and which of them finds so few that the queue is best found from there.

There are two ways to find the cases that a view lets through. From the cases, in the queue's order: quick where many
are let through, as the first ones soon are enough. From the alerts, by an index: quick where few are.
"""

from typing import Any, Final

import msgspec

from console.database import Connection, Dialect
from console.shown_text import masked
from console.view import View

FEW: Final = 50_000
"""Alerts that are found from an index; where each filter lets more through, the cases are gone through in order."""

_CASE_HAS_RULE: Final = "EXISTS (SELECT 1 FROM alert_rules r WHERE r.rule = ? AND r.case_number = c.number)"


class Filter(msgspec.Struct, frozen=True):
    """One filter over alerts, in two forms."""

    table: str
    """A table with its condition, with an index of its own: its `number` and `case_number` are those of the alerts."""
    check: str
    """The condition on an alert `x` that is known. No index is to be taken for it, so it names no bare column."""
    values: tuple[Any, ...]
    """Of the one form, and of the others."""
    of_case: str = ""
    """The condition that a case `c` has such an alert, where that is known without a look at its alerts."""
    numbers: str = ""
    """Selects the numbers of the same alerts, with the same values, where that is quicker than from `table`."""


def filters_of(view: View, dialect: Dialect) -> list[Filter]:
    """All filters over an alert's own columns; of one alert all of them must hold."""
    found = [
        Filter(f"alerts WHERE {column} = ?", f"x.{column} || '' = ?", (text,))
        for column, text in (("merchant", _allowed(view)), ("scenario", view.scenario), ("action", view.action))
        if text
    ]
    if view.rule:
        found.append(Filter("alert_rules WHERE rule = ?", dialect.has_rule, (view.rule,), of_case=_CASE_HAS_RULE))
    for column, least, most in (("amount", view.at_least, view.at_most), ("score", view.score_from, None)):
        bounds = [(sign, number) for sign, number in ((">=", least), ("<=", most)) if number is not None]
        if bounds:
            found.append(
                Filter(
                    f"alerts WHERE {' AND '.join(f'{column} {sign} ?' for sign, _ in bounds)}",
                    " AND ".join(f"x.{column} + 0 {sign} ?" for sign, _ in bounds),
                    tuple(number for _, number in bounds),
                )
            )
    return found


def _allowed(view: View) -> str:
    """The merchant that is looked for: by a card number only for who may see it, as any answer tells of it."""
    return view.merchant if view.cards else masked(view.merchant)


def search_of(view: View, dialect: Dialect) -> Filter | None:
    """The search over an alert's texts; another alert of the case may have them than the filters hold for.

    No whole card number is in the index: so it is found by nobody who types it, but for who may see it. For them it is
    what the index has, the first six and the last four digits.
    """
    if not (query := dialect.text_query(masked(view.search) if view.cards else view.search)):
        return None
    return Filter(
        f"alerts WHERE number IN ({dialect.text_matches})",
        dialect.text_matches_alert,
        (query,),
        numbers=dialect.text_matches,
    )


def rarest(connection: Connection, filters: list[Filter]) -> Filter | None:
    """The filter that lets the fewest alerts through; None where each lets through more than `FEW`."""
    fewest, found = FEW + 1, None
    for each in filters:
        (count,) = connection.execute(
            f"SELECT count(*) FROM ({each.numbers or f'SELECT 1 FROM {each.table}'} LIMIT {fewest}) counted",
            each.values,
        ).fetchone()
        if count < fewest:
            fewest, found = count, each
    return found


def matched(driver: Filter, others: list[Filter]) -> tuple[str, list[Any]]:
    """Selects the numbers of the cases that have an alert for which all these hold, and the values of that."""
    if not others:
        # + 0: else SQLite goes through all alerts in an index that has the cases in order.
        return f"SELECT DISTINCT case_number + 0 AS case_number FROM {driver.table}", list(driver.values)
    checks = " AND ".join(each.check for each in others)
    return (
        # CROSS JOIN: SQLite goes from the left to the right.
        f"SELECT DISTINCT x.case_number FROM (SELECT number FROM {driver.table}) found CROSS JOIN alerts x "
        f"WHERE x.number = found.number AND {checks}",
        [*driver.values, *(value for each in others for value in each.values)],
    )


def has_one(filters: list[Filter]) -> tuple[str, list[Any]]:
    """The condition that a case `c` has an alert for which all these hold, and its values."""
    if len(filters) == 1 and filters[0].of_case:
        return filters[0].of_case, list(filters[0].values)
    checks = " AND ".join(each.check for each in filters)
    return (
        # OFFSET: PostgreSQL asks case by case, and does not join all alerts first.
        f"EXISTS (SELECT 1 FROM alerts x WHERE x.case_number = c.number AND {checks} LIMIT 1 OFFSET 0)",
        [value for each in filters for value in each.values],
    )
