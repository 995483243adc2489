"""Serves this process's metrics for Prometheus.

Bytewax has a web server too, which is left off: it listens on every interface, ends the process with a backtrace where
its port is taken, and writes `dataflow.json` into the working directory. What it adds to ours (`item_inp_count`,
`item_out_count`, durations by step) cannot be had without it.
"""

import errno
import logging
import os

from prometheus_client import start_http_server

from dataflow.errors import UserError
from dataflow.settings import host_and_port

API_VARIABLE = "BYTEWAX_DATAFLOW_API_ENABLED"
_log = logging.getLogger("redflag.metrics")


def serve(address: str | None, process: int) -> str | None:
    """Serves the metrics of process number `process` of the flow on `host:port`; returns where they are, as a URL.

    Each process counts for itself, so each serves: on the port plus its number, that several may share a machine. Port
    0 is one that the system chooses. Without an address nothing is served.

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
        msg = f"METRICS_ADDRESS={address}{whose}: {reason}; name another address, or METRICS_ADDRESS=off"
        raise UserError(msg) from error
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{server.server_port}/metrics"


def leave_bytewax_api_off() -> None:
    """Turns Bytewax's web server off, should somebody have turned it on."""
    if os.environ.pop(API_VARIABLE, None) is not None:
        _log.warning("%s is not heeded: METRICS_ADDRESS says where metrics are served", API_VARIABLE)
