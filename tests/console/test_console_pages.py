"""The console in a real browser: what an analyst sees, and what their clicks do."""

import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer

from console import users
from console.queue_view import COUNTED
from dataflow.settings import Settings
from tests.conftest import Broker, MakeTopic
from tests.console.builders import Console, alert, alert_json
from tests.console.running import RunningConsole, await_that, open_browser, run_console
from tests.support.reading import read_all

pytestmark = pytest.mark.slow

ROWS = "return [...document.querySelectorAll('.queue-grid .ag-center-cols-container .ag-row')].map(r => r.innerText)"
PROBE = """
window.gaps = []; let last = performance.now();
setInterval(() => { const now = performance.now(); window.gaps.push(now - last); last = now; }, 10);
"""
PRESS = """
const done = arguments[arguments.length - 1], began = performance.now();
document.body.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true}));
requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
"""


@pytest.fixture
def console(settings: Settings, tmp_path: Path) -> Iterator[RunningConsole]:
    with run_console(settings, tmp_path) as running:
        yield running


def produce(console: RunningConsole, *alerts: tuple[str, bytes]) -> None:
    producer = Producer({"bootstrap.servers": console.settings.brokers, "log_level": 0, "linger.ms": 1})
    for user, value in alerts:
        producer.produce(console.settings.alerts_topic, key=user.encode(), value=value)
    assert producer.flush(30) == 0


def rows(browser: Any) -> list[str]:
    return list(browser.execute_script(ROWS))


def open_queue(browser: Any, console: RunningConsole) -> None:
    browser.get(console.url)
    await_that(lambda: browser.find_elements("css selector", ".queue-grid .ag-root"))
    await_that(lambda: browser.execute_script("return window.socket?.connected || document.readyState === 'complete'"))


