"""Alerts as they stand on their topic, and a console's store to put them into."""

from pathlib import Path
from typing import Any

import msgspec

from console.records import Alert, parse_alert
from console.store import Batch, Limits, Store
from tests.support.builders import NOON, fields

_numbers = iter(range(10**9))


def alert_json(user: str = "ann", *, score: float = 0.8, reason: str = "High amount", **others: Any) -> bytes:
    """An alert's message."""
    decided = {
        "transaction_id": f"t{next(_numbers)}",
        "amount": 412.5,
        "device": "phone-1",
        "ip": "10.0.0.7",
        "fraudulent": True,
        "reason": [reason],
        "score": score,
        "rules": ["high_amount"],
        "shadow_rules": [],
        "ruleset_version": "r1",
        "model_version": "m1",
        "action": "review",
        "model_score": 0.5,
        "alert_threshold": 0.2,
        "explanation": [
            {
                "feature": "amount", "value": 412.5, "usual": 67.8, "effect": 0.4, "fraud_factor": 9.5,
                "text": "amount 412.50 is 6.1 times this user's usual 67.80",
            }
        ],
    }  # fmt: skip
    return msgspec.json.encode(fields(user, **{**decided, **others}))


def alert(user: str = "ann", *, partition: int = 0, offset: int | None = None, **others: Any) -> Alert:
    """An alert as the reader makes it of its message."""
    place = next(_numbers) if offset is None else offset
    made = parse_alert(alert_json(user, **others), "topic-1", partition, place, int(NOON * 1000))
    assert made is not None
    return made


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = NOON + 3600.0

    def __call__(self) -> float:
        return self.now


class Console:
    """A store with a clock that the test sets."""

    def __init__(self, where: Path | str, **limits: Any):
        self.clock = Clock()
        self.store = Store(where, Limits(**limits), clock=self.clock)

    def come(self, *alerts: Alert) -> None:
        """Alerts come, one after the other."""
        for each in alerts:
            self.clock.now += 1.0
            self.store.ingest(Batch([each]))

    def rows(self, query: str, *values: Any) -> list[Any]:
        """What stands in the database."""
        found = [tuple(row) for row in self.store.database.read().execute(query, values)]
        return [row[0] for row in found] if found and len(found[0]) == 1 else found

    def number(self, user: str) -> int:
        """The newest case of a user."""
        return int(self.rows("SELECT max(number) FROM cases WHERE user = ?", user)[0])
