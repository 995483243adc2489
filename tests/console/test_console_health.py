"""Whether the console says that it works, and what it counts."""

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import Producer
from prometheus_client.parser import text_string_to_metric_families

from console import health
from console.__main__ import METRICS_SERVED
from dataflow.connectors.broker_watch import BrokerWatch
from dataflow.connectors.embedded_broker import EmbeddedBroker
from dataflow.process import health as process_health
from dataflow.settings import Settings
from tests.console.builders import Console, alert, alert_json
from tests.console.running import RunningConsole, await_that, open_browser, run_console
from tests.console.test_console_access import ask


class Watch:
    """A broker that has been silent for as long as the test says."""

    silent = 0.0

    def seconds_since_answer(self) -> float:
        return self.silent


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Console]:
    made = Console(tmp_path / "console.db")
    process_health.goes_round()
    yield made
    process_health.stops_going_round()
    made.store.close()


def test_ready_takes_a_broker_a_database_that_writes_and_feedback_that_goes_out(held: Console) -> None:
    watch = Watch()
    checked = health.checked(held.store, cast(BrokerWatch, watch))
    assert checked.not_ready() == []
    assert held.rows("SELECT value FROM about WHERE name = 'checked'") == [str(held.clock.now)]
    watch.silent = health.BROKER_SECONDS + 1
    assert checked.not_ready() == ["no broker has answered for 11 s"]
    watch.silent = 0.0
    held.come(alert("ann"))
    held.store.label([1], "fraud", "eve")
    held.clock.now += health.FEEDBACK_SECONDS
    assert checked.not_ready() == []
    held.clock.now += 1
    assert checked.not_ready() == ["feedback has waited for 61 s"]
    held.store.database.write(lambda connection: connection.execute("UPDATE outbox SET confirmed = 1"))
    assert checked.not_ready() == []


def test_a_database_that_cannot_be_written_is_not_ready(held: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = health.checked(held.store, cast(BrokerWatch, Watch()))
    held.store.database.write(lambda connection: connection.execute("DROP TABLE about"))
    assert "its database cannot be written (no such table: about)" in checked.not_ready()
    monkeypatch.setattr(health, "WRITE_SECONDS", 0.2)
    busy = threading.Event()
    thread = threading.Thread(target=held.store.database.write, args=(lambda _: busy.wait(30),))
    thread.start()
    try:
        assert "its database has not written for 0.2 s" in checked.not_ready()
    finally:
        busy.set()
        thread.join()


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    made = EmbeddedBroker()
    yield made
    made.close()


@pytest.fixture(scope="module")
def console(broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningConsole]:
    with run_console(Settings(brokers=broker.address), tmp_path_factory.mktemp("console")) as running:
        yield running


def get(console: RunningConsole, path: str) -> tuple[int, str]:
    url = console.log().partition(METRICS_SERVED)[2].split()[0].removesuffix("/metrics")
    try:
        with urllib.request.urlopen(url + path, timeout=20) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def values(console: RunningConsole) -> dict[str, float]:
    status, text = get(console, "/metrics")
    assert status == 200
    return {
        each.name + "".join(f" {value}" for value in each.labels.values()): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
    }


@pytest.mark.slow
def test_what_comes_goes_waits_and_looks_is_counted(broker: EmbeddedBroker, console: RunningConsole) -> None:
    await_that(lambda: get(console, "/ready") == (200, "ready\n"))
    assert get(console, "/live") == (200, "live\n")
    assert get(console, "/")[0] == 404
    producer = Producer({"bootstrap.servers": broker.address, "log_level": 0})
    for user in ("ann", "bob"):
        producer.produce("fraud_alerts", key=user.encode(), value=alert_json(user))
    assert producer.flush(30) == 0
    await_that(lambda: values(console)["redflag_console_alerts_read_total"] == 2)
    found = values(console)
    assert found["redflag_console_stored_after_seconds_count"] == 2
    assert found["redflag_console_cases_waiting"] == 2
    assert found["redflag_console_clients"] == 0
    assert found["redflag_console_feedback_sent_total"] == 0
    assert found["redflag_console_seconds_since_broker_answered"] < 10
    await_that(lambda: values(console).get("redflag_console_lag_messages 0 fraud_alerts") == 0)
    assert not any(name.startswith("redflag_decisions") for name in found)  # the flow's are the flow's
    ask(console, "/", Host="evil.example")
    assert values(console)["redflag_console_requests_refused_total"] == 1
    with open_browser() as browser:
        browser.get(f"{console.url}case/1")
        await_that(lambda: values(console)["redflag_console_clients"] == 1)
        click_fraud(browser)
        await_that(lambda: values(console)["redflag_console_feedback_sent_total"] == 1)
        assert values(console)["redflag_console_feedback_waiting"] == 0
    await_that(lambda: values(console)["redflag_console_clients"] == 0)


def click_fraud(browser: Any) -> None:
    def buttons() -> list[Any]:
        return [each for each in browser.find_elements("css selector", "button") if each.text.lower() == "fraud"]

    await_that(buttons)
    buttons()[0].click()


@pytest.mark.slow
def test_without_a_broker_it_is_live_and_not_ready(broker: EmbeddedBroker, console: RunningConsole) -> None:
    broker.close()  # the last test of this file
    await_that(lambda: "no broker has answered for" in get(console, "/ready")[1], 60)
    assert get(console, "/ready")[0] == 503
    assert get(console, "/live")[0] == 200
