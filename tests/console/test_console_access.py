"""Who gets in: nobody without a password beyond this machine, and no page of another origin."""

import asyncio
import http.client
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from console import users
from console.access.attempts import FREE, Attempts
from console.access.guard import COOKIE
from console.access.sessions import SECONDS, Sessions
from console.server import listen
from console.shown_text import shown
from console.users import Users
from dataflow.errors import UserError
from dataflow.settings import Settings
from tests.console.running import ROOT, RunningConsole, run_console

SOCKET = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
PASSWORD = "correct horse battery"


@pytest.fixture
def users_file(tmp_path: Path) -> Path:
    path = tmp_path / "users.txt"
    users.write(path, "eve", frozenset({"look", "label"}), PASSWORD)
    users.write(path, "ida", frozenset({"look"}), PASSWORD)
    return path


@pytest.fixture
def console(settings: Settings, users_file: Path, tmp_path: Path) -> Iterator[RunningConsole]:
    with run_console(settings, tmp_path, CONSOLE_USERS_FILE=str(users_file)) as running:
        yield running


def ask(console: RunningConsole, path: str, method: str = "GET", body: str | None = None, **headers: str) -> Any:
    """An answer: its status, headers and body."""
    connection = http.client.HTTPConnection(urlsplit(console.url).netloc, timeout=20)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        sent.setdefault("Content-Type", "application/x-www-form-urlencoded")
    connection.request(method, path, body, sent)
    answer = connection.getresponse()
    found = answer.status, answer.headers, answer.read().decode()
    connection.close()
    return found


def log_in(console: RunningConsole, name: str = "eve", password: str = PASSWORD, **headers: str) -> Any:
    body = urlencode({"name": name, "password": password})
    return ask(console, "/login", "POST", body, **({"Origin": console.url.rstrip("/")} | headers))


def open_socket(console: RunningConsole, **headers: str) -> int:
    """The status with which the socket's handshake is answered; 101 if it opens."""

    async def handshake() -> int:
        try:
            async with connect(console.url.replace("http", "ws").rstrip("/") + SOCKET, additional_headers=headers):
                return 101
        except InvalidStatus as error:
            return error.response.status_code

    return asyncio.run(handshake())


@pytest.mark.slow
def test_a_stranger_a_cross_site_form_and_a_forged_session_get_nothing(console: RunningConsole) -> None:
    own = console.url.rstrip("/")
    for path in ("/", "/case/1", "/overview", "/nothing"):
        status, headers, body = ask(console, path, Accept="text/html")
        assert (status, headers["Location"], body) == (303, "/login", "")
        assert ask(console, path)[0] == 401
        assert ask(console, path, Cookie=f"{COOKIE}=forged")[0] == 401
    assert ask(console, "/console-static/style.css")[0] == 401
    assert ask(console, "/_nicegui_ws/socket.io/?EIO=4&transport=polling")[0] == 403
    assert open_socket(console, Origin=own) == 403
    assert open_socket(console, Origin=own, Cookie=f"{COOKIE}=forged") == 403
    # A form on another site, with the right password; and one that says not where it comes from.
    assert log_in(console, Origin="http://evil.example")[0] == 403
    assert log_in(console, Origin="null")[0] == 403
    assert ask(console, "/login", "POST", urlencode({"name": "eve", "password": PASSWORD}))[0] == 403


@pytest.mark.slow
def test_who_logs_in_gets_in_and_the_socket_opens_to_the_consoles_own_pages_only(console: RunningConsole) -> None:
    status, headers, _ = log_in(console)
    assert (status, headers["Location"]) == (303, "/")
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    session = {"Cookie": cookie.split(";")[0]}
    status, headers, body = ask(console, "/", **session)
    assert status == 200
    policy = headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    assert "nonce-" in policy
    assert "eve" in body
    assert open_socket(console, Origin=console.url.rstrip("/"), **session) == 101
    assert open_socket(console, Origin="http://evil.example", **session) == 403
    assert open_socket(console, **session) == 403  # without any origin
    assert ask(console, "/logout", "POST", "", Origin="http://evil.example", **session)[0] == 403
    assert ask(console, "/", **session)[0] == 200
    assert ask(console, "/logout", "POST", "", Origin=console.url.rstrip("/"), **session)[0] == 303
    assert ask(console, "/", **session)[0] == 401


@pytest.mark.slow
def test_guesses_are_slowed_down(console: RunningConsole) -> None:
    said = [log_in(console, "eve", f"wrong{n}")[0] for n in range(FREE + 3)]
    assert said == [403] * FREE + [429] * 3
    status, headers, _ = log_in(console)  # the right one, too
    assert status == 429
    assert int(headers["Retry-After"]) >= 1
    assert log_in(console, "x" * 5000)[0] in (413, 429)


