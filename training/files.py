"""Files that are written whole or not at all, as a running flow may read them at any time."""

import os
from collections.abc import Mapping
from pathlib import Path

from dataflow.errors import UserError


def put_in_place(contents: Mapping[Path, bytes]) -> None:
    """Puts files in place, each whole or not at all, in their order.

    They are written under other names and synced before any is renamed.

    Raises:
        UserError: one cannot be written; then none was replaced, unless a rename failed.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in contents}
    try:
        for path, content in contents.items():
            with temporary[path].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            temporary[path].replace(path)
    except OSError as error:
        first = next(iter(contents))
        msg = f"cannot write {error.filename or first}: {error.strerror}"
        raise UserError(msg) from None
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
