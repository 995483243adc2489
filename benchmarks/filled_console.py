"""A console's database with many alerts, filled in bulk: what `Store.ingest` would have made of as many alerts.

python -m benchmarks.filled_console --alerts 1000000 console.db

Its rules fire on anything from most alerts to hardly any, so that filters by them find as much.
"""

import argparse
import random
import time
from functools import partial
from typing import Any, Final

from console import figures
from console.database import Connection
from console.schema import SEARCHED
from console.sqlite_database import Sqlite
from console.store import Store
from tests.console.builders import alert_json

RULES: Final = (
    ("high_amount", 0.6), ("ml_anomaly", 0.5), ("fast_cards", 0.1), ("far_away", 0.02), ("seldom", 0.001),
    ("hardly_ever", 0.00002),
)  # fmt: skip
"""Rules, and the share of alerts on which each fires."""
AT_ONCE: Final = 10_000
ALERTS_OF_A_CASE: Final = 5
BLOCKED: Final = 0.03
_CASE: Final = (
    "user", "state", "live", "opened", "last", "last_alert", "top_alert", "score", "action", "amount", "alerts",
    "suppressed",
)  # fmt: skip
_ALERT: Final = (
    "number", "case_number", "identity", "partition", "offset", "arrived", "decided", "at", "transaction_id", "user",
    "merchant", "device", "ip", "location", "txn_type", "scenario", "amount", "score", "action", "rules", "reasons",
    "why", "suppressed", "raw",
)  # fmt: skip


def fill(store: Store, count: int) -> None:
    """Stores so many alerts in an empty store; all of them wait."""
    rng, now = random.Random(1), store.clock()
    template = alert_json("the-user", transaction_id="the-id", merchant="the-merchant", rules=["the-rules"])
    cases: dict[int, dict[str, Any]] = {}
    counts = figures.Counts()
    for first in range(1, count + 1, AT_ONCE):
        alerts = [_alert(rng, number, count, now, template) for number in range(first, min(first + AT_ONCE, count + 1))]
        for alert in alerts:
            _into_case(cases, alert)
            counts.add_alert(now, alert["rules"].split(), alert["scenario"], alert["score"], alert["amount"])
        store.database.write(partial(_write, alerts))

    def end(connection: Connection) -> None:
        # In the order of their numbers, which the database gives.
        rows = [[cases[number][name] for name in _CASE] for number in sorted(cases)]
        connection.insert("cases", _CASE, rows)
        counts.write(connection)
        if not isinstance(connection.dialect, Sqlite):
            connection.execute("UPDATE alert_numbers SET last = ?", [count])

    store.database.write(end)


def _alert(rng: random.Random, number: int, count: int, now: float, template: bytes) -> dict[str, Any]:
    # The first alerts open all cases, so that each number of a case is one that the database gives.
    cases = max(count // ALERTS_OF_A_CASE, 1)
    case = number if number <= cases else rng.randrange(cases) + 1
    rules = [name for name, share in RULES if rng.random() < share] or ["ml_anomaly"]
    user, merchant, transaction = f"user{case}", f"merchant{rng.randrange(1000)}", f"filled{number}"
    raw = template.replace(b"the-user", user.encode()).replace(b"the-merchant", merchant.encode())
    raw = raw.replace(b"the-id", transaction.encode()).replace(b"the-rules", '","'.join(rules).encode())
    scenario = "" if rng.random() < 0.9 else f"scenario{rng.randrange(50)}"
    return {
        "number": number, "case_number": case, "identity": "filled", "partition": number % 4, "offset": number,
        "arrived": now, "decided": now, "at": now, "transaction_id": transaction, "user": user, "merchant": merchant,
        "device": f"device{rng.randrange(50_000)}", "ip": f"10.0.{rng.randrange(250)}.{rng.randrange(250)}",
        "location": "US", "txn_type": "purchase", "scenario": scenario,
        "amount": round(rng.lognormvariate(5, 1.2), 2), "score": rng.random(),
        "action": "block" if rng.random() < BLOCKED else "review", "rules": f" {' '.join(rules)} ",
        "reasons": "\n".join(rules), "why": "amount 412.50 is 6.1 times this user's usual 67.80", "suppressed": False,
        "raw": raw,
    }  # fmt: skip


def _into_case(cases: dict[int, dict[str, Any]], alert: dict[str, Any]) -> None:
    number, arrived = alert["number"], alert["arrived"]
    case = cases.setdefault(
        alert["case_number"],
        {
            "user": alert["user"], "state": "open", "live": True, "opened": arrived, "last": arrived,
            "score": -1.0, "action": "review", "amount": 0.0, "alerts": 0, "suppressed": 0,
        },
    )  # fmt: skip
    case["last_alert"] = number
    if alert["score"] > case["score"]:
        case["score"], case["top_alert"] = alert["score"], number
    if alert["action"] == "block":
        case["action"] = "block"
    case["amount"] += alert["amount"]
    case["alerts"] += 1


def _write(alerts: list[dict[str, Any]], connection: Connection) -> None:
    connection.insert("alerts", _ALERT, [[alert[name] for name in _ALERT] for alert in alerts])
    by_rule = [(rule, alert["case_number"], alert["number"]) for alert in alerts for rule in alert["rules"].split()]
    connection.insert("alert_rules", ("rule", "case_number", "number"), by_rule)
    connection.dialect.index_texts(
        connection, {alert["number"]: [alert[name] for name in SEARCHED] for alert in alerts}
    )


def main() -> None:
    """Fills, and says how long it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database", help="as CONSOLE_DATABASE names it: a path, or postgresql://...")
    parser.add_argument("--alerts", type=int, default=100_000)
    arguments = parser.parse_args()
    store = Store(arguments.database)
    began = time.perf_counter()
    try:
        fill(store, arguments.alerts)
    finally:
        store.close()
    print(f"stored {arguments.alerts:,} alerts in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
