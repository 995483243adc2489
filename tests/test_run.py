import math
from pathlib import Path

import pytest

from dataflow.run import Alert, Stack, alert_line, percentile


def alert(**others: object) -> Alert:
    values: dict[str, object] = {
        "fraudulent": True,
        "user": "ann",
        "amount": 450.0,
        "merchant": "Amazon",
        "location": "US",
        "timestamp": "2026-03-02T12:00:00+00:00",
        "score": 0.9,
        "reason": ["High amount"],
        "rules": ["high_amount"],
    }
    return Alert(**(values | others))  # type: ignore[arg-type]


def test_an_alert_is_one_line_with_who_what_where_and_why() -> None:
    line = alert_line(alert()).plain
    for piece in ("12:00:00", "ann", "450.00", "Amazon", "US", "0.90", "High amount"):
        assert piece in line


def test_nothing_in_a_transaction_is_taken_for_markup_or_moves_the_cursor() -> None:
    line = alert_line(alert(user="[bold red]x[/]", merchant="a\x1b[2Jb\n", reason=["[link=x]y[/link]"]))
    assert "[bold red]x[/]" in line.plain
    assert "\x1b" not in line.plain
    assert "\n" not in line.plain
    assert "[link=x]y[/link]" in line.plain


def test_percentiles() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert math.isnan(percentile([], 0.5))


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
    stack = Stack({}, tmp_path)
    path = tmp_path / "detector.log"
    path.write_text("")
    assert stack.last_line("detector") == "it logged nothing"
    path.write_text(log + log[:-1])
    assert stack.find("detector", "metrics on ").endswith("in force: metrics on http://a:1/metrics")
    assert stack.last_line("detector").endswith("metrics on http://a:1/metrics")
    path.write_text(log[:20])
    assert stack.find("detector", "in") == ""
