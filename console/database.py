"""What the console asks of its database, whichever it is: one connection that writes, on one thread, and any that read.

Statements are written once, in SQL that SQLite takes; `postgres_sql` turns them into PostgreSQL's. Where the two differ
in more than words, a `Dialect` says how.

What belongs together (records and the offsets that they come from; a label, its audit entry and the message that tells
it) is written in one transaction. So the process can be killed at any point: after a restart all of it is there, or
none.
"""

import queue
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar, Final, Protocol, TypeVar

T = TypeVar("T")


class ServerError(Exception):
    """A database server refused something; the text is one line."""


class AwayError(ServerError):
    """A database server cannot be reached, or takes nothing for now: what was asked may be asked again."""


DatabaseError: Final = (sqlite3.Error, ServerError)
"""All that a connection raises because of its database."""


class Row(Protocol):
    """A row of a result, by name or by place."""

    def __getitem__(self, key: Any, /) -> Any:
        """A value, by the column's name or place."""

    def __iter__(self) -> Iterator[Any]:
        """Its values, in order."""

    def keys(self) -> Any:
        """The names of its columns."""


class Result(Protocol):
    """What a statement gave."""

    @property
    def rowcount(self) -> int:
        """Of a change, how many rows it changed."""

    def fetchone(self) -> Any:
        """The next row; None after the last."""

    def fetchall(self) -> list[Any]:
        """The rows that are left."""

    def __iter__(self) -> Iterator[Any]:
        """Row by row."""


class Dialect(ABC):
    """The few things that databases do differently."""

    text_matches: ClassVar[str]
    """Selects the numbers of the alerts whose texts have the words of a `text_query`, its one value."""
    has_rule: ClassVar[str]
    """Of an alert `x` that is known: whether a rule, its one value, fired on it."""
    text_matches_alert: ClassVar[str]
    """Whether an alert `x` is one of them; quick where many alerts are asked, with the same value."""
    shadow_rules: ClassVar[str]
    """Of an alert: the JSON of the rules in shadow that fired on it, NULL without one."""

    @abstractmethod
    def text_query(self, text: str) -> str:
        """What people type as a query for `text_matches`: all words, each may go on; "" without a word.

        Nothing that is typed is an operator.
        """

    @abstractmethod
    def next_alert_numbers(self, connection: "Connection", count: int) -> Iterable[int]:
        """The numbers that the next alerts get: one after the other, and never one that a deleted alert had."""

    @abstractmethod
    def next_case_numbers(self, connection: "Connection", count: int) -> Iterable[int]:
        """The numbers that the next cases get, in order; never one that a case had."""

    @abstractmethod
    def index_texts(self, connection: "Connection", texts: Mapping[int, Iterable[str]]) -> None:
        """Makes alerts that were just stored be found by these texts, of card numbers by what `masked` leaves."""

    @abstractmethod
    def mask_text(self, connection: "Connection", alert: int, texts: Sequence[str]) -> None:
        """Makes an alert that was found by all of these texts, as version 2 did, be found as `index_texts` says."""

    def kept(self, text: str) -> str:
        """A text as the database keeps it."""
        return text


class Connection(Protocol):
    """A connection; values stand in statements as `?`."""

    @property
    def dialect(self) -> Dialect:
        """Of the database that it is to."""

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> Result:
        """Does one statement."""

    def executemany(self, sql: str, values: Iterable[Sequence[Any]], /) -> Any:
        """Does one statement with each of these values."""

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], /) -> None:
        """Puts rows into a table."""


def marks(values: Collection[Any], mark: str = "?") -> str:
    """So many marks for values in a statement; of no value one that is NULL, as `IN ()` is none of PostgreSQL's."""
    return ", ".join([mark] * len(values)) or mark.replace("?", "NULL")


class Database(ABC):
    """The database, its writing thread, and its readers."""

    where: str
    """As the setting names it, for people; without a password."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[Callable[[Connection], Any], bool, Future[Any]] | None]
        self._work = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="console-writer", daemon=True)

    @property
    def id(self) -> str:
        """What tells this database from others; its messages on the feedback topic carry it."""
        return str(self.read().execute("SELECT value FROM about WHERE name = 'id'").fetchone()[0])

    @abstractmethod
    def read(self) -> Connection:
        """A connection to read with, for this thread; it sees what is committed."""

    def write(self, change: Callable[[Connection], T], seconds: float | None = None, *, lasting: bool = True) -> T:
        """Makes a change in one transaction, and returns what it returns, once that is committed.

        If it raises, nothing of it stays, and the exception comes out here. There is one exception to that: where a
        server went away during the commit (`AwayError`), only the database itself can tell whether it was made.

        A change that is not `lasting` may be lost where the machine fails, and this process with it, until one that is
        lasting was made after it: for what is read from Kafka, and would be read again.

        Raises:
            TimeoutError: that was not so within `seconds`; it may yet be made.
        """
        done: Future[T] = Future()
        self._work.put((change, lasting, done))
        return done.result(seconds)

    @abstractmethod
    def _transact(self, change: Callable[[Connection], T], lasting: bool) -> T:
        """Makes a change in one transaction, on the writing thread."""

    def _write_all(self) -> None:
        while (work := self._work.get()) is not None:
            change, lasting, done = work
            try:
                result = self._transact(change, lasting)
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(result)

    def close(self) -> None:
        """Ends the writing thread, once what was asked of it is done, and lets go of the database."""
        self._work.put(None)
        self._thread.join()
        self._close()

    @abstractmethod
    def _close(self) -> None:
        """Lets go of the database."""
