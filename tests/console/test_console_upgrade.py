"""Databases of earlier releases: changed at the start, once, or refused in one line."""

import gc
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from console import upgrade
from console.database import Connection
from console.postgres_sql import tables_in_postgres, words
from console.schema import FOR_FILTERS, SEARCHED
from console.sqlite_database import TRIGGERS, SqliteConnection
from console.store import Store
from console.view import View
from dataflow.errors import UserError
from tests.console.builders import Console, alert

CARD = "4111 1111 1111 1111"
RULES_OF_2 = (
    "CREATE TABLE alert_rules ("
    "rule TEXT, number INTEGER, case_number INTEGER NOT NULL, PRIMARY KEY (rule, number)) WITHOUT ROWID"
)


def make_old(console: Console, version: int) -> None:
    """Takes from a database what later versions brought."""

    def change(connection: Connection) -> None:
        sqlite = isinstance(connection, SqliteConnection)
        kept = connection.execute("SELECT rule, number, case_number FROM alert_rules").fetchall()
        connection.execute("DROP TABLE alert_rules")
        for name, columns in (("alerts_by_merchant", "merchant, number"), ("alerts_of_case", "case_number, number")):
            connection.execute(f"DROP INDEX {name}")
            connection.execute(f"CREATE INDEX {name} ON alerts ({columns})")
        if version == 1:
            for name in re.findall(r"CREATE INDEX (\w+)", FOR_FILTERS):
                connection.execute(f"DROP INDEX {name}")
        else:
            connection.execute(RULES_OF_2 if sqlite else tables_in_postgres(RULES_OF_2))
            connection.executemany("INSERT INTO alert_rules VALUES (?, ?, ?)", [tuple(row) for row in kept])
        if sqlite:
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


def indexes(console: Console) -> list[Any]:
    """What is looked up by what."""
    if console.store.database.where.startswith("postgresql://"):
        sql = "SELECT tablename, split_part(indexdef, ' USING ', 2) FROM pg_indexes WHERE schemaname = current_schema()"
    else:
        sql = "SELECT name, sql FROM sqlite_master WHERE sql <> ''"
    return sorted((name, text.replace('"', "")) for name, text in console.rows(sql))


@pytest.mark.parametrize("version", [1, 2])
def test_a_database_of_an_earlier_version_is_changed_at_the_start(
    version: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade, "AT_ONCE", 2)
    console = Console(place)
    console.come(alert("ann", rules=["a", "b"]), alert("bob", rules=[]), alert("cid", rules=["b"]), alert("dan"))
    before = console.rows("SELECT rule, number, case_number FROM alert_rules ORDER BY rule, number")
    made_by = indexes(console)
    make_old(console, version)
    with monkeypatch.context() as patched:  # killed meanwhile: all of it is done anew
        patched.setattr(upgrade, "fill", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Store(place)
    gc.collect()
    for _ in range(2):  # and once only
        console = Console(place)
        assert console.rows("SELECT rule, number, case_number FROM alert_rules ORDER BY rule, number") == before
        assert indexes(console) == made_by
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
