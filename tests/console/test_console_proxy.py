"""Users whom a reverse proxy lets in: its header counts from its own addresses, and from nowhere else."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher

from console import users
from console.access.guard import SESSION, Guard
from console.access.proxy import Proxy, RefusedError
from console.access.sessions import COOKIE, SECONDS, Sessions
from console.users import Users
from dataflow.connectors.embedded_broker import EmbeddedBroker
from dataflow.errors import UserError
from dataflow.settings import Settings
from tests.console.running import ROOT, RunningConsole, run_console
from tests.console.test_console_access import ask, open_socket

HEADER = b"x-forwarded-user"


@pytest.fixture(scope="module")
def users_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("users") / "users.txt"
    users.write(path, "eve", frozenset({"look", "label"}), None)
    users.write(path, "ida", frozenset({"look"}), "correct horse battery")
    return path


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading of the users file hashes a password, which is to take long: not so here, 50 times."""
    monkeypatch.setattr(users, "_hasher", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


def scope(client: str | None, *headers: tuple[bytes, bytes], kind: str = "http") -> dict[str, Any]:
    return {
        "type": kind, "scheme": "http", "method": "GET", "path": "/", "client": None if client is None else (client, 9),
        "headers": [(b"host", b"console.example"), *headers],
    }  # fmt: skip


def proxy(users_file: Path, addresses: str = "10.0.0.7,192.168.5.0/24,2001:db8::/64") -> Proxy:
    return Proxy(addresses, "X-Forwarded-User", Users.load(users_file))


@pytest.mark.parametrize("client", ["10.0.0.7", "192.168.5.200", "2001:db8::3", "::ffff:10.0.0.7"])
def test_the_proxy_says_who_somebody_is(users_file: Path, client: str) -> None:
    user = proxy(users_file).user(scope(client, (HEADER, b"eve")))
    assert (user.name, user.roles) == ("eve", {"look", "label"})


@pytest.mark.parametrize(
    "client", ["10.0.0.8", "192.168.6.1", "127.0.0.1", "::1", "2001:db9::1", "::ffff:10.0.0.8", "testclient", "", None]
)
def test_a_header_from_any_other_address_is_refused(users_file: Path, client: str | None) -> None:
    with pytest.raises(RefusedError, match="through its proxy only"):
        proxy(users_file).user(scope(client, (HEADER, b"eve")))


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ((), "names nobody"),
        (((b"x_forwarded_user", b"eve"), (b"x-forwarded-users", b"eve")), "names nobody"),
        (((HEADER, b"ida"), (HEADER, b"eve")), "names several"),  # what a browser sent, and what the proxy added
        (((HEADER, b"ida"), (b"X-Forwarded-User", b"eve")), "names several"),
        (((HEADER, b"ida, eve"),), "not in the console's users file"),
        (((HEADER, b"mallory"),), "not in the console's users file"),
        (((HEADER, b""),), "not in the console's users file"),
        (((HEADER, b"\xff\xfe"),), "not in the console's users file"),
    ],
)
def test_who_is_not_named_once_and_known_does_not_get_in(
    users_file: Path, headers: tuple[tuple[bytes, bytes], ...], said: str
) -> None:
    with pytest.raises(RefusedError, match=said):
        proxy(users_file).user(scope("10.0.0.7", *headers))


@pytest.mark.parametrize("addresses", ["10.0.0.300", "10.0.0.0/33", "::1/129", "1.2.3"])
def test_what_is_no_address_is_said_in_one_line(users_file: Path, addresses: str) -> None:
    with pytest.raises(UserError, match=r"CONSOLE_PROXY_ADDRESSES: '.*' is neither an address nor a network") as error:
        proxy(users_file, addresses)
    assert "\n" not in str(error.value)


