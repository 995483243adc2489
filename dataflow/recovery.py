"""Recovery data: made if missing, refused if it is not this flow's, held by one running flow at a time."""

import argparse
import contextlib
import fcntl
import json
import os
import sqlite3
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bytewax.recovery import init_db_dir

from dataflow import profile
from dataflow.settings import Settings, UserError

MANIFEST = "redflag.json"
_held: list[Any] = []  # open lock files: the kernel lets go of them when this process ends, however it ends


def prepare(directory: Path, partitions: int) -> None:
    """Makes the directory and its recovery partitions, if they are not there yet.

    Raises:
        UserError: it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".probe"):
            pass
        with (directory / "lock.prepare").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the processes of a cluster may start at the same time
            if _complete(directory):
                return
            # Made aside and moved in: a kill in between leaves a set that is seen to be incomplete, and made again.
            with tempfile.TemporaryDirectory(dir=directory, prefix=".new") as new:
                init_db_dir(Path(new), partitions)  # type: ignore[no-untyped-call]
                for part in Path(new).glob("part-*.sqlite3"):
                    part.replace(directory / part.name)
    except OSError as error:
        msg = f"RECOVERY_DIR={directory}: {error.strerror}: name a directory that this user can write, with room in it"
        raise UserError(msg) from error


def identity(settings: Settings) -> dict[str, Any]:
    """What recovery data belongs to: the flow, the version of its state, its topics."""
    return {
        "flow": "detect",
        "state_version": profile.VERSION,
        "source": settings.transactions_topic,
        "outputs": [settings.alerts_topic, settings.classified_topic, settings.invalid_topic],
    }


def guard(own: Mapping[str, Any], argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> None:
    """Checks and holds the recovery directory that `bytewax.run` was given in `argv` or the environment, if any.

    Raises:
        UserError: it is another flow's, topic's or version's, or a flow that still runs holds it.
    """
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("-r", "--recovery-directory", default=environ.get("BYTEWAX_RECOVERY_DIRECTORY"))
    options.add_argument("-i", "--process-id", type=int, default=int(environ.get("BYTEWAX_PROCESS_ID") or 0))
    options.add_argument("-a", "--addresses", default=environ.get("BYTEWAX_ADDRESSES", ""))
    given, _ = options.parse_known_args(argv)
    if not given.recovery_directory:
        return
    directory = Path(given.recovery_directory)
    try:
        _hold(directory, given.process_id, len(given.addresses.split(";")) if given.addresses else 1)
        _check(directory, own)
    except OSError as error:
        msg = f"recovery directory {directory}: {error.strerror}: name one that exists and that this user can write"
        raise UserError(msg) from error


def _hold(directory: Path, process: int, processes: int) -> None:
    """Takes this process's lock, and sees that no process of a larger, earlier cluster still holds one.

    A flow that was cut off but still lives would write what we decide again: two must never share a directory.
    """
    lock = (directory / f"lock.{process}").open("a+")
    others = [path for path in directory.glob("lock.[0-9]*") if int(path.suffix[1:]) >= processes]
    for file in (lock, *(path.open("a+") for path in others)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            msg = (
                f"recovery directory {directory} is in use by process {file.read().strip() or 'unknown'}: stop it "
                "first, or give this one a directory of its own"
            )
            raise UserError(msg) from error
        if file is not lock:
            file.close()
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    _held.append(lock)


def _check(directory: Path, own: Mapping[str, Any]) -> None:
    manifest = directory / MANIFEST
    try:
        found = json.loads(manifest.read_text())
    except FileNotFoundError:
        if _has_run(directory):
            msg = f"recovery directory {directory} holds the data of another program: give this flow one of its own"
            raise UserError(msg) from None
        with tempfile.NamedTemporaryFile("w", dir=directory, prefix=".manifest", delete=False) as new:
            json.dump(own, new, indent=2)
        Path(new.name).rename(manifest)
        return
    except ValueError as error:
        msg = f"{manifest} is damaged: restore it from a backup, or use an empty recovery directory"
        raise UserError(msg) from error
    for key, value in own.items():
        if found.get(key) != value:
            msg = (
                f"recovery directory {directory} belongs to {key} {json.dumps(found.get(key))}, but this flow has "
                f"{json.dumps(value)}: name another directory in RECOVERY_DIR, or go back to its settings"
            )
            raise UserError(msg)


def _complete(directory: Path) -> bool:
    parts = list(directory.glob("part-*.sqlite3"))
    return bool(parts) and len(parts) >= _ask(parts[0], "SELECT max(part_count) FROM parts")


def _has_run(directory: Path) -> bool:
    return any(_ask(part, "SELECT count(*) FROM exs") for part in directory.glob("part-*.sqlite3"))


def _ask(part: Path, query: str) -> int:
    try:
        with contextlib.closing(sqlite3.connect(f"file:{part}?mode=ro", uri=True)) as db:
            return int(db.execute(query).fetchone()[0] or 0)
    except sqlite3.Error as error:
        msg = f"{part} is no recovery partition ({error}): restore it from a backup, or use an empty recovery directory"
        raise UserError(msg) from error
