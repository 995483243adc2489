"""The overview: how much comes, which rules raise it, and how right they are, by the labels so far."""

import asyncio
import time
from typing import Any, Final

from nicegui import ui

from console import figures
from console.database import Connection
from console.figures import SCORE_BINS, Precision
from console.labels import count_unconfirmed
from console.pages.charts import chart
from console.pages.frame import Desk, frame, part, table, text
from console.pages.service_part import ServicePart
from console.pages.what_if import WhatIf
from console.shown_text import money, shown

SECONDS: Final = 1.0
SHOWN_MINUTES: Final = 60
LINES: Final = 8
"""In the chart: the rules, or scenarios, with most alerts."""
PACE_SECONDS: Final = 10.0
"""Over which alerts and transactions a second are counted."""


class Pace:
    """How many come a second, from counts that only grow."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def of(self, count: int) -> float:
        """The pace over the last seconds, now that so many have come."""
        now = time.monotonic()
        self._seen = [each for each in self._seen if each[0] > now - PACE_SECONDS] + [(now, count)]
        (begin, first), (end, last) = self._seen[0], self._seen[-1]
        return (last - first) / (end - begin) if end > begin else 0.0


class Overview:
    """One browser's overview."""

    def __init__(self, desk: Desk):
        self._desk = desk
        self._alerts, self._transactions = Pace(), Pace()
        self._big: dict[str, ui.label] = {}
        self._rows: list[tuple[str, ...]] = []  # of the table
        with frame(desk, "Overview") as session:
            self._session = session
            with ui.element("div").classes("tiles").props('aria-live="off"'):
                for name in (
                    "transactions/s", "alerts/s", "alerts", "labelled", "precision", "fraud found", "false alarms",
                    "feedback waiting",
                ):  # fmt: skip
                    with ui.element("div").classes("tile"):
                        self._big[name] = ui.label("").classes("big")
                        ui.label(name).classes("soft")
            with ui.element("div").classes("parts"):
                with part(f"Alerts a minute, the last {SHOWN_MINUTES} minutes"):
                    self._by = ui.select({"rule": "rule", "scenario": "scenario"}, value="rule", label="By")
                    self._by.props("dense outlined options-dense").classes("lines-by").set_visibility(
                        False
                    )  # until one says a scenario
                    self._over_time = _lines()
                ServicePart(desk, session)
                with part("Alerts by score"):
                    self._scores = _bars()
                with part("Precision by rule, of the labels so far"), table("precision by rule") as made:
                    self._table = made
                WhatIf(desk)
        ui.timer(SECONDS, self._look, immediate=True)

    async def _look(self) -> None:
        if not self._session.may("look"):
            return
        totals, precisions, minutes, waiting = await asyncio.to_thread(_read, self._desk, self._by.value)
        everything = precisions[0]
        transactions = totals.get("transactions", {}).get("", (0, 0.0))[0] + everything.alerts
        shown_now = {
            "transactions/s": f"{self._transactions.of(transactions):,.1f}",
            "alerts/s": f"{self._alerts.of(everything.alerts):,.1f}",
            "alerts": f"{everything.alerts:,}",
            "labelled": f"{everything.fraud + everything.genuine:,}",
            "precision": _share(everything),
            "fraud found": money(everything.fraud_money),
            "false alarms": money(everything.genuine_money),
            "feedback waiting": f"{waiting:,}",
        }
        for name, value in shown_now.items():
            self._big[name].set_text(value)
        self._by.set_visibility("scenario" in totals)
        _show_lines(self._over_time, minutes, self._desk.store.clock(), totals.get(self._by.value, {}))
        bins = totals.get("score", {})
        heights = [bins.get(f"{number:02}", (0, 0.0))[0] for number in range(SCORE_BINS)]
        _update(self._scores, self._scores.options["series"][0], heights)
        self._show_table(precisions)

    def _show_table(self, precisions: list[Precision]) -> None:
        rows: list[tuple[str, ...]] = [
            ("all" if not each.rule else each.rule, f"{each.alerts:,}", f"{each.fraud:,}", f"{each.genuine:,}",
             _share(each), money(each.fraud_money), money(each.genuine_money))
            for each in precisions
        ]  # fmt: skip
        if rows == self._rows:
            return
        self._rows = rows
        self._table.clear()
        with self._table:
            for number, row in enumerate(
                [("rule", "alerts", "fraud", "genuine", "precision", "money found", "false"), *rows]
            ):
                with ui.element("tr"):
                    for place, cell in enumerate(row):
                        with ui.element("td" if number else "th").classes("number" if place else ""):
                            text(cell)


def _read(
    desk: Desk, kind: str
) -> tuple[dict[str, dict[str, tuple[int, float]]], list[Precision], dict[str, dict[int, int]], int]:
    connection: Connection = desk.store.database.read()
    since = desk.store.clock() - SHOWN_MINUTES * 60
    waiting = count_unconfirmed(connection)
    return (
        figures.totals(connection), figures.precisions(connection), figures.by_minute(connection, since, kind),
        waiting,
    )  # fmt: skip


def _share(of: Precision) -> str:
    return "no label" if of.share is None else f"{of.share:.1%}"


def _lines() -> ui.echart:
    return chart(
        {
            "tooltip": {"trigger": "axis", "renderMode": "richText"},
            "legend": {"type": "scroll", "top": 0},
            "grid": {"left": 45, "right": 10, "bottom": 30},
            "series": [],
        },
        "alerts a minute by rule, or by scenario",
        xAxis={"type": "time", "splitLine": {"show": False}},
        yAxis={"type": "value", "minInterval": 1},
    )


def _bars() -> ui.echart:
    edges = [f"{number / SCORE_BINS:.2f}" for number in range(SCORE_BINS)]
    return chart(
        {
            "tooltip": {"trigger": "axis", "renderMode": "richText"},
            "grid": {"left": 50, "right": 10, "top": 20, "bottom": 30},
            "series": [{"type": "bar", "name": "alerts", "data": [0] * SCORE_BINS}],
        },
        "how many alerts have which score",
        xAxis={"type": "category", "data": edges},
        yAxis={"type": "value", "minInterval": 1},
    )


def _show_lines(
    lines: ui.echart, minutes: dict[str, dict[int, int]], now: float, totals: dict[str, tuple[int, float]]
) -> None:
    last = int(now // 60)
    shown_minutes = range(last - SHOWN_MINUTES + 1, last + 1)
    chosen = sorted(minutes, key=lambda name: (-totals.get(name, (0, 0.0))[0], name))[:LINES]
    series = [
        {
            "type": "line", "name": shown(name), "showSymbol": False,
            "data": [[minute * 60_000, minutes[name].get(minute, 0)] for minute in shown_minutes],
        }
        for name in chosen
    ]  # fmt: skip
    if lines.options["series"] != series:
        lines.options["series"] = series
        lines.update()


def _update(bars: ui.echart, series: dict[str, Any], data: list[int]) -> None:
    if series["data"] != data:
        series["data"] = data
        bars.update()