def test_a_cookie_is_worth_nothing_where_a_proxy_lets_in(users_file: Path) -> None:
    sessions, reached = Sessions(), []
    token = sessions.begin("ida", frozenset({"look", "rules"}))

    async def app(inner: Any, _receive: Any, send: Any) -> None:
        reached.append(inner[SESSION])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    guard = Guard(app, sessions, True, proxy(users_file))

    def ask_it(*headers: tuple[bytes, bytes], client: str = "10.0.0.7") -> int:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(guard(scope(client, *headers), None, send))  # type: ignore[arg-type]
        return int(sent[0]["status"])

    cookie = (b"cookie", f"{COOKIE}={token}".encode())
    assert ask_it(cookie) == 403
    assert ask_it(cookie, (HEADER, b"eve"), client="10.0.0.8") == 403
    assert reached == []
    assert ask_it(cookie, (HEADER, b"eve")) == 200
    assert (reached[0].analyst, reached[0].may("label"), reached[0].may("rules")) == ("eve", True, False)


def test_each_request_prolongs_the_session_and_no_page_lasts_longer_than_that() -> None:
    now = [1e12]
    sessions = Sessions(lambda: now[0])
    session = sessions.of_proxy("eve", frozenset({"look"}))
    now[0] += SECONDS - 1
    assert sessions.of_proxy("eve", frozenset({"look"})) is session
    assert session.until == now[0] + SECONDS


@pytest.fixture(scope="module")
def console(users_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningConsole]:
    broker = EmbeddedBroker()
    folder = tmp_path_factory.mktemp("console")
    with run_console(
        Settings(brokers=broker.address),
        folder,
        CONSOLE_USERS_FILE=str(users_file),
        CONSOLE_PROXY_ADDRESSES="127.0.0.1, 10.0.0.0/8",
        CONSOLE_PROXY_HEADER="X-Remote-User",
    ) as running:
        yield running
    broker.close()


@pytest.mark.slow
def test_behind_a_proxy_its_users_get_in_without_logging_in_and_nobody_else(console: RunningConsole) -> None:
    own = console.url.rstrip("/")
    status, _, body = ask(console, "/", X_Remote_User="eve", Accept="text/html")
    assert status == 200
    assert "eve" in body
    assert "Log out" not in body  # that is the proxy's
    assert ask(console, "/", Accept="text/html")[0] == 403
    assert ask(console, "/", X_Remote_User="mallory")[0] == 403
    assert ask(console, "/", X_Forwarded_User="eve")[0] == 403  # not the header that was set
    assert ask(console, "/login", X_Remote_User="eve")[0] == 404
    assert open_socket(console, Origin=own, **{"X-Remote-User": "eve"}) == 101
    assert open_socket(console, Origin=own) == 403
    assert open_socket(console, Origin="http://evil.example", **{"X-Remote-User": "eve"}) == 403


def test_how_long_a_refusal_takes_does_not_tell_who_has_no_password(
    users_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, asked = Users.load(users_file), []

    class Hasher:
        def verify(self, hashed: str, _password: str) -> None:
            asked.append(hashed)

    monkeypatch.setattr(users, "_hasher", Hasher())
    assert known.check("eve", "-") is None
    assert known.check("nobody", "-") is None
    assert [each.startswith("$argon2id$") for each in asked] == [True, True]


@pytest.mark.slow
def test_a_proxy_without_a_users_file_is_a_mistake_and_users_without_password_cannot_log_in(
    users_file: Path, tmp_path: Path
) -> None:
    assert Users.load(users_file).check("eve", "-") is None
    assert Users.load(users_file).check("eve", "") is None
    made = subprocess.run(
        [sys.executable, "-m", "console.users", str(tmp_path / "u.txt"), "mel", "--roles", "cards", "--no-password"],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert "mel is in" in made.stdout
    mel = Users.load(tmp_path / "u.txt").named("mel")
    assert mel is not None
    assert mel.roles == {"look", "cards"}
    started = subprocess.run(
        [sys.executable, "-m", "console"],
        env={"PATH": "", "CONSOLE_PROXY_ADDRESSES": "10.0.0.7", "CONSOLE_DATABASE": str(tmp_path / "c.db")},
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert started.returncode == 2
    assert "CONSOLE_PROXY_ADDRESSES names a proxy, but nothing says what its users may do" in started.stderr
    assert "Traceback" not in started.stderr
