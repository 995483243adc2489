"""An image: the tables of a lane as of a token, in one file. A resumed lane maps it and writes to copies of its pages.

Written aside, synced and then renamed, so what bears an image's name is whole. The file: a head (magic, length and
checksum of what follows, JSON), then for each table its rows, from the beginning of a page on and with a hole behind
them that gives a mapped table room to grow; then its keys. Each part has a checksum.
"""

import contextlib
import json
import mmap
import os
import re
import struct
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataflow.errors import UserError
from dataflow.state.chunk import pack_keys, unpack_keys
from dataflow.state.crash_points import Point, reached
from dataflow.state.disk import Disk, write_all
from dataflow.state.log import ChunkId, Place
from dataflow.tables.table import FIRST_CAPACITY, Layout, Table, Tables, describe

SLICE_BYTES = 2_000_000
"""So much is written between two syncs: the flow's own syncs wait for what others have written and not synced."""

_HEAD = struct.Struct("<8sII")  # magic, length and checksum of the JSON behind it
_MAGIC = b"RFIMAGE1"
_NAME = re.compile(r"(?P<step>[\w-]+)\.(?P<lane>\d{4})\.(?P<version>\d{12})\.image")
_SPARE = 0.5
"""Rows that a mapped table has room for beyond its own, as a part of these: a hole in the file, which takes no room."""


class ImageDamagedError(UserError):
    """An image is not what was written."""


class ImageId(NamedTuple):
    """An image that is in the directory. Version 0 was imported: no token stands for it."""

    step: str
    lane: int
    version: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.step}.{self.lane:04}.{self.version:012}.image"


def image_id(path: Path) -> ImageId | None:
    """What a file is an image of, None if it is none."""
    found = _NAME.fullmatch(path.name)
    return ImageId(found["step"], int(found["lane"]), int(found["version"])) if found else None


class ImageHead(NamedTuple):
    """What the beginning of an image says."""

    chunk: ChunkId  # the last that is in it
    written_at: float  # seconds since 1970
    size: int  # of the file, without its holes
    tables: list[dict[str, Any]]


