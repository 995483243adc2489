"""Stands before everything that the console serves, pages and sockets alike.

It lets in who has a session, or whom a reverse proxy names (`console.access.proxy`). What changes something (posts, and
the socket over which all clicks come) must come from a page of this console: its `Origin` is the address that is asked.
Where there are no passwords, only names of this machine are answered to, so that no page elsewhere can pretend to be
this console (DNS rebinding).
"""

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final
from urllib.parse import urlsplit

from console import metrics
from console.access.proxy import Proxy, RefusedError
from console.access.sessions import COOKIE, SECONDS, Session, Sessions

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOGIN: Final = "/login"
SOCKET: Final = "/_nicegui_ws/"
SESSION: Final = "redflag.session"
"""Where a request's session stands in its scope."""
NONCE: Final = "redflag.nonce"
THIS_MACHINE: Final = frozenset(("localhost", "127.0.0.1", "::1"))
NOBODY: Final = "analyst"
"""Who works where there are no passwords, until they give themselves another name."""

# Vue compiles its templates as the page runs, which asks for 'unsafe-eval'; inline scripts need the page's own nonce.
_POLICY = (
    "default-src 'self'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),  # with no-referrer a form would say `Origin: null`, and be refused
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Guard:
    """An ASGI application before the console's."""

    def __init__(self, app: App, sessions: Sessions, passwords: bool, proxy: Proxy | None = None):
        """`passwords`: there are users, who log in, or whom the proxy lets in where there is one."""
        self._app = app
        self._sessions = sessions
        self._passwords = passwords
        self._proxy = proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers by itself what is not let through."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refusal(scope, headers)
        session: Session | None = None
        if not refused and self._proxy is not None:
            try:
                user = self._proxy.user(scope)
                session = self._sessions.of_proxy(user.name, user.roles)
            except RefusedError as error:
                refused = str(error)
        if refused:
            metrics.REFUSED.inc()
            await _refuse(scope, send, 403, refused)
            return
        if self._proxy is None:
            session = self._sessions.find(_cookie(headers))
        begun = ""
        if session is None and not self._passwords and scope["type"] == "http":
            begun = self._sessions.begin(NOBODY)
            session = self._sessions.find(begun)
        if session is None and scope["path"] != LOGIN:
            if scope["type"] == "http" and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
                await _answer(send, 303, b"", ((b"location", LOGIN.encode()),))
            else:
                await _refuse(scope, send, 401, "log in first")
            return
        scope[SESSION] = session
        scope[NONCE] = secrets.token_urlsafe(16)
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
        else:
            await self._app(scope, receive, _Response(send, scope[NONCE], begun, scope["scheme"] == "https").send)

    def _refusal(self, scope: Scope, headers: MutableMapping[str, str]) -> str:
        """Why this is not let through, whoever asks; "" if it is."""
        host = headers.get("host", "")
        if not self._passwords and _name(host) not in THIS_MACHINE:
            return "this console answers to names of this machine only"
        if scope["type"] == "http" and scope["path"].startswith(SOCKET):
            return "only a web socket is served here"
        changes = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD")
        origin = headers.get("origin")
        if (changes or origin is not None) and (origin is None or urlsplit(origin).netloc != host or not host):
            return "this comes from another page than the console's"
        return ""


class _Response:
    """Adds what each answer must have; gives inline scripts of a page its nonce."""

    def __init__(self, send: Send, nonce: str, begun: str, https: bool):
        self._send = send
        self._nonce = nonce
        self._begun = begun
        self._https = https
        self._start: MutableMapping[str, Any] | None = None  # of a page, held back until its body is whole
        self._body = b""

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Takes the place of the server's `send`."""
        if message["type"] == "http.response.start":
            headers = [*message["headers"], *_HEADERS]
            headers.append((b"content-security-policy", _POLICY.format(nonce=self._nonce).encode()))
            if self._begun:
                headers.append((b"set-cookie", cookie(self._begun, self._https)))
            message = {**message, "headers": headers}
            if dict(message["headers"]).get(b"content-type", b"").startswith(b"text/html"):
                message["headers"].append((b"cache-control", b"no-store"))
                self._start = message
                return
        elif self._start is not None and message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if message.get("more_body"):
                return
            start, self._start = self._start, None
            # Texts of transactions hold no "<" in a page: NiceGUI escapes them. So these are the page's own scripts.
            body = self._body.replace(b"<script", b'<script nonce="%b"' % self._nonce.encode())
            start["headers"] = [each for each in start["headers"] if each[0] != b"content-length"]
            start["headers"].append((b"content-length", str(len(body)).encode()))
            await self._send(start)
            message = {**message, "body": body}
        await self._send(message)


def cookie(token: str, https: bool) -> bytes:
    """The header that gives a session's cookie to a browser; with "" it takes it back."""
    age = int(SECONDS) if token else 0
    secure = "; Secure" if https else ""
    return f"{COOKIE}={token}; Max-Age={age}; Path=/; HttpOnly; SameSite=Strict{secure}".encode()


def _cookie(headers: MutableMapping[str, str]) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def token_of(scope: Scope) -> str:
    """The cookie's value that came with a request."""
    return _cookie({name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]})


def session_of(scope: Scope) -> Session | None:
    """The session that a request came with."""
    session: Session | None = scope.get(SESSION)
    return session


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def _refuse(scope: Scope, send: Send, status: int, why: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})  # before it was accepted: 403
    else:
        await _answer(send, status, why.encode(), ((b"content-type", b"text/plain; charset=utf-8"),))


async def _answer(send: Send, status: int, body: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length, *_HEADERS]})
    await send({"type": "http.response.body", "body": body})
