"""What all pages have: who is there, the way from page to page, light and dark."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nicegui import app, ui

from console.access.guard import session_of
from console.access.sessions import Session
from console.cases import ConflictError
from console.database import AwayError, DatabaseError
from console.programs import Programs
from console.recent_payments import RecentPayments
from console.rules.rules_file import RulesFile
from console.service import Service
from console.shown_text import shown
from console.store import Store
from dataflow.settings import Settings

STATIC: Final = "/console-static"
LOOK_SECONDS: Final = 0.1
"""Between two looks for changes, of each open page."""
AGAIN_SECONDS: Final = 5.0
"""Until a page tells again that the database does not answer."""


@dataclass(frozen=True)
class Desk:
    """What all pages work with."""

    store: Store
    payments: RecentPayments
    service: Service
    analysts: frozenset[str] | None  # who may work cases; None: there are no passwords, and everybody names themselves
    settings: Settings
    rules: RulesFile
    logs_out: bool = True  # to log out is the console's matter, and not a proxy's
    programs: Programs = field(default_factory=Programs)


def serve_static() -> None:
    """Serves the style sheet and the script of our own."""
    app.add_static_files(STATIC, Path(__file__).parent / "static")


def session_here() -> Session:
    """The session of the page that is being built, or that was clicked on."""
    request = ui.context.client.request
    found = session_of(request.scope) if request is not None else None
    if found is None:  # the guard lets nobody through without one
        msg = "a page without a session"
        raise RuntimeError(msg)
    return found


def may(role: str) -> bool:
    """Whether whoever clicked has a role; else it tells them."""
    session = session_here()
    if session.may(role):
        return True
    ui.notify(
        "Your session is over: log in again." if not session.roles else f"You lack the role {role!r}.", color="negative"
    )
    return False


async def act(change: Callable[..., Any], *values: Any) -> bool:
    """Does what an analyst asked for, away from the pages' thread; tells them where somebody else was first."""
    if not may("label"):
        return False
    try:
        await asyncio.to_thread(change, *values)
    except ConflictError as error:
        ui.notify(shown(error), color="warning")
        return False
    return True


def _teller() -> Callable[[Exception], None]:
    """Tells whoever looks at a page that the database does not answer, now and then as long as that is so."""
    not_before = 0.0

    def tell(error: Exception) -> None:
        nonlocal not_before
        if isinstance(error, DatabaseError) and time.monotonic() >= not_before:
            not_before = time.monotonic() + AGAIN_SECONDS
            ui.notify(
                "The database does not answer: what you see may be old, and what you just did may not be kept. "
                "The page goes on once it is back.",
                color="negative",
            )

    return tell


class OneLine(logging.Filter):
    """Has NiceGUI log an error of the database, which every page may have ten times a second, in one line or not."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether, and how, this is logged."""
        logged = record.exc_info[1] if record.exc_info else None
        error = logged or record.msg  # it logs some as the message, and some besides
        if isinstance(error, DatabaseError):
            record.msg, record.args, record.exc_info, record.exc_text = "a page: %s", (error,), None, None
        return not isinstance(error, AwayError)  # that the database tells itself, once


async def is_dark(session: Session) -> bool:
    """Whether the page is dark: as the session says, else as the browser wishes.

    Raises:
        TimeoutError: the browser is gone.
    """
    if session.dark is not None:
        return session.dark
    return bool(await ui.run_javascript("window.matchMedia('(prefers-color-scheme: dark)').matches", timeout=10))


@contextmanager
def frame(desk: Desk, title: str) -> Iterator[Session]:
    """A page's head; its body is built within."""
    session = session_here()
    ui.page_title(f"{title} - Redflag")
    ui.add_head_html(
        f'<link rel="stylesheet" href="{STATIC}/style.css"><script defer src="{STATIC}/keyboard.js"></script>'
    )
    ui.on_exception(_teller())
    ui.colors(primary="#1d4f91", negative="#b3261e", positive="#1b6e3a")  # white on them has a contrast above 4.5
    dark = ui.dark_mode(session.dark)

    async def turn() -> None:
        session.dark = dark.value = not await is_dark(session)

    with ui.header().classes("items-center"):
        ui.label("Redflag").classes("brand")
        with ui.element("nav").props('aria-label="pages"'):
            ui.link("Queue", "/")
            ui.link("Overview", "/overview")
            ui.link("Rules", "/rules")
        ui.space()
        if desk.analysts is not None:
            ui.label(shown(session.analyst))
        if desk.analysts is not None and desk.logs_out:
            with ui.element("form").props('method="post" action="/logout"'):
                ui.button("Log out").props("flat dense color=white type=submit")
        if desk.analysts is None:

            def rename(event: Any) -> None:
                session.analyst = " ".join(str(event.value or "").split())[:64] or session.analyst

            ui.input("You are", value=session.analyst, on_change=rename).props("dense dark").classes("analyst")
        ui.button("Light or dark", on_click=turn).props("flat dense color=white")
    with ui.element("main").style("display: grid; gap: .75rem; min-width: 0; width: 100%"):
        yield session


def text(value: object, classes: str = "", cards: bool = False) -> ui.label:
    """A text of a transaction: only ever text; with `cards` the numbers of cards stay whole."""
    return ui.label(shown(value, cards)).classes(f"plain {classes}")


@contextmanager
def part(title: str) -> Iterator[None]:
    """A titled part of a page."""
    with ui.element("section").classes("part"):
        heading(2, title)
        yield


@contextmanager
def table(title: str) -> Iterator[ui.element]:
    """A table that scrolls by itself where the page is narrow, also by keyboard; its rows are built within."""
    scrolling = ui.element("div").classes("scroll")
    scrolling.props.update({"tabindex": "0", "role": "region", "aria-label": title})
    with scrolling, ui.element("table").classes("table") as made:
        yield made


def heading(level: int, title: str) -> None:
    """A heading."""
    with ui.element(f"h{level}"):
        text(title)
