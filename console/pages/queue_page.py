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
from console.pages.suppressed_part import SuppressedPart
from console.shown_text import shown
from console.view import View

CHOICES_SECONDS: Final = 5.0
"""Between two looks for rules and scenarios that are new."""
HEARD_SECONDS: Final = 30.0
"""Between two times that a screen reader is told how many cases there are: they change all the time."""
AWAY_SECONDS: Final = 1.0
"""Until a look that failed is tried again."""

_NUMBER: Final = {"type": "rightAligned"}
_CASES: Final = [
    {"headerName": "Score", "field": "score", "width": 85, **_NUMBER},
    {"headerName": "Asks for", "field": "action", "width": 90},
    {"headerName": "User", "field": "user", "width": 130},
    {"headerName": "Why", "field": "why", "flex": 1, "minWidth": 240, "tooltipField": "why"},
    {"headerName": "Alerts", "field": "alerts", "width": 80, **_NUMBER},
    {"headerName": "Amount", "field": "amount", "width": 105, **_NUMBER},
    {"headerName": "Merchant", "field": "merchant", "width": 155},
    {"headerName": "Last alert (UTC)", "field": "last", "width": 165},
    {"headerName": "State", "field": "state", "width": 150},
]
_GROUPS: Final = [
    {"headerName": "Score", "field": "score", "width": 90, **_NUMBER},
    {"headerName": "Shared", "field": "user", "flex": 1, "minWidth": 200},
    {"headerName": "Cases", "field": "cases", "width": 90, **_NUMBER},
    {"headerName": "Users", "field": "users", "width": 90, **_NUMBER},
    {"headerName": "Alerts", "field": "alerts", "width": 90, **_NUMBER},
    {"headerName": "Amount", "field": "amount", "width": 120, **_NUMBER},
    {"headerName": "Last alert (UTC)", "field": "last", "width": 180},
]
_ORDER: Final = {"headerName": "", "field": "order", "hide": True, "sort": "desc"}


class QueuePage:
    """One browser's queue."""

    def __init__(self, desk: Desk):
        self._desk = desk
        self._shown = Shown()
        self._groups: dict[str, str] = {}  # names of the groups that were found last, by their ids
        self._seen = -1  # the store's number of changes that is shown
        self._paused = False
        self._busy = False
        self._fields: dict[str, Any] = {}  # the elements by what of the view they say
        self._not_before = 0.0
        self._heard = 0.0
        with frame(desk, "Queue") as session:
            self._session = session
            self._view = session.view_as_asked()
            self._tools()
            self._count = ui.label().classes("soft queue-count")
            self._status = ui.label().classes("heard").props('role="status"')
            self._place = ui.element("div").classes("w-full")
            self._make_grid()
            ui.label(
                "j k or arrows move, Enter opens, f fraud, g genuine, a take, c close, p pause, / search. "
                "f and g label the alerts of the case that have no label yet."
            ).classes("soft")
            SuppressedPart(desk, session)
        ui.on("queue_key", self._key)
        ui.timer(LOOK_SECONDS, self._look)
        ui.timer(CHOICES_SECONDS, self._name_choices)

    def _tools(self) -> None:
        with ui.element("div").classes("bar-of-tools queue-tools").props('role="search"') as tools:
            self._typed("Search", "search").classes("queue-search")
            self._choice("Order", {"newest": "newest first", "riskiest": "riskiest first"}, "order")
            self._pause = ui.button("Pause", on_click=self._turn_pause).props("outline")
            # On a phone the queue is to be seen, too: the filters are behind this button there.
            self._unfold = ui.button(on_click=lambda: self._turn_fold(tools))
            self._unfold.props("outline aria-expanded=false").classes("unfold")
            self._choice("Show", {each: each for each in ("waiting", "mine", "closed", "suppressed")}, "state")
            self._choice("Group by", {each: "address" if each == "ip" else each for each in PIVOTS}, "group")
            self._rules = self._choice("Reason", {"": "all"}, "rule")
            self._scenarios = self._choice("Scenario", {"": "all"}, "scenario")
            self._name_choices()
            self._choice("Asks for", {"": "any", "review": "review", "block": "block"}, "action")
            self._typed("Merchant", "merchant")
            for label, field in (("Amount from", "at_least"), ("Amount to", "at_most"), ("Score from", "score_from")):
                self._fields[field] = ui.number(
                    label, value=getattr(self._view, field), on_change=lambda e, f=field: self._set(**{f: e.value})
                ).props("dense outlined clearable debounce=250").style("width: 7rem")  # fmt: skip
            ui.button("Clear", on_click=self._clear).props("flat")
        self._count_filters()

    def _turn_fold(self, tools: ui.element) -> None:
        tools.classes(toggle="unfolded")
        self._unfold.props(f"aria-expanded={'true' if 'unfolded' in tools.classes else 'false'}")

    def _count_filters(self) -> None:
        """Has the button say how many filters are set: folded, they are not seen."""
        behind = set(self._fields) - {"search", "order"}
        set_now = sum(getattr(self._view, field) != getattr(View(), field) for field in behind)
        self._unfold.set_text(f"Filters ({set_now})" if set_now else "Filters")

    def _typed(self, label: str, field: str) -> ui.input:
        made = ui.input(
            label, value=getattr(self._view, field), on_change=lambda e: self._set(**{field: e.value or ""})
        )
        self._fields[field] = made.props("dense outlined clearable debounce=250").style("width: 9.5rem")
        return made

    def _choice(self, label: str, options: dict[str, str], field: str) -> ui.select:
        value = getattr(self._view, field)
        made = ui.select(
            options | ({} if value in options else {value: shown(value)}), label=label, value=value,
            on_change=lambda e: self._set(**{field: e.value}),
        )  # fmt: skip
        self._fields[field] = made.props("dense outlined options-dense")
        return made

    def _clear(self) -> None:
        for field, element in self._fields.items():
            element.set_value(getattr(View(), field))

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
        self._session.view = msgspec.structs.replace(before, **changes)
        self._view = self._session.view_as_asked()
        self._count_filters()
        self._seen, self._not_before, self._heard = -1, 0.0, 0.0
        if self._view.group != before.group:
            self._make_grid()

    def _turn_pause(self) -> None:
        self._paused = not self._paused
        self._pause.set_text("Go on" if self._paused else "Pause")
        self._seen, self._heard = -1, 0.0

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
        if self._view.analyst != self._session.analyst:  # who says to be somebody else: "mine" is another's
            self._set()
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
            counted = self._counted(page)
            self._count.set_text(counted)
            if time.monotonic() - self._heard >= HEARD_SECONDS:
                self._heard = time.monotonic()
                self._status.set_text(counted)
        finally:
            self._busy = False

    def _counted(self, page: queue_view.Page) -> str:
        count = f"at least {page.count:,}" if page.more else f"{page.count:,}"
        things = f"groups of the newest {queue_view.GROUPED:,} alerts"
        if self._view.group == "user":
            things = "case" if page.count == 1 and not page.more else "cases"
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
        elif key == "c":
            if await act(self._desk.store.close_case, int(name), self._session.analyst):
                ui.notify(f"Case {name} is closed.")
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
            ui.label(shown(f"{self._view.group} {name}: {len(cases)} case{'' if len(cases) == 1 else 's'}")).classes(
                "plain"
            )
            for case in cases[:50]:
                ui.link(f"Case {case}", f"/case/{case}")