def write_image(
    directory: Path, image: ImageId, chunk: ChunkId, tables: Tables, disk: Disk | None = None
) -> tuple[Path, int]:
    """Writes an image, and returns its path and its size without holes.

    Raises:
        OSError: the disk is full or broken; then there is no image of that name.
    """
    disk = disk or Disk()
    page = mmap.PAGESIZE
    described: list[dict[str, Any]] = []
    parts: list[tuple[int, bytes | memoryview]] = []
    at = page * 16
    for name, table in tables.items():
        rows = np.ascontiguousarray(table.rows[: table.used]).view(np.uint8).data
        capacity = max(FIRST_CAPACITY, int(table.used * (1 + _SPARE)))
        lengths, text = pack_keys(table.keys)
        keys_at = at + -(-capacity * table.dtype.itemsize // page) * page
        described.append(
            {
                "name": name,
                "row": describe(table.dtype),
                "rows": table.used,
                "keyed": table.keyed,
                "keys": len(table),
                "capacity": capacity,
                "at": at,
                "crc": zlib.crc32(rows),
                "keys_at": keys_at,
                "keys_bytes": len(text),
                "keys_crc": zlib.crc32(text, zlib.crc32(lengths)),
            }
        )
        parts += [(at, rows), (keys_at, lengths + text)]
        at = -(-(keys_at + len(lengths) + len(text)) // page) * page
    size = sum(len(part) for _, part in parts)
    said = {"chunk": [chunk.version, *chunk.place], "written_at": time.time(), "size": size, "tables": described}
    body = json.dumps(said).encode()
    head = _HEAD.pack(_MAGIC, len(body), zlib.crc32(body)) + body
    if len(head) > page * 16:
        msg = f"the layout of {image.step} takes {len(head)} bytes to describe, {page * 16} at most"
        raise ValueError(msg)
    path = directory / image.name
    aside = directory / f".{image.name}.{os.getpid()}.new"
    disk.remove(aside)  # of a killed process that had this one's number
    fd = disk.create(aside)
    try:
        write_all(disk, fd, [head])
        for begin, part in parts:
            disk.set_size(fd, begin)  # it is open for appending, so what is written next is written there
            view = memoryview(part)
            for first in range(0, len(view), SLICE_BYTES):
                write_all(disk, fd, [view[first : first + SLICE_BYTES]])
                disk.sync(fd)
        disk.set_size(fd, at)
        reached(Point.IMAGE_WRITTEN)
        disk.sync(fd)
        reached(Point.IMAGE_SYNCED)
        disk.rename(aside, path)
        disk.sync_directory(directory)
        reached(Point.IMAGE_RENAMED)
    except OSError:
        with contextlib.suppress(OSError):
            disk.remove(aside)
        raise
    finally:
        disk.close(fd)
    return path, size


def read_head(path: Path) -> ImageHead:
    """What the beginning of an image says.

    Raises:
        FileNotFoundError: there is none.
        ImageDamagedError: it is not what was written.
    """
    with path.open("rb") as file:
        return _read_head(path, file.read(mmap.PAGESIZE * 16))


def map_image(path: Path, layout: Layout) -> tuple[ImageHead, Tables]:
    """The tables of an image: what is written to their rows goes to copies of the file's pages, never to the file.

    Raises:
        FileNotFoundError: there is none.
        ImageDamagedError: it is not what was written, or of another layout.
    """
    with path.open("rb") as file:
        head = _read_head(path, file.read(mmap.PAGESIZE * 16))
        file_size = os.fstat(file.fileno()).st_size
        mapped = mmap.mmap(file.fileno(), file_size, access=mmap.ACCESS_COPY)
    found: Mapping[str, dict[str, Any]] = {each["name"]: each for each in head.tables}
    if list(found) != list(layout.tables):
        raise _damaged(path, f"it has the tables {', '.join(found)}, not {', '.join(layout.tables)}")
    tables: Tables = {}
    view = memoryview(mapped)
    for name, dtype in layout.tables.items():
        said = found[name]
        if said["row"] != describe(dtype) or said["keyed"] == (name in layout.unkeyed):
            raise _damaged(path, f"the rows of table {name} have other fields")
        keys_at, lengths_size = said["keys_at"], said["rows"] * 4 if said["keyed"] else 0
        keys_end = keys_at + lengths_size + said["keys_bytes"]
        rows_end = said["at"] + said["rows"] * dtype.itemsize
        if max(keys_end, said["at"] + said["capacity"] * dtype.itemsize) > file_size:
            raise _damaged(path, "the file is too short")
        if zlib.crc32(view[said["at"] : rows_end]) != said["crc"]:
            raise _damaged(path, f"the checksum of the rows of table {name} is wrong")
        if zlib.crc32(view[keys_at:keys_end]) != said["keys_crc"]:
            raise _damaged(path, f"the checksum of the keys of table {name} is wrong")
        keys = unpack_keys(view[keys_at : keys_at + lengths_size], view[keys_at + lengths_size : keys_end])
        rows = np.frombuffer(mapped, dtype, said["capacity"], said["at"])
        tables[name] = Table(dtype, rows, keys, -1 if said["keyed"] else said["rows"])
    return head, tables


def _read_head(path: Path, found: bytes) -> ImageHead:
    if len(found) < _HEAD.size:
        raise _damaged(path, "the file is too short")
    magic, length, crc = _HEAD.unpack(found[: _HEAD.size])
    body = found[_HEAD.size : _HEAD.size + length]
    if magic != _MAGIC or len(body) != length or zlib.crc32(body) != crc:
        raise _damaged(path, "its head is wrong")
    said = json.loads(body)
    version, *place = said["chunk"]
    return ImageHead(ChunkId(version, Place(*place)), said["written_at"], said["size"], said["tables"])


def _damaged(path: Path, why: str) -> ImageDamagedError:
    msg = (
        f"{path} is damaged or of another version: {why}. Restore the whole recovery directory from one backup, or "
        "use an empty one"
    )
    return ImageDamagedError(msg)
