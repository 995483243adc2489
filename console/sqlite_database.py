"""The console's database as one SQLite file."""

import contextlib
import fcntl
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from console import database, upgrade
from console.database import Database, Dialect, marks
from console.schema import ADDED, SCHEMA, SEARCHED, VERSION
from console.shown_text import masked
from dataflow.errors import UserError

T = TypeVar("T")

WRITER_CACHE_KIB: Final = 32 * 1024
READER_CACHE_KIB: Final = 4 * 1024
"""Of SQLite's pages in memory: of the connection that writes, and of each that reads (one a thread)."""

LOG_PAGES: Final = 8_000
"""Of 4 KiB, that the write-ahead log has before SQLite copies them into the file: a page that many alerts change is
copied once. Of SQLite's own 1,000 3,000 alerts wrote 357 MB to the disk, of 4,000 193."""

_COLUMNS: Final = ", ".join(SEARCHED)
# FTS5 takes words out of its index only where they are given as they were put in.
TRIGGERS: Final = f"""
DROP TRIGGER IF EXISTS alert_text_insert;
DROP TRIGGER IF EXISTS alert_text_delete;
CREATE TRIGGER alert_text_insert AFTER INSERT ON alerts BEGIN
    INSERT INTO alert_text (rowid, {_COLUMNS})
    VALUES (new.number, {", ".join(f"masked(new.{name})" for name in SEARCHED)});
END;
CREATE TRIGGER alert_text_delete AFTER DELETE ON alerts BEGIN
    INSERT INTO alert_text (alert_text, rowid, {_COLUMNS})
    VALUES ('delete', old.number, {", ".join(f"masked(old.{name})" for name in SEARCHED)});
END;
"""
TEXT_SEARCH: Final = f"""
CREATE VIRTUAL TABLE alert_text USING fts5 ({_COLUMNS}, content='alerts', content_rowid='number');
{TRIGGERS}
"""

_WORD: Final = re.compile(r"\w+")


class Sqlite(Dialect):
    """SQLite's ways."""

    text_matches = "SELECT rowid FROM alert_text WHERE alert_text MATCH ?"
    has_rule = "instr(x.rules, ' ' || ? || ' ') > 0"  # whatever else is asked, the alert is read for that
    # + 0: else SQLite asks an index for each match, and does not ask all matches for this alert.
    text_matches_alert = f"x.number + 0 IN ({text_matches})"
    # Most have no rule in shadow, and need not be parsed; what SQLite cannot parse (nested too deeply) counts as
    # without.
    shadow_rules = """
    CASE WHEN instr(raw, CAST('"shadow_rules":[]' AS BLOB)) THEN NULL
         WHEN json_valid(CAST(raw AS TEXT)) THEN json_extract(CAST(raw AS TEXT), '$.shadow_rules') END
    """

    def text_query(self, text: str) -> str:
        """Words are quoted, so that nothing that is typed is an operator."""
        return " ".join(f'"{word}"*' for word in _WORD.findall(text))

    def next_alert_numbers(self, connection: database.Connection, count: int) -> range:
        """Those that AUTOINCREMENT would give."""
        return self._next(connection, "alerts", count)

    def next_case_numbers(self, connection: database.Connection, count: int) -> range:
        """Likewise."""
        return self._next(connection, "cases", count)

    @staticmethod
    def _next(connection: database.Connection, table: str, count: int) -> range:
        row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", [table]).fetchone()
        first = 1 if row is None else int(row[0]) + 1
        return range(first, first + count)

    def index_texts(self, connection: database.Connection, texts: Mapping[int, Iterable[str]]) -> None:
        """Nothing: triggers do it."""

    def mask_text(self, connection: database.Connection, alert: int, texts: Sequence[str]) -> None:
        """Takes out the words as they were put in, and puts them in anew."""
        places = ", ".join("?" * (len(texts) + 1))
        connection.execute(
            f"INSERT INTO alert_text (alert_text, rowid, {_COLUMNS}) VALUES ('delete', {places})",
            [alert, *texts],
        )
        connection.execute(
            f"INSERT INTO alert_text (rowid, {_COLUMNS}) VALUES ({places})",
            [alert, *map(masked, texts)],
        )


