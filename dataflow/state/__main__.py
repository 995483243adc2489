"""`python -m dataflow.state`: looks into the profiles of a recovery directory, exports and imports them.

    python -m dataflow.state show RECOVERY_DIR
    python -m dataflow.state user RECOVERY_DIR NAME
    python -m dataflow.state export RECOVERY_DIR FILES
    python -m dataflow.state import FILES RECOVERY_DIR [--lanes N]

What is imported has the fields of this version: those that are gone are left out, new ones are 0.
"""

import argparse
import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from dataflow.errors import UserError
from dataflow.layouts import LAYOUTS
from dataflow.process.terminal import printable
from dataflow.profiles.in_words import describe_merchant, describe_user
from dataflow.state.batches import lane_of
from dataflow.state.compaction import read_layout
from dataflow.state.log import HEAD_BYTES
from dataflow.state.parquet import export_to, import_from, load_lanes, read_lanes
from dataflow.state.store import read_manifest
from dataflow.tables.table import Layout, Tables

IN_WORDS = {"update_user_profile": describe_user, "update_merchant_profile": describe_merchant}
"""Of each step that has them, the words for a row."""

NOT_IN_EARLIER_EXPORTS = {"suppress_repeats"}
"""Steps that exports of an earlier version have no files of."""


def show(recovery: Path) -> list[str]:
    """A line a lane: keys, bytes, when its image was made, how much of the log is above it."""
    names = read_manifest(recovery)["lanes"]
    lines = [f"{'step':<28} {'lane':>4} {'keys':>9} {'row MB':>8} {'image':>16} {'log MB':>8} {'version':>9}"]
    keys = size = 0
    for step, lane, (tables, chain) in load_lanes(recovery):
        rows = sum(table.bytes_held() for table in tables.values())
        first = next(iter(tables.values()))
        image = "none" if chain.head is None else f"{_ago(chain.head.written_at)} ago"
        log = sum(HEAD_BYTES + chunk.place.length for chunk in chain.chunks)
        heads = [chain.head.chunk] if chain.head is not None else []
        version = max((chunk.version for chunk in [*heads, *chain.chunks]), default=0)
        if not version:
            image = "imported"
        about = f"{len(first):>9} {rows / 1e6:>8.1f} {image:>16} {log / 1e6:>8.1f} {version:>9}"
        lines.append(f"{step:<28} {lane:>4} {about}")
        keys, size = keys + len(first), size + rows
    lines.append(f"{'all':<28} {len(names):>4} {keys:>9} {size / 1e6:>8.1f}")
    return lines


def describe_key(recovery: Path, key: str) -> list[str]:
    """What each step keeps of a key, a field a line; what is zero is left out.

    Raises:
        UserError: nothing is kept of it.
    """
    manifest = read_manifest(recovery)
    layouts = {step: read_layout(described) for step, described in manifest["steps"].items()}
    lines: list[str] = []
    lane = lane_of(key, len(manifest["lanes"]))
    for step, _, tables in read_lanes(recovery, lane=lane):
        row = next(iter(tables.values())).row(key)
        if row is not None:
            lines.append(f"{step}, lane {lane}, row {row}:")
            in_words = IN_WORDS.get(step)
            if in_words is not None and layouts[step] == LAYOUTS[step]:
                lines += [f"  {line}" for line in in_words(tables, row)]
                lines.append("  field by field:")
            lines += _in_words(layouts[step], tables, next(iter(tables)), row, "  ")
            for name in layouts[step].followers:
                beside = tables[name].row(key)
                if beside is not None:
                    lines.append(f"  {name}:")
                    lines += _in_words(layouts[step], tables, name, beside, "    ")
    if not lines:
        msg = f"{recovery} holds nothing of {key!r}: names are written as in the transactions, capitals and all"
        raise UserError(msg)
    return lines


