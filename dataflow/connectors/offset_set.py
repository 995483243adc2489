"""A set of offsets that takes a bit for each, and next to nothing where they follow each other."""

from typing import Final

_CHUNK: Final = 8192  # offsets in a chunk
_BYTES: Final = _CHUNK // 8
_FULL: Final = b"\xff" * _BYTES  # one object for all chunks that lack nothing


class OffsetSet:
    """Offsets of one partition.

    They are kept as bitmaps of 8,192 offsets; all bitmaps that are full are one. So a hundred million offsets without
    a gap take 1.5 MB, and at worst every offset between the lowest and the highest takes a bit.

    >>> offsets = OffsetSet()
    >>> offsets.add(7)
    >>> 7 in offsets, 8 in offsets
    (True, False)
    """

    def __init__(self) -> None:
        self._chunks: dict[int, bytes | bytearray] = {}
        self._counts: dict[int, int] = {}  # of the chunks that are not full
        self._size = 0

    def add(self, offset: int) -> None:
        """Adds an offset, 0 or more."""
        number, place = divmod(offset, _CHUNK)
        chunk = self._chunks.get(number)
        if chunk is None:
            chunk = self._chunks[number] = bytearray(_BYTES)
            self._counts[number] = 0
        if not isinstance(chunk, bytearray):
            return  # it is full
        bit = 1 << (place & 7)
        if chunk[place >> 3] & bit:
            return
        chunk[place >> 3] |= bit
        self._size += 1
        self._counts[number] += 1
        if self._counts[number] == _CHUNK:
            self._chunks[number] = _FULL
            del self._counts[number]

    def __contains__(self, offset: int) -> bool:
        number, place = divmod(offset, _CHUNK)
        chunk = self._chunks.get(number)
        return chunk is not None and bool(chunk[place >> 3] & (1 << (place & 7)))

    def __len__(self) -> int:
        return self._size

    def drop_below(self, offset: int) -> None:
        """Removes all that are smaller."""
        first, place = divmod(offset, _CHUNK)
        for number in [number for number in self._chunks if number < first]:
            self._remove(number)
        chunk = self._chunks.get(first)
        if chunk is None or place == 0:
            return
        self._remove(first)
        left = int.from_bytes(chunk, "little") >> place << place
        if left:
            self._chunks[first] = bytearray(left.to_bytes(_BYTES, "little"))
            self._counts[first] = left.bit_count()
            self._size += left.bit_count()

    def _remove(self, number: int) -> None:
        del self._chunks[number]
        self._size -= self._counts.pop(number, _CHUNK)
