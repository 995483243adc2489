"""Databases of earlier releases: changed at the start, once, or refused in one line."""

import gc
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from console import upgrade
from console.database import Connection
from console.postgres_sql import words
from console.schema import FOR_FILTERS, SEARCHED
from console.sqlite_database import TRIGGERS, SqliteConnection
from console.store import Store
from console.view import View
from dataflow.errors import UserError
from tests.console.builders import Console, alert

CARD = "4111 1111 1111 1111"


def make_old(console: Console, version: int) -> None:
    """Takes from a database what later versions brought."""

    def change(connection: Connection) -> None:
        if version < 2:
            for kind, name in reversed(re.findall(r"CREATE (TABLE|INDEX) (\w+)", FOR_FILTERS)):
                connection.execute(f"DROP {kind} {name}")
        if isinstance(connection, SqliteConnection):
            for statement in re.findall(r"DROP .*?;|CREATE .*?END;", TRIGGERS, re.DOTALL):
                connection.execute(re.sub(r"masked\((.*?)\)", r"\1", statement))
            connection.execute("INSERT INTO alert_text (alert_text) VALUES ('rebuild')")  # from whole numbers
            connection.execute(f"PRAGMA user_version = {version}")
        else:
            for row in connection.execute("SELECT * FROM alerts").fetchall():
                found = [word for name in SEARCHED for word in words(row[name])]
                connection.execute(
                    "UPDATE alert_text SET words = array_to_tsvector(?::text[]) WHERE number = ?",
                    [found, row["number"]],
                )
            connection.execute("UPDATE about SET value = ? WHERE name = 'version'", [str(version)])

    console.store.database.write(change)
    console.store.close()


def test_a_database_of_version_1_is_changed_at_the_start(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade, "AT_ONCE", 2)
    console = Console(place)
    console.come(alert("ann", rules=["a", "b"]), alert("bob", rules=[]), alert("cid", rules=["b"]), alert("dan"))
    before = console.rows("SELECT rule, number, case_number FROM alert_rules ORDER BY rule, number")
    make_old(console, 1)
    with monkeypatch.context() as patched:  # killed meanwhile: all of it is done anew
        patched.setattr(upgrade, "rule_ids", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Store(place)
    gc.collect()
    for _ in range(2):  # and once only
        console = Console(place)
        assert console.rows("SELECT rule, number, case_number FROM alert_rules ORDER BY rule, number") == before
        assert {row["user"] for row in console.store.page(View(rule="b")).rows} == {"ann", "cid"}
        console.store.close()


@pytest.mark.parametrize("version", [1, 2])
def test_whole_card_numbers_go_from_the_index_of_an_earlier_release(
    version: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade, "AT_ONCE", 2)
    console = Console(place, alerts=1)
    console.come(alert("ann"), alert("bob", device=CARD.replace(" ", "")), alert("cid", merchant=CARD), alert("dan"))
    make_old(console, version)
    console = Console(place, alerts=1)

    def found(search: str) -> set[str]:
        return {row["user"] for row in console.store.page(View(search=search)).rows}

    assert found(CARD.replace(" ", "")) == set()
    assert found("41111111") == set()
    assert found("411111") == {"bob", "cid"}
    assert found("phone") == {"ann", "cid", "dan"}
    while console.store.forget():
        pass
    assert [found(search) for search in ("411111", "1111", "phone")] == [set(), set(), {"dan"}]
    query = console.store.database.read().dialect.text_query("1111")
    assert console.rows(console.store.database.read().dialect.text_matches, query) == []
    console.store.close()


def test_a_file_of_a_later_version_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "console.db"
    Store(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 4")
    with pytest.raises(UserError) as raised:
        Store(path)
    assert str(raised.value) == (
        f"CONSOLE_DATABASE={path} is of version 4, and this console reads version 3: name another file"
    )
