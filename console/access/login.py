"""The page where users log in; the only one that a stranger gets to see."""

import asyncio
from html import escape
from typing import Final
from urllib.parse import parse_qs

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from console import metrics
from console.access.attempts import Attempts
from console.access.guard import LOGIN, cookie, token_of
from console.access.sessions import Sessions
from console.users import Users

LONGEST: Final = 4096
"""Bytes of what the form sends."""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Log in - Redflag</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<style>
body {{ font: 16px system-ui, sans-serif; display: grid; place-items: center; min-height: 90vh; margin: 1rem; }}
form {{ display: grid; gap: .75rem; width: min(20rem, 100%); }}
input, button {{ font: inherit; padding: .5rem; width: 100%; box-sizing: border-box; }}
</style></head><body><main><h1>Redflag</h1>
<form method="post" action="{action}">
<p role="alert">{said}</p>
<label>Name <input name="name" autocomplete="username" autofocus required></label>
<label>Password <input name="password" type="password" autocomplete="current-password" required></label>
<button>Log in</button></form></main></body></html>"""


def add_to(app: FastAPI, users: Users, sessions: Sessions, attempts: Attempts) -> None:
    """Adds the log-in page, and what ends a session."""
    checking = asyncio.Semaphore(2)  # each takes 64 MiB: guesses by the hundred must not take the machine

    @app.get(LOGIN)
    async def show() -> Response:
        return _page("")

    @app.post(LOGIN)
    async def log_in(request: Request) -> Response:
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > LONGEST:
                return _page("That is too long.", 413)
        form = parse_qs(body.decode(errors="replace"))
        name, password = form.get("name", [""])[0], form.get("password", [""])[0]
        keys = (f"address {request.client.host if request.client else ''}", f"name {name[:64]}")
        wait = attempts.wait(*keys)
        if wait > 0:
            return _page(f"Too many failures: try again in {wait:.0f} s.", 429, {"Retry-After": f"{wait + 1:.0f}"})
        attempts.failed(*keys)  # until it is shown otherwise: many at once are many attempts
        async with checking:
            user = await asyncio.to_thread(users.check, name, password)
        if user is None:
            metrics.LOGINS_FAILED.inc()
            return _page("Name or password is wrong.", 403)
        attempts.succeeded(*keys)
        token = sessions.begin(user.name, user.roles)
        return RedirectResponse("/", 303, {"Set-Cookie": cookie(token, request.url.scheme == "https").decode()})

    @app.post("/logout")
    async def log_out(request: Request) -> Response:
        sessions.end(token_of(request.scope))
        return RedirectResponse(LOGIN, 303, {"Set-Cookie": cookie("", request.url.scheme == "https").decode()})


def _page(said: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return HTMLResponse(_PAGE.format(action=LOGIN, said=escape(said)), status, headers)
