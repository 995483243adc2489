"""The console on PostgreSQL: what is a mistake, and what a server that goes away leaves."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import msgspec
import pytest

from console import health, postgres_database
from console.database import AwayError
from console.postgres_connection import PostgresConnection
from console.postgres_sql import LONGEST_WORD, MOST_BYTES, bounded, in_postgres, tables_in_postgres, words
from console.records import parse_alert
from console.store import Batch, Store
from console.view import View
from dataflow.connectors.broker_watch import BrokerWatch
from dataflow.errors import UserError
from dataflow.process import health as process_health
from dataflow.settings import Settings
from tests.console.builders import Console, alert, alert_json
from tests.console.postgres_server import PostgresServer
from tests.console.running import await_that
from tests.console.test_console_health import Watch
from tests.console.test_console_kafka import count, produce, running, told
from tests.support.builders import NOON


@pytest.fixture
def server(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    """The server, which the test may kill."""
    yield postgres_server
    if not postgres_server.runs:
        postgres_server.start()


@pytest.fixture
def console(server: PostgresServer) -> Iterator[Console]:
    made = Console(server.make_place())
    yield made
    made.store.close()


# ----------------------------------------------------------------------------------------------------- a user's mistake


def refused(address: str) -> str:
    """The one line with which it is refused."""
    with pytest.raises(UserError) as raised:
        Store(address)
    (line,) = str(raised.value).splitlines()
    return line


def test_a_password_in_the_address_is_refused_and_told_to_nobody(server: PostgresServer) -> None:
    for address in (
        f"postgresql://eve:hunter2@127.0.0.1:{server.port}/postgres",
        f"postgresql://eve@127.0.0.1:{server.port}/postgres?password=hunter2",
    ):
        line = refused(address)
        assert "PGPASSWORD" in line
        assert "hunter2" not in line
    line = refused("postgresql://eve:hunter2@[half/postgres")
    assert "it takes postgresql://user@host/database" in line
    assert "hunter2" not in line


def test_what_the_server_refuses_is_one_line(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.admin("CREATE ROLE locked LOGIN PASSWORD 'right'")
    address = server.address("postgres", "locked")
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    line = refused(address)
    assert line.startswith(f"CONSOLE_DATABASE={address} cannot be used (")
    assert 'password authentication failed for user "locked"' in line
    assert "hunter2" not in line
    monkeypatch.setenv("PGPASSWORD", "right")
    assert "permission denied" in refused(address)  # it may look at that database, and make nothing
    monkeypatch.delenv("PGPASSWORD")
    assert "no password supplied" in refused(address)
    assert 'database "nowhere" does not exist' in refused(server.address("nowhere"))
    assert "Connection refused" in refused("postgresql://eve@127.0.0.1:1/postgres")
    server.admin("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1'")
    assert "is encoded in LATIN1" in refused(server.address("latin"))


def test_another_version_or_program_is_refused(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    place = server.make_place()
    monkeypatch.setattr(postgres_database, "OLDEST", 99)
    assert "the console needs 99 or later" in refused(place)
    monkeypatch.undo()
    Console(place).store.close()
    schema = place.rpartition("%3D")[2]
    server.admin(f"UPDATE {schema}.about SET value = '4' WHERE name = 'version'")  # noqa: S608
    assert "is of version 4, and this console reads version 3" in refused(place)
    other = server.make_place()
    server.admin(f"CREATE TABLE {other.rpartition('%3D')[2]}.customers (name TEXT)")
    assert "has tables of another program" in refused(other)


def test_a_password_comes_from_the_environment(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.admin("CREATE ROLE keyed LOGIN PASSWORD 'right'")
    place = server.make_place()
    server.admin(f"ALTER SCHEMA {place.rpartition('%3D')[2]} OWNER TO keyed")
    monkeypatch.setenv("PGPASSWORD", "right")
    Console(place.replace("eve@", "keyed@")).store.close()


# ------------------------------------------------------------------------------------------------------- a server away


def test_while_the_server_is_away_it_is_told_once_and_all_goes_on_when_it_is_back(
    server: PostgresServer, console: Console, caplog: pytest.LogCaptureFixture
) -> None:
    process_health.goes_round()
    checked = health.checked(console.store, cast(BrokerWatch, Watch()))
    console.come(alert("ann"), alert("bob"))
    console.store.label([1], "fraud", "eve")
    assert checked.not_ready() == []
    server.kill()
    for _ in range(3):
        with pytest.raises(AwayError):
            console.store.label([2], "fraud", "eve")
        with pytest.raises(AwayError):
            console.store.page(View())
    (said,) = [each for each in checked.not_ready() if "database" in each]
    assert said.startswith("its database cannot be written (")
    assert "\n" not in said
    server.start()
    assert {row["user"] for row in console.store.page(View()).rows} == {"ann", "bob"}
    assert console.store.label([1], "fraud", "eve") == 0
    assert console.store.label([2], "fraud", "eve") == 1
    assert console.rows("SELECT count(*) FROM outbox") == [2]
    assert checked.not_ready() == []
    lines = [each.getMessage() for each in caplog.records if each.name == "redflag.console"]
    assert ["is away (" in line for line in lines] == [True, False]
    assert lines[1].endswith("/postgres is back")
    process_health.stops_going_round()


def test_a_connection_that_broke_while_nobody_used_it_is_not_noticed(server: PostgresServer, console: Console) -> None:
    console.come(alert("ann"))
    assert len(console.store.page(View()).rows) == 1
    server.kill()
    server.start()
    assert len(console.store.page(View()).rows) == 1
    console.come(alert("bob"))
    assert console.rows("SELECT number FROM alerts ORDER BY number") == [1, 2]


HELD = """
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
AND objid = (hashtext(current_schema()::text)::bigint & 4294967295)::oid
"""
"""How many hold the lock of the console's own schema."""


