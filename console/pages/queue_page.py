"""The queue: cases as alerts come, of which only what changes is sent to the browser."""

import asyncio
import time
from typing import Any, Final

import msgspec
from nicegui import ui

from console import figures, queue_view
from console.cases import PIVOTS, Outcome
from console.pages.frame import LOOK_SECONDS, Desk, act, frame, may
from console.pages.queue_rows import Shown, id_of_group, row_of
from console.shown_text import shown
from console.view import View

CHOICES_SECONDS: Final = 5.0
"""Between two looks for rules and scenarios that are new."""
AWAY_SECONDS: Final = 1.0
"""Until a look that failed is tried again."""

_CASES: Final = [
    {"headerName": "Score", "field": "score", "width": 90},
    {"headerName": "Asks for", "field": "action", "width": 100},
    {"headerName": "User", "field": "user", "width": 150},
    {"headerName": "Why", "field": "why", "flex": 1, "minWidth": 260},
    {"headerName": "Alerts", "field": "alerts", "width": 85},
    {"headerName": "Amount", "field": "amount", "width": 110},
    {"headerName": "Merchant", "field": "merchant", "width": 170},
    {"headerName": "Last alert (UTC)", "field": "last", "width": 170},
    {"headerName": "State", "field": "state", "width": 140},
]
_GROUPS: Final = [
    {"headerName": "Score", "field": "score", "width": 90},
    {"headerName": "Shared", "field": "user", "flex": 1, "minWidth": 200},
    {"headerName": "Cases", "field": "cases", "width": 90},
    {"headerName": "Users", "field": "users", "width": 90},
    {"headerName": "Alerts", "field": "alerts", "width": 90},
    {"headerName": "Amount", "field": "amount", "width": 120},
    {"headerName": "Last alert (UTC)", "field": "last", "width": 180},
]
_ORDER: Final = {"headerName": "", "field": "order", "hide": True, "sort": "desc"}


