"""WCAG 2.1 AA, as axe-core checks it, on every page: light and dark, at desktop and phone width."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from axe_core_python.selenium import Axe
from confluent_kafka import Producer

from console import users
from console.pages.alert_graph import COLORS as GRAPH_COLORS
from console.pages.charts import COLORS
from dataflow.connectors.embedded_broker import EmbeddedBroker
from dataflow.settings import Settings
from tests.console.builders import alert_json
from tests.console.running import RunningConsole, await_that, open_browser, run_console
from tests.support.builders import NOON, fields

pytestmark = pytest.mark.slow

PASSWORD = "correct horse battery"
RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}
PAGES = {
    "login": "Log in", "": "ann", "case/1": "Other users' alerts", "overview": "CONSOLE_FLOW_METRICS does not answer",
    "rules": "impossible_travel",
}  # fmt: skip
"""Each page, and what stands there once it is whole."""
WIDTHS = {"desktop": 1400, "phone": 390}


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningConsole]:
    broker, folder = EmbeddedBroker(), tmp_path_factory.mktemp("console")
    users.write(folder / "users.txt", "eve", frozenset({"look", "label", "rules"}), PASSWORD)
    settings = Settings(brokers=broker.address)
    with run_console(settings, folder, CONSOLE_USERS_FILE=str(folder / "users.txt")) as running:
        producer = Producer({"bootstrap.servers": broker.address, "log_level": 0})
        paid = fields(
            "ann", NOON - 900, transaction_id="p", fraudulent=False, score=0.1, latitude=40.7, longitude=-74.0
        )
        producer.produce(settings.classified_topic, key=b"ann", value=msgspec.json.encode(paid))
        for user in ("ann", "bob", "cy"):  # on one partition, so that case 1 is ann's
            producer.produce(
                settings.alerts_topic, key=user.encode(), value=alert_json(user, latitude=48.9, longitude=2.4),
                partition=0,
            )  # fmt: skip
        assert producer.flush(30) == 0
        yield running
    broker.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


def look_at(browser: Any, width: int, wish: str) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    preferred = [{"name": "prefers-color-scheme", "value": wish}, {"name": "prefers-reduced-motion", "value": "reduce"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": preferred})


def log_in(browser: Any, console: RunningConsole) -> None:
    browser.get(console.url)
    if "/login" in browser.current_url:
        browser.find_element("name", "name").send_keys("eve")
        browser.find_element("name", "password").send_keys(PASSWORD)
        browser.find_element("css selector", "button").click()
        await_that(lambda: "/login" not in browser.current_url)


def violations(browser: Any) -> list[str]:
    """What axe-core finds, with the elements that it found it of."""
    axe = Axe()
    found = axe.run(browser, options=RULES)
    assert found["passes"], "nothing was checked"
    return [
        f"{each['id']}: {node['target']} {node['html'][:200]} {node['failureSummary'][:300]}"
        for each in found["violations"]
        for node in each["nodes"]
        # The editor's text, within, takes the focus; axe-core 4.4 does not count `contenteditable` as such.
        if not (each["id"] == "scrollable-region-focusable" and node["target"] == [".cm-scroller"])
    ]  # fmt: skip


@pytest.mark.parametrize("wish", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path or "queue")
def test_a_page_has_no_fault_that_axe_core_finds(
    browser: Any, console: RunningConsole, path: str, width: int, wish: str
) -> None:
    look_at(browser, width, wish)
    if path != "login":
        log_in(browser, console)
    browser.get(console.url + path)
    await_that(lambda: PAGES[path] in browser.find_element("tag name", "body").text)
    if path != "login":
        await_that(
            lambda: browser.execute_script("return document.body.classList.contains('body--dark')") is (wish == "dark")
        )
        charts = {"case/1": 2, "overview": 2}.get(path, 0)
        await_that(lambda: len(browser.find_elements("css selector", ".chart svg")) == charts)
    found = violations(browser)
    assert not found, "\n".join(found)


def luminance(color: str) -> float:
    """As WCAG 2.1 defines it."""
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("background", ["#ffffff", "#121212"])
def test_what_is_drawn_in_charts_has_a_contrast_of_three(background: str) -> None:
    for color in (*COLORS, *GRAPH_COLORS):
        darker, lighter = sorted((luminance(color), luminance(background)))
        assert (lighter + 0.05) / (darker + 0.05) >= 3, color


def test_axe_core_finds_a_fault_that_is_there(browser: Any, console: RunningConsole) -> None:
    look_at(browser, 1400, "light")
    browser.get(f"{console.url}login")
    await_that(lambda: "Log in" in browser.find_element("tag name", "body").text)
    browser.execute_script("document.querySelector('button').style.cssText = 'color: #aaa; background: #fff'")
    assert any(each.startswith("color-contrast") for each in violations(browser))
