"""The console's web server: pages behind the guard, on a port that is taken before anything is said."""

import logging
import signal
import socket
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI
from nicegui import app as nicegui_app
from nicegui import ui

from console.access import login
from console.access.attempts import Attempts
from console.access.guard import THIS_MACHINE, Guard
from console.access.proxy import Proxy
from console.access.sessions import Sessions
from console.pages.case_page import CasePage
from console.pages.frame import Desk, OneLine, serve_static
from console.pages.overview_page import Overview
from console.pages.queue_page import QueuePage
from console.pages.rules_page import RulesPage
from console.users import Users
from dataflow.errors import UserError
from dataflow.process import health
from dataflow.settings import host_and_port

ICON: Final = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><path d="M3 1v14M4 2h9l-3 3 3 3H4z" fill="#d0342c" '
    'stroke="#d0342c"/></svg>'
)


def listen(address: str, users: Users | None) -> socket.socket:
    """Takes the port.

    Raises:
        UserError: it is taken or not this machine's, or others could reach it and there are no passwords.
    """
    host, port = host_and_port(address)
    if users is None and host not in THIS_MACHINE:
        msg = (
            f"CONSOLE_ADDRESS={address}: others may reach that, and it asks for no password; make CONSOLE_USERS_FILE "
            "with `python -m console.users`, or listen on 127.0.0.1"
        )
        raise UserError(msg)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(where)
        taken.listen(128)
    except (OSError, OverflowError) as error:
        msg = f"CONSOLE_ADDRESS={address}: {getattr(error, 'strerror', None) or error}; name another address"
        raise UserError(msg) from error
    return taken


def application(desk: Desk, users: Users | None, proxy: Proxy | None = None) -> Guard:
    """The whole of it, as an ASGI application; with a proxy nobody logs in here."""
    sessions = Sessions()
    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if users is not None and proxy is None:
        login.add_to(outer, users, sessions, Attempts())
    serve_static()
    logging.getLogger("nicegui").addFilter(OneLine())

    @ui.page("/")
    def queue() -> None:
        QueuePage(desk)

    @ui.page("/case/{number}")
    def case(number: int) -> None:
        CasePage(desk, number)

    @ui.page("/overview")
    def overview() -> None:
        Overview(desk)

    @ui.page("/rules")
    def rules() -> None:
        RulesPage(desk)

    nicegui_app.on_shutdown(desk.programs.stop)
    nicegui_app.config.socket_io_js_transports = ["websocket"]  # no polling: the guard checks one socket's origin
    ui.run_with(
        outer,
        title="Redflag",
        favicon=ICON,
        dark=None,
        language="en-US",
        tailwind=False,
        gzip_middleware_factory=None,  # the guard puts its nonce into pages
        show_welcome_message=False,
        reconnect_timeout=10.0,
    )
    nicegui_app.timer(1.0, health.goes_round)
    return Guard(outer, sessions, users is not None, proxy)


def serve(app: Guard, taken: socket.socket) -> None:
    """Serves until SIGTERM or Ctrl-C."""
    # uvicorn raises the signal again once it has ended; what is to be closed after it must still be closed.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _heard)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, lifespan="on", timeout_graceful_shutdown=2,
        proxy_headers=False, ws="websockets-sansio", ws_max_size=1_000_000,
    )  # fmt: skip
    uvicorn.Server(config).run([taken])


def _heard(_signum: int, _frame: FrameType | None) -> None:
    """What is to be done is done by uvicorn."""


def shown_address(taken: socket.socket) -> str:
    """Where it listens, as a URL."""
    host, port = taken.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
