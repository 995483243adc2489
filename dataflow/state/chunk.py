"""What changed in a lane's tables since the chunk before, as bytes.

For each table that changed: its place in the layout, how many rows were written and how many keys changed; then the
numbers of the rows whose key changed, the length of each key (in characters, -1 for a row that was freed), the keys;
then the numbers of the rows that were written, and the rows.
"""

import struct
from collections.abc import Iterable, Sequence

import numpy as np

from dataflow.tables.table import TableChanges, Tables

_SECTION = struct.Struct("<HHIII")  # table, 0, rows written, keys changed, bytes of the keys
_NUMBER = np.dtype("<u4")
_LENGTH = np.dtype("<i4")


def pack_keys(keys: Sequence[str | None]) -> tuple[bytes, bytes]:
    """Lengths in characters, -1 for None, and the characters of all keys."""
    lengths = np.fromiter((-1 if key is None else len(key) for key in keys), _LENGTH, len(keys))
    # A JSON string may hold half of a pair of surrogates, and so may a user's name.
    return lengths.tobytes(), "".join([key for key in keys if key]).encode("utf-8", "surrogatepass")


def unpack_keys(lengths: bytes | memoryview, text: bytes | memoryview) -> list[str | None]:
    """The keys that `pack_keys` was given; a ValueError if the two do not fit each other."""
    counts = np.frombuffer(lengths, _LENGTH)
    characters = str(text, "utf-8", "surrogatepass")
    ends = np.cumsum(np.maximum(counts, 0), dtype=np.int64)
    if len(characters) != (int(ends[-1]) if len(ends) else 0):
        msg = "the lengths of the keys do not add up"
        raise ValueError(msg)
    bounds = ends.tolist()
    keys: list[str | None] = [characters[begin:end] for begin, end in zip([0, *bounds], bounds, strict=False)]
    for place in np.flatnonzero(counts < 0).tolist():
        keys[place] = None
    return keys


def pack_chunk(changes: Iterable[TableChanges]) -> list[bytes]:
    """The parts of a chunk, from what changed in each table of a layout, in its order; none if nothing did."""
    parts: list[bytes] = []
    for place, (numbers, rows, changed, keys) in enumerate(changes):
        if not len(numbers) and not changed:
            continue
        lengths, text = pack_keys(keys)
        parts += [
            _SECTION.pack(place, 0, len(numbers), len(changed), len(text)),
            np.array(changed, _NUMBER).tobytes(),
            lengths,
            text,
            numbers.astype(_NUMBER).tobytes(),
            rows.tobytes(),
        ]
    return parts


def apply_chunk(tables: Tables, chunk: bytes) -> None:
    """Puts a chunk into the tables; what it changes counts as written.

    Raises:
        ValueError: it is no chunk of these tables.
    """
    view = memoryview(chunk)
    at = 0

    def take(size: int) -> memoryview:
        nonlocal at
        part = view[at : at + size]
        if len(part) != size:
            msg = f"it ends at byte {len(view)}, in the middle of a table"
            raise ValueError(msg)
        at += size
        return part

    by_place = list(tables.values())
    while at < len(view):
        place, _, written, changed, text_bytes = _SECTION.unpack(take(_SECTION.size))
        if place >= len(by_place):
            msg = f"it has a table {place}, the layout has {len(by_place)}"
            raise ValueError(msg)
        table = by_place[place]
        numbers = np.frombuffer(take(changed * _NUMBER.itemsize), _NUMBER).tolist()
        keys = unpack_keys(take(changed * _LENGTH.itemsize), take(text_bytes))
        table.put_keys(numbers, keys)
        rows = np.frombuffer(take(written * _NUMBER.itemsize), _NUMBER).astype(np.int64)
        table.put_rows(rows, np.frombuffer(take(written * table.dtype.itemsize), table.dtype))
