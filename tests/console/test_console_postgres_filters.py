"""What PostgreSQL looks at to count what a filter lets through: of a million alerts, most are on the disk alone."""

from collections.abc import Iterator
from typing import Any

import pytest

from console import queue_filters
from console.postgres_connection import PostgresConnection
from console.store import Batch
from console.view import View
from tests.console.builders import Console, alert
from tests.console.postgres_server import PostgresServer

RULES, ALERTS = ("alert_rules", "Index Only Scan"), ("alerts", "Index Only Scan")
VIEWS = [
    (View(rule="a"), {RULES}),
    (View(rule="a", order="riskiest", action="review"), {RULES, ALERTS}),
    (View(rule="a", merchant="Shop", scenario="takeover"), {RULES, ALERTS}),
    (View(at_least=1.0, at_most=1000.0), {ALERTS}),
    (View(score_from=0.1), {ALERTS}),
]


def scans(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each table that a plan looks into, and how."""
    if "Relation Name" in plan:
        yield plan["Relation Name"], plan["Node Type"]
    for below in plan.get("Plans", []):
        yield from scans(below)


@pytest.mark.slow
def test_cases_are_counted_by_indexes_alone(postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_filters, "FEW", 0)
    place = postgres_server.make_place()
    console = Console(place)
    for _ in range(3):
        console.store.ingest(
            Batch([alert(f"user{n}", rules=["a", "b"], merchant="Shop", scenario="takeover") for n in range(1000)])
        )
    for table in ("alerts", "alert_rules"):
        postgres_server.admin(f"VACUUM ANALYZE {place.rpartition('%3D')[2]}.{table}")
    execute, asked = PostgresConnection.execute, []

    def note(self: PostgresConnection, sql: str, values: Any = (), /) -> Any:
        asked.append((sql, values))
        return execute(self, sql, values)

    for view, looked_into in VIEWS:
        asked.clear()
        with monkeypatch.context() as patched:
            patched.setattr(PostgresConnection, "execute", note)
            assert len(console.store.page(view).rows) == 200
        (counting,) = [each for each in asked if "CASE WHEN" in each[0]]
        (plan,) = console.rows(f"EXPLAIN (FORMAT JSON) {counting[0]}", *counting[1])
        assert {each for each in scans(plan[0]["Plan"]) if each[0] != "cases"} == looked_into, view
    console.store.close()
