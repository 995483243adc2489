"""What can be done with a case, by its buttons and keys."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import msgspec
from nicegui import ui

from console.access.sessions import Session
from console.cases import Outcome
from console.database import Row
from console.pages.alert_graph import NAMES
from console.pages.frame import Desk, act, may
from console.shown_text import shown

_LABELS: Final[dict[str, tuple[Outcome, str]]] = {
    "f": ("fraud", "negative"),
    "g": ("genuine", "positive"),
    "u": ("unsure", "grey-8"),
}
"""What each key says, and the colour of its button."""


class CaseTools:
    """The buttons and keys of one browser's view of a case; `changed` is called once one has changed something."""

    def __init__(self, desk: Desk, number: int, session: Session, changed: Callable[[], None]):
        self._desk = desk
        self._number = number
        self._session = session
        self._changed = changed
        self._alert: Row | None = None
        self._holder = ""
        with ui.element("div").classes("bar-of-tools"):
            self._note = ui.input("Note").props("dense outlined").classes("case-note").style("flex: 1")
            self._all = ui.checkbox("all alerts of the case", value=True)
            for found, color in _LABELS.values():
                ui.button(found.capitalize(), on_click=lambda f=found: self._label(f)).props(f"color={color}")
        store = desk.store
        with ui.element("div").classes("bar-of-tools"):
            ui.button("Take", on_click=lambda: self._act(store.take)).props("outline")
            self._over = ui.button("Take over", on_click=lambda: self._act(store.take_over, self._holder))
            self._over.props("outline")
            self._to = ui.input("Hand over to").props("dense outlined")
            ui.button("Hand over", on_click=self._hand_over).props("outline")
            ui.button("Give back", on_click=lambda: self._act(store.hand_over, "")).props("outline")
            ui.button("Close", on_click=lambda: self._act(store.close_case)).props("outline")
            self._kind = ui.select({"user": "user", **dict(NAMES)}, value="user", label="Suppress")
            self._hours = ui.select({1: "an hour", 24: "a day", 168: "a week"}, value=1, label="for")
            for each in (self._kind, self._hours):
                each.props("dense outlined")
            ui.button("Suppress", on_click=self._suppress).props("outline")
            ui.button("Next case", on_click=lambda: self._go(1)).props("outline")
        ui.label(
            "f fraud, g genuine, u unsure, a take, c close, / note, j the next case and k the one before, in the order "
            "of the queue as you left it."
        ).classes("soft")
        ui.on("case_key", self._key)

    def show(self, alert: Row, holder: str) -> None:
        """Which alert of the case is shown, and who has the case or has closed it; empty: nobody."""
        self._alert, self._holder = alert, holder
        self._over.set_visibility(bool(holder) and holder != self._session.analyst)

    async def _key(self, event: Any) -> None:
        match event.args:
            case "j":
                await self._go(1)
            case "k":
                await self._go(-1)
            case "a":
                await self._act(self._desk.store.take)
            case "c":
                await self._act(self._desk.store.close_case)
            case key if key in _LABELS:
                await self._label(_LABELS[key][0])

    async def _go(self, step: int) -> None:
        """Opens the case so many places on in the queue as it was left; its first where this one has left it."""
        if not may("look"):
            return
        view = msgspec.structs.replace(self._session.view_as_asked(), group="user")
        numbers = [each["number"] for each in (await asyncio.to_thread(self._desk.store.page, view)).rows]
        place = numbers.index(self._number) + step if self._number in numbers else 0
        if 0 <= place < len(numbers):
            ui.navigate.to(f"/case/{numbers[place]}")
        else:
            ui.notify(f"The queue as you left it has no case {'after' if step > 0 else 'before'} this one.")

    async def _label(self, found: Outcome) -> None:
        store, note = self._desk.store, (self._note.value or "").strip()[:2000]
        if self._all.value:
            done = await act(store.label_case, self._number, found, self._session.analyst, note)
        elif self._alert is not None:
            done = await act(store.label, [self._alert["number"]], found, self._session.analyst, note)
        else:  # the case is not kept (any more)
            return
        if done:
            self._note.set_value("")
            self._changed()

    async def _act(self, change: Any, *values: Any) -> None:
        if await act(change, self._number, self._session.analyst, *values):
            self._changed()

    async def _hand_over(self) -> None:
        to = " ".join((self._to.value or "").split())[:64]
        if not to:
            ui.notify("Say who is to have the case.", color="warning")
            return
        if self._desk.analysts is not None and to not in self._desk.analysts:
            ui.notify(f"There is no user {shown(to)}.", color="warning")
            return
        await self._act(self._desk.store.hand_over, to)

    async def _suppress(self) -> None:
        if self._alert is None:
            return
        kind = self._kind.value
        if not (name := self._alert[kind]):
            ui.notify(f"This alert has no {NAMES[kind]}.", color="warning")
        elif await act(
            self._desk.store.suppress, kind, name, self._hours.value * 3600.0, self._session.analyst, self._number
        ):
            self._changed()
