"""What the rules find: how often each fires, what its alerts turned out to be, and which fire together."""

import json
from collections import Counter
from itertools import combinations
from typing import Final

import msgspec

from console.database import Connection, Row

NEWEST: Final = 50_000
"""Alerts that are looked at, the newest: 0.2 s of CPU, away from the pages' thread."""
HOURS: Final = 48
"""Over which fires are counted; as long as the figures by minute are kept."""


class Found(msgspec.Struct):
    """What one rule's alerts are, among those that are looked at; `shadow`: alerts of others on which it fires too."""

    alerts: int = 0
    alone: int = 0  # that no other rule fires on
    fraud: int = 0
    genuine: int = 0
    fraud_money: float = 0.0
    shadow: bool = False

    @property
    def precision(self) -> float | None:
        """Frauds among those with a label; None without one."""
        labelled = self.fraud + self.genuine
        return self.fraud / labelled if labelled else None


class Statistics(msgspec.Struct):
    """Of all rules that stand in decisions, whether they are in the file any more or not."""

    alerts: int = 0  # that were looked at
    since: float | None = None  # when the first of them came, s since 1970
    found: dict[str, Found] = {}
    together: Counter[tuple[str, str]] = msgspec.field(default_factory=Counter)  # alerts that both fire on
    fires: Counter[str] = msgspec.field(default_factory=Counter)  # transactions in the last `HOURS`, alerts or not
    fires_in_shadow: Counter[str] = msgspec.field(default_factory=Counter)


def statistics(connection: Connection, now: float) -> Statistics:
    """What the console's newest alerts, their labels and its figures say of the rules."""
    (newest,) = connection.execute("SELECT coalesce(max(number), 0) FROM alerts").fetchone()
    first = newest - NEWEST
    result = Statistics(found={})
    (result.alerts, result.since) = connection.execute(
        "SELECT count(*), min(arrived) FROM alerts WHERE number > ?", [first]
    ).fetchone()
    groups = connection.execute(
        f"SELECT rules, {connection.dialect.shadow_rules} AS shadow, label, count(*) AS n, sum(amount) AS money "  # noqa: S608
        "FROM alerts WHERE number > ? GROUP BY 1, 2, 3",
        [first],
    )
    for group in groups:
        rules = group["rules"].split()
        shadow = [str(each) for each in json.loads(group["shadow"] or "[]")]
        for rule in rules:
            _add(result.found.setdefault(rule, Found()), group, alone=len(rules) == 1)
        for rule in shadow:
            found = result.found.setdefault(rule, Found())
            found.shadow = True
            _add(found, group, alone=False)
        for pair in combinations(sorted({*rules, *shadow}), 2):
            result.together[pair] += group["n"]
    since = int(now // 60) - HOURS * 60
    for row in connection.execute(
        "SELECT kind, name, CAST(sum(count) AS BIGINT) AS n FROM figures "
        "WHERE minute > ? AND kind IN ('fires', 'fires in shadow') GROUP BY 1, 2",
        [max(since, 0)],
    ):
        (result.fires if row["kind"] == "fires" else result.fires_in_shadow)[row["name"]] = row["n"]
    return result


def _add(found: Found, group: Row, *, alone: bool) -> None:
    found.alerts += group["n"]
    found.alone += group["n"] if alone else 0
    if group["label"] == "fraud":
        found.fraud += group["n"]
        found.fraud_money += group["money"]
    elif group["label"] == "genuine":
        found.genuine += group["n"]
