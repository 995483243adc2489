"""The console as `make console` starts it, and a browser to look at it."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from console.__main__ import SERVED
from dataflow.settings import Settings

ROOT = Path(__file__).parents[2]


class RunningConsole:
    """A console in a process of its own."""

    def __init__(self, settings: Settings, folder: Path, extra: Mapping[str, str]):
        self._environ = os.environ | {
            "KAFKA_BROKERS": settings.brokers,
            "ALERTS_TOPIC": settings.alerts_topic,
            "FEEDBACK_TOPIC": settings.feedback_topic,
            "CLASSIFIED_TOPIC": settings.classified_topic,
            "CONSOLE_ADDRESS": "127.0.0.1:0",
            "CONSOLE_METRICS_ADDRESS": "127.0.0.1:0",
            "CONSOLE_FLOW_METRICS": "127.0.0.1:1",  # nobody listens there
            "CONSOLE_DATABASE": str(folder / "console.db"),
            **extra,
        }
        self._log = folder / "console.log"
        self.settings = settings
        self.start()

    def start(self) -> None:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "console"], env=self._environ, cwd=ROOT, stderr=log, stdout=log
            )
        await_that(lambda: SERVED in self.log() or self._process.poll() is not None, 120)
        assert self._process.poll() is None, self.log()
        self.url = self.log().partition(SERVED)[2].split()[0]

    @property
    def pid(self) -> int:
        return self._process.pid

    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        self._process.terminate()
        return self._process.wait(30)


@contextmanager
def run_console(settings: Settings, folder: Path, **extra: str) -> Iterator[RunningConsole]:
    console = RunningConsole(settings, folder, extra)
    try:
        yield console
    finally:
        console.kill()
        assert "Traceback" not in console.log(), console.log()


def await_that(holds: Callable[[], Any], seconds: float = 60) -> None:
    """Asks ever more rarely: to ask a browser for the text of its page takes it longer than what is waited for."""
    deadline, pause = time.monotonic() + seconds, 0.02
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(pause)
        pause = min(1.3 * pause, 0.2)


@contextmanager
def open_browser(width: int = 1400, height: int = 1000) -> Iterator[Any]:
    """Headless Chromium; skips the test by name where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Debian's chromium and chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = chromium
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", f"--window-size={width},{height}"):
        options.add_argument(argument)
    # Nothing but this machine is to be had: whatever a page wants from elsewhere fails.
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1")
    if os.geteuid() == 0:  # Chromium's sandbox does not work for root
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()
