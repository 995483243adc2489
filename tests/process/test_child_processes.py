from pathlib import Path

import pytest

from dataflow.process.child_processes import ChildProcesses


@pytest.mark.parametrize(
    "log",
    [
        "redflag: in force: metrics on http://a:1/metrics\nredflag: ended badly\n",
        '{"time": "now", "message": "in force: metrics on http://a:1/metrics"}\n'
        '{"time": "now", "message": "ended badly"}\n',
    ],
    ids=["text", "json"],
)
def test_what_a_child_logs_is_found_in_either_format_but_not_by_halves(tmp_path: Path, log: str) -> None:
    children = ChildProcesses({}, tmp_path)
    path = tmp_path / "detector.log"
    path.write_text("")
    assert children.last_line("detector") == "it logged nothing"
    path.write_text(log + log[:-1])
    assert children.find("detector", "metrics on ").endswith("in force: metrics on http://a:1/metrics")
    assert children.last_line("detector").endswith("metrics on http://a:1/metrics")
    path.write_text(log[:20])
    assert children.find("detector", "in") == ""
