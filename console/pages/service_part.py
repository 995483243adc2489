"""The part of the overview that says how the flow serves."""

import asyncio
import math
from typing import Final

from nicegui import ui

from console.access.sessions import Session
from console.pages.frame import Desk, part, text
from console.service import Figures, Promise
from dataflow.events.transaction import DAY

SECONDS: Final = 2.0


class ServicePart:
    """One browser's view of it."""

    def __init__(self, desk: Desk, session: Session):
        self._desk = desk
        self._session = session
        self._rows: list[tuple[str, str]] = []
        self._busy = False
        with part("How the flow serves"):
            self._place = ui.element("div").classes("facts")
        ui.timer(SECONDS, self._look, immediate=True)

    async def _look(self) -> None:
        if self._busy or not self._session.may("look"):  # a flow that does not answer takes its time
            return
        self._busy = True
        try:
            store, service = self._desk.store, self._desk.service
            figures = await asyncio.to_thread(lambda: service.figures(store.database.read()))
        finally:
            self._busy = False
        rows = rows_of(figures)
        if rows == self._rows:
            return
        self._rows = rows
        self._place.clear()
        with self._place:
            for name, said in rows:
                ui.label(name).classes("soft")
                text(said)


def rows_of(figures: Figures) -> list[tuple[str, str]]:
    """What is said: names and values."""
    flow, promise, newest = figures.flow, figures.promise, figures.newest
    rows = []
    if flow.missing:
        rows.append(("flow", f"lag and latency are not known: CONSOLE_FLOW_METRICS does not answer ({flow.missing})"))
    else:
        lag = "no broker answers it" if math.isnan(flow.lag) else _behind(int(flow.lag))
        rows.append(("flow", lag))
        rows.append(
            (
                "record to decision",
                f"p50 {_within(flow.p50, flow.most)}, p99 {_within(flow.p99, flow.most)}, "
                f"{'since its start' if flow.since_start else 'the last minute'}",
            )
        )
    rows.append(("console", _behind(figures.behind)))
    if newest.alerts:
        rows.append(("event to alert", _event_to_alert(newest.decided_after)))
        rows.append(("alert to console", _both(newest.stored_after)))
        rows.append(("rules in service", _versions(newest.ruleset_versions)))
        rows.append(("model in service", _versions(newest.model_versions)))
    rows.append(("alerts a day", _a_day(newest.a_day)))
    rows.append(("promised", _promised(promise, newest.model_versions, newest.threshold)))
    return rows


def _behind(messages: int) -> str:
    return f"{messages:,} message{'' if messages == 1 else 's'} behind"


def _both(pair: tuple[float, float]) -> str:
    return f"p50 {_seconds(pair[0])}, p99 {_seconds(pair[1])}"


def _within(value: float, most: float) -> str:
    return f"more than {_seconds(most)}" if value >= most else _seconds(value)


def _seconds(value: float) -> str:
    if math.isnan(value):
        return "not known"
    return f"{value * 1000:.0f} ms" if abs(value) < 1 else f"{value:,.1f} s"


def _event_to_alert(pair: tuple[float, float]) -> str:
    if pair[0] < 0 or pair[0] > DAY:
        return "not told: events are dated by another clock (a simulation's, or a replay's)"
    return _both(pair)


def _versions(found: list[str]) -> str:
    if not found:
        return "alerts do not say"
    return found[0] + (f" (before: {', '.join(found[1:4])})" if found[1:] else "")


def _a_day(count: float | None) -> str:
    return "too few to say" if count is None else f"{count:,.0f} came, by event time"


def _promised(promise: Promise, versions: list[str], threshold: float | None) -> str:
    if promise.missing or promise.alerts_a_day is None:
        return promise.missing or "the model promises nothing"
    found = promise.alerts_a_day
    said = f"{found.value:,.0f} a day ({found.low:,.0f} to {found.high:,.0f}) with alerts from {promise.threshold:.3f}"
    if promise.measured_on:
        said += f", measured on {promise.measured_on}"
    if versions and versions[0] != promise.version:
        return f"{said}; but by the model {promise.version}, which is not in service"
    if threshold is not None and abs(threshold - promise.threshold) > 1e-9:
        return f"{said}; but the newest alert was raised from {threshold:.3f} on"
    return said
