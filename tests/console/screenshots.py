"""Takes the pictures of docs/images: `make screenshots`.

It starts `make run` with a console's database of its own, waits until the simulation's alerts and labels have come, and
looks at the console with headless Chromium, at desktop and phone width, light and dark.
"""

import io
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from PIL import Image

from tests.console.running import ROOT, await_that, open_browser

IMAGES: Final = ROOT / "docs" / "images"
LARGEST: Final = 100_000
"""Bytes of a picture: a repository keeps every version of it."""
SIZES: Final = {"desktop": (1280, 1000), "phone": (390, 844)}
LOOKED_SECONDS: Final = 70.0
"""With the overview open before: then it tells the latency of the last minute, and not of the weeks before."""
LABELS: Final = 40
"""Labelled alerts to wait for, so that the overview has a precision to show."""
LIVED_SECONDS: Final = 60.0
SAID: Final = "Alerts to work on: "
RULES: Final = "dataflow/rules.toml"
"""The page names it as it is given, so that no picture tells where the repository lies."""

# The riskiest case whose user paid where they could not have been, and that shares something with others' alerts.
CASE: Final = """
SELECT a.case_number FROM alerts a WHERE a.rules LIKE '% impossible_travel %' AND EXISTS (
    SELECT 1 FROM alerts b WHERE b.user <> a.user AND (b.merchant = a.merchant OR b.device = a.device))
ORDER BY a.score DESC, a.number LIMIT 1
"""


def main() -> None:
    """Takes all pictures anew."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        database = Path(scratch) / "console.db"
        with subprocess.Popen(
            [sys.executable, "-m", "dataflow.demo"],
            env=os.environ | {"CONSOLE_DATABASE": str(database), "PYTHONUNBUFFERED": "1", "RULES_FILE": RULES},
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        ) as demo:  # fmt: skip
            try:
                url = _address(demo)
                _wait(database)
                _take(url, database)
            finally:
                demo.terminate()
                demo.communicate()


def _address(demo: subprocess.Popen[str]) -> str:
    assert demo.stdout is not None
    for line in demo.stdout:
        if SAID in line:
            return line.partition(SAID)[2].strip()
    msg = "make run ended before it said where the console is"
    raise SystemExit(msg)


def _ask(database: Path, query: str) -> Any:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        found = connection.execute(query).fetchone()
    return found and found[0]


def _wait(database: Path) -> None:
    time.sleep(LIVED_SECONDS)
    await_that(lambda: _ask(database, "SELECT count(*) FROM alerts WHERE label IS NOT NULL") >= LABELS, 300)
    await_that(lambda: _ask(database, CASE) is not None, 300)


def _take(url: str, database: Path) -> None:
    pages = {
        "queue": ("", ".queue-grid .ag-row"),
        "case": (f"case/{_ask(database, CASE)}", ".graph svg"),
        "overview": ("overview", ".chart svg"),
        "rules": ("rules", ".rules-editor .cm-line"),
    }
    with open_browser() as browser:
        browser.get(f"{url}overview")
        time.sleep(LOOKED_SECONDS)
    for width_name, (width, height) in SIZES.items():
        with open_browser(width, height) as browser:
            for wish in ("light", "dark"):
                _look_as(browser, width, height, wish)
                for page, (path, whole) in pages.items():
                    browser.get(url + path)
                    await_that(lambda s=whole: browser.find_elements("css selector", s), 60)
                    time.sleep(4)  # charts are drawn, and the overview has asked the flow
                    _check(browser, page)
                    name = f"console-{page}-{width_name}-{wish}.png"
                    size = _write(browser.get_screenshot_as_png(), IMAGES / name)
                    print(f"{name}: {size:,} bytes")


def _check(browser: Any, page: str) -> None:
    if str(ROOT) in browser.find_element("tag name", "body").text:
        msg = f"the page {page!r} shows where the repository lies: no picture is taken"
        raise SystemExit(msg)


def _look_as(browser: Any, width: int, height: int, wish: str) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    preferred = [{"name": "prefers-color-scheme", "value": wish}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": preferred})


def _write(png: bytes, path: Path) -> int:
    """Writes a picture with as many colours as leave it small; returns its bytes."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    for colors in (128, 64, 32, 16):
        smaller = io.BytesIO()
        image.quantize(colors, dither=Image.Dither.NONE).save(smaller, "PNG", optimize=True)
        if smaller.tell() <= LARGEST:
            break
    path.write_bytes(smaller.getvalue())
    return smaller.tell()


if __name__ == "__main__":
    main()
