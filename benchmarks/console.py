"""How fast an alert is in the browser, and what the console takes, with many alerts kept.

python -m benchmarks.console --alerts 1000000

It fills a console's database, starts the console on it beside an Apache Kafka, opens the queue in a headless Chromium,
and produces alerts at a steady pace: of each, how long from its production to its row in the page.
"""

import argparse
import os
import random
import tempfile
import time
from pathlib import Path

import numpy as np
from confluent_kafka import Producer

from benchmarks.stage import paced
from console.store import Batch, Store
from dataflow.settings import Settings
from tests.console.builders import alert, alert_json
from tests.console.running import await_that, open_browser, run_console
from tests.support.kafka_server import KafkaServer

AT_ONCE = 2_000
WATCH = """
window.seen = {};
const look = () => document.querySelectorAll('.queue-grid .ag-cell[col-id=user]').forEach(cell => {
  window.seen[cell.innerText] ??= Date.now();
});
const grid = document.querySelector('.queue-grid');
new MutationObserver(look).observe(grid, {subtree: true, childList: true, characterData: true});
"""


def fill(path: Path, count: int) -> float:
    """Stores so many alerts; returns how many a second."""
    rng = random.Random(1)
    store = Store(path)
    began = time.perf_counter()
    for _ in range(0, count, AT_ONCE):
        alerts = [
            alert(
                f"user{rng.randrange(200_000)}",
                merchant=f"merchant{rng.randrange(1000)}",
                device=f"device{rng.randrange(50_000)}",
                ip=f"10.0.{rng.randrange(250)}.{rng.randrange(250)}",
                score=rng.random(),
            )
            for _ in range(min(AT_ONCE, count))
        ]
        store.ingest(Batch(alerts))
    store.close()
    return count / (time.perf_counter() - began)


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
    parser.add_argument("--alerts", type=int, default=100_000, help="that are kept at the start")
    parser.add_argument("--database", type=Path, help="one that is filled already")
    parser.add_argument("--rate", type=float, default=50.0, help="alerts a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, KafkaServer() as kafka:
        path = arguments.database or Path(scratch) / "filled.db"
        if arguments.database is None:
            print(f"stored {arguments.alerts:,} alerts, {fill(path, arguments.alerts):,.0f} a second")
        settings = Settings(brokers=kafka.bootstrap)
        kafka.create_topics(dict.fromkeys(("fraud_alerts", "fraud_feedback", "classified_transactions"), 4))
        with run_console(settings, Path(scratch), CONSOLE_DATABASE=str(path)) as console, open_browser() as browser:
            began = time.perf_counter()
            browser.get(console.url)
            await_that(lambda: browser.find_elements("css selector", ".queue-grid .ag-row"))
            print(f"first page, with its rows: {time.perf_counter() - began:.2f} s")
            browser.execute_script(WATCH)
            before = cpu(console.pid)
            sent = _produce(kafka.bootstrap, arguments.rate, arguments.seconds)
            share = (cpu(console.pid) - before) / arguments.seconds
            time.sleep(3)
            seen = browser.execute_script("return window.seen")
            took = np.array([seen[user] - at for user, at in sent.items() if user in seen])
            p50, p99 = np.percentile(took, (50, 99))
            print(
                f"{len(took)} of {len(sent)} alerts at {arguments.rate:g}/s seen: p50 {p50:.0f} ms, p99 {p99:.0f} ms, "
                f"longest {took.max():.0f} ms from production to the row"
            )
            print(f"the console's CPU: {share:.2f} of a core; its memory, MB:", memory(console.pid))


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