@pytest.mark.slow
def test_without_passwords_only_names_of_this_machine_are_answered_to(settings: Settings, tmp_path: Path) -> None:
    with run_console(settings, tmp_path) as console:
        port = urlsplit(console.url).port
        assert ask(console, "/")[0] == 200
        assert ask(console, "/", Host=f"localhost:{port}")[0] == 200
        for host in (f"evil.example:{port}", "evil.example", "", "127.0.0.1.evil.example", "[::"):
            assert ask(console, "/", Host=host)[0] == 403
        own = {"Cookie": ask(console, "/")[1]["Set-Cookie"].split(";")[0]}
        assert open_socket(console, Origin=f"http://127.0.0.1:{port}", **own) == 101
        assert open_socket(console, Origin="http://evil.example", **own) == 403
        assert open_socket(console, Origin=f"http://localhost:{port}", **own) == 403
        assert console.stop() == 0


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:80", "example.org:80"])
def test_beyond_this_machine_it_does_not_listen_without_passwords(address: str) -> None:
    with pytest.raises(UserError, match=r"asks for no password; make CONSOLE_USERS_FILE"):
        listen(address, None)


def test_a_port_that_is_taken_is_said_in_one_line() -> None:
    with listen("127.0.0.1:0", None) as taken, pytest.raises(UserError, match="Address already in use"):
        listen(f"127.0.0.1:{taken.getsockname()[1]}", None)


def test_with_passwords_it_listens_anywhere(users_file: Path) -> None:
    listen("0.0.0.0:0", Users.load(users_file)).close()


def test_the_users_file_holds_hashes_that_only_its_owner_reads(users_file: Path) -> None:
    assert users_file.stat().st_mode & 0o077 == 0
    text = users_file.read_text()
    assert PASSWORD not in text
    assert text.count("$argon2id$") == 2
    known = Users.load(users_file)
    eve = known.check("eve", PASSWORD)
    assert eve is not None
    assert eve.roles == {"look", "label"}
    assert known.check("eve", "wrong") is None
    assert known.check("nobody", PASSWORD) is None
    users.write(users_file, "eve", frozenset({"look"}), "another password")
    assert Users.load(users_file).check("eve", PASSWORD) is None
    os.chmod(users_file, 0o644)
    with pytest.raises(UserError, match="chmod 600"):
        Users.load(users_file)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("eve look", "line 1: it takes name, roles and argon2id hash"),
        ("eve look plaintext-password", "line 1: it takes"),
        ("eve root $argon2id$x", "no role 'root'"),
        ("", "names no user"),
        ("# nobody", "names no user"),
    ],
)
def test_a_wrong_users_file_is_refused_in_one_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "users.txt"
    path.touch(0o600)
    path.write_text(line + "\n")
    with pytest.raises(UserError, match=said) as error:
        Users.load(path)
    assert "\n" not in str(error.value)
    assert "plaintext" not in str(error.value)


@pytest.mark.slow
def test_the_command_adds_a_user_and_refuses_short_passwords(tmp_path: Path) -> None:
    path = tmp_path / "users.txt"

    def add(password: str, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "console.users", str(path), "eve", *more],
            input=password + "\n", capture_output=True, text=True, cwd=ROOT, check=False,
        )  # fmt: skip

    assert add("short").returncode == 2
    assert add(PASSWORD, "--roles", "king").returncode == 2
    assert not path.exists()
    assert add(PASSWORD, "--roles", "label").returncode == 0
    eve = Users.load(path).check("eve", PASSWORD)
    assert eve is not None
    assert eve.roles == {"look", "label"}
    path.chmod(0o644)
    assert add(PASSWORD, "--roles", "rules").returncode == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["users.txt"]
    path.unlink()
    path.mkdir()
    refused = add(PASSWORD)
    assert (refused.returncode, refused.stderr) == (2, f"redflag: {path} cannot be read (Is a directory)\n")


def test_a_session_ends_by_time_and_by_log_out() -> None:
    now = [1e12]
    sessions = Sessions(lambda: now[0])
    token = sessions.begin("eve")
    session = sessions.find(token)
    assert session is not None
    assert session.may("label")
    assert sessions.find(token + "x") is None
    sessions.end(token)
    assert sessions.find(token) is None
    assert not session.may("look")  # for pages that are still open
    token = sessions.begin("eve")
    now[0] += SECONDS + 1
    assert sessions.find(token) is None


def test_waiting_doubles_and_is_forgotten() -> None:
    now = [0.0]
    attempts = Attempts(lambda: now[0])
    waits = []
    for _ in range(FREE + 3):
        attempts.failed("address 1")
        waits.append(attempts.wait("address 1", "name eve"))
    assert waits == [0.0] * (FREE - 1) + [2.0, 4.0, 8.0, 16.0]
    assert attempts.wait("address 2") == 0.0
    attempts.succeeded("address 1")
    assert attempts.wait("address 1") == 0.0


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("4111 1111 1111 1111", "411111******1111"),
        ("card 4111-1111-1111-1111!", "card 411111******1111!"),
        ("378282246310005", "378282*****0005"),
        ("4111111111111112", "4111111111111112"),  # no card number: its check digit is wrong
        ("2026-03-02 12:00:00", "2026-03-02 12:00:00"),
        ("a\u202eb\u200bc\x00d\ne", "a[U+202E]b[U+200B]c[U+0000]d[U+000A]e"),
        ("Café 北京 😀", "Café 北京 😀"),
    ],
)
def test_card_numbers_are_masked_and_what_is_unseen_is_named(text: str, seen: str) -> None:
    assert shown(text) == seen