def test_what_was_committed_though_nobody_said_so_is_not_there_twice(
    server: PostgresServer, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = PostgresConnection.execute

    def lose_the_answer(self: PostgresConnection, sql: str, values: Any = (), /) -> Any:
        result = execute(self, sql, values)
        if sql == "COMMIT":
            self.close()
            msg = "the server closed the connection"
            raise AwayError(msg)
        return result

    def doubtful(change: Callable[[], object]) -> None:
        assert console.rows(HELD) == [1]
        with monkeypatch.context() as patched:
            patched.setattr(PostgresConnection, "execute", lose_the_answer)
            with pytest.raises(AwayError):
                change()
        # The server lets go of the lock a moment after the connection was closed.
        await_that(lambda: console.rows(HELD) == [0])

    batch = Batch([alert("ann", offset=7)], next_offsets={("alerts", 0): ("topic-1", 8)})
    doubtful(lambda: console.store.ingest(batch))
    assert console.store.ingest(batch) == 0
    doubtful(lambda: console.store.label([1], "fraud", "eve"))
    assert console.store.label([1], "fraud", "eve") == 0
    assert console.rows("SELECT count(*) FROM alerts") == [1]
    assert console.rows("SELECT count FROM figures WHERE minute = 0 AND kind IN ('alerts', 'label')") == [1, 1]
    assert console.rows("SELECT count(*) FROM outbox") == [1]


def test_nothing_is_written_while_another_holds_the_lock(server: PostgresServer) -> None:
    place = server.make_place()
    first = Console(place)
    first.come(alert("ann"))
    server.admin(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'redflag-console' AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory')"
    )
    second = Console(place)
    with pytest.raises(AwayError, match="another console has it open"):
        first.come(alert("bob"))
    second.come(alert("cid"))
    second.store.close()
    dan = alert("dan")

    def come() -> bool:  # the server lets go of the lock a moment after the connection was closed
        with contextlib.suppress(AwayError):
            first.come(dan)
            return True
        return False

    await_that(come)
    assert first.rows("SELECT user FROM alerts ORDER BY number") == ["ann", "cid", "dan"]
    first.store.close()


@pytest.mark.slow
def test_a_server_that_is_killed_while_alerts_come_loses_and_doubles_none(
    server: PostgresServer, settings: Settings
) -> None:
    with running(settings, server.make_place()) as store:
        for turn in range(2):
            alerts = [(f"u{n}", alert_json(f"u{n}", transaction_id=f"{turn} {n}")) for n in range(600)]
            produce(settings, settings.alerts_topic, *alerts)
            await_that(lambda t=turn: count(store, "SELECT count(*) FROM alerts") > 600 * t)  # type: ignore[misc]
            store.label([1 + turn], "fraud", "eve")
            server.kill()
            time.sleep(0.5)
            server.start()
        await_that(lambda: count(store, "SELECT count(*) FROM alerts") >= 1200, 60)
        await_that(lambda: count(store, "SELECT count(*) FROM outbox WHERE confirmed IS NULL") == 0)
        time.sleep(0.5)
        assert count(store, "SELECT count(DISTINCT transaction_id) FROM alerts") == 1200
        assert count(store, "SELECT count(*) FROM alerts") == 1200
        assert count(store, "SELECT sum(alerts) FROM cases") == 1200
        assert count(store, "SELECT count FROM figures WHERE minute = 0 AND kind = 'alerts'") == 1200
    assert len(told(settings)) == len(set(told(settings))) == 2


# ---------------------------------------------------------------------------------------------- where databases differ


@pytest.fixture
def either(place: str) -> Iterator[Console]:
    made = Console(place)
    yield made
    made.store.close()


def test_a_text_with_a_nul_is_kept_and_its_label_names_it_as_the_record_does(either: Console) -> None:
    either.come(alert("an\0n", transaction_id="t\0 1", merchant="Sh\0p"))
    either.store.label([1], "fraud", "eve", "no\0te")
    ((key, value),) = either.rows("SELECT key, value FROM outbox")
    assert key == b"an\0n"
    message = msgspec.json.decode(value)
    assert (message["user"], message["transaction_id"], message["merchant"]) == ("an\0n", "t\0 1", "Sh\0p")


def test_texts_of_any_length_are_kept_and_found(either: Console) -> None:
    long = " ".join(f"w{n}" for n in range(100_000))
    either.come(alert("ann", reason="x" * 300_000), alert("bob", reason=long, location="Zürich_Süd"))
    for typed, users in (("x" * 400, ["ann"]), ("w1", ["bob"]), ("zurich sud", ["bob"]), ("ZÜR", ["bob"])):
        assert [row["user"] for row in either.store.page(View(search=typed)).rows] == users, typed[:20]


def test_numbers_have_no_gap_where_a_transaction_failed(either: Console) -> None:
    either.come(alert("ann"))
    with pytest.raises(AttributeError):
        either.store.ingest(Batch([alert("bob"), alert("cid"), None]))  # type: ignore[list-item]
    either.come(alert("dan"))
    assert either.rows("SELECT number FROM alerts ORDER BY number") == [1, 2]


def test_an_alert_with_a_name_that_no_index_takes_is_none() -> None:
    for name, most in (("user", 256), ("merchant", 256), ("device", 256), ("ip", 256), ("transaction_id", 300)):
        assert parse_alert(alert_json(**{name: "n" * most}), "topic", 0, 0, int(NOON * 1000)) is not None
        assert parse_alert(alert_json(**{name: "n" * (most + 1)}), "topic", 0, 0, int(NOON * 1000)) is None
    assert parse_alert(alert_json(rules=["n" * 257]), "topic", 0, 0, int(NOON * 1000)) is None


def test_nothing_that_a_producer_or_the_flow_may_write_keeps_an_alert_out(either: Console) -> None:
    ours = f"{'t' * 249}-{2**31 - 1}-{2**63 - 1}"  # the longest id that the flow makes
    wide = "".join(chr(0x20000 + 37 * n) for n in range(256))  # which no index can store in less
    value = alert_json("ann", transaction_id=ours, merchant=wide, scenario=wide[::-1] + "\N{GRINNING FACE}" * 100_000)
    found = parse_alert(value, "topic", 0, 0, int(NOON * 1000))
    assert found is not None
    either.come(found)
    (shown,) = either.store.page(View()).rows
    assert (shown["user"], shown["merchant"], shown["scenario"]) == ("ann", wide, wide[::-1])
    row = either.store.alert(1)
    assert row is not None
    assert (row["transaction_id"], row["raw"]) == (ours, value)


def test_statements_are_put_into_postgresqls_words() -> None:
    assert in_postgres("SELECT a.user, '? user' FROM b WHERE offset = ? AND c LIKE '%' -- user?\n", True) == (
        "SELECT a.\"user\", '? user' FROM b WHERE \"offset\" = %s AND c LIKE '%%' \n"
    )
    assert in_postgres("""SELECT '%', "user", users""", False) == """SELECT '%', "user", users"""
    made = tables_in_postgres(
        "CREATE TABLE t (number INTEGER PRIMARY KEY AUTOINCREMENT, a REAL, b BLOB) WITHOUT ROWID;"
    )
    assert made == (
        "CREATE TABLE t (number BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, a DOUBLE PRECISION, b BYTEA);"
    )


def test_words_are_bounded() -> None:
    assert words("Ünïted_STATES 10.0.0.7") == ["united", "states", "10", "0", "0", "7"]
    assert words("x" * 1000) == ["x" * LONGEST_WORD]
    assert sum(map(len, bounded(f"{n:06}" for n in range(100_000)))) <= MOST_BYTES
