"""Puts a rules file and its lists into a folder where others edit them, and loses neither their changes nor ours.

What was edited there stays for as long as the original is the one that was placed. An original that has changed since
wins, as it is the one in version control; what it takes the place of stays beside it.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Final

import msgspec

from dataflow.errors import UserError
from dataflow.process.whole_files import put_in_place
from dataflow.rules.lists import ListFiles, read_regular
from dataflow.rules.rules_file import load_rules

RECORD: Final = ".placed.json"
"""Names the originals that were placed last: SHA-256 by name."""
REPLACED: Final = ".replaced"
"""Ending of what was edited and had to give way; one of each name is kept."""


def place(path: Path, folder: Path) -> list[str]:
    """Places the rules file and the lists that it names; returns a line on each of them.

    It can be killed at any point and begun anew.

    Raises:
        UserError: the original has a mistake, or names a list elsewhere; the folder cannot be read or written.
    """
    files = ListFiles()
    load_rules(path, files)
    lines, contents, placed = [], dict[Path, bytes](), dict[str, str]()
    before = _recorded(folder / RECORD)
    for name in (*_names_of_lists(path, files), path.name):  # the rules last: the lists that they name are there then
        original, target = read_regular(path.parent / name), folder / name
        placed[name] = _digest(original)
        held = read_regular(target) if target.exists() else None
        if held == original:
            lines.append(f"{target} is as {path.parent / name} has it")
        elif held is not None and before.get(name) == placed[name]:
            lines.append(f"{target} stays as it was edited: {path.parent / name} has not changed since")
        else:
            lines.append(f"{target} is new from {path.parent / name}")
            if held is not None and before.get(name) != _digest(held):
                kept = target.with_name(target.name + REPLACED)
                contents[kept] = held
                lines[-1] += f"; what was edited there is now {kept.name}"
            contents[target] = original
            _make_folder(target.parent)
    # The record last: what a kill leaves without one is placed again.
    put_in_place({**contents, folder / RECORD: json.dumps(placed, indent=2).encode()})
    return lines


def _names_of_lists(path: Path, files: ListFiles) -> list[str]:
    names = []
    for each in files.asked:
        name = os.path.relpath(each, path.parent)
        if Path(name).parts[0] == "..":
            msg = f"{path}: {each} is not in the rules file's folder, so it cannot be placed: move it there"
            raise UserError(msg)
        names.append(name)
    return names


def _recorded(record: Path) -> dict[str, str]:
    if not record.exists():
        return {}
    try:
        return msgspec.json.decode(read_regular(record), type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError):
        msg = f"{record} is damaged: remove it, and what is placed anew wins over what stands beside it"
        raise UserError(msg) from None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"cannot make {folder}: {error.strerror}"
        raise UserError(msg) from None
