"""The rules in a real browser, beside a running flow: what is edited there changes what is decided next."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from console import users
from dataflow.connectors import kafka_source
from dataflow.events.feedback import feedback_to_json
from dataflow.scoring.loading import load_model
from dataflow.scoring.metadata import read_metadata
from dataflow.settings import Settings
from tests.conftest import Broker, MakeTopic
from tests.console.running import ROOT, RunningConsole, await_that, run_console
from tests.console.test_console_pages import click, severe, text
from tests.rules.builders import rule
from tests.support.builders import DAY, NOON, iso, raw
from tests.support.reading import read_all
from tests.training.test_threshold import decision

pytestmark = pytest.mark.slow

PASTE = """
const [text] = arguments, data = new DataTransfer();
data.setData('text/plain', text);
document.activeElement.dispatchEvent(
    new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true}));
"""
RULES = "# ours\n" + rule("big", "amount > 400", "Big {amount}") + rule("model", "model_alert", mode="off")


class Flow:
    """A detector in a process of its own, and what it decides."""

    def __init__(self, settings: Settings, environ: dict[str, str], log: Path):
        self.settings = settings
        self._producer = Producer({"bootstrap.servers": settings.brokers, "log_level": 0, "linger.ms": 1})
        self._log = log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dataflow.detect"], env=environ, cwd=ROOT, stderr=file, stdout=file
            )
        await_that(lambda: kafka_source.READY in log.read_text() or self._process.poll() is not None, 120)
        assert self._process.poll() is None, log.read_text()

    def decide(self, name: str, amount: float) -> dict[str, Any]:
        """What it decides of a transaction of this amount."""
        self._producer.produce(
            self.settings.transactions_topic, key=b"ann", value=raw("ann", amount=amount, transaction_id=name)
        )
        assert self._producer.flush(30) == 0
        found: list[dict[str, Any]] = []

        def decided() -> bool:
            messages = read_all(self.settings, [self.settings.alerts_topic, self.settings.classified_topic])
            found[:] = [each for each in (json.loads(m.value()) for m in messages) if each["transaction_id"] == name]
            return bool(found)

        await_that(decided, 60)
        return found[0]

    def has_taken(self, version: str) -> bool:
        """Whether it has told that it took up rules of this version."""
        return f"rules {version} from" in self._log.read_text()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(60) == 0, self._log.read_text()


@pytest.fixture
def rules_file(tmp_path: Path) -> Path:
    path = tmp_path / "rules" / "rules.toml"
    path.parent.mkdir()
    path.write_text(RULES)
    path.chmod(0o640)
    return path


@pytest.fixture
def environ(broker: Broker, topics: MakeTopic, tmp_path: Path, rules_file: Path, model_file: Path) -> dict[str, str]:
    for file in (model_file, model_file.with_suffix(".json")):
        shutil.copy(file, tmp_path)
    return {
        "KAFKA_BROKERS": broker.bootstrap,
        **{f"{name}_TOPIC": topics(name.lower()) for name in
           ("TRANSACTIONS", "ALERTS", "CLASSIFIED", "INVALID", "LABELS", "FEEDBACK")},
        "RULES_FILE": str(rules_file), "RULES_CHECK_SECONDS": "0.2", "MODEL_FILE": str(tmp_path / model_file.name),
        "RECOVERY_DIR": str(tmp_path / "recovery"), "RECOVERY_INTERVAL": "1", "METRICS_ADDRESS": "off",
    }  # fmt: skip


@pytest.fixture
def console(environ: dict[str, str], tmp_path: Path) -> Iterator[RunningConsole]:
    settings = Settings.load(environ, None)
    with run_console(settings, tmp_path, **environ) as running:
        yield running


@contextlib.contextmanager
def a_flow(environ: dict[str, str], tmp_path: Path) -> Iterator[Flow]:
    flow = Flow(Settings.load(environ, None), os.environ | environ, tmp_path / "flow.log")
    try:
        yield flow
    finally:
        flow.stop()


def open_rules(browser: Any, console: RunningConsole) -> None:
    browser.get(f"{console.url}rules")
    await_that(lambda: browser.find_elements("css selector", ".cm-content"))
    await_that(lambda: "The copy is right" in text(browser))


def edit(browser: Any, content: str) -> None:
    """Selects all of the copy, and pastes."""
    from selenium.webdriver.common.keys import Keys

    area = browser.find_element("css selector", ".cm-content")
    area.click()
    area.send_keys(Keys.CONTROL, "a")
    browser.execute_script(PASTE, content)


def say_why(browser: Any, why: str) -> None:
    browser.find_element("css selector", "[aria-label='Why']").send_keys(why)
    time.sleep(0.3)


def in_service(browser: Any) -> str:
    return str(browser.find_element("css selector", ".rules-state").text)


def test_a_rule_edited_backtested_put_into_shadow_and_promoted_changes_the_next_decision(
    browser: Any, console: RunningConsole, environ: dict[str, str], rules_file: Path, tmp_path: Path
) -> None:
    with a_flow(environ, tmp_path) as flow:
        before = flow.decide("before", 350.0)
        assert (before["fraudulent"], before["shadow_rules"]) == (False, [])
        open_rules(browser, console)
        assert "In service: version 1 of" in in_service(browser)

        edit(browser, RULES.replace("amount > 400", "amuont > 300"))
        await_that(lambda: "line 4: rule 'big', when, column 1" in text(browser))
        assert "did you mean 'amount'?" in text(browser)
        assert browser.find_elements("css selector", ".cm-line.mistake-line")
        edit(browser, RULES.replace("amount > 400", "amount > 300"))
        await_that(lambda: "The copy is right: 2 rules" in text(browser))

        click(browser, "backtest")
        await_that(lambda: "Alerts that the new ruleset" in text(browser), 180)
        assert "it adds 1 0 0 1" in " ".join(text(browser).split())  # alerts, frauds, genuine, not known

        click(browser, "put into shadow")  # without a reason nothing is written
        await_that(lambda: "say why" in text(browser))
        assert rules_file.read_text() == RULES
        say_why(browser, "smaller ones, too")
        click(browser, "put into shadow")
        await_that(lambda: "version 2 of" in in_service(browser))
        assert rules_file.read_text().startswith(RULES)
        await_that(lambda: flow.has_taken(flow.decide(f"s{time.monotonic()}", 350.0)["ruleset_version"]))
        shadow = flow.decide("shadow", 350.0)
        assert (shadow["fraudulent"], shadow["shadow_rules"]) == (False, ["big_shadow"])

        say_why(browser, "it was right")
        click(browser, "promote")
        await_that(lambda: "version 3 of" in in_service(browser))
        assert rules_file.read_text() == RULES.replace("amount > 400", "amount > 300")
        assert rules_file.stat().st_mode & 0o777 == 0o640
        await_that(lambda: flow.decide(f"p{time.monotonic()}", 350.0)["fraudulent"])
        promoted = flow.decide("promoted", 350.0)
        assert (promoted["rules"], promoted["reason"]) == (["big"], ["Big 350"])

        # What the rules find, with the label that an analyst gives; then back, at a click.
        browser.get(f"{console.url}case/1")
        await_that(lambda: "This alert" in text(browser))
        click(browser, "fraud")
        await_that(lambda: "analyst has it" in text(browser))  # a page that is left sends nothing more
        open_rules(browser, console)
        await_that(lambda: "100.0%" in text(browser))
        click(browser, "go back to 1")
        await_that(lambda: "version 4 of" in in_service(browser))
        assert rules_file.read_text() == RULES
        await_that(lambda: not flow.decide(f"b{time.monotonic()}", 350.0)["fraudulent"])
        await_that(lambda: "rules: went back" in text(browser))  # in the audit trail
        said = text(browser)
        for expected in ("smaller ones, too", "it was right", "back to version 1", "put into shadow", "analyst"):
            assert expected in said
        assert severe(browser) == []


def test_what_others_write_into_the_file_is_told_and_not_written_over_unasked(
    browser: Any, console: RunningConsole, rules_file: Path
) -> None:
    open_rules(browser, console)
    edit(browser, RULES.replace("amount > 400", "amount > 300"))
    await_that(lambda: "The copy is right: 2 rules" in text(browser))
    theirs = RULES + rule("theirs", "amount > 9")
    rules_file.write_text(theirs)
    await_that(lambda: "version 2 of" in in_service(browser))
    assert "came from the file" in in_service(browser)
    await_that(lambda: "The file has changed since this copy was begun" in text(browser))
    say_why(browser, "mine")
    click(browser, "promote")
    await_that(lambda: "has changed the file meanwhile" in text(browser))
    click(browser, "leave it")
    time.sleep(0.5)
    assert rules_file.read_text() == theirs
    assert severe(browser) == []
    browser.get("about:blank")
    console.kill()  # the copy and the versions survive it
    console.start()
    browser.get_log("browser")
    open_rules(browser, console)
    await_that(lambda: "The file has changed since this copy was begun" in text(browser))
    say_why(browser, "mine")
    click(browser, "promote")
    await_that(lambda: "has changed the file meanwhile" in text(browser))
    click(browser, "write over it")
    await_that(lambda: "version 3 of" in in_service(browser))
    assert "amount > 300" in rules_file.read_text()
    assert "theirs" not in rules_file.read_text()
    await_that(lambda: "and is what the file holds" in text(browser))
    assert "has changed since this copy" not in text(browser)

    click(browser, "backtest")  # and what is under way ends with the console
    await_that(lambda: "is under way since" in text(browser))
    await_that(lambda: any(children(pid) for pid in children(console.pid)))
    started = [each for pid in children(console.pid) for each in (pid, *children(pid))]
    assert severe(browser) == []
    browser.get("about:blank")
    assert console.stop() == 0
    await_that(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(each) for file in Path(f"/proc/{pid}/task").glob("*/children") for each in file.read_text().split()]


def choose(browser: Any, label: str, value: str) -> None:
    """Gives a number field a value."""
    from selenium.webdriver.common.keys import Keys

    field = browser.find_element("css selector", f"input[aria-label='{label}']")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(value)
    time.sleep(0.5)


def test_another_threshold_is_tried_on_what_the_topics_hold_and_then_put_in_service(
    browser: Any, console: RunningConsole, environ: dict[str, str]
) -> None:
    settings = Settings.load(environ, None)
    version = load_model(settings.model_file).version
    producer = Producer({"bootstrap.servers": settings.brokers, "log_level": 0})
    # 600 decisions in 6.24 days; from .5 on 100 of them, of which half turned out to be frauds.
    for n in range(600):
        producer.produce(settings.classified_topic, value=json.dumps(decision(n, version)).encode())
    for n in range(500, 600):
        value = feedback_to_json(f"t{n}", "ann", "Shop", iso(NOON), n >= 550, iso(NOON + DAY))
        producer.produce(settings.feedback_topic, value=value)
    assert producer.flush(30) == 0
    browser.get(f"{console.url}overview")
    await_that(lambda: "What if: another threshold" in text(browser))
    assert f"stand on {settings.alerts_topic} and {settings.classified_topic}" in text(browser)
    choose(browser, "Value", "0.5")
    click(browser, "try")
    await_that(lambda: "50 known frauds" in text(browser), 120)
    said = " ".join(text(browser).split())
    assert "600 decisions of this model" in said
    assert re.search(r"alerts a day, those of other rules too \S+ \(.*?\) 16\.0 \(13\.0 to 19\.5\)", said)
    assert re.search(r"precision .*? 50% \(40 ?% to 60 ?%\)", said)
    assert re.search(r"became known .*? 100% \(93% to 100%\)", said)
    assert "596.99 a day" in said
    before = read_metadata(settings.model_file).operating_point
    assert before is None or before.alert != 0.5  # a trial puts nothing in service
    click(browser, "put 0.5000 in service")
    await_that(lambda: "The move to a score from 0.5000 by analyst" in text(browser))
    await_that(lambda: read_metadata(settings.model_file).operating_point.alert == 0.5, 120)  # type: ignore[union-attr]
    assert severe(browser) == []


def test_who_lacks_the_role_changes_nothing(
    browser: Any, environ: dict[str, str], rules_file: Path, tmp_path: Path
) -> None:
    settings, file = Settings.load(environ, None), tmp_path / "users.txt"
    users.write(file, "ida", frozenset({"look", "label"}), "correct horse battery")
    with run_console(settings, tmp_path, **environ, CONSOLE_USERS_FILE=str(file)) as console:
        browser.get(f"{console.url}rules")
        await_that(lambda: browser.current_url.endswith("/login"))
        browser.find_element("name", "name").send_keys("ida")
        browser.find_element("name", "password").send_keys("correct horse battery")
        click(browser, "log in")
        await_that(lambda: not browser.current_url.endswith("/login"))
        rules_file.write_text(RULES + "# more\n")
        open_rules(browser, console)
        await_that(lambda: "version 2 of" in in_service(browser))
        say_why(browser, "for fun")
        actions = ("backtest", "put into shadow", "promote", "start anew from the file", "into the copy",
                   "go back to 1", "stop it")  # fmt: skip
        for number, action in enumerate(actions, 1):  # Quasar counts notifications that say the same
            click(browser, action)
            await_that(lambda: "You lack the role 'rules'." in text(browser))
            await_that(
                lambda n=number: (
                    n == 1
                    or [e.text for e in browser.find_elements("css selector", ".q-notification__badge")] == [str(n)]
                )
            )
        assert browser.find_element("css selector", ".cm-content").get_attribute("contenteditable") == "false"
        assert "version 2 of" in in_service(browser)
        assert rules_file.read_text() == RULES + "# more\n"
        assert severe(browser) == []
