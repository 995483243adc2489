"""Sessions: who a browser is, as long as it holds a cookie that nobody can guess."""

import hashlib
import secrets
import threading
import time
from collections.abc import Callable
from typing import Final

import msgspec

from console.users import WITHOUT_PASSWORDS
from console.view import View

SECONDS: Final = 12 * 3600.0
MOST: Final = 10_000
COOKIE: Final = "redflag_session"


class Session:
    """One log-in."""

    def __init__(self, analyst: str, roles: frozenset[str], until: float):
        self.analyst = analyst
        self.roles = roles
        self.until = until
        self.dark: bool | None = None  # None: as the browser prefers
        self.view = View()  # of the queue: whoever comes back from a case finds it as they left it

    def may(self, role: str) -> bool:
        """Whether this session has a role, and is still one."""
        return role in self.roles and time.time() < self.until

    def view_as_asked(self) -> View:
        """The queue as this session left it, for who it is now."""
        return msgspec.structs.replace(self.view, analyst=self.analyst, cards=self.may("cards"))


class Sessions:
    """All sessions, in memory: a restart ends them. Of the cookies only hashes are kept."""

    def __init__(self, clock: Callable[[], float] = time.time):
        self._clock = clock
        self._by_hash: dict[str, Session] = {}
        self._by_name: dict[str, Session] = {}  # of users whom a proxy lets in: as many as the users file has
        self._lock = threading.Lock()

    def begin(self, analyst: str, roles: frozenset[str] = WITHOUT_PASSWORDS) -> str:
        """Begins a session, and returns its cookie's value."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            now = self._clock()
            for key in [key for key, session in self._by_hash.items() if session.until < now]:
                del self._by_hash[key]
            while len(self._by_hash) >= MOST:
                del self._by_hash[next(iter(self._by_hash))]
            self._by_hash[_hash(token)] = Session(analyst, roles, now + SECONDS)
        return token

    def of_proxy(self, name: str, roles: frozenset[str]) -> Session:
        """The session of a user whom the proxy names with each request; each prolongs it."""
        with self._lock:
            session = self._by_name.setdefault(name, Session(name, roles, 0.0))
            session.until = self._clock() + SECONDS
            return session

    def find(self, token: str) -> Session | None:
        """The session of a cookie's value; None where there is none, or it is over."""
        with self._lock:
            session = self._by_hash.get(_hash(token))
            return session if session is not None and session.until >= self._clock() else None

    def end(self, token: str) -> None:
        """Ends a session; pages that are still open can do nothing any more."""
        with self._lock:
            session = self._by_hash.pop(_hash(token), None)
        if session is not None:
            session.roles = frozenset()


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
