"""Serves this process's metrics for Prometheus, and says whether it works to whoever starts and restarts it.

Bytewax has a web server too, which is left off: it listens on every interface, ends the process with a backtrace where
its port is taken, and writes `dataflow.json` into the working directory. What it adds to ours (`item_inp_count`,
`item_out_count`, durations by step) cannot be had without it.
"""

import errno
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, make_wsgi_app, start_http_server

from dataflow.errors import UserError
from dataflow.process.health import Health
from dataflow.settings import host_and_port

API_VARIABLE = "BYTEWAX_DATAFLOW_API_ENABLED"
METRICS, READY, LIVE = "/metrics", "/ready", "/live"
"""What is served; anything else is not found."""
OK, UNAVAILABLE = "200 OK", "503 Service Unavailable"

_log = logging.getLogger("redflag.metrics")


def serve(
    address: str | None,
    process: int,
    health: Health | None = None,
    registry: CollectorRegistry = REGISTRY,
    setting: str = "METRICS_ADDRESS",
) -> str | None:
    """Serves the metrics of process number `process` of the flow on `host:port`; returns where they are, as a URL.

    Each process counts for itself, so each serves: on the port plus its number, that several may share a machine. Port
    0 is one that the system chooses. Without an address nothing is served. Beside `/metrics` there are `/ready` and
    `/live`, of `health`: 200, or 503 with one line that says what is wrong. `setting` named the address.

    Raises:
        UserError: the port is taken, or the address is not this machine's.
    """
    if address is None:
        return None
    host, port = host_and_port(address)
    if port:
        port += process
    try:
        server, _ = start_http_server(port, host)
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "another process has that port" if taken else getattr(error, "strerror", None) or str(error)
        whose = f" (process {process} takes port {port})" if process else ""
        msg = f"{setting}={address}{whose}: {reason}; name another address, or {setting}=off"
        raise UserError(msg) from error
    server.set_app(_application(health or Health(), registry))
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{server.server_port}{METRICS}"


def _application(
    health: Health, registry: CollectorRegistry
) -> Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]:
    """What answers requests, each on a thread of its own."""
    metrics = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == METRICS:
            return metrics(environ, start_response)  # type: ignore[no-any-return]
        if path == READY:
            wrong = health.not_ready()
            status, line = (UNAVAILABLE, f"not ready: {'; '.join(wrong)}") if wrong else (OK, "ready")
        elif path == LIVE:
            hung = health.hung()
            status, line = (UNAVAILABLE, f"not live: {hung}") if hung else (OK, "live")
        else:
            status, line = "404 Not Found", f"there are {METRICS}, {READY} and {LIVE}"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")])
        return [f"{line}\n".encode()]

    return answer


def leave_bytewax_api_off() -> None:
    """Turns Bytewax's web server off, should somebody have turned it on."""
    if os.environ.pop(API_VARIABLE, None) is not None:
        _log.warning("%s is not heeded: METRICS_ADDRESS says where metrics are served", API_VARIABLE)
