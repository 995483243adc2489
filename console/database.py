"""The console's database: one SQLite file, written by one thread, read by any.

What belongs together (records and the offsets that they come from; a label, its audit entry and the message that tells
it) is written in one SQLite transaction. So the process can be killed at any point: after a restart all of it is there,
or none.
"""

import contextlib
import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, TypeVar

from dataflow.errors import UserError

T = TypeVar("T")

VERSION: Final = 1
"""Of the schema; a file of another version is refused."""
WRITER_CACHE_KIB: Final = 32 * 1024
READER_CACHE_KIB: Final = 4 * 1024
"""Of SQLite's pages in memory: of the connection that writes, and of each that reads (one a thread)."""

SCHEMA: Final = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- Where reading goes on, by topic; `identity` tells a topic from another of its name that was made later.
CREATE TABLE offsets (
    topic TEXT, partition INTEGER, identity TEXT NOT NULL, next INTEGER NOT NULL, PRIMARY KEY (topic, partition)
) WITHOUT ROWID;

CREATE TABLE cases (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    user TEXT NOT NULL,
    state TEXT NOT NULL,             -- open, taken, closed, suppressed
    live INTEGER NOT NULL,           -- 1 while it is open or taken
    analyst TEXT,                    -- who has taken it, or closed it
    opened REAL NOT NULL,            -- s since 1970, by the console's clock; so are the other times but `at`
    last REAL NOT NULL,              -- when its newest alert came
    last_alert INTEGER NOT NULL,
    top_alert INTEGER NOT NULL,      -- the one of the highest score
    score REAL NOT NULL,             -- the highest
    action TEXT NOT NULL,            -- the strictest
    amount REAL NOT NULL,            -- of all its alerts
    alerts INTEGER NOT NULL,
    suppressed INTEGER NOT NULL,     -- how many of them were
    closed REAL,
    outcome TEXT                     -- of a closed case: fraud, genuine, unsure
);
CREATE INDEX cases_by_user ON cases (user, number);
CREATE INDEX cases_newest ON cases (last_alert) WHERE live;
CREATE INDEX cases_riskiest ON cases (score, amount, last_alert) WHERE live;

CREATE TABLE alerts (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- in the order in which they came
    case_number INTEGER NOT NULL,
    identity TEXT NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL,
    arrived REAL NOT NULL,
    decided REAL NOT NULL,           -- the record's Kafka timestamp
    at REAL NOT NULL,                -- event time
    transaction_id TEXT NOT NULL, user TEXT NOT NULL, merchant TEXT NOT NULL, device TEXT NOT NULL,
    ip TEXT NOT NULL, location TEXT NOT NULL, txn_type TEXT NOT NULL, scenario TEXT NOT NULL,
    amount REAL NOT NULL, score REAL NOT NULL, action TEXT NOT NULL,
    rules TEXT NOT NULL,             -- ids, each between two blanks: " high_amount ml_anomaly "
    reasons TEXT NOT NULL,           -- of the rules, one a line
    why TEXT NOT NULL,               -- the strongest of the explanation, one a line
    suppressed INTEGER NOT NULL,
    label TEXT, labelled_at REAL, labelled_by TEXT,
    raw BLOB NOT NULL,               -- the record's value
    UNIQUE (identity, partition, offset)
);
CREATE INDEX alerts_of_case ON alerts (case_number, number);
CREATE INDEX alerts_by_transaction ON alerts (transaction_id);
CREATE INDEX alerts_by_user ON alerts (user, number);
CREATE INDEX alerts_by_device ON alerts (device, number);
CREATE INDEX alerts_by_merchant ON alerts (merchant, number);
CREATE INDEX alerts_by_ip ON alerts (ip, number) WHERE ip <> '';

CREATE VIRTUAL TABLE alert_text USING fts5 (
    transaction_id, user, merchant, device, ip, location, txn_type, scenario, reasons, why,
    content='alerts', content_rowid='number'
);
CREATE TRIGGER alert_text_insert AFTER INSERT ON alerts BEGIN
    INSERT INTO alert_text
        (rowid, transaction_id, user, merchant, device, ip, location, txn_type, scenario, reasons, why)
    VALUES (new.number, new.transaction_id, new.user, new.merchant, new.device, new.ip, new.location, new.txn_type,
            new.scenario, new.reasons, new.why);
END;
CREATE TRIGGER alert_text_delete AFTER DELETE ON alerts BEGIN
    INSERT INTO alert_text
        (alert_text, rowid, transaction_id, user, merchant, device, ip, location, txn_type, scenario, reasons, why)
    VALUES ('delete', old.number, old.transaction_id, old.user, old.merchant, old.device, old.ip, old.location,
            old.txn_type, old.scenario, old.reasons, old.why);
END;

