"""The command `python -m console`: a user's mistake ends it with one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from console.__main__ import NICE
from dataflow.settings import Settings
from tests.console.running import ROOT, run_console

pytestmark = pytest.mark.slow

OWN = os.getpriority(os.PRIO_PROCESS, 0)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"CONSOLE_ADDRESS": "everywhere"}, "CONSOLE_ADDRESS='everywhere' is wrong: it takes host:port"),
        ({"CONSOLE_ADDRESS": "0.0.0.0:3080"}, "it asks for no password; make CONSOLE_USERS_FILE"),
        ({"CONSOLE_USERS_FILE": "nowhere.txt"}, "nowhere.txt cannot be read (No such file or directory)"),
        ({"CONSOLE_DATABASE": "/nowhere/console.db"}, "CONSOLE_DATABASE=/nowhere/console.db cannot be opened"),
        ({"CONSOLE_MAX_ALERTS": "many"}, "CONSOLE_MAX_ALERTS='many' is wrong: it takes a whole number"),
        ({"KAFKA_CONFIG_NO_SUCH_THING": "1"}, "no.such.thing"),
    ],
    ids=str,
)
def test_a_users_mistake_ends_with_one_line(tmp_path: Path, setting: dict[str, str], says: str) -> None:
    environ = {
        "KAFKA_BROKERS": "127.0.0.1:1",
        "CONSOLE_ADDRESS": "127.0.0.1:0",
        "CONSOLE_DATABASE": str(tmp_path / "c.db"),
    }
    result = subprocess.run(
        [sys.executable, "-m", "console"],
        env=os.environ | environ | setting, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("redflag: ")
    assert says in line


def test_it_stands_back_where_a_flow_wants_the_processor(settings: Settings, tmp_path: Path) -> None:
    with run_console(settings, tmp_path) as running:
        threads = [int(task.name) for task in Path(f"/proc/{running.pid}/task").iterdir()]
        niceness = {each: os.getpriority(os.PRIO_PROCESS, each) - OWN for each in threads}
    assert niceness[running.pid] == NICE
    # All that it starts itself; what numerical libraries start at their import is idle.
    assert list(niceness.values()).count(NICE) > len(threads) / 2
