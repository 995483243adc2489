"""A console on PostgreSQL in a browser: console and server are killed, and no click is lost or told twice."""

from pathlib import Path
from typing import Any

import pytest

from dataflow.settings import Settings
from tests.console.builders import alert_json
from tests.console.postgres_server import PostgresServer
from tests.console.running import await_that, run_console
from tests.console.test_console_health import get
from tests.console.test_console_pages import become, open_queue, press, produce, rows, text, told

pytestmark = pytest.mark.slow


def test_the_queue_goes_on_after_a_kill_of_the_console_and_one_of_the_server(
    browser: Any, settings: Settings, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    place = postgres_server.make_place()
    with run_console(settings, tmp_path, CONSOLE_DATABASE=place) as console:
        produce(console, ("ann", alert_json("ann", transaction_id="t1")))
        open_queue(browser, console)
        become(browser, "eve")
        await_that(lambda: len(rows(browser)) == 1)
        browser.find_element("css selector", ".queue-grid .ag-row").click()
        press(browser, "f")
        await_that(lambda: "eve has it" in text(browser))
        console.kill()

        console.start()
        produce(console, ("bob", alert_json("bob", transaction_id="t2")))
        open_queue(browser, console)
        await_that(lambda: len(rows(browser)) == 2)
        assert "eve has it" in text(browser)
        await_that(lambda: told(console) == [("t1", True, "eve")])
        await_that(lambda: get(console, "/ready")[0] == 200)

        postgres_server.kill()
        await_that(lambda: get(console, "/ready")[0] == 503)
        assert "its database cannot be written (" in get(console, "/ready")[1]
        assert get(console, "/live")[0] == 200
        assert get(console, "/metrics")[0] == 200
        produce(console, ("cid", alert_json("cid", transaction_id="t3")))
        press(browser, "k")
        press(browser, "g")
        await_that(lambda: "The database does not answer" in text(browser))
        postgres_server.start()
        await_that(lambda: len(rows(browser)) == 3)
        await_that(lambda: get(console, "/ready")[0] == 200)
        lines = console.log().splitlines()
        assert sum("is away (" in line for line in lines) == 1
        assert sum(line.endswith("/postgres is back") for line in lines) == 1
        assert told(console) == [("t1", True, "eve")]
