"""The tables of the rules' page: what the rules find, what a backtest found, and the versions."""

from collections.abc import Sequence
from typing import Any, Final

from nicegui import ui

from console.pages.frame import heading, table, text
from console.programs import Run
from console.rules.statistics import HOURS, Found, Statistics
from console.shown_text import moment, money

PAIRS: Final = 10
"""Of rules that fire together, which are shown."""

Rules = Sequence[tuple[str, str, str]]
"""Of the rules of a file: id, mode, and what an alert asks for."""


def plain_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: frozenset[int] = frozenset({0})
) -> None:
    """A table of plain texts; `left`: columns of words, the others are numbers."""
    with table(title):
        for number, row in enumerate([columns, *rows]):
            with ui.element("tr"):
                for place, cell in enumerate(row):
                    with ui.element("td" if number else "th").classes("" if place in left else "number"):
                        text(cell)


def show_statistics(found: Statistics, rules: Rules) -> None:
    """Each rule of the file, then those that only stand in alerts; then which fire together."""
    since = f", the first of {moment(found.since)} UTC" if found.since is not None else ""
    text(
        f"Of the newest {found.alerts:,} alerts that are kept{since}, with the labels so far. Fires are transactions "
        f"of the last {HOURS} hours on which a rule fired, alerts or not, as far as the console was there to count "
        "them (of those that are no alerts 2,000 a second at most). Of a rule in shadow the alerts are those of other "
        "rules on which it fires too.",
        "soft",
    )
    known = {name for name, _, _ in rules}
    gone = [(name, "not in the file", "") for name in sorted(set(found.found) - known)]
    rows = []
    for name, mode, action in [*rules, *gone]:
        of = found.found.get(name, Found())
        fires = found.fires[name] + found.fires_in_shadow[name]
        rows.append(
            (name, mode, action, f"{fires:,}", f"{of.alerts:,}", f"{of.alone:,}", f"{of.fraud:,}",
             f"{of.genuine:,}", _percent(of.precision), money(of.fraud_money))
        )  # fmt: skip
    columns = ("rule", "mode", "asks for", f"fires, {HOURS} h", "alerts", "alone", "fraud", "genuine", "precision",
               "money found")  # fmt: skip
    plain_table("what the rules find", columns, rows, frozenset({0, 1, 2}))
    if found.together:
        heading(3, "Rules that fire on the same alerts")
        pairs = [
            (a, b, f"{n:,}", f"{n / found.found[a].alerts:.0%}", f"{n / found.found[b].alerts:.0%}")
            for (a, b), n in found.together.most_common(PAIRS)
        ]
        heads = ("rule", "and", "together", "of the first", "of the second")
        plain_table("rules that fire together", heads, pairs, frozenset({0, 1}))


def show_backtest(run: Run) -> None:
    """What a backtest found, or why it found nothing."""
    if run.error:
        text(f"{run.title} of {run.who}, {moment(run.began)} UTC: {run.error}", "fraud backtest-state")
        return
    if run.ended is None:
        text(f"{run.title} of {run.who} is under way since {moment(run.began)} UTC.", "backtest-state")
        return
    result: dict[str, Any] = run.result
    text(
        f"{run.title} of {run.who}, {moment(run.began)} UTC, took {run.ended - run.began:.0f} s. Each side starts with "
        "empty profiles at the first transaction that is read.",
        "backtest-state",
    )
    for grid in result["grids"]:
        heading(3, grid["title"])
        plain_table("backtest", grid["columns"], grid["rows"], frozenset(grid["left"]))
    for note in result["notes"]:
        text(note, "soft")


def _percent(share: float | None) -> str:
    return "no label" if share is None else f"{share:.1%}"
