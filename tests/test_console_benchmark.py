"""What the benchmarks of the console refuse, how they compare, and which rows of the queue they see."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import console, console_beside
from benchmarks.console_beside import ALONE, BESIDE, WATCHED, IdleConsoleError, check_rows, summary
from benchmarks.measured_flow import check_alerts
from benchmarks.queue_watcher import QueueWatcher, names_of, rows_of
from benchmarks.stage import produce
from dataflow.settings import Settings
from tests.conftest import Broker, MakeTopic
from tests.console.builders import alert_json
from tests.console.running import await_that, open_browser, run_console

OPTIONS = ["console_beside", "--model", "m.pkl", "--out"]


def run(case: str, number: int, per_second: float, cpu: float, **more: float) -> dict[str, Any]:
    return {
        "case": case, "round": number, "per_second": per_second, "cpu_seconds_per_million": cpu, "alerts": 0.01, **more
    }  # fmt: skip


def test_each_round_is_compared_with_the_flow_alone_in_that_round() -> None:
    runs = []
    for number, busy in enumerate((1.0, 4.0, 2.0), 1):  # other work on the machine, as much on all of a round
        runs += [
            run(ALONE, number, 60_000 / busy, 20.0 * busy),
            run(BESIDE, number, 57_000 / busy, 21.0 * busy, console_cpu_share=0.1, console_cpu_seconds=1.0),
            run(WATCHED, number, 54_000 / busy, 22.0 * busy, console_cpu_share=0.2, console_cpu_seconds=2.0),
        ]
    alone, beside, watched = summary(runs)
    assert (alone["per_second"], alone["per_second_min"], alone["per_second_max"]) == (30_000, 15_000, 60_000)
    assert "per_second_to_alone" not in alone
    for row, ratio, cost in ((beside, 0.95, 1.05), (watched, 0.9, 1.1)):
        found = [row[f"per_second_to_alone{end}"] for end in ("", "_min", "_max")]
        assert found == pytest.approx([ratio] * 3)
        assert row["cpu_seconds_per_million_to_alone"] == pytest.approx(cost)
    assert watched["console_cpu_seconds"] == 2.0


@pytest.mark.parametrize(
    ("what", "line"),
    [
        (lambda: check_alerts("a console beside it", 1, 10), "a console beside it: 10% of 10 decisions are alerts"),
        (lambda: check_rows(0), "the console has sent no row of its queue"),
    ],
)
def test_it_ends_with_one_line_and_keeps_no_figures_where_they_would_say_something_else(
    what: Any, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "console_beside.jsonl"
    monkeypatch.setattr(console_beside, "measure", lambda *_: what())
    monkeypatch.setattr(sys, "argv", [*OPTIONS, str(out)])
    with pytest.raises(SystemExit) as ended:
        console_beside.main()
    assert str(ended.value).startswith(line)
    assert "\n" not in str(ended.value)
    assert not out.exists()


def test_a_queue_that_was_shown_is_no_mistake() -> None:
    check_rows(1)
    with pytest.raises(IdleConsoleError):
        check_rows(0)


@pytest.mark.parametrize("option", ["--count", "--rounds"])
@pytest.mark.parametrize("value", ["0", "-3", "many"])
def test_no_rounds_and_no_payments_are_refused(
    option: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console_beside, "measure", lambda *_: pytest.fail("it measures"))
    monkeypatch.setattr(sys, "argv", [*OPTIONS, str(tmp_path / "out"), f"{option}={value}"])
    with pytest.raises(SystemExit) as ended:
        console_beside.main()
    assert ended.value.code == 2
    assert f"argument {option}: '{value}' is no whole number above 0" in capsys.readouterr().err


def test_what_it_has_measured_is_kept_with_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = [run(case, 1, 60_000, 20.0) for case in (ALONE, BESIDE, WATCHED)]
    out = tmp_path / "console_beside.jsonl"
    monkeypatch.setattr(console_beside, "measure", lambda *_: runs)
    monkeypatch.setattr(sys, "argv", [*OPTIONS, str(out)])
    console_beside.main()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert "machine" in lines[0]
    assert [line["row"] for line in lines[1:4]] == [ALONE, BESIDE, WATCHED]
    assert lines[4:] == runs


def test_a_page_that_opens_its_socket_otherwise_is_refused() -> None:
    assert names_of("        query: {'client_id': 'ab-1', 'next_message_id': 3, 'implicit_handshake': True},") == (
        "ab-1",
        3,
    )
    with pytest.raises(RuntimeError, match="does not tell how its socket is opened"):
        names_of("<html></html>")


def test_rows_of_the_queue_are_counted_and_nothing_else() -> None:
    method = r'42["run_javascript",{"code":"return runMethod(31, \"run_grid_method\", [\"%s\",{%s}])","_id":2}]'
    row = r"{\"order\":\"1\",\"id\":\"1\"}"
    assert rows_of(method % ("applyTransaction", rf"\"add\":[{row},{row}],\"update\":[{row}]")) == 3
    assert rows_of(method % ("applyTransaction", r"\"remove\":[{\"id\":\"1\"}]")) == 0
    assert rows_of(r'42["update",{"29":{"text":"the newest 1 \"order\": of 2 cases"},"_id":1}]') == 0


def test_alerts_are_told_by_where_they_came_to_be() -> None:
    sent = dict.fromkeys(("ann", "bob", "cid", "dan"), 1000.0)
    told = console.summary(sent, {"ann": 1100.0, "bob": 1200.0, "cid": 1300.0, "old": 9.0}, {"ann": True}, 50.0)
    assert told.startswith("3 of 4 alerts at 50/s became rows of the page: p50 200 ms")
    assert "longest 300 ms from production to the row; 1 on the screen, 2 below its end, 1 beyond its 200 rows" in told
    with pytest.raises(SystemExit, match="none of 4 alerts"):
        console.summary(sent, {}, {}, 50.0)


@pytest.fixture
def settings(broker: Broker, topics: MakeTopic) -> Settings:
    return Settings(
        brokers=broker.bootstrap,
        alerts_topic=topics("alerts"),
        feedback_topic=topics("feedback"),
        classified_topic=topics("classified"),
    )


@pytest.mark.slow
def test_rows_below_the_end_of_the_screen_are_seen_too(settings: Settings, tmp_path: Path) -> None:
    with run_console(settings, tmp_path) as running, open_browser() as browser:
        browser.get(running.url)
        await_that(lambda: browser.find_elements("css selector", ".queue-grid .ag-root"))
        browser.execute_script(console.WATCH)
        users = [f"u{number}" for number in range(120)]
        produce(settings.brokers, settings.alerts_topic, [(user.encode(), alert_json(user)) for user in users])
        await_that(lambda: len(browser.execute_script("return window.rows")) == len(users))
        assert 0 < len(browser.execute_script("return window.drawn")) < len(users)


@pytest.mark.slow
def test_a_queue_that_is_looked_at_is_sent_each_new_row(settings: Settings, tmp_path: Path) -> None:
    with run_console(settings, tmp_path) as running, QueueWatcher(running.url) as watcher:
        produce(settings.brokers, settings.alerts_topic, [(b"u%d" % n, alert_json(f"u{n}")) for n in range(70)])
        await_that(lambda: watcher.rows >= 70, 60)  # more than one change of the grid takes at once