class QueuePage:
    """One browser's queue."""

    def __init__(self, desk: Desk):
        self._desk = desk
        self._view = View()
        self._shown = Shown()
        self._groups: dict[str, str] = {}  # names of the groups that were found last, by their ids
        self._seen = -1  # the store's number of changes that is shown
        self._paused = False
        self._busy = False
        self._not_before = 0.0
        with frame(desk, "Queue") as session:
            self._session = session
            self._tools()
            self._count = ui.label().classes("soft").props('role="status"')
            self._place = ui.element("div").classes("w-full")
            self._make_grid()
            ui.label(
                "j k move, Enter opens, f fraud, g genuine, a take, p pause, / search. "
                "f and g label the alerts of the case that have no label yet."
            ).classes("soft")
        ui.on("queue_key", self._key)
        ui.timer(LOOK_SECONDS, self._look)
        ui.timer(CHOICES_SECONDS, self._name_choices)

    def _tools(self) -> None:
        with ui.element("div").classes("bar-of-tools").props('role="search"'):
            ui.input("Search", on_change=lambda e: self._set(search=e.value or "")).props(
                "dense outlined clearable debounce=250"
            ).classes("queue-search")
            self._choice("Order", {"newest": "newest first", "riskiest": "riskiest first"}, "order", "newest")
            self._choice(
                "Show", {each: each for each in ("waiting", "mine", "closed", "suppressed")}, "state", "waiting"
            )
            self._choice("Group by", {each: "address" if each == "ip" else each for each in PIVOTS}, "group", "user")
            self._rules = self._choice("Reason", {}, "rule", "")
            self._scenarios = self._choice("Scenario", {}, "scenario", "")
            self._name_choices()
            self._choice("Asks for", {"": "any", "review": "review", "block": "block"}, "action", "")
            ui.input("Merchant", on_change=lambda e: self._set(merchant=e.value or "")).props(
                "dense outlined clearable debounce=250"
            )
            for label, field in (("Amount from", "at_least"), ("Amount to", "at_most"), ("Score from", "score_from")):
                ui.number(label, on_change=lambda e, f=field: self._set(**{f: e.value})).props(
                    "dense outlined clearable debounce=250"
                ).style("width: 8rem")
            self._pause = ui.button("Pause", on_click=self._turn_pause).props("outline")

    def _choice(self, label: str, options: dict[str, str], field: str, value: str) -> ui.select:
        made = ui.select(
            options or {value: "all"}, label=label, value=value, on_change=lambda e: self._set(**{field: e.value})
        )
        return made.props("dense outlined options-dense")

    def _name_choices(self) -> None:
        """Offers the rules and scenarios that alerts have named so far."""
        known = figures.totals(self._desk.store.database.read())
        for choice, kind in ((self._rules, "rule"), (self._scenarios, "scenario")):
            options = {"": "all", **{name: shown(name) for name in sorted(known.get(kind, {}))}}
            if choice.options != options:
                choice.set_options(options)
        self._scenarios.set_visibility("scenario" in known)

    def _set(self, **changes: Any) -> None:
        before = self._view
        self._view = msgspec.structs.replace(
            before, **changes, analyst=self._session.analyst, cards=self._session.may("cards")
        )
        self._seen, self._not_before = -1, 0.0
        if self._view.group != before.group:
            self._make_grid()

    def _turn_pause(self) -> None:
        self._paused = not self._paused
        self._pause.set_text("Go on" if self._paused else "Pause")
        self._seen = -1

    def _make_grid(self) -> None:
        self._shown = Shown()
        self._place.clear()
        columns = _CASES if self._view.group == "user" else _GROUPS
        with self._place:
            self._grid = ui.aggrid(
                {
                    "columnDefs": [*columns, _ORDER],
                    "defaultColDef": {"sortable": False, "resizable": True, "suppressMovable": True},
                    "rowData": [],
                    "rowSelection": {"mode": "singleRow", "checkboxes": False, "enableClickSelection": True},
                    "deltaSort": True,
                    "animateRows": False,
                    "suppressFieldDotNotation": True,
                    "overlayNoRowsTemplate": "<span>Nothing waits here.</span>",
                    ":getRowId": "params => params.data.id",
                },
                auto_size_columns=False,
            ).classes("queue-grid")
        self._grid.on("rowDoubleClicked", lambda e: self._open(e.args["rowId"]), ["rowId"])

    async def _look(self) -> None:
        """Sends what has changed since the last look."""
        store, view = self._desk.store, self._view
        changes = store.changes
        if self._busy or changes == self._seen or (self._paused and self._seen != -1):
            return
        if time.monotonic() < self._not_before or not self._session.may("look"):
            return
        self._busy = True
        try:
            began = time.monotonic()
            self._not_before = began + AWAY_SECONDS  # where the database is away
            page = await asyncio.to_thread(store.page, view)
            # A view that takes long to find (a filter over a million cases) must not keep the machine busy.
            self._not_before = time.monotonic() + 2 * (time.monotonic() - began)
            if view is not self._view:
                return
            if view.group != "user":
                self._groups = {id_of_group(each["name"]): each["name"] for each in page.rows}
            change = self._shown.change_to([row_of(each, view) for each in page.rows])
            self._seen = changes if self._shown.complete else -1
            if change:
                self._grid.run_grid_method("applyTransaction", change)
            self._count.set_text(self._counted(page))
        finally:
            self._busy = False

    def _counted(self, page: queue_view.Page) -> str:
        count = f"at least {page.count:,}" if page.more else f"{page.count:,}"
        things = "cases" if self._view.group == "user" else f"groups of the newest {queue_view.GROUPED:,} alerts"
        paused = "Paused. " if self._paused else ""
        first = f"the {self._view.order} {len(page.rows)} of " if page.count > len(page.rows) else ""
        return f"{paused}{first}{count} {things}"

    async def _key(self, event: Any) -> None:
        key, name = event.args["key"], str(event.args["id"])
        if key == "p":
            self._turn_pause()
        elif key == "Enter":
            self._open(name)
        elif self._view.group != "user":
            ui.notify("Open a group to work its cases.")
        elif key == "a":
            if await act(self._desk.store.take, int(name), self._session.analyst):
                ui.notify(f"Case {name} is yours.")
        else:
            found: Outcome = "fraud" if key == "f" else "genuine"
            if await act(self._desk.store.label_case, int(name), found, self._session.analyst):
                ui.notify(f"Case {name}: {found}.")

    def _open(self, row: str) -> None:
        if not may("look"):
            return
        if self._view.group == "user":
            ui.navigate.to(f"/case/{int(row)}")
            return
        name = self._groups.get(row)
        if name is None:  # it went while it was clicked
            return
        cases = queue_view.cases_of_group(self._desk.store.database.read(), self._view.group, name)
        with ui.dialog(value=True), ui.card():
            ui.label(shown(f"{self._view.group} {name}: {len(cases)} cases")).classes("plain")
            for case in cases[:50]:
                ui.link(f"Case {case}", f"/case/{case}")
