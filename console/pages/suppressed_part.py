"""What analysts have suppressed for now: else a mistake in it stays unseen until it ends."""

import asyncio
from typing import Any, Final

from nicegui import ui

from console.access.sessions import Session
from console.cases import Pivot
from console.pages.frame import Desk, act, text
from console.shown_text import moment

SECONDS: Final = 5.0
LISTED: Final = 100


class SuppressedPart:
    """One browser's view of it."""

    def __init__(self, desk: Desk, session: Session):
        self._desk = desk
        self._session = session
        self._shown: list[tuple[Any, ...]] = []
        self._place = ui.expansion("Suppressed for now: 0").classes("w-full suppressions")
        ui.timer(SECONDS, self._look, immediate=True)

    async def _look(self) -> None:
        if not self._session.may("look"):
            return
        found = [tuple(row) for row in await asyncio.to_thread(self._desk.store.suppressions)]
        if found == self._shown:
            return
        self._shown = found
        self._place.set_text(f"Suppressed for now: {len(found):,}")
        self._place.clear()
        with self._place:
            for kind, name, until, analyst in found[:LISTED]:
                with ui.element("div").classes("bar-of-tools"):
                    text(f"{'address' if kind == 'ip' else kind} {name}, until {moment(until)} UTC, by {analyst}")
                    ui.button("Lift", on_click=lambda k=kind, n=name: self._lift(k, n)).props("flat dense")

    async def _lift(self, kind: Pivot, name: str) -> None:
        if await act(self._desk.store.lift, kind, name, self._session.analyst):
            await self._look()
