"""Files that are written whole or not at all, as a running flow may read them at any time."""

import os
from collections.abc import Mapping
from pathlib import Path

from dataflow.errors import UserError


def put_in_place(contents: Mapping[Path, bytes]) -> None:
    """Puts files in place, each whole or not at all, in their order; one that is there keeps its mode and its owner.

    They are written under other names and synced before any is renamed.

    Raises:
        UserError: one cannot be written; then none was replaced, unless a rename failed.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in contents}
    writing = next(iter(contents))
    try:
        for path, content in contents.items():
            writing = path
            with temporary[path].open("wb") as file:
                _keep_mode(file.fileno(), path)
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


def _keep_mode(descriptor: int, path: Path) -> None:
    """Gives an open file the mode of the one whose place it takes; its owner, too, where only root would differ."""
    if not path.exists():
        return
    found = path.stat()
    os.fchmod(descriptor, found.st_mode & 0o7777)
    if os.geteuid() == 0:
        os.fchown(descriptor, found.st_uid, found.st_gid)