class SqliteConnection(sqlite3.Connection):
    """A connection that knows SQLite's ways."""

    dialect: Dialect = Sqlite()

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], /) -> None:
        """Puts rows into a table."""
        self.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks(columns)})", rows)


class SqliteDatabase(Database):
    """The file, its writing thread, and its readers."""

    def __init__(self, path: Path):
        """Opens the file, or makes it.

        Raises:
            UserError: it cannot be opened, is another program's or version's, or another console has it.
        """
        super().__init__()
        self.path = path
        self.where = str(path)
        self._lock = _lock(path)
        self._local = threading.local()
        try:
            self._connection = self._open(WRITER_CACHE_KIB)
            self._prepare(self._connection)
        except sqlite3.Error as error:
            os.close(self._lock)
            msg = f"CONSOLE_DATABASE={path} cannot be used ({error}); mend that, or name another file"
            raise UserError(msg) from error
        except BaseException:
            os.close(self._lock)
            raise
        self._thread.start()

    def _open(self, cache_kib: int) -> SqliteConnection:
        connection = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, timeout=30, factory=SqliteConnection
        )
        connection.row_factory = sqlite3.Row
        connection.create_function("masked", 1, masked, deterministic=True)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA cache_size = -{cache_kib}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
        # What a statement might have to take back is kept in memory: in a file it took a quarter of an alert's CPU.
        connection.execute("PRAGMA temp_store = MEMORY")
        return connection

    def _prepare(self, connection: SqliteConnection) -> None:
        """Makes the tables of a new file; checks the version of an old one."""
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        old = bool(tables) and upgrade.can_be_upgraded(version)
        if tables and version != VERSION and not old:
            msg = (
                f"CONSOLE_DATABASE={self.path} is of version {version}, and this console reads version {VERSION}: "
                "name another file"
            )
            raise UserError(msg)
        if not tables:
            made = "INSERT INTO about VALUES ('id', lower(hex(randomblob(8))));"
            connection.executescript(f"BEGIN; {SCHEMA} {TEXT_SEARCH} {made} PRAGMA user_version = {VERSION}; COMMIT;")
        if old:
            try:
                connection.executescript(f"BEGIN; {upgrade.statements(self.where, version)} {TRIGGERS}")
                upgrade.fill(connection, version)
                connection.execute(f"PRAGMA user_version = {VERSION}")  # executescript would commit before
                connection.execute("COMMIT")
            except BaseException:
                connection.rollback()
                raise
        connection.executescript(f"BEGIN; {ADDED} COMMIT;")

    def read(self) -> SqliteConnection:
        """This thread's connection to read with."""
        if not hasattr(self._local, "connection"):
            self._local.connection = self._open(READER_CACHE_KIB)
            self._local.connection.execute("PRAGMA query_only = ON")
        connection: SqliteConnection = self._local.connection
        return connection

    def _transact(self, change: Callable[[database.Connection], T], lasting: bool) -> T:
        # FULL: a commit, and all before it, is on the disk when it returns, as a label must survive a failure of the
        # machine. Alerts come many times a second, and syncs of theirs would hold up those of a flow on the same disk.
        self._connection.execute(f"PRAGMA synchronous = {'FULL' if lasting else 'NORMAL'}")
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            result = change(self._connection)
            self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # a full disk has rolled it back already
                self._connection.execute("ROLLBACK")
            raise
        return result

    def _close(self) -> None:
        self._connection.close()
        os.close(self._lock)


def _lock(path: Path) -> int:
    """Holds the file for this process; only its owner may read it, as it has what the transactions have."""
    try:
        held = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        msg = f"CONSOLE_DATABASE={path} cannot be opened ({error.strerror}); mend that, or name another file"
        raise UserError(msg) from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(held)
        msg = f"CONSOLE_DATABASE={path}: another console has it open; stop that one, or name another file"
        raise UserError(msg) from error
    return held
