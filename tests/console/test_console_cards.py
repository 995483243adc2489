"""Who sees card numbers: only users with the role, only in a case, and the audit trail says so; and who finds them."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Producer

from console import users
from console.shown_text import record, shown
from dataflow.connectors.embedded_broker import EmbeddedBroker
from dataflow.settings import Settings
from tests.console.builders import alert_json
from tests.console.running import RunningConsole, await_that, run_console
from tests.console.test_console_access import ask, log_in
from tests.console.test_console_pages import press, rows, severe, text

CARD = "4111 1111 1111 1111"
MASKED = "411111******1111"


@pytest.mark.parametrize(
    "text",
    [
        CARD, "4111\u00a01111\u20111111\u20131111", "4111\u200b1111\u200c1111\ufeff1111", "4111 - 1111 - 1111 - 1111",
        "4\u00ad111111111111111", "41111111 \u200e11111111",
    ],
)  # fmt: skip
def test_card_numbers_are_masked_whatever_stands_between_their_digits(text: str) -> None:
    assert shown(f"paid with {text}.") == f"paid with {MASKED}."
    assert MASKED not in shown(text, cards=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"12 {CARD}", f"12 {MASKED}"),
        (f"7 {CARD}", f"7 {MASKED}"),
        ("378282246310005", "378282*****0005"),
        ("7 378282246310005 7", "7 378282*****0005 7"),
        (f"{CARD} 20 2025", f"{MASKED} 20 2025"),
        (f"1234 {CARD} {CARD.replace(' ', '')} 99", f"1234 {MASKED} {MASKED} 99"),
        (f"4111 {CARD}", f"4111 {MASKED}"),
        ("4111 1111 1111 1112", "4111 1111 1111 1112"),  # its last digit is none that a card has
        (CARD.replace(" ", "") + "1234", CARD.replace(" ", "") + "1234"),  # too long for one
    ],
)
def test_card_numbers_are_masked_among_other_numbers_which_stay(text: str, expected: str) -> None:
    assert shown(text) == expected


@pytest.mark.parametrize("text", ["1" + "\u200b" * 100_000, "1 " * 50_000, "1" * 100_000, "1 - " * 30_000])
def test_no_text_takes_long_to_mask(text: str) -> None:
    began = time.process_time()
    shown(text)
    record(text.encode())
    assert time.process_time() - began < 5


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningConsole]:
    broker, folder = EmbeddedBroker(), tmp_path_factory.mktemp("console")
    for name, roles in (("ida", {"look", "cards"}), ("eve", {"look", "label", "rules"})):
        users.write(folder / "users.txt", name, frozenset(roles), "correct horse battery")
    settings = Settings(brokers=broker.address)
    with run_console(settings, folder, CONSOLE_USERS_FILE=str(folder / "users.txt")) as running:
        producer = Producer({"bootstrap.servers": broker.address, "log_level": 0})
        # On one partition: case 1 is the alert that is read first, and two partitions are read in either order.
        producer.produce(settings.alerts_topic, key=b"ann", value=alert_json("ann", device=CARD), partition=0)
        producer.produce(settings.alerts_topic, key=b"bob", value=alert_json("bob"), partition=0)
        assert producer.flush(30) == 0
        yield running
    broker.close()


def page(console: RunningConsole, name: str, path: str) -> str:
    cookie = log_in(console, name)[1]["Set-Cookie"].split(";")[0]
    found = ""

    def is_there() -> bool:
        nonlocal found
        found = ask(console, path, Cookie=cookie)[2]
        return "This alert" in found

    await_that(is_there)
    return found


@pytest.mark.slow
def test_only_the_role_sees_card_numbers_and_the_audit_trail_says_who_did(console: RunningConsole) -> None:
    masked = page(console, "eve", "/case/1")
    assert MASKED in masked
    assert CARD not in masked
    assert "saw card numbers" not in masked
    whole = page(console, "ida", "/case/1")
    assert CARD in whole
    told = page(console, "eve", "/case/1")
    assert "ida: saw card numbers (alert 1)" in told
    assert CARD not in told
    page(console, "ida", "/case/2")
    assert "saw card numbers" not in page(console, "eve", "/case/2")  # there was none to see


def open_queue(browser: Any, console: RunningConsole, name: str) -> None:
    """As a user who is logged in."""
    token, value = log_in(console, name)[1]["Set-Cookie"].split(";")[0].split("=", 1)
    browser.get(console.url)
    browser.add_cookie({"name": token, "value": value})
    browser.get(console.url)
    await_that(lambda: len(rows(browser)) == 2)


@pytest.mark.slow
def test_a_card_number_finds_something_for_the_role_only(browser: Any, console: RunningConsole) -> None:
    for name, cases in (("eve", 0), ("ida", 1)):
        open_queue(browser, console, name)
        press(browser, "/")
        press(browser, CARD.replace(" ", ""))
        await_that(lambda n=cases: f"\n{n} case" in text(browser))  # type: ignore[misc]
    assert severe(browser) == []


@pytest.mark.slow
def test_a_group_by_a_card_number_is_opened_without_it(browser: Any, console: RunningConsole) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    open_queue(browser, console, "eve")
    browser.find_element("css selector", "[aria-label='Group by']").click()
    await_that(lambda: browser.find_elements("css selector", ".q-menu .q-item"))
    (device,) = [each for each in browser.find_elements("css selector", ".q-menu .q-item") if each.text == "device"]
    device.click()
    await_that(lambda: any(MASKED in row for row in rows(browser)))
    for row in browser.find_elements("css selector", ".queue-grid .ag-center-cols-container .ag-row"):
        if MASKED in row.text:
            ActionChains(browser).double_click(row).perform()
    await_that(lambda: f"device {MASKED}: 1 case" in text(browser))
    assert CARD not in browser.page_source
    assert severe(browser) == []