def _in_words(layout: Layout, tables: Tables, name: str, row: int, indent: str, deep: int = 3) -> list[str]:
    lines = []
    table = tables[name]
    for field in table.dtype.names or ():
        value = table.rows[row][field]
        if not np.any(value):
            continue
        to = layout.references.get((name, field))
        label = field.replace("_", " ")
        if to is None:
            lines.append(f"{indent}{label}: {_value(field, value)}")
            continue
        for number in np.atleast_1d(value).reshape(-1).tolist():
            if number and tables[to].keyed:
                lines.append(f"{indent}{label}: {tables[to].keys[number]}")
            elif number and deep:
                lines.append(f"{indent}{label}, in {to}:")
                lines += _in_words(layout, tables, to, number, indent + "  ", deep - 1)
    return lines


def _value(field: str, value: Any) -> str:
    flat = np.atleast_1d(value).reshape(-1)
    if flat.dtype.kind == "f" and (field == "at" or field.endswith("_at")):
        return ", ".join(
            f"{np.datetime64(int(each * 1000), 'ms')}Z" if np.isfinite(each) else "-" for each in flat.tolist() if each
        )
    return ", ".join(f"{each:.6g}" if isinstance(each, float) else str(each) for each in flat.tolist())


def _ago(at: float) -> str:
    seconds = max(0.0, time.time() - at)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _layouts(name: str) -> dict[str, Layout]:
    """The layouts that a recovery directory, or a name in a module, says."""
    if Path(name).is_dir():
        return {step: read_layout(described) for step, described in read_manifest(Path(name))["steps"].items()}
    module, _, attribute = name.partition(":")
    try:
        found: dict[str, Layout] = getattr(importlib.import_module(module), attribute)
        if not all(isinstance(layout, Layout) for layout in found.values()):
            msg = f"it is a {type(found).__name__} of something else"
            raise TypeError(msg)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        msg = f"{name} is neither a recovery directory nor module:name of layouts: {error}"
        raise UserError(msg) from error
    return found


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; 2 for a user's mistake, which is said in one line."""
    parser = argparse.ArgumentParser(prog="python -m dataflow.state", description=(__doc__ or "").split("\n", 1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("show", help="keys, bytes and age of each lane")
    command.add_argument("recovery", type=Path)
    command = commands.add_parser("user", help="what is kept of one user (or merchant), in words")
    command.add_argument("recovery", type=Path)
    command.add_argument("name")
    command = commands.add_parser("export", help="write all profiles to Parquet files")
    command.add_argument("recovery", type=Path)
    command.add_argument("files", type=Path)
    command = commands.add_parser("import", help="read them into a new recovery directory")
    command.add_argument("files", type=Path)
    command.add_argument("recovery", type=Path)
    command.add_argument(
        "layouts",
        nargs="?",
        default="dataflow.layouts:LAYOUTS",
        help="whose fields to take: those of a recovery directory, or of module:name; default: this version's",
    )
    command.add_argument("--lanes", type=int)
    given = parser.parse_args(arguments)
    os.umask(0o077)  # what is written holds what is known of each user
    try:
        if given.command == "show":
            lines = show(given.recovery)
        elif given.command == "user":
            lines = describe_key(given.recovery, given.name)
        elif given.command == "export":
            counts = export_to(given.recovery, given.files)
            lines = [f"{step}: {count} keys written to {given.files}" for step, count in counts.items()]
        else:
            lines = []
            layouts = _layouts(given.layouts)
            done = import_from(given.files, given.recovery, layouts, given.lanes, NOT_IN_EARLIER_EXPORTS)
            for step, imported in done.items():
                if imported is None:
                    lines.append(f"{step}: there is no file of it: it begins empty")
                    continue
                keys, lost, zero = imported
                lines.append(f"{step}: {keys} keys read")
                lines += [f"  {field} is not kept any more, and was left out" for field in lost]
                lines += [f"  {field} was not in the files, and is 0" for field in zero]
    except UserError as error:
        sys.stderr.write(f"redflag: {error}\n")
        return 2
    except OSError as error:
        where = error.filename or given.recovery
        sys.stderr.write(f"redflag: {where}: {error.strerror or error}: see that it is there, and may be read\n")
        return 2
    sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