-- Labels of transactions of which no alert has come (yet).
CREATE TABLE early_labels (
    number INTEGER PRIMARY KEY, transaction_id TEXT NOT NULL UNIQUE, user TEXT NOT NULL, label TEXT NOT NULL,
    labelled_at REAL NOT NULL
);

CREATE TABLE suppressions (
    kind TEXT, name TEXT, until REAL NOT NULL, analyst TEXT NOT NULL, PRIMARY KEY (kind, name)
) WITHOUT ROWID;

-- Messages for the feedback topic. `confirmed`: read back from it.
CREATE TABLE outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB NOT NULL, value BLOB NOT NULL, written REAL NOT NULL,
    confirmed REAL
);
CREATE INDEX outbox_unconfirmed ON outbox (number) WHERE confirmed IS NULL;

CREATE TABLE audit (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL,
    case_number INTEGER, alert INTEGER, detail TEXT NOT NULL
);
CREATE INDEX audit_of_case ON audit (case_number, number);

-- Counts by minute of arrival (s since 1970 / 60), and minute 0 of all time.
CREATE TABLE figures (
    minute INTEGER, kind TEXT, name TEXT, count INTEGER NOT NULL, money REAL NOT NULL,
    PRIMARY KEY (minute, kind, name)
) WITHOUT ROWID;
"""

ADDED: Final = """
-- Of the rules file, see rules/versions.py; `in_place`: the file was seen to hold it.
CREATE TABLE IF NOT EXISTS rule_versions (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL,
    reason TEXT NOT NULL, digest TEXT NOT NULL, content BLOB NOT NULL, copy TEXT, base INTEGER,
    in_place INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS rule_drafts (
    analyst TEXT PRIMARY KEY, text TEXT NOT NULL, base TEXT NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
"""
"""Tables that a file of this version may lack, as an earlier release made it."""


class Database:
    """The file, its writing thread, and its readers."""

    def __init__(self, path: Path):
        """Opens the file, or makes it.

        Raises:
            UserError: it cannot be opened, is another program's or version's, or another console has it.
        """
        self.path = path
        self._lock = _lock(path)
        self._local = threading.local()
        self._work: queue.SimpleQueue[tuple[Callable[[sqlite3.Connection], Any], Future[Any]] | None]
        self._work = queue.SimpleQueue()
        try:
            self._connection = self._open(WRITER_CACHE_KIB)
            self._prepare(self._connection)
        except sqlite3.Error as error:
            os.close(self._lock)
            msg = f"CONSOLE_DATABASE={path} cannot be used ({error}); mend that, or name another file"
            raise UserError(msg) from error
        except UserError:
            os.close(self._lock)
            raise
        self._thread = threading.Thread(target=self._write_all, name="console-writer", daemon=True)
        self._thread.start()

    def _open(self, cache_kib: int) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=30)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        # A commit is on the disk when it returns: a label must survive a failure of the machine, too.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA cache_size = -{cache_kib}")
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Makes the tables of a new file; checks the version of an old one."""
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and version != VERSION:
            msg = (
                f"CONSOLE_DATABASE={self.path} is of version {version}, and this console reads version {VERSION}: "
                "name another file"
            )
            raise UserError(msg)
        if not tables:
            made = "INSERT INTO about VALUES ('id', lower(hex(randomblob(8))));"
            connection.executescript(f"BEGIN; {SCHEMA} {made} PRAGMA user_version = {VERSION}; COMMIT;")
        connection.executescript(f"BEGIN; {ADDED} COMMIT;")

    @property
    def id(self) -> str:
        """What tells this database from others; its messages on the feedback topic carry it."""
        return str(self.read().execute("SELECT value FROM about WHERE name = 'id'").fetchone()[0])

    def read(self) -> sqlite3.Connection:
        """This thread's connection to read with; it sees what is committed."""
        if not hasattr(self._local, "connection"):
            self._local.connection = self._open(READER_CACHE_KIB)
            self._local.connection.execute("PRAGMA query_only = ON")
        connection: sqlite3.Connection = self._local.connection
        return connection

    def write(self, change: Callable[[sqlite3.Connection], T], seconds: float | None = None) -> T:
        """Makes a change in one transaction, and returns what it returns, once that is committed.

        If it raises, nothing of it stays, and the exception comes out here.

        Raises:
            TimeoutError: that was not so within `seconds`; it may yet be made.
        """
        done: Future[T] = Future()
        self._work.put((change, done))
        return done.result(seconds)

    def _write_all(self) -> None:
        while (work := self._work.get()) is not None:
            change, done = work
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                result = change(self._connection)
                self._connection.execute("COMMIT")
            except BaseException as error:
                with contextlib.suppress(sqlite3.Error):  # a full disk has rolled it back already
                    self._connection.execute("ROLLBACK")
                done.set_exception(error)
            else:
                done.set_result(result)

    def close(self) -> None:
        """Ends the writing thread, once what was asked of it is done, and lets go of the file."""
        self._work.put(None)
        self._thread.join()
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
