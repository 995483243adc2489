"""Where metrics are served, and what is said where they cannot be."""

import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from dataflow.errors import UserError
from dataflow.process import metrics_server
from tests.support.kafka_server import free_ports


def test_metrics_are_served_on_the_address_and_nowhere_else() -> None:
    url = metrics_server.serve("127.0.0.1:0", 0)
    assert url is not None
    port = int(url.removeprefix("http://127.0.0.1:").removesuffix("/metrics"))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert b"python_info" in answer.read()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", port), timeout=5)


def test_off_serves_nothing() -> None:
    assert metrics_server.serve(None, 0) is None


def test_a_port_that_is_taken_is_one_line_that_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError) as error:
            metrics_server.serve(address, 0)
    assert str(error.value) == (
        f"METRICS_ADDRESS={address}: another process has that port; name another address, or METRICS_ADDRESS=off"
    )


def test_an_address_that_is_not_this_machines_is_one_line() -> None:
    with pytest.raises(UserError, match=r"METRICS_ADDRESS=192\.0\.2\.1:3030: .*name another"):
        metrics_server.serve("192.0.2.1:3030", 0)


def test_each_process_of_a_cluster_serves_on_a_port_of_its_own() -> None:
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port - 1)):  # that of process 0
        assert metrics_server.serve(f"127.0.0.1:{port - 1}", 1) == f"http://127.0.0.1:{port}/metrics"


def test_bytewaxs_own_server_stays_off_and_writes_nothing(tmp_path: Path) -> None:
    """It would write `dataflow.json` here, and end the process where it cannot."""
    code = (
        "from bytewax.dataflow import Dataflow\n"
        "from bytewax.run import cli_main\n"
        "from bytewax.testing import TestingSink, TestingSource\n"
        "import bytewax.operators as op\n"
        "from dataflow.process import event_log\nfrom dataflow.process import metrics_server\n"
        "event_log.set_up()\n"
        "metrics_server.leave_bytewax_api_off()\n"
        "flow = Dataflow('f')\n"
        "op.output('out', op.input('in', flow, TestingSource([1])), TestingSink([]))\n"
        "cli_main(flow)\n"
    )
    environ = {**os.environ, metrics_server.API_VARIABLE: "1", "BYTEWAX_DATAFLOW_API_PORT": "0"}
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={**environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    assert found.stderr.count("\n") == 1
    assert found.stderr.startswith(f"redflag: {metrics_server.API_VARIABLE} is not heeded")
