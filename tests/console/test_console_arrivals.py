"""Alerts that come many at once are kept as those that come one by one, and cost a database no statement each."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from console import arrivals
from console.postgres_connection import PostgresConnection
from console.records import Alert
from console.store import Batch
from dataflow.events.feedback import Feedback
from tests.console.builders import Console, alert
from tests.console.postgres_server import PostgresServer
from tests.support.builders import NOON

COLUMNS = "number, case_number, offset, user, device, rules, suppressed, label, labelled_by, transaction_id"
CASES = (
    "number, user, state, live, opened, last, last_alert, top_alert, score, action, amount, alerts, suppressed, "
    "closed, outcome"
)


def worked(place: str | Path) -> Console:
    """A console with cases of each state, with suppressions, and with labels that came before their alerts."""
    console = Console(place)
    console.come(*(alert(f"user{number}", offset=number, transaction_id=f"t{number}") for number in range(6)))
    for user, outcome in (("user1", "fraud"), ("user2", "genuine")):
        console.store.label_case(console.number(user), outcome, "eve")  # type: ignore[arg-type]
        console.store.close_case(console.number(user), "eve")
    console.store.take(console.number("user3"), "eve")
    console.store.suppress("user", "user\0 6", 900.0, "eve", console.number("user4"))
    console.store.suppress("device", "loud", 900.0, "eve", console.number("user4"))
    early = [Feedback(f"t{n}", f"user{n % 12}", "Shop", NOON, n % 2 == 0, NOON + 60.0) for n in range(100, 140, 3)]
    console.store.ingest(Batch(feedback=early))
    return console


def some_alerts() -> list[Alert]:
    """Of users old and new, some twice, some of a transaction that another alert is of."""
    rng = random.Random(3)
    found = []
    for number in range(100, 180):
        user = "user\0 6" if number % 12 == 6 else f"user{number % 12}"
        found.append(
            alert(
                user, offset=number, partition=number % 2, transaction_id=f"t{number}",
                amount=float(rng.randrange(500)), score=rng.choice([0.3, 0.6, 0.9]),
                action=rng.choice(["review", "review", "block"]),
                device=rng.choice(["loud", "phone-1", "phone-2"]), suppressed=rng.random() < 0.1,
                rules=rng.sample(["a", "b", "c"], 2), merchant=f"Shop{rng.randrange(9)}",
            )
        )  # fmt: skip
        if number % 9 == 0:
            found.append(found[rng.randrange(len(found))])
        if number % 10 == 0:
            found.append(alert("user1", offset=number + 1000, transaction_id="t1"))
    return found


def kept(place: str | Path, batches: Sequence[Sequence[Alert]]) -> dict[str, list[Any]]:
    """What stands in the database once these batches came, all at the same time."""
    console = worked(place)
    new = sum(console.store.ingest(Batch(batch)) for batch in batches)
    found = {
        "new": [new],
        "alerts": console.rows(f"SELECT {COLUMNS} FROM alerts ORDER BY number"),  # noqa: S608
        "cases": console.rows(f"SELECT {CASES} FROM cases ORDER BY number"),  # noqa: S608
        "rules": console.rows("SELECT rule, number, case_number FROM alert_rules ORDER BY rule, number"),
        "early": console.rows("SELECT transaction_id FROM early_labels ORDER BY transaction_id"),
        "figures": console.rows("SELECT * FROM figures WHERE minute = 0 ORDER BY kind, name"),
    }
    console.store.close()
    return found


def new_place(kind: str, request: pytest.FixtureRequest, folder: Path, name: str) -> str:
    if kind == "sqlite":
        return str(folder / name)
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.make_place()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_many_at_once_are_kept_as_one_by_one(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alerts = some_alerts()
    one_by_one = kept(new_place(kind, request, tmp_path, "1"), [[each] for each in alerts])
    assert one_by_one["new"] == [88]
    assert {row[2] for row in one_by_one["cases"]} == {"open", "taken", "closed", "suppressed"}
    assert {row[6] for row in one_by_one["alerts"]} == {False, True}
    assert {row[7] for row in one_by_one["alerts"]} == {None, "fraud", "genuine"}
    assert {row[7] for row in one_by_one["alerts"] if row[9] == "t1"} == {"fraud"}  # as the alert that was labelled
    assert kept(new_place(kind, request, tmp_path, "all"), [alerts]) == one_by_one
    monkeypatch.setattr(arrivals, "AT_ONCE", 7)
    assert kept(new_place(kind, request, tmp_path, "7"), [alerts[:50], alerts[50:]]) == one_by_one


def test_statements_that_alerts_take_are_as_many_for_a_few_as_for_many(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a way to the server and back."""
    console = Console(postgres_server.make_place())
    execute, asked = PostgresConnection.execute, []

    def count(self: PostgresConnection, sql: str, values: Any = (), /) -> Any:
        asked.append(sql)
        return execute(self, sql, values)

    monkeypatch.setattr(PostgresConnection, "execute", count)
    taken = []
    for many in (5, 300):
        for _ in range(2):  # users that are new, and those that have a case
            asked.clear()
            console.store.ingest(Batch([alert(f"{many} user{number}") for number in range(many)]))
            taken.append(len(asked))
    assert len(set(taken)) == 1, taken
    assert taken[0] < 15
    console.store.close()