def press(browser: Any, key: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(key).perform()


def text(browser: Any) -> str:
    return str(browser.find_element("tag name", "body").text)


def click(browser: Any, label: str) -> None:
    from selenium.common.exceptions import StaleElementReferenceException

    def clicked() -> bool:
        try:
            for button in browser.find_elements("css selector", "button"):
                if button.text.strip().lower() == label.lower():
                    button.click()
                    return True
        except StaleElementReferenceException:  # the page was drawn anew while its buttons were read
            return False
        return False

    await_that(clicked)


def become(browser: Any, analyst: str) -> None:
    """Gives the analyst a name, where there are no passwords."""
    from selenium.webdriver.common.keys import Keys

    field = browser.find_element("css selector", ".analyst input")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(analyst, Keys.TAB)
    time.sleep(0.5)


def told(console: RunningConsole) -> list[tuple[str, bool, str]]:
    messages = read_all(console.settings, [console.settings.feedback_topic])
    values = [msgspec.json.decode(message.value() or b"") for message in messages]
    return sorted((each["transaction_id"], each["fraud"], each["analyst"]) for each in values)


def severe(browser: Any) -> list[str]:
    return [each["message"] for each in browser.get_log("browser") if each["level"] == "SEVERE"]


def test_an_alert_appears_in_the_queue_within_a_second(browser: Any, console: RunningConsole) -> None:
    open_queue(browser, console)
    produce(console, ("first", alert_json("first")))
    await_that(lambda: len(rows(browser)) == 1)
    took = []
    for number in range(5):
        user, began = f"user{number}", time.monotonic()
        produce(console, (user, alert_json(user)))
        await_that(lambda u=user: any(u in row for row in rows(browser)))  # type: ignore[misc]
        took.append(time.monotonic() - began)
    assert max(took) < 1, took
    assert "6 cases" in text(browser)
    assert severe(browser) == []  # nothing was asked for from elsewhere, nothing broke the policy


def test_a_case_says_why_and_what_is_usual(browser: Any, console: RunningConsole) -> None:
    produce(console, ("ann", alert_json("ann")), ("bob", alert_json("bob")))
    open_queue(browser, console)
    await_that(lambda: len(rows(browser)) == 2)
    press(browser, "j")
    press(browser, "\ue007")  # Enter
    await_that(lambda: "/case/" in browser.current_url)
    await_that(lambda: "Why, and what drove the score" in text(browser))
    said = text(browser)
    for expected in (
        "High amount", "amount 412.50 is 6.1 times this user's usual 67.80", "0.400 lower", "9.5 times as often fraud",
        "67.8", "the device phone-1", "the address 10.0.0.7", "r1", "m1", '"ruleset_version": "r1"',
    ):  # fmt: skip
        assert expected in said
    assert severe(browser) == []


def test_a_click_on_fraud_arrives_on_the_topic_once_also_with_a_kill_in_between(
    browser: Any, console: RunningConsole
) -> None:
    produce(console, ("ann", alert_json("ann", transaction_id="t1")), ("bob", alert_json("bob", transaction_id="t2")))
    open_queue(browser, console)
    await_that(lambda: len(rows(browser)) == 2)
    browser.get(f"{console.url}case/1")
    await_that(lambda: "This alert" in text(browser))
    click(browser, "fraud")
    click(browser, "fraud")
    await_that(lambda: "analyst has it" in text(browser))
    console.kill()
    console.start()
    browser.get(f"{console.url}case/1")
    await_that(lambda: "fraud, by analyst" in text(browser))
    click(browser, "fraud")
    browser.get(f"{console.url}case/2")
    await_that(lambda: "This alert" in text(browser))
    click(browser, "genuine")
    await_that(lambda: len(told(console)) == 2)
    time.sleep(1)
    labelled = {name: fraud for name, fraud, _ in told(console)}
    assert len(told(console)) == 2
    assert sorted(labelled.values()) == [False, True]
    assert {who for _, _, who in told(console)} == {"analyst"}


def test_keys_label_and_take_the_chosen_case(browser: Any, console: RunningConsole) -> None:
    produce(console, ("ann", alert_json("ann", transaction_id="t1")))
    open_queue(browser, console)
    await_that(lambda: len(rows(browser)) == 1)
    press(browser, "j")
    press(browser, "a")
    await_that(lambda: "analyst has it" in rows(browser)[0])
    press(browser, "g")
    await_that(lambda: told(console) == [("t1", False, "analyst")])
    press(browser, "p")
    await_that(lambda: "Paused" in text(browser))
    produce(console, ("bob", alert_json("bob")))
    time.sleep(1)
    assert len(rows(browser)) == 1
    press(browser, "p")
    await_that(lambda: len(rows(browser)) == 2)


CONNECTED_TEXT = "return window.socket?.connected ? document.body.innerText : ''"
"""What a page says once it hears keys; by one script, as the page that is left goes while it is read."""


def test_keys_work_a_case_and_go_to_the_next_in_the_order_of_the_queue_as_it_was_left(
    browser: Any, console: RunningConsole
) -> None:
    for user in ("ann", "bob", "cid"):
        produce(console, (user, alert_json(user, transaction_id=user)))
    open_queue(browser, console)
    await_that(lambda: len(rows(browser)) == 3)
    press(browser, "j")
    press(browser, "\ue007")  # Enter

    def opened(user: str) -> None:
        await_that(lambda: re.search(rf"Case \d+: {user}\b", browser.execute_script(CONNECTED_TEXT)))

    opened("cid")  # the newest
    press(browser, "k")
    await_that(lambda: "no case before this one" in text(browser))
    press(browser, "j")
    opened("bob")
    press(browser, "/")
    press(browser, "fraud")  # is typed, and labels nothing
    press(browser, "\ue00c")  # Escape
    time.sleep(0.5)
    assert told(console) == []
    press(browser, "u")
    press(browser, "f")
    await_that(lambda: told(console) == [("bob", True, "analyst")])  # of what is unsure nothing is told
    press(browser, "c")
    await_that(lambda: "closed by analyst: fraud" in text(browser))
    press(browser, "j")  # it waits no more, so from the queue's first on
    opened("cid")
    press(browser, "j")
    opened("ann")
    press(browser, "a")
    await_that(lambda: "analyst has it" in text(browser))
    press(browser, "j")
    await_that(lambda: "no case after this one" in text(browser))
    press(browser, "k")
    opened("cid")


CHOSEN = """
const row = document.querySelector('.queue-grid .ag-row-selected');
return [row?.getAttribute('row-id'), row?.getAttribute('row-index'),
        document.activeElement.closest('.ag-row')?.getAttribute('row-id')];
"""
"""The chosen row and its place, and the row that has the focus."""


def test_the_focus_stays_on_the_chosen_row_as_others_come_and_follows_the_arrows(
    browser: Any, console: RunningConsole
) -> None:
    from selenium.webdriver.common.keys import Keys

    produce(console, ("ann", alert_json("ann")), ("bob", alert_json("bob")), ("cid", alert_json("cid")))
    open_queue(browser, console)
    await_that(lambda: len(rows(browser)) == 3)
    press(browser, "j")
    chosen, place, focused = browser.execute_script(CHOSEN)
    assert (place, focused) == ("0", chosen)
    produce(console, ("dan", alert_json("dan")))
    await_that(lambda: browser.execute_script(CHOSEN) == [chosen, "1", chosen])
    press(browser, Keys.ARROW_DOWN)
    await_that(lambda: browser.execute_script(CHOSEN)[1] == "2")
    below, _, focused = browser.execute_script(CHOSEN)
    assert below == focused != chosen
    press(browser, "a")
    await_that(lambda: "has it" in browser.find_element("css selector", f"[row-id='{below}']").text)
    assert sum("has it" in row for row in rows(browser)) == 1
    press(browser, "g")
    await_that(lambda: "genuine; analyst has it" in browser.find_element("css selector", f"[row-id='{below}']").text)
    press(browser, "c")  # the row goes; the next key is for the one that took its place
    await_that(lambda: len(rows(browser)) == 3)
    press(browser, "j")
    await_that(lambda: browser.execute_script(CHOSEN)[1] == "2")


def test_the_queue_is_as_it_was_left_until_it_is_cleared_and_a_screen_reader_is_told_now_and_then(
    browser: Any, console: RunningConsole
) -> None:
    produce(console, ("ann", alert_json("ann")), ("bob", alert_json("bob", merchant="Kiosk 24", amount=7.0)))
    open_queue(browser, console)
    await_that(lambda: len(rows(browser)) == 2)
    press(browser, "/")
    press(browser, "kiosk")
    await_that(lambda: len(rows(browser)) == 1)
    status = "return document.querySelector('.heard[role=status]').innerText"
    await_that(lambda: browser.execute_script(status) == "1 case")
    browser.get(f"{console.url}case/1")
    await_that(lambda: "This alert" in text(browser))
    open_queue(browser, console)
    await_that(lambda: len(rows(browser)) == 1)
    assert browser.find_element("css selector", ".queue-search input").get_attribute("value") == "kiosk"
    click(browser, "clear")
    await_that(lambda: len(rows(browser)) == 2)
    await_that(lambda: browser.execute_script(status) == "2 cases")
    produce(console, ("cid", alert_json("cid")))
    await_that(lambda: "3 cases" in browser.find_element("css selector", ".queue-count").text)
    assert browser.execute_script(status) == "2 cases"


def test_of_two_analysts_who_take_a_case_one_gets_it(browser: Any, console: RunningConsole) -> None:
    produce(console, ("ann", alert_json("ann")))
    open_queue(browser, console)
    await_that(lambda: len(rows(browser)) == 1)
    with open_browser() as other:
        for each, name in ((browser, "eve"), (other, "mel")):
            each.get(f"{console.url}case/1")
            await_that(lambda e=each: "This alert" in text(e))  # type: ignore[misc]
            become(each, name)
        click(browser, "take")
        await_that(lambda: "eve has it" in text(browser))
        await_that(lambda: "eve has it" in text(other))  # without a reload
        click(other, "take")
        await_that(lambda: "eve has case 1" in text(other))
        click(other, "fraud")
        time.sleep(0.5)
        assert "mel" not in " ".join(each.text for each in other.find_elements("css selector", ".audit"))
    assert told(console) == []


def test_a_case_shows_the_alert_that_is_being_read_and_its_status_to_a_screen_reader(
    browser: Any, console: RunningConsole
) -> None:
    produce(console, ("ann", alert_json("ann", score=0.6, transaction_id="first")))
    open_queue(browser, console)
    await_that(lambda: len(rows(browser)) == 1)
    browser.get(f"{console.url}case/1")
    await_that(lambda: "1 alert," in text(browser))
    browser.execute_script("window.told = document.querySelector('.case-state[role=status]')")
    produce(console, ("ann", alert_json("ann", score=0.9, transaction_id="second")))
    await_that(lambda: "2 alerts" in browser.execute_script("return window.told.isConnected && window.told.innerText"))
    facts = browser.find_element("css selector", ".facts")
    assert "first" in facts.text  # and not the riskier one that came meanwhile
    browser.find_element("css selector", "#alert-2").click()
    focus = "return [document.activeElement.id, document.activeElement.getAttribute('aria-current')]"
    await_that(lambda: browser.execute_script(focus) == ["alert-2", "true"])
    assert "second" in browser.find_element("css selector", ".facts").text


def test_a_case_is_taken_over_and_a_suppression_lifted(browser: Any, console: RunningConsole) -> None:
    produce(console, ("ann", alert_json("ann")))
    open_queue(browser, console)
    await_that(lambda: len(rows(browser)) == 1)
    browser.get(f"{console.url}case/1")
    await_that(lambda: "This alert" in text(browser))
    click(browser, "hand over")
    await_that(lambda: "Say who is to have the case." in text(browser))
    click(browser, "take")
    await_that(lambda: "analyst has it" in text(browser))
    assert "TAKE OVER" not in text(browser)
    click(browser, "suppress")
    await_that(lambda: "suppressed: user ann for 1 h" in text(browser))
    become(browser, "mel")
    browser.refresh()
    click(browser, "take over")
    await_that(lambda: "mel has it" in text(browser))
    click(browser, "give back")
    await_that(lambda: "nobody has it" in text(browser))
    open_queue(browser, console)
    await_that(lambda: "Suppressed for now: 1" in text(browser))
    browser.find_element("css selector", ".suppressions .q-item").click()
    await_that(lambda: "user ann, until" in text(browser))
    click(browser, "lift")
    await_that(lambda: "Suppressed for now: 0" in text(browser))


def test_the_overview_draws_alerts_by_rule_or_by_scenario(browser: Any, console: RunningConsole) -> None:
    produce(console, ("ann", alert_json("ann", scenario="card_testing")), ("bob", alert_json("bob")))
    browser.get(f"{console.url}overview")
    drawn = "return [...document.querySelectorAll('.chart')].map(chart => chart.textContent).join()"
    await_that(lambda: "high_amount" in browser.execute_script(drawn))
    await_that(lambda: browser.find_element("css selector", ".lines-by").is_displayed())
    browser.find_element("css selector", ".lines-by").click()
    await_that(lambda: any(each.text == "scenario" for each in browser.find_elements("css selector", ".q-item")))
    next(each for each in browser.find_elements("css selector", ".q-item") if each.text == "scenario").click()
    await_that(lambda: "card_testing" in browser.execute_script(drawn))
    assert "high_amount" not in browser.execute_script(drawn)


def test_texts_of_transactions_stay_text(browser: Any, console: RunningConsole) -> None:
    evil = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
    turned = "shop\u202egnp.exe"
    produce(
        console,
        ("u", alert_json("u", merchant=evil, reason=f"Merchant {evil} flagged", **{":hacked": "window.hacked=1"})),
        ("v", alert_json("v", merchant=turned, device="4111 1111 1111 1111", location="{{window.hacked=1}}")),
        ("w", alert_json(evil, ip=evil, explanation=[
            {"feature": evil, "value": evil, "usual": evil, "effect": 1.0, "text": f"</script>{evil}`${{hacked=1}}"}
        ])),
    )  # fmt: skip
    open_queue(browser, console)
    for expected in ("<script>window.hacked=1</script><img", "shop[U+202E]gnp.exe"):  # rows come before their texts
        await_that(lambda e=expected: e in "\n".join(rows(browser)))  # type: ignore[misc]
    for number in (1, 2, 3):
        browser.get(f"{console.url}case/{number}")
        await_that(lambda: "This alert" in text(browser))
        time.sleep(0.5)
        assert browser.execute_script("return window.hacked") is None
        assert browser.execute_script("return document.querySelectorAll('img[src=x]').length") == 0
        source = text(browser)
        assert "\u202e" not in source
        assert "4111 1111" not in source
        assert ("<img src=x" in source) or "[U+202E]" in source
    assert "411111******1111" in "".join(_case_text(browser, console, number) for number in (1, 2, 3))
    assert severe(browser) == []


def _case_text(browser: Any, console: RunningConsole, number: int) -> str:
    browser.get(f"{console.url}case/{number}")
    await_that(lambda: "This alert" in text(browser))
    return text(browser)


def test_filters_and_search_change_what_is_shown(browser: Any, console: RunningConsole) -> None:
    produce(console, ("ann", alert_json("ann")), ("bob", alert_json("bob", merchant="Kiosk 24", amount=7.0)))
    open_queue(browser, console)
    await_that(lambda: len(rows(browser)) == 2)
    press(browser, "/")
    press(browser, "kiosk")
    await_that(lambda: len(rows(browser)) == 1)
    assert "bob" in rows(browser)[0]


def test_cases_beyond_those_that_are_counted_are_said_to_be_at_least_as_many(
    browser: Any, settings: Settings, tmp_path: Path
) -> None:
    console = Console(tmp_path / "console.db")
    console.clock.now = time.time()  # else it is forgotten as an old one
    console.come(alert("ann"))
    columns = "state, live, opened, last, last_alert, top_alert, score, action, amount, alerts, suppressed"
    console.store.database.write(
        lambda connection: connection.execute(  # cases that look like ann's
            f"WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < {COUNTED}) "  # noqa: S608
            f"INSERT INTO cases (user, {columns}) SELECT 'user' || i, {columns} FROM cases CROSS JOIN n"
        )
    )
    console.store.close()
    with run_console(settings, tmp_path) as running:
        open_queue(browser, running)
        await_that(lambda: f"the newest 200 of {COUNTED:,} cases" in text(browser))
        produce(running, ("bob", alert_json("bob")))
        await_that(lambda: f"the newest 200 of at least {COUNTED:,} cases" in text(browser))
        await_that(lambda: any("bob" in row for row in rows(browser)))


def test_a_burst_of_5000_alerts_leaves_the_page_responsive(browser: Any, console: RunningConsole) -> None:
    open_queue(browser, console)
    produce(console, ("first", alert_json("first")))
    await_that(lambda: len(rows(browser)) == 1)
    browser.set_script_timeout(30)
    browser.execute_script(PROBE)
    # Twice at most: with other tests on the same two cores one key in ten once took 226 ms.
    bursts = (("one", "5,001 cases"), ("two", "at least 10,000 cases"))
    assert any(keys_are_quick_in_a_burst(browser, console, name, said) for name, said in bursts)
    press(browser, "j")
    assert len(browser.execute_script("return [...document.querySelectorAll('.ag-row-selected')]")) == 1


def keys_are_quick_in_a_burst(browser: Any, console: RunningConsole, name: str, said: str) -> bool:
    """Whether nine keys in ten take less than 200 ms until the page says that all alerts of the burst have come."""
    produce(console, *((f"{name}{number}", alert_json(f"{name}{number}", score=0.5)) for number in range(5000)))
    taken = []
    deadline = time.monotonic() + 60
    while len(taken) < 10 or said not in browser.find_element("css selector", ".queue-count").text:
        assert time.monotonic() < deadline, text(browser)[:300]
        taken.append(browser.execute_async_script(PRESS, "j"))
    gaps = sorted(browser.execute_script("return window.gaps"))
    print(f"{len(taken)} keys, longest {max(taken):.0f} ms; longest gap of the page's thread {gaps[-1]:.0f} ms")
    assert len(taken) >= 10
    # At rest on the same machine at the same time: others may use it.
    at_rest = statistics.median(browser.execute_async_script(PRESS, "j") for _ in range(10))
    return sorted(taken)[len(taken) * 9 // 10] < max(200, 4 * at_rest)


def log_in(browser: Any, name: str) -> None:
    await_that(lambda: browser.current_url.endswith("/login") and browser.find_elements("name", "password"))
    browser.find_element("name", "name").send_keys(name)
    browser.find_element("name", "password").send_keys("correct horse battery")
    click(browser, "log in")
    await_that(lambda: len(rows(browser)) == 1)


def test_who_may_only_look_labels_nothing_and_is_out_after_logging_out(
    browser: Any, broker: Broker, topics: MakeTopic, tmp_path: Path
) -> None:
    settings = Settings(
        brokers=broker.bootstrap,
        alerts_topic=topics("alerts"),
        feedback_topic=topics("feedback"),
        classified_topic=topics("classified"),
    )
    users.write(tmp_path / "users.txt", "ida", frozenset({"look"}), "correct horse battery")
    users.write(tmp_path / "users.txt", "eve", frozenset({"label"}), "correct horse battery")
    with run_console(settings, tmp_path, CONSOLE_USERS_FILE=str(tmp_path / "users.txt")) as console:
        produce(console, ("ann", alert_json("ann")))
        browser.get(console.url)
        log_in(browser, "ida")
        browser.get(f"{console.url}case/1")
        await_that(lambda: "This alert" in text(browser))
        for action in ("fraud", "take", "suppress"):
            click(browser, action)
            await_that(lambda: "You lack the role 'label'." in text(browser))
        assert "nobody has it" in text(browser)
        assert told(console) == []
        click(browser, "log out")
        await_that(lambda: browser.current_url.endswith("/login"))
        browser.get(f"{console.url}case/1")
        log_in(browser, "eve")
        browser.get(f"{console.url}case/1")
        await_that(lambda: "This alert" in text(browser))
        click(browser, "take")
        await_that(lambda: "eve has it" in text(browser))
        browser.find_element("css selector", "[aria-label='Hand over to']").send_keys("ida")
        click(browser, "hand over")
        await_that(lambda: "There is no user ida." in text(browser))  # none who could work it
        assert severe(browser) == []


def test_a_phone_shows_the_queue_first_and_the_filters_at_a_click(console: RunningConsole) -> None:
    produce(console, ("ann", alert_json("ann")))
    with open_browser(390, 844) as phone:
        phone.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        )
        phone.get(console.url)
        await_that(lambda: len(rows(phone)) == 1)
        merchant = phone.find_element("css selector", "input[aria-label=Merchant]")
        assert not merchant.is_displayed()
        assert phone.execute_script("return document.querySelector('.queue-grid').getBoundingClientRect().top") < 350
        click(phone, "filters")
        await_that(merchant.is_displayed)
        assert phone.find_element("css selector", ".unfold").get_attribute("aria-expanded") == "true"
        merchant.send_keys("nowhere")
        await_that(lambda: len(rows(phone)) == 0)
        click(phone, "filters (1)")
        await_that(lambda: not merchant.is_displayed())
        phone.refresh()  # the session's view stays; it must be seen that it is not all
        await_that(lambda: phone.find_element("css selector", ".unfold").text.lower() == "filters (1)")


def test_pages_fit_a_phone_in_light_and_dark(console: RunningConsole) -> None:
    produce(console, ("ann", alert_json("ann", merchant="a-merchant-with-a-very-long-name" * 4)))
    with open_browser(390, 844) as phone:
        phone.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        )
        for path, content in (
            ("", "ann"),
            ("case/1", "This alert"),
            ("overview", "high_amount"),
            ("rules", "Your copy"),
        ):
            for wish in ("light", "dark"):
                preferred = [{"name": "prefers-color-scheme", "value": wish}]
                phone.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": preferred})
                phone.get(console.url + path)
                await_that(lambda c=content: c in text(phone))  # type: ignore[misc]
                assert phone.execute_script("return document.documentElement.scrollWidth") <= 390
                dark = phone.execute_script("return document.body.classList.contains('body--dark')")
                assert dark is (wish == "dark")


DARK = """
const editor = getComputedStyle(document.querySelector('.cm-editor')).backgroundColor.match(/\\d+/g).slice(0, 3);
return [document.body.classList.contains('body--dark'), editor.every(each => each < 128)];
"""
"""Whether the page and the editor of its rules are dark, as they are drawn."""


@pytest.mark.parametrize("wish", ["light", "dark"])
def test_page_and_editor_are_as_the_browser_wishes_and_one_click_turns_them(
    browser: Any, console: RunningConsole, wish: str
) -> None:
    preferred = [{"name": "prefers-color-scheme", "value": wish}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": preferred})
    browser.get(f"{console.url}rules")
    await_that(lambda: browser.find_elements("css selector", ".cm-line"))
    await_that(lambda: browser.execute_script(DARK) == [wish == "dark"] * 2)
    click(browser, "light or dark")
    await_that(lambda: browser.execute_script(DARK) == [wish != "dark"] * 2)
