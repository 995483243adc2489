"""A user's last payments over time, as a chart and as a table."""

from collections.abc import Sequence
from typing import Any

from nicegui import ui

from console.pages.charts import chart
from console.pages.frame import table, text
from console.records import Payment
from console.shown_text import moment, money


def show_time_line(payments: Sequence[Payment]) -> None:
    """Payments, the newest last."""

    def drawn(name: str, fraudulent: bool, color: str) -> dict[str, Any]:
        points = [[each.at * 1000, each.amount] for each in payments if each.fraudulent is fraudulent]
        return {
            "type": "scatter", "name": name, "data": points, "symbolSize": 10, "itemStyle": {"color": color},
        }  # fmt: skip

    chart(
        {
            "legend": {"top": 0},
            "grid": {"left": 60, "right": 15, "bottom": 30},
            "series": [drawn("others", False, "#7a8699"), drawn("alerts", True, "#d0342c")],
        },
        "amounts over time; the table below says the same",
        xAxis={"type": "time", "splitLine": {"show": False}},
        yAxis={"type": "value"},
    )
    with table("the last transactions") as made:
        made.classes("time-line")
        _row("th", ["time (UTC)", "amount", "merchant", "location", "device", "decision"])
        for each in reversed(payments):
            decision = "alert" if each.fraudulent else ""
            _row("td", [moment(each.at), money(each.amount), each.merchant, each.location, each.device, decision])


def _row(tag: str, cells: Sequence[str]) -> None:
    with ui.element("tr"):
        for place, cell in enumerate(cells):
            with ui.element(tag).classes("number" if place == 1 else ""):
                text(cell, "fraud" if place == 5 and tag == "td" else "")
