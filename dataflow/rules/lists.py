"""Lists of merchants, users, devices or addresses, in files of their own: one entry a line, a million at no cost."""

import codecs
import hashlib
import os
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import NamedTuple

from dataflow.errors import UserError
from dataflow.process.file_watch import Stamp, stamp, stamp_of
from dataflow.rules.text_form import caseless, comparable

BLOCK = 1 << 17
"""Bytes read at a time. Between two blocks there is a pause, so that a running flow goes on."""

MAX_BYTES = 1 << 30

Pause = Callable[[], None]
"""Called between two steps of a load: beside a running flow it lets that go on."""


def no_pause() -> None:
    """Where nothing runs beside."""


class ListFile(NamedTuple):
    """The entries of a file in the form in which they are compared, and the SHA-256 of its bytes."""

    stamp: Stamp
    entries: AbstractSet[str]
    digest: bytes


class ListFiles:
    """Reads list files, each anew only when its stamp has changed."""

    def __init__(self) -> None:
        self._files: dict[tuple[Path, bool], ListFile] = {}
        self.asked: dict[Path, Stamp | None] = {}  # since `begin`, with the stamps from before they were first read

    def begin(self) -> None:
        """Marks the beginning of a load of a rules file."""
        self.asked = {}

    def forget_others(self) -> None:
        """Lets go of the files that the last load did not ask for."""
        for path, ignore_case in [key for key in self._files if key[0] not in self.asked]:
            del self._files[path, ignore_case]

    def read(self, path: Path, ignore_case: bool = False, pause: Pause = no_pause) -> ListFile:
        """The file's entries: its lines, made comparable, without empty ones and those that begin with '#'.

        Raises:
            UserError: it cannot be read, or is not UTF-8 text.
        """
        found = self.asked.setdefault(path, stamp(path))
        known = self._files.get((path, ignore_case))
        if known is None or found != known.stamp:
            known = self._files[path, ignore_case] = _read(path, ignore_case, pause)
        return known


def read_regular(path: Path) -> bytes:
    """The bytes of a file, which must be a regular one: reading a pipe would wait for ever.

    Raises:
        UserError: it cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            msg = f"{path} is no regular file: name one"
            raise UserError(msg)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(_unreadable(path, error)) from None


def _unreadable(path: Path, error: OSError | ValueError) -> str:
    what = error.strerror if isinstance(error, OSError) else error
    return f"{str(path)!r}: {what}: name a readable rules file in RULES_FILE, and in it lists that are there"


def _read(path: Path, ignore_case: bool, pause: Pause) -> ListFile:
    entries: set[str] = set()
    digest = hashlib.sha256()
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    done, rest = 0, ""
    try:
        if path.exists() and not path.is_file():
            msg = f"{path} is no regular file: name one"
            raise UserError(msg)
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            while block := file.read(BLOCK):
                digest.update(block)
                *lines, rest = (rest + decode(block)).split("\n")
                _add(entries, lines, ignore_case)
                done += len(block)
                if done > MAX_BYTES:
                    msg = f"{path} has more than {MAX_BYTES >> 20} MB: lists of that size do not fit into memory"
                    raise UserError(msg)
                pause()
            _add(entries, [rest + decode(b"", True)], ignore_case)
    except UnicodeDecodeError as error:
        msg = f"{path}: not UTF-8 text near byte {done + error.start}: one entry a line"
        raise UserError(msg) from None
    except (OSError, ValueError) as error:
        raise UserError(_unreadable(path, error)) from None
    return ListFile(stamp_of(found), entries, digest.digest())


def _add(entries: set[str], lines: list[str], ignore_case: bool) -> None:
    found = [line for line in comparable(lines) if line and line[0] != "#"]
    entries.update(map(caseless, found) if ignore_case else found)
