"""How fast an alert is in the browser, and what the console takes, with many alerts kept.

python -m benchmarks.console --alerts 1000000
python -m benchmarks.console --alerts 1000000 --database postgresql://eve@localhost/redflag

It fills a console's database, starts the console on it beside an Apache Kafka, opens the queue in a headless Chromium,
and produces alerts at a steady pace: of each, how long from its production to its row in the page.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from confluent_kafka import Producer

from benchmarks.filled_console import fill
from benchmarks.stage import paced
from console.queue_view import SHOWN
from console.reader import AT_ONCE
from console.store import Batch, Store
from console.view import View
from dataflow.settings import Settings
from tests.console.builders import alert, alert_json
from tests.console.running import await_that, open_browser, run_console
from tests.support.kafka_server import KafkaServer

INGESTED = 2_000
TRIES = 3
VIEWS = {
    "newest first": View(),
    "riskiest first": View(order="riskiest"),
    "a reason of most": View(rule="high_amount"),
    "a reason of a tenth of the alerts": View(rule="fast_cards"),
    "a reason of hardly any": View(rule="hardly_ever"),
    "amounts up to 1": View(at_most=1.0),
    "a reason of a tenth, and amounts up to 50": View(rule="fast_cards", at_most=50.0, order="riskiest"),
}
WATCH = """
window.rows = {}; window.drawn = {};
const grid = document.querySelector('.queue-grid'), api = getElement(Number(grid.id.slice(1))).api;
const note = () => api.forEachNode(row => { window.rows[row.data.user] ??= Date.now(); });
api.addEventListener('rowDataUpdated', () => requestAnimationFrame(note));
const cells = () => grid.querySelectorAll('.ag-cell[col-id=user]');
const look = () => cells().forEach(cell => { window.drawn[cell.innerText] = true; });
new MutationObserver(look).observe(grid, {subtree: true, childList: true, characterData: true});
"""
"""Notes when a user's row is first in the grid, and which rows it has drawn: those on the screen, and a few below."""


def fill_a_new_one(database: str, count: int) -> None:
    """Fills a database that has no alert; says of any how many it has, in what time the store finds the first page."""
    store = Store(database)
    try:
        (kept,) = store.database.read().execute("SELECT count(*) FROM alerts").fetchone()
        if not kept:
            began = time.perf_counter()
            fill(store, count)
            print(f"stored {count:,} alerts in bulk in {time.perf_counter() - began:.0f} s")
        late = [alert(f"late{number}") for number in range(INGESTED)]
        began = time.perf_counter()
        for first in range(0, INGESTED, AT_ONCE):
            store.ingest(Batch(late[first : first + AT_ONCE]))
        rate = INGESTED / (time.perf_counter() - began)
        print(f"{kept or count:,} alerts kept; {rate:,.0f} more a second are stored", flush=True)
        for name, view in VIEWS.items():
            took = []
            for _ in range(TRIES):
                began = time.perf_counter()
                store.page(view)
                took.append(1000 * (time.perf_counter() - began))
            print(f"the queue, {name}: {took[0]:.0f} ms at first, then {min(took):.0f} ms", flush=True)
    finally:
        store.close()


def memory(pid: int) -> dict[str, float]:
    """What a process takes and has taken, MB: all, and what is its own (without pages of files)."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: round(int(lines[name].split()[0]) / 1024, 1) for name in ("VmRSS", "VmHWM", "RssAnon")}


def cpu(pid: int) -> float:
    """CPU seconds that a process has taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Fills, starts, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alerts", type=int, default=100_000, help="that are kept at the start, of a new database")
    parser.add_argument(
        "--database", default=os.environ.get("CONSOLE_DATABASE"),
        help="a path, or postgresql://...; one with alerts is kept; default: CONSOLE_DATABASE, else a new file",
    )  # fmt: skip
    parser.add_argument("--rate", type=float, default=50.0, help="alerts a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, KafkaServer() as kafka:
        database = arguments.database or str(Path(scratch) / "filled.db")
        fill_a_new_one(database, arguments.alerts)
        settings = Settings(brokers=kafka.bootstrap)
        kafka.create_topics(dict.fromkeys(("fraud_alerts", "fraud_feedback", "classified_transactions"), 4))
        with run_console(settings, Path(scratch), CONSOLE_DATABASE=database) as console, open_browser() as browser:
            began = time.perf_counter()
            browser.get(console.url)
            await_that(lambda: browser.find_elements("css selector", ".queue-grid .ag-row"))
            print(f"first page, with its rows: {time.perf_counter() - began:.2f} s", flush=True)
            browser.execute_script(WATCH)
            before = cpu(console.pid)
            sent = _produce(kafka.bootstrap, arguments.rate, arguments.seconds)
            share = (cpu(console.pid) - before) / arguments.seconds
            time.sleep(3)
            rows, drawn = browser.execute_script("return [window.rows, window.drawn]")
            print(summary(sent, rows, drawn, arguments.rate))
            print(f"the console's CPU: {share:.2f} of a core; its memory, MB:", memory(console.pid))


def summary(sent: dict[str, float], rows: dict[str, float], drawn: dict[str, bool], rate: float) -> str:
    """What became of the alerts; all times in ms since 1970, by user.

    Where more alerts come between two looks of the page than it shows (`SHOWN`), the oldest of them are counted there
    and never are rows. Rows below the screen's end are drawn only where one scrolls.

    Raises:
        SystemExit: none became a row.
    """
    took = np.array([rows[user] - at for user, at in sent.items() if user in rows])
    if not took.size:
        msg = f"none of {len(sent)} alerts was in the page 3 s after the last: too busy a machine?"
        raise SystemExit(msg)
    p50, p99 = np.percentile(took, (50, 99))
    on_screen = len(sent.keys() & drawn.keys())
    return (
        f"{len(took)} of {len(sent)} alerts at {rate:g}/s became rows of the page: p50 {p50:.0f} ms, p99 {p99:.0f} ms, "
        f"longest {took.max():.0f} ms from production to the row; {on_screen} on the screen, {len(took) - on_screen} "
        f"below its end, {len(sent) - len(took)} beyond its {SHOWN} rows, which only counts them"
    )


def _produce(bootstrap: str, rate: float, seconds: float) -> dict[str, float]:
    """Produces alerts of users of their own at a pace; returns when each was, ms since 1970."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 1})
    sent: dict[str, float] = {}
    for number in paced(range(int(rate * seconds)), rate):
        user = f"new{number:06}"
        sent[user] = time.time() * 1000
        producer.produce("fraud_alerts", key=user.encode(), value=alert_json(user))
        producer.poll(0)
    producer.flush(30)
    return sent


if __name__ == "__main__":
    main()
