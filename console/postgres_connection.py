"""Connections to PostgreSQL that take the console's SQL, and tell what went wrong in one line."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from console.database import AwayError, Connection, Dialect, ServerError
from console.postgres_sql import bounded, in_postgres, words
from console.shown_text import masked
from dataflow.errors import UserError

NUL: Final = "\N{REPLACEMENT CHARACTER}"
"""In place of U+0000, which PostgreSQL keeps in no text; the record's bytes are kept as they are."""
DEFAULTS: Final[dict[str, str | int]] = {
    "connect_timeout": 5,
    "application_name": "redflag-console",
    # A server that vanishes without a word is noticed within half a minute.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
"""Of libpq, where the address says nothing else."""
_READ_ONLY_STATE: Final = "25006"  # a server that was demoted


def parameters_of(address: str) -> dict[str, Any]:
    """What libpq takes of a `postgresql://` address.

    Raises:
        UserError: it is none, or has a password in it; it is not told, as it may have one.
    """
    try:
        found: dict[str, Any] = dict(conninfo_to_dict(address))
    except psycopg.Error:
        msg = "CONSOLE_DATABASE is no address of PostgreSQL: it takes postgresql://user@host/database, or a path"
        raise UserError(msg) from None
    if secret := [name for name in ("password", "sslpassword") if name in found]:
        msg = (
            f"CONSOLE_DATABASE has a {secret[0]} in it: leave that out, and give it in PGPASSWORD or in the passfile "
            "(~/.pgpass, or PGPASSFILE)"
        )
        raise UserError(msg)
    return {**DEFAULTS, **found, "client_encoding": "UTF8"}


def one_line(error: psycopg.Error) -> str:
    """What went wrong."""
    return " ".join((error.diag.message_primary or str(error)).split())


class PostgresRow(Sequence[Any]):
    """A row, by name or by place."""

    __slots__ = ("_places", "_values")

    def __init__(self, places: dict[str, int], values: Sequence[Any]):
        self._places = places
        self._values = values

    def __getitem__(self, key: Any) -> Any:
        """A value."""
        return self._values[self._places[key] if isinstance(key, str) else key]

    def __len__(self) -> int:
        """How many columns there are."""
        return len(self._values)

    def keys(self) -> list[str]:
        """The names of the columns."""
        return list(self._places)


def _rows(cursor: psycopg.Cursor[Any]) -> Callable[[Sequence[Any]], PostgresRow]:
    places: dict[str, int] = {}
    for place, column in enumerate(cursor.description or ()):
        places.setdefault(column.name, place)
    return lambda values: PostgresRow(places, values)


class PostgresResult:
    """What a statement gave, all of it fetched."""

    def __init__(self, rows: list[PostgresRow], rowcount: int):
        self._rows = iter(rows)
        self.rowcount = rowcount

    def fetchone(self) -> PostgresRow | None:
        """The next row; None after the last."""
        return next(self._rows, None)

    def fetchall(self) -> list[PostgresRow]:
        """The rows that are left."""
        return list(self._rows)

    def __iter__(self) -> Iterator[PostgresRow]:
        """Row by row."""
        return self._rows


class Postgres(Dialect):
    """PostgreSQL's ways."""

    text_matches = "SELECT number FROM alert_text WHERE words @@ CAST(? AS tsquery)"
    # The rules are in no index beside what else filters ask: a text of any length is more than one takes.
    has_rule = "EXISTS (SELECT 1 FROM alert_rules WHERE rule = ? AND case_number = x.case_number AND number = x.number)"
    text_matches_alert = (
        "EXISTS (SELECT 1 FROM alert_text t WHERE t.number = x.number AND t.words @@ CAST(? AS tsquery))"
    )
    shadow_rules = "shadow_rules_of(raw)"

    def text_query(self, text: str) -> str:
        """Words have neither blanks nor quotes: nothing in them is an operator."""
        return " & ".join(f"'{word}':*" for word in words(text))

    def next_alert_numbers(self, connection: Connection, count: int) -> range:
        """Counted in the transaction: a sequence would have gaps where one failed, and `forget` counts by numbers."""
        (last,) = connection.execute("UPDATE alert_numbers SET last = last + ? RETURNING last", [count]).fetchone()
        return range(last - count + 1, last + 1)

    def next_case_numbers(self, connection: Connection, count: int) -> list[int]:
        """Those that the column's sequence gives."""
        sql = "SELECT nextval(pg_get_serial_sequence('cases', 'number')) FROM generate_series(1, ?)"
        return sorted(row[0] for row in connection.execute(sql, [count]))

    def index_texts(self, connection: Connection, texts: Mapping[int, Iterable[str]]) -> None:
        """Words are split here, so that they are what `text_query` looks for, whatever the server's locale."""
        found = (
            (
                number,
                " ".join(f"'{word}'" for word in bounded(word for text in of_alert for word in words(masked(text)))),
            )
            for number, of_alert in texts.items()
        )
        connection.insert("alert_text", ("number", "words"), found)

    def kept(self, text: str) -> str:
        """PostgreSQL keeps no U+0000."""
        return text.replace("\0", NUL) if "\0" in text else text

    def mask_text(self, connection: Connection, alert: int, texts: Sequence[str]) -> None:
        """In place of the words that were there."""
        connection.execute("DELETE FROM alert_text WHERE number = ?", [alert])
        self.index_texts(connection, {alert: texts})


class PostgresConnection:
    """One connection to the server."""

    dialect: Dialect = Postgres()

    def __init__(self, parameters: dict[str, Any], read_only: bool):
        """Connects.

        Raises:
            AwayError: the server does not let us in; the text says why.
        """
        try:
            self.raw = psycopg.connect(**parameters, autocommit=True, row_factory=_rows)
            # What is asked for here takes milliseconds, and to compile it tens of them.
            self.raw.execute("SET jit = off")
            if read_only:
                self.raw.execute("SET default_transaction_read_only = on")
        except psycopg.Error as error:
            raise AwayError(one_line(error)) from None

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> PostgresResult:
        """Does one statement.

        Raises:
            AwayError: the server is away, or takes nothing for now.
            ServerError: it refuses this.
        """
        statement = in_postgres(sql, bool(values))
        try:
            cursor = self.raw.cursor(binary=bool(values))  # several statements at once are none of binary results
            cursor.execute(statement.encode(), [_kept(each) for each in values] or None)
            return PostgresResult(cursor.fetchall() if cursor.description else [], cursor.rowcount)
        except psycopg.Error as error:
            raise self._told(error) from None

    def executemany(self, sql: str, values: Iterable[Sequence[Any]], /) -> None:
        """Does one statement with each of these values; raises as `execute` does."""
        try:
            self.raw.cursor().executemany(
                in_postgres(sql, True).encode(), [[_kept(each) for each in row] for row in values]
            )
        except psycopg.Error as error:
            raise self._told(error) from None

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], /) -> None:
        """Puts rows into a table, in one stream: a statement a row takes several times as long; raises likewise."""
        sql = in_postgres(f"COPY {table} ({', '.join(columns)}) FROM STDIN", False)
        try:
            with self.raw.cursor() as cursor, cursor.copy(sql.encode()) as copy:
                for row in rows:
                    copy.write_row([_kept(each) for each in row])
        except psycopg.Error as error:
            raise self._told(error) from None

    def _told(self, error: psycopg.Error) -> ServerError:
        away = self.raw.closed or isinstance(error, psycopg.OperationalError) or error.sqlstate == _READ_ONLY_STATE
        return (AwayError if away else ServerError)(one_line(error))

    @property
    def works(self) -> bool:
        """Whether it has not broken."""
        return not self.raw.closed

    def close(self) -> None:
        """Ends it."""
        self.raw.close()


def _kept(value: Any) -> Any:
    return PostgresConnection.dialect.kept(value) if isinstance(value, str) else value
