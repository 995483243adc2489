"""Which database the setting names."""

from pathlib import Path
from typing import Final

from console.database import Database
from console.sqlite_database import SqliteDatabase

SCHEMES: Final = ("postgresql://", "postgres://")


def open_database(named: Path | str) -> Database:
    """Opens what `CONSOLE_DATABASE` names: a file of SQLite, or a database of a PostgreSQL server.

    Raises:
        UserError: it cannot be used, is another program's or version's, or another console has it.
    """
    if isinstance(named, str) and named.startswith(SCHEMES):
        from console.postgres_database import PostgresDatabase  # what SQLite needs has no driver in it

        return PostgresDatabase(named)
    return SqliteDatabase(Path(named))
