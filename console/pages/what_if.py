"""What another threshold would have given on the last days, before it is put in service."""

import asyncio
from typing import Any, Final

from nicegui import ui

from console import what_if
from console.audit import note_down
from console.database import Connection
from console.pages.frame import Desk, may, part, session_here, text
from console.pages.rules_tables import plain_table
from console.programs import Run
from console.shown_text import moment, shown
from dataflow.errors import UserError

SECONDS: Final = 0.5
WHAT_IF, MOVE = "what if", "move"


class WhatIf:
    """The part of the overview where a threshold is tried."""

    def __init__(self, desk: Desk):
        self._desk = desk
        self._session = session_here()
        self._drawn: Any = None
        with part("What if: another threshold"):
            text(
                "Computed from the decisions of the model in service that stand on "
                f"{desk.settings.alerts_topic} and {desk.settings.classified_topic}, with its own score of each, and "
                f"from the labels on {desk.settings.feedback_topic}, those given here among them. Nothing is decided "
                "anew: the rules and the profiles count as they were. Frauds that nobody has labelled are not known, "
                "so a lower threshold may find more than is said here.",
                "soft",
            )
            with ui.element("div").classes("bar-of-tools"):
                self._kind = ui.select({"at": "Score from", "alerts-per-day": "Alerts a day"}, value="at",
                                       label="Try").props("dense outlined")  # fmt: skip
                self._value = ui.number("Value", value=0.5, min=0).props("dense outlined")
                self._days = ui.select({1: "the last day", 3: "3 days", 7: "7 days", 30: "30 days"}, value=7,
                                       label="on").props("dense outlined")  # fmt: skip
                ui.button("Try", on_click=self._try).props("outline")
            self._found = ui.element("div").props("role=status")
        ui.timer(SECONDS, self._look, immediate=True)

    def _try(self) -> None:
        if not may("rules"):
            return
        kind: what_if.Kind = self._kind.value
        value = float(self._value.value or 0.0)
        if kind == "at" and not 0 <= value <= 1:
            ui.notify("A score lies between 0 and 1.", color="warning")
            return
        asked = what_if.trial(self._desk.settings, kind, value, float(self._days.value))
        title = f"The trial of {'a score from' if kind == 'at' else 'alerts a day,'} {value:g}"
        self._start(WHAT_IF, title, asked)

    def _start(self, kind: str, title: str, asked: Any) -> None:
        try:
            self._desk.programs.start(kind, self._session.analyst, title, what_if.MODULE, lambda _: asked)
        except UserError as error:
            ui.notify(shown(error), color="warning")

    def _look(self) -> None:
        if not self._session.may("look"):
            return
        tried, moved = self._desk.programs.last(WHAT_IF), self._desk.programs.last(MOVE)
        state = [(run.began, run.ended) for run in (tried, moved) if run is not None]
        if state == self._drawn:
            return
        self._drawn = state
        self._found.clear()
        with self._found:
            if tried is not None:
                self._show(tried)
            if moved is not None:
                text(_said(moved), "fraud" if moved.error else "soft")

    def _show(self, run: Run) -> None:
        text(_said(run), "fraud" if run.error else "soft")
        if run.result is None:
            return
        figures = run.result
        text(f"{figures['after']['measured_on']}; {figures['frauds']:,} known frauds; model {figures['model']}", "soft")
        plain_table("what if", ("", "in service", "tried"), what_if.rows(figures), frozenset({0}))
        for note in figures["notes"]:
            text(note, "soft")
        threshold = float(figures["after"]["alert"])
        ui.button(f"Put {threshold:.4f} in service", on_click=lambda: self._move(threshold)).props("outline")

    async def _move(self, threshold: float) -> None:
        if not may("rules"):
            return
        who, now = self._session.analyst, self._desk.store.clock()

        def change(connection: Connection) -> None:
            note_down(connection, now, who, "asked for another threshold", None, None, f"{threshold:.6g}")

        await asyncio.to_thread(self._desk.store.database.write, change)
        self._start(MOVE, f"The move to a score from {threshold:.4f}", what_if.move(self._desk.settings, threshold))


def _said(run: Run) -> str:
    begin = f"{run.title} by {run.who}, {moment(run.began)} UTC"
    if run.error:
        return f"{begin}: {run.error}"
    return f"{begin}: {'done' if run.ended is not None else 'under way'}"
