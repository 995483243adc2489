"""How a case hangs together with others: a small graph of what its alert shares with other users' alerts."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from nicegui import ui

from console.cases import Pivot
from console.database import Row
from console.pages.charts import chart
from console.pages.frame import text
from console.shown_text import money, shown

NAMES: Final[dict[Pivot, str]] = {"device": "device", "merchant": "merchant", "ip": "address"}
CASES: Final = 12
"""Other cases that are drawn at most, those that share most first; the list beside has all."""
LONGEST: Final = 22
"""Characters of a name in the graph; the list beside has all of it."""
WIDTH: Final = 0.85
"""Of the graph, as a part of its height: with the names beside it a phone has room for that."""
UNIT: Final = 180.0
"""About the graph's height in pixels: ECharts rounds a level line's ends to whole numbers before it scales them."""
_KINDS: Final = ("this case", "shared", "other case", "labelled fraud")
COLORS: Final = ("#3563c9", "#7a8699", "#9a6b00", "#d0342c")


def nodes_and_links(
    alert: Row, siblings: Mapping[Pivot, Sequence[Row]]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """The graph as ECharts takes it: this case to the left, what is shared in the middle, other cases to the right.

    Nodes are known by ids of our own making; texts of transactions are only ever their names.
    """
    shared_by: dict[int, list[Pivot]] = {}
    users: dict[int, str] = {}
    frauds = set()
    for pivot, rows in siblings.items():
        for row in rows:
            case = row["case_number"]
            pivots = shared_by.setdefault(case, [])
            if pivot not in pivots:
                pivots.append(pivot)
            users[case] = row["user"]
            if row["label"] == "fraud":
                frauds.add(case)
    others = sorted(shared_by, key=lambda case: (-len(shared_by[case]), -case))[:CASES]
    drawn = [pivot for pivot in siblings if any(pivot in shared_by[case] for case in others)]
    nodes = [_corner(0.0, 0.0), _corner(WIDTH, 1.0), _node("this", alert["user"], 0.0, 0.5, 0)]
    for place, pivot in enumerate(drawn):
        name = f"{NAMES[pivot]} {alert[pivot]}"
        nodes.append(_node(pivot, name, WIDTH / 2, (place + 0.5) / len(drawn), 1))
    for place, case in enumerate(others):
        name = f"case {case}: {users[case]}"
        nodes.append(_node(f"case {case}", name, WIDTH, (place + 0.5) / len(others), 3 if case in frauds else 2))
    links = [{"source": "this", "target": pivot} for pivot in drawn]
    links += [
        {"source": pivot, "target": f"case {case}"} for case in others for pivot in shared_by[case] if pivot in drawn
    ]
    return nodes, links


def _node(key: str, name: str, x: float, y: float, category: int) -> dict[str, Any]:
    whole = shown(name)
    label = whole if len(whole) <= LONGEST else f"{whole[: LONGEST - 1]}…"
    return {
        "id": key, "name": label, "x": x * UNIT, "y": y * UNIT, "category": category,
        "symbolSize": 9 if category == 1 else 14,
        "label": {"position": "right" if category > 1 else "top" if category == 1 else "bottom"},
    }  # fmt: skip


def _corner(x: float, y: float) -> dict[str, Any]:
    """An unseen node: ECharts draws what lies between the outermost, so these keep the proportions."""
    return {
        "id": f"corner {y:g}", "name": "", "x": x * UNIT, "y": y * UNIT, "category": 1, "symbol": "none", "silent": True
    }  # fmt: skip


def show_shared(alert: Row, siblings: Mapping[Pivot, Sequence[Row]]) -> None:
    """Draws the graph, and lists the same."""
    if not siblings:
        ui.label("None.").classes("soft")
        return
    show_graph(alert, siblings)
    for kind, rows in siblings.items():
        text(f"the {NAMES[kind]} {alert[kind]}", "soft")
        for row in rows:
            with ui.element("div").classes("shared-alert"):
                ui.link(f"Case {row['case_number']}", f"/case/{row['case_number']}")
                label = f", {row['label']}" if row["label"] else ""
                text(f"{row['user']}: {money(row['amount'])}, score {row['score']:.3f}{label}")


def show_graph(alert: Row, siblings: Mapping[Pivot, Sequence[Row]]) -> None:
    """Draws the graph; a click on another case opens it."""
    nodes, links = nodes_and_links(alert, siblings)

    def opened(event: Any) -> None:
        key = str((event.args.get("data") or {}).get("id", ""))
        if key.startswith("case ") and key.removeprefix("case ").isdecimal():
            ui.navigate.to(f"/case/{key.removeprefix('case ')}")

    made = chart(
        {
            "legend": {"bottom": 0, "data": list(_KINDS)},
            "tooltip": {"show": False},
            "series": [
                {
                    "type": "graph",
                    "layout": "none",
                    "data": nodes,
                    "links": links,
                    "left": 40,
                    "top": 25,
                    "bottom": 50,
                    "roam": False,
                    "categories": [
                        {"name": name, "itemStyle": {"color": color}}
                        for name, color in zip(_KINDS, COLORS, strict=True)
                    ],
                    "label": {"show": True, "fontSize": 10},
                    "lineStyle": {"color": "#7a8699", "width": 1.5},
                }
            ],
        },
        "what is shared with which case; the list says the same",
    ).classes("graph")
    # NiceGUI's own event of a point fails for nodes, which have no value.
    made.on("componentClick", opened, ["data"])
