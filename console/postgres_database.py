"""The console's database on a PostgreSQL server.

Of the consoles that are given the same database one has it: it holds an advisory lock on the connection that it writes
with. The server lets go of that lock when that connection has ended, and whatever it had under way with it. So once a
console that lost its connection has the lock again, nothing of it that was not committed can be committed any more.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import quote

from console import upgrade
from console.database import AwayError, Connection, Database, Dialect, ServerError
from console.postgres_connection import Postgres, PostgresConnection, PostgresResult, parameters_of
from console.postgres_schema import COVERING, OWN
from console.postgres_sql import tables_in_postgres
from console.schema import ADDED, SCHEMA, VERSION
from dataflow.errors import UserError

T = TypeVar("T")

OLDEST: Final = 14
"""The oldest PostgreSQL that is taken."""
LOCK: Final = 0x52_46_43_4E  # any number that no other program takes
LOCK_SECONDS: Final = 3.0
"""How long a start waits for the lock: of a console that was just killed the server ends what was under way."""
IDLE: Final = 8
"""Connections to read with that are kept while nobody reads."""

_log = logging.getLogger("redflag.console")


class PostgresDatabase(Database):
    """The database, its writing connection, and those to read with."""

    def __init__(self, address: str):
        """Connects, and makes the tables where there are none.

        Raises:
            UserError: it cannot be used, is another program's or version's, or another console has it.
        """
        super().__init__()
        self._parameters = parameters_of(address)
        self.where = _shown(self._parameters)
        self._away = ""
        self._state = threading.Lock()  # of the two below
        self._idle: list[PostgresConnection] = []
        self._closed = False
        self._reading = Reading(self)
        try:
            self._writer: PostgresConnection | None = self._connect(read_only=False)
            with contextlib.ExitStack() as closing:
                closing.callback(self._writer.close)
                self._check_server(self._writer)
                self._hold(self._writer, LOCK_SECONDS)
                self._prepare(self._writer)
                closing.pop_all()
        except ServerError as error:
            msg = f"CONSOLE_DATABASE={self.where} cannot be used ({error}); mend that, or name another database"
            raise UserError(msg) from None
        self._thread.start()

    def _connect(self, *, read_only: bool) -> PostgresConnection:
        """A new connection; the log says when the server goes away, and when it is back.

        Raises:
            AwayError: the server is away.
        """
        try:
            made = PostgresConnection(self._parameters, read_only)
        except AwayError as error:
            self._note(str(error))
            raise
        self._note("")
        return made

    def _note(self, away: str) -> None:
        with self._state:
            before, self._away = self._away, away
        if not self._thread.is_alive():  # the start tells it by itself
            return
        if away and not before:
            _log.warning("CONSOLE_DATABASE=%s is away (%s); the console goes on once it is back", self.where, away)
        elif before and not away:
            _log.warning("CONSOLE_DATABASE=%s is back", self.where)

    def _check_server(self, connection: PostgresConnection) -> None:
        version = connection.raw.info.server_version // 10_000
        if version < OLDEST:
            msg = f"CONSOLE_DATABASE={self.where} is PostgreSQL {version}: the console needs {OLDEST} or later"
            raise UserError(msg)
        (encoding,) = connection.execute("SHOW server_encoding").fetchall()[0]
        if encoding != "UTF8":
            msg = f"CONSOLE_DATABASE={self.where} is encoded in {encoding}: make it anew with ENCODING 'UTF8'"
            raise UserError(msg)

    def _hold(self, connection: PostgresConnection, seconds: float) -> None:
        """Takes the lock, and sees to it that a label is on the server's disk when its commit returns.

        Raises:
            AwayError: another console holds it, or what is left of this one's last connection.
            UserError: the same, at the start.
        """
        # The server notices by itself, within a minute, that this machine has vanished with the lock in its hands.
        connection.execute(
            "SELECT set_config('tcp_keepalives_idle', '30', false), set_config('tcp_keepalives_interval', '10', false),"
            " set_config('tcp_keepalives_count', '3', false)"
        )
        connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )
        deadline = time.monotonic() + seconds
        sql = "SELECT pg_try_advisory_lock(?::integer, hashtext(current_schema()::text))"
        while not connection.execute(sql, [LOCK]).fetchall()[0][0]:
            if time.monotonic() >= deadline:
                msg = f"CONSOLE_DATABASE={self.where}: another console has it open"
                if seconds:
                    raise UserError(f"{msg}; stop that one, or name another database")  # noqa: EM102
                raise AwayError(msg)
            time.sleep(0.1)

    def _prepare(self, connection: PostgresConnection) -> None:
        """Makes the tables of a new database; checks the version of an old one."""
        with _transaction(connection):
            tables = {
                row[0]
                for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
            }
            if not tables:
                connection.execute(tables_in_postgres(SCHEMA))
                connection.execute(OWN)
                connection.executemany(
                    "INSERT INTO about VALUES (?, ?)", [("id", os.urandom(8).hex()), ("version", str(VERSION))]
                )
            elif not tables >= {"about", "alerts", "alert_text"}:
                msg = (
                    f"CONSOLE_DATABASE={self.where} has tables of another program: name a database of the console's own"
                )
                raise UserError(msg)
            found = connection.execute("SELECT value FROM about WHERE name = 'version'").fetchone()
            version = found[0] if found and found[0].isdigit() else "0"
            if upgrade.can_be_upgraded(int(version)):
                connection.execute(tables_in_postgres(upgrade.statements(self.where, int(version))))
                connection.execute(COVERING)
                upgrade.fill(connection, int(version))
                connection.execute("ANALYZE alert_rules")  # until then it is planned for as if it were empty
                connection.execute("UPDATE about SET value = ? WHERE name = 'version'", [str(VERSION)])
            elif version != str(VERSION):
                msg = (
                    f"CONSOLE_DATABASE={self.where} is of version {version}, and this console reads version {VERSION}: "
                    "name another database"
                )
                raise UserError(msg)
            connection.execute(tables_in_postgres(ADDED))

    # -------------------------------------------------------------------------------------------------------- writing

    def _transact(self, change: Callable[[Connection], T], lasting: bool) -> T:
        # All is lasting: a server that failed would lose the others while this process goes on and does not read again.
        connection = self._begun()
        try:
            result = change(connection)
            connection.execute("COMMIT")
        except BaseException as error:
            if isinstance(error, AwayError):  # also where it only takes nothing for now: with a new one it may
                self._drop_writer(str(error))
            else:
                try:
                    connection.execute("ROLLBACK")
                except ServerError as second:
                    self._drop_writer(str(second))
            raise
        return result

    def _begun(self) -> PostgresConnection:
        """The connection to write with, in a new transaction.

        Raises:
            AwayError: the server is away.
        """
        if self._writer is not None:
            try:
                self._writer.execute("BEGIN")
            except AwayError as error:  # nothing was under way: a new connection may do at once
                self._drop_writer(str(error))
            else:
                return self._writer
        connection = self._connect(read_only=False)
        try:
            self._hold(connection, 0)
            connection.execute("BEGIN")
        except ServerError:
            connection.close()
            raise
        self._writer = connection
        return connection

    def _drop_writer(self, why: str) -> None:
        self._note(why)
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # -------------------------------------------------------------------------------------------------------- reading

    def read(self) -> "Reading":
        """What reads over any connection that nobody reads with just then."""
        return self._reading

    def query(self, sql: str, values: Sequence[Any]) -> PostgresResult:
        """Reads; over a new connection where the one that was kept has broken meanwhile."""
        with self._state:
            kept = self._idle.pop() if self._idle else None
        if kept is not None:
            try:
                return self._give_back(kept, sql, values)
            except AwayError:
                if kept.works:
                    raise
        return self._give_back(self._connect(read_only=True), sql, values)

    def _give_back(self, connection: PostgresConnection, sql: str, values: Sequence[Any]) -> PostgresResult:
        try:
            return connection.execute(sql, values)
        finally:
            with self._state:
                keep = connection.works and not self._closed and len(self._idle) < IDLE
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()

    def _close(self) -> None:
        with self._state:
            self._closed = True
            idle, self._idle = self._idle, []
        for each in idle:
            each.close()
        if self._writer is not None:
            self._writer.close()


class Reading:
    """A connection to read with, as far as anybody sees; each statement goes over one that is free."""

    dialect: Dialect = Postgres()

    def __init__(self, database: PostgresDatabase):
        self._database = database

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> PostgresResult:
        """Reads.

        Raises:
            AwayError: the server is away.
            ServerError: it refuses this.
        """
        return self._database.query(sql, values)

    def executemany(self, sql: str, values: Any, /) -> None:
        """Nothing is written over it."""
        raise ServerError(sql)

    def insert(self, table: str, columns: Any, rows: Any, /) -> None:
        """Nothing is written over it."""
        raise ServerError(table)


@contextlib.contextmanager
def _transaction(connection: PostgresConnection) -> Any:
    connection.execute("BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(ServerError):
            connection.execute("ROLLBACK")
        raise


def _shown(parameters: dict[str, Any]) -> str:
    """The address as it is told to people; libpq has what stands there nowhere of its environment."""
    user = quote(str(parameters.get("user", "")))
    host, port, name = (str(parameters.get(key, "")) for key in ("host", "port", "dbname"))
    shown_host = quote(host, safe=",:") if host.startswith("/") else host
    return f"postgresql://{user and user + '@'}{shown_host}{port and ':' + port}/{quote(name)}"
