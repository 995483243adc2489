"""A PostgreSQL server of the tests' own, from Debian's package, with a schema for each test."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
import pytest

from tests.support.kafka_server import free_ports

SECONDS = 30


def programs() -> Path | None:
    """Where the server's programs lie, of the newest version that is here; Debian has them on no PATH."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    on_path = shutil.which("initdb")
    newest = max(found, key=lambda each: float(each.parent.name), default=None)
    return newest or (Path(on_path).parent if on_path else None)


class PostgresServer:
    """A server on a free port of this machine; whoever connects needs no password, but for the user `locked`."""

    def __init__(self) -> None:
        bin_folder = programs()
        if bin_folder is None:
            pytest.skip("needs Debian's postgresql")
        self._bin = bin_folder
        self._folder = Path(tempfile.mkdtemp(prefix="redflag-postgres-"))
        # The server refuses to run as root.
        self._user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
        self._data = self._folder / "data"
        self._run("initdb", "-D", str(self._data), "-U", "eve", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        with (self._data / "pg_hba.conf").open("r+") as file:
            rest = file.read()
            file.seek(0)
            file.write("host all locked 127.0.0.1/32 scram-sha-256\n" + rest)
        (self.port,) = free_ports(1)  # which no outgoing connection is given while it is down
        self._made = 0
        self.start()

    def _as_user(self) -> dict[str, object]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(  # type: ignore[call-overload]
            [self._bin / program, *arguments], check=True, capture_output=True, cwd="/", **self._as_user()
        )

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        deadline = time.monotonic() + SECONDS
        while not self._started():
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(0.1)

    def _started(self) -> bool:
        """Whether it answers; else it has ended, as of one that was killed something was left for a moment."""
        settings = [
            f"port={self.port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={self._folder}", "fsync=off",
            "max_connections=60", "shared_buffers=32MB",
        ]  # fmt: skip
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(  # type: ignore[call-overload]
                [self._bin / "postgres", "-D", self._data, *(part for each in settings for part in ("-c", each))],
                stdout=log, stderr=log, cwd="/", start_new_session=True, **self._as_user(),
            )  # fmt: skip
        while self._process.poll() is None:
            try:
                self.admin("SELECT 1")
            except psycopg.OperationalError:
                time.sleep(0.05)
            else:
                return True
        return False

    @property
    def runs(self) -> bool:
        """Whether it was not killed."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Kills it and its children: nothing is told to anybody, nothing is written any more."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        self._process.kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Ends it, and removes what it has."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(SECONDS)
        shutil.rmtree(self._folder)

    def admin(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Does a statement as who may do all."""
        with psycopg.connect(self.address(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def address(self, database: str, user: str = "eve") -> str:
        """As `CONSOLE_DATABASE` takes it."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def make_place(self) -> str:
        """The address of a new schema, which is to a console what a database is, and made in less time."""
        self._made += 1
        self.admin(f"CREATE SCHEMA test{self._made}")
        return f"{self.address('postgres')}?options=-csearch_path%3Dtest{self._made}"
