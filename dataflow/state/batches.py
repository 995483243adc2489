"""What travels between steps with lanes: the items of a batch that belong to one lane, as one object."""

import pickle
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple


class Codec(NamedTuple):
    """How the values of a batch are written for another process, and read there.

    `decode` is named in what is sent, so it is a function at the top of a module.
    """

    encode: Callable[[list[Any]], bytes]
    decode: Callable[[bytes], list[Any]]


def encode_pickled(values: list[Any]) -> bytes:
    """Values as a pickle: for any kind of value, and slower than a codec for one."""
    return pickle.dumps(values, protocol=pickle.HIGHEST_PROTOCOL)


def decode_pickled(data: bytes) -> list[Any]:
    """What `encode_pickled` wrote, in another process of the same flow."""
    return list(pickle.loads(data))


PICKLED = Codec(encode_pickled, decode_pickled)


class Whole:
    """A batch before it was divided: its values are put back in their order, where one worker has all lanes."""

    __slots__ = ("keys", "missing", "values")

    def __init__(self, keys: list[str], lanes: int):
        self.keys = keys
        self.values: list[Any] = [None] * len(keys)
        self.missing = lanes


class LaneBatch:
    """Keys and values of one lane, in the order in which they came.

    Timely asks twice for what it sends to another process, for the length and for the bytes: it is encoded once.
    """

    __slots__ = ("_codec", "_reduced", "keys", "lane", "places", "values", "whole")

    def __init__(self, lane: int, codec: Codec, whole: Whole | None = None):
        self.lane = lane
        self.keys: list[str] = []
        self.values: list[Any] = []
        self.places: list[int] = []  # in the whole
        self.whole = whole
        self._codec = codec
        self._reduced: tuple[Any, ...] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def __reduce__(self) -> tuple[Any, ...]:
        reduced, self._reduced = self._reduced, None  # it is not asked for a third time, so it need not be kept
        if reduced is None:
            codec = self._codec
            reduced = self._reduced = read_batch, (self.lane, self.keys, codec, codec.encode(self.values))
        return reduced


def read_batch(lane: int, keys: list[str], codec: Codec, data: bytes) -> LaneBatch:
    """A batch from another process."""
    batch = LaneBatch(lane, codec)
    batch.keys = keys
    batch.values = codec.decode(data)
    return batch


def lane_of(key: str, lanes: int) -> int:
    """The lane of a key; the same in each execution, so it is part of what recovery data is."""
    return zlib.crc32(key.encode("utf-8", "surrogatepass")) % lanes


class Divider:
    """Divides batches into those of lanes, and brings what comes of them together again.

    Args:
        names: of the lanes, by their number.
        codec: of the values.
        in_order: give items out in the order in which they came in. That is for one worker alone: with several, the
            lanes of a batch are on different ones, and what holds is the order of each key.
    """

    def __init__(self, names: Sequence[str], codec: Codec, in_order: bool):
        self._names = names
        self._codec = codec
        self._under_way: deque[Whole] | None = deque() if in_order else None

    def divide(self, items: list[tuple[str, Any]]) -> list[tuple[str, LaneBatch]]:
        """The batch of each lane that has items among these."""
        lanes, names, codec, crc = len(self._names), self._names, self._codec, zlib.crc32
        found: dict[int, LaneBatch] = {}
        for place, (key, value) in enumerate(items):
            lane = crc(key.encode("utf-8", "surrogatepass")) % lanes
            batch = found.get(lane)
            if batch is None:
                batch = found[lane] = LaneBatch(lane, codec)
            batch.keys.append(key)
            batch.values.append(value)
            batch.places.append(place)
        if self._under_way is not None and items:
            whole = Whole([key for key, _ in items], len(found))
            self._under_way.append(whole)
            for batch in found.values():
                batch.whole = whole
        return [(names[lane], batch) for lane, batch in found.items()]

    def join(self, batches: list[tuple[str, LaneBatch]]) -> Iterable[tuple[str, Any]]:
        """The items of batches, each under its own key again."""
        joined: list[tuple[str, Any]] = []
        under_way = self._under_way
        if under_way is None:
            for _, batch in batches:
                joined += zip(batch.keys, batch.values, strict=True)
            return joined
        for _, batch in batches:
            whole = batch.whole
            assert whole is not None  # noqa: S101
            for place, value in zip(batch.places, batch.values, strict=True):
                whole.values[place] = value
            whole.missing -= 1
        # All batches of a whole come within one epoch, so what waits here for the last of them is not left behind.
        while under_way and not under_way[0].missing:
            whole = under_way.popleft()
            joined += zip(whole.keys, whole.values, strict=True)
        return joined
