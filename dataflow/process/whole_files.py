"""Files that are written whole or not at all, as a running flow may read them at any time."""

import os
from collections.abc import Mapping
from pathlib import Path

from dataflow.errors import UserError


def put_in_place(contents: Mapping[Path, bytes], mode: int | None = None) -> None:
    """Puts files in place, each whole or not at all, in their order; one that is there keeps its mode and its owner.

    They are written under other names and synced before any is renamed.

    Args:
        contents: by file.
        mode: which all have from the moment they are made, whatever they had before; without it a new one has the
            user's own.

    Raises:
        UserError: one cannot be written; then none was replaced, unless a rename failed.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in contents}
    writing = next(iter(contents))
    try:
        for path, content in contents.items():
            writing = path
            made_with = 0o666 if mode is None else mode
            descriptor = os.open(temporary[path], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, made_with)
            with open(descriptor, "wb") as file:
                _set_mode(descriptor, path, mode)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            writing = path
            temporary[path].replace(path)
    except OSError as error:
        msg = f"cannot write {writing}: {error.strerror}"
        raise UserError(msg) from None
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def _set_mode(descriptor: int, path: Path, mode: int | None) -> None:
    """Gives an open file a mode, or else that of the one whose place it takes; and that one's owner.

    Only to root does an owner make a difference.
    """
    found = path.stat() if path.exists() else None
    if mode is not None:
        os.fchmod(descriptor, mode)
    elif found is not None:
        os.fchmod(descriptor, found.st_mode & 0o7777)
    if found is not None and os.geteuid() == 0:
        os.fchown(descriptor, found.st_uid, found.st_gid)
