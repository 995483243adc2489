import io
import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from dataflow.demo.figures import Figures
from dataflow.demo.screen import alert_line, live_line, percentile, summary
from dataflow.demo.tally import Alert, Reason
from dataflow.settings import Settings


def alert(**others: object) -> Alert:
    values: dict[str, object] = {
        "transaction_id": "t-1",
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


def test_an_alert_says_what_it_asks_for_and_its_first_explanation_where_it_has_one() -> None:
    why = [Reason("amount 450.00 is 6 times this user's usual 75.00"), Reason("a new device")]
    line = alert_line(alert(action="block", explanation=why)).plain
    assert line.startswith("BLOCK ")
    assert "amount 450.00 is 6 times this user's usual 75.00" in line
    assert "High amount" not in line
    assert "a new device" not in line
    assert alert_line(alert()).plain.startswith("REVIEW ")


def test_an_explanation_moves_no_cursor_either() -> None:
    assert "\x1b" not in alert_line(alert(explanation=[Reason("paid in \x1b[2J")])).plain


class StillTally:
    """A tally of three decisions, as the screen reads it."""

    def __init__(self) -> None:
        self.figures = Figures()
        for name, amount, is_alert, fraud, scenario in (
            ("a", 1234.5, True, True, "stolen_card"),
            ("b", 65.5, False, True, "stolen_card"),
            ("c", 10.0, True, False, "none"),
        ):
            self.figures.decided(name, amount, is_alert)
            self.figures.truth(name, fraud, scenario)
        self.by_topic = Counter({"fraud_alerts": 2, "classified_transactions": 1})
        self.by_rule = Counter({"high_amount": 2})
        self.by_action = Counter({"review": 1, "block": 1})
        self.latencies = [3.0, 5.0]
        self.refused_labels = 0
        self.first, self.last = 100.0, 101.0

    def decided(self) -> int:
        return self.by_topic.total()


def rows(tally: Any) -> dict[str, str]:
    out = io.StringIO()
    Console(file=out, width=200).print(summary(tally, Settings(), 3))
    cells = [
        [cell.strip() for cell in line.strip("│").split("│")] for line in out.getvalue().splitlines() if "│" in line
    ]
    return dict(cells)


def test_the_summary_says_how_many_frauds_and_how_much_money_were_caught_and_lost() -> None:
    shown = rows(StillTally())
    assert shown["transactions generated"] == shown["transactions decided"] == "3"
    assert shown["frauds"] == "2, worth 1,300.00"
    assert shown["caught"] == "1, worth 1,234.50"
    assert shown["missed"] == "1, worth 65.50"
    assert shown["false alarms"] == "1"
    assert shown["precision"] == shown["recall"] == "0.50"
    assert shown["stolen_card"] == "1 of 2 caught, 1,234.50 of 1,300.00"
    assert shown["alerts to block"] == shown["alerts to review"] == "1"
    assert shown["alerts of rule high_amount"] == "2"
    assert "labels refused" not in shown


def test_the_summary_says_that_labels_were_refused() -> None:
    tally = StillTally()
    tally.refused_labels = 4
    assert rows(tally)["labels refused"] == "4"


def test_before_anything_came_no_share_is_shown() -> None:
    empty = SimpleNamespace(**{**vars(StillTally()), "figures": Figures(), "decided": lambda: 0, "latencies": []})
    shown = rows(empty)
    assert shown["precision"] == shown["recall"] == "-"
    assert shown["frauds"] == "0"


def test_the_running_count_says_how_good_it_is() -> None:
    line = live_line(StillTally(), Settings()).plain  # type: ignore[arg-type]
    for piece in ("decided 3", "frauds 2: caught 1, missed 1", "false alarms 1", "precision 0.50, recall 0.50"):
        assert piece in line
    assert "money caught 1,234, lost 66" in line
