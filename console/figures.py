"""Counts for the overview, kept with each alert and label: by minute, and of all time."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from console.database import Connection

MINUTES_KEPT: Final = 2 * 24 * 60
SCORE_BINS: Final = 20
"""Of the histogram, over 0 to 1."""
ALL_TIME: Final = 0
LABELS: Final = ("fraud", "genuine", "unsure")


class Counts:
    """What is to be added to the figures, of one transaction of the database."""

    def __init__(self) -> None:
        self._added: dict[tuple[int, str, str], list[float]] = {}

    def add(self, at: float, kind: str, name: str, n: int = 1, money: float = 0.0) -> None:
        """Counts `n` more of something that came at a time, s since 1970, and the money that they are about."""
        for minute in (int(at // 60), ALL_TIME):
            found = self._added.setdefault((minute, kind, name), [0, 0.0])
            found[0] += n
            found[1] += money

    def add_alert(self, at: float, rules: list[str], scenario: str, score: float, amount: float) -> None:
        """Counts an alert: by rule, by scenario where it says one, by score."""
        self.add(at, "alerts", "", 1, amount)
        if scenario:
            self.add(at, "scenario", scenario, 1, amount)
        self.add(at, "score", f"{min(int(score * SCORE_BINS), SCORE_BINS - 1):02}")
        for rule in rules:
            self.add(at, "rule", rule, 1, amount)

    def add_fired(self, at: float, rules: Iterable[str], shadow_rules: Iterable[str]) -> None:
        """Counts the rules that fired on a transaction, whether it is an alert or not."""
        for kind, fired in (("fires", rules), ("fires in shadow", shadow_rules)):
            for rule in fired:
                self.add(at, kind, rule)

    def write(self, connection: Connection) -> None:
        """Adds all of it to the table."""
        connection.executemany(
            "INSERT INTO figures VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (minute, kind, name) "
            "DO UPDATE SET count = figures.count + excluded.count, money = figures.money + excluded.money",
            [(*what, *counted) for what, counted in self._added.items()],
        )


def count_label(connection: Connection, at: float, rules: str, label: str | None, n: int, amount: float) -> None:
    """Counts the label of an alert that came at `at` (n = 1), or takes back the label that it had (n = -1)."""
    if label is None:
        return
    counts = Counts()
    counts.add(at, "label", label, n, n * amount)
    for rule in rules.split():
        counts.add(at, f"rule {label}", rule, n, n * amount)
    counts.write(connection)


class Precision(NamedTuple):
    """What labels say of the alerts of one rule, or of all."""

    rule: str
    alerts: int
    fraud: int
    genuine: int
    fraud_money: float
    genuine_money: float

    @property
    def share(self) -> float | None:
        """Of the labelled alerts those that were fraud; None without a label."""
        labelled = self.fraud + self.genuine
        return self.fraud / labelled if labelled else None


def totals(connection: Connection) -> dict[str, dict[str, tuple[int, float]]]:
    """All counts of all time: by kind, then by name, count and money."""
    found: dict[str, dict[str, tuple[int, float]]] = {}
    for row in connection.execute("SELECT kind, name, count, money FROM figures WHERE minute = ?", [ALL_TIME]):
        found.setdefault(row["kind"], {})[row["name"]] = (row["count"], row["money"])
    return found


def precisions(connection: Connection) -> list[Precision]:
    """Of all alerts, then by rule, those with most alerts first."""
    found = totals(connection)
    nothing = (0, 0.0)

    def labelled(kind: str, name: str, fraud: str, genuine: str) -> Precision:
        frauds, genuines = found.get(fraud, {}), found.get(genuine, {})
        (f, f_money), (g, g_money) = frauds.get(name, nothing), genuines.get(name, nothing)
        return Precision(name, found.get(kind, {}).get(name, nothing)[0], f, g, f_money, g_money)

    labels = found.get("label", {})
    (fraud, fraud_money), (genuine, genuine_money) = labels.get("fraud", nothing), labels.get("genuine", nothing)
    everything = found.get("alerts", {}).get("", nothing)[0]
    rules = [labelled("rule", name, "rule fraud", "rule genuine") for name in found.get("rule", {})]
    rules.sort(key=lambda each: -each.alerts)
    return [Precision("", everything, fraud, genuine, fraud_money, genuine_money), *rules]


def by_minute(connection: Connection, since: float, kind: str) -> dict[str, dict[int, int]]:
    """Counts of a kind since a time: by name, then by minute."""
    found: dict[str, dict[int, int]] = {}
    rows = connection.execute(
        "SELECT minute, name, count FROM figures WHERE minute >= ? AND kind = ?", [max(int(since // 60), 1), kind]
    )
    for row in rows:
        found.setdefault(row["name"], {})[row["minute"]] = row["count"]
    return found


def forget_old(connection: Connection, now: float) -> None:
    """Drops the minutes that no chart shows any more."""
    oldest = int(now // 60) - MINUTES_KEPT
    connection.execute("DELETE FROM figures WHERE minute > 0 AND minute < ?", [oldest])
