"""A step in lanes that maps items one by one over rows: what tests and benchmarks hold `dataflow.state` against.

It has the contract of Bytewax's own `stateful_map`, so a plain dict says what must come of it.
"""

import math
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from dataflow.errors import UserError
from dataflow.metrics import EVICTED
from dataflow.process.faults import Guard
from dataflow.state.batches import EncodedOnce, Reduced, lane_of
from dataflow.state.lane import LanePace
from dataflow.state.lanes import stateful_map, step_name
from dataflow.state.store import Store
from dataflow.tables.table import Layout, Numbers, TableChanges, Tables

V = TypeVar("V")
W = TypeVar("W")


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


class LaneBatch(EncodedOnce):
    """Keys and values of one lane, in the order in which they came."""

    __slots__ = ("_codec", "keys", "lane", "places", "values", "whole")

    def __init__(self, lane: int, codec: Codec, whole: Whole | None = None):
        super().__init__()
        self.lane = lane
        self.keys: list[str] = []
        self.values: list[Any] = []
        self.places: list[int] = []  # in the whole
        self.whole = whole
        self._codec = codec

    def __len__(self) -> int:
        return len(self.keys)

    def encoded(self) -> Reduced:
        """See `EncodedOnce`."""
        return read_batch, (self.lane, self.keys, self._codec, self._codec.encode(self.values))


def read_batch(lane: int, keys: list[str], codec: Codec, data: bytes) -> LaneBatch:
    """A batch from another process."""
    batch = LaneBatch(lane, codec)
    batch.keys = keys
    batch.values = codec.decode(data)
    return batch


SWEEPS = 128
"""Flushes in which all rows of a lane are looked at once for their age."""


class LaneMapper(Protocol):
    """What a step does with the items of one lane: reads and writes their rows, in order.

    It is given the lane's tables, the row of each item in the first of them (a row of a new key is all zeros), and the
    values; and returns what comes of each value. The rows of the items count as written; of others, and of other
    tables, it says so (`Table.mark`). `Table.free` forgets a key.
    """

    def __call__(self, tables: Tables, rows: Numbers, values: list[Any], /) -> list[Any]:
        """What comes of each value, in order."""


class Limits(NamedTuple):
    """What is forgotten, so that invented users cannot fill the memory.

    Args:
        field: of the first table: the event time of the key's last item, seconds.
        age_seconds: a key that was idle for so long begins anew. That is for the mapper to do when it meets such a row,
            by event times alone, so that a replay decides alike; the lane gives the row up later.
        lateness_seconds: how much later still: an item so much older than the newest of the lane may be met as a new
            key's, or not.
        rows: of a lane. Of more, the oldest are forgotten, 1/64 of them at once.
    """

    field: str
    age_seconds: float = math.inf
    lateness_seconds: float = 7 * 86_400.0
    rows: int | None = None


class MappedTables:
    """The state of a lane whose step is a `LaneMapper`.

    Args:
        step: its id.
        layout: of the tables.
        tables: of the lane.
        mapper: what is done with items.
        limits: what is forgotten; without them, nothing is.
    """

    def __init__(self, step: str, layout: Layout, tables: Tables, mapper: LaneMapper, limits: Limits | None = None):
        self.tables = tables
        self._step = step
        self._first = next(iter(tables.values()))
        self._followers = [tables[name] for name in layout.followers]
        self._mapper = mapper
        self._limits = limits
        self._newest = -math.inf  # event time
        self._swept = 0

    def take(self, batch: LaneBatch, /) -> LaneBatch:
        """Puts what comes of the batch's values in their place."""
        table, limits = self._first, self._limits
        rows = table.find(batch.keys)
        batch.values = self._mapper(self.tables, rows, batch.values)
        table.mark(rows)
        if limits is not None and len(rows):
            self._newest = max(self._newest, float(table.rows[limits.field][rows].max()))
            if limits.rows is not None and len(table) > limits.rows:
                surplus = len(table) - limits.rows + limits.rows // 64
                self._forget(table.oldest(limits.field, surplus), "too many")
        return batch

    def changes(self) -> list[TableChanges]:
        """What changed in each table."""
        return [table.take_changes() for table in self.tables.values()]

    def tidy(self) -> None:
        """Gives up the rows of keys that were idle too long; looks at a part of all rows each time."""
        limits, table = self._limits, self._first
        if limits is None or not math.isfinite(limits.age_seconds) or not table.used:
            return
        first = self._swept if self._swept < table.used else 0
        count = max(256, table.used // SWEEPS)
        self._swept = first + count
        before = self._newest - limits.age_seconds - limits.lateness_seconds
        self._forget(table.below(limits.field, before, first, count), "idle")

    def _forget(self, keys: list[str], why: str) -> None:
        if keys:
            self._first.free(keys)
            for follower in self._followers:
                follower.free([key for key in keys if key in follower])
            EVICTED.labels(self._step, why).inc(len(keys))


def guarded(mapper: LaneMapper, guard: Guard) -> LaneMapper:
    """A mapper that makes a rejection of each value on which `mapper` raises; their rows are left as they were.

    Where it raises, it is tried on each value by itself, in order. What it has written to other tables than the first
    stays: there a row by a key of its own means the same whoever asked for it.
    """

    def safe(tables: Tables, rows: Numbers, values: list[Any], /) -> list[Any]:
        table = next(iter(tables.values()))
        before = table.rows[rows]
        try:
            made = mapper(tables, rows, values)
        except UserError:
            raise
        except Exception:
            table.rows[rows] = before
            made = []
            for place, value in enumerate(values):
                row = rows[place : place + 1]
                before = table.rows[row]
                try:
                    made += mapper(tables, row, [value])
                    guard.in_a_row = 0
                except Exception as error:
                    table.rows[row] = before
                    made.append(guard.failed(value, error))
            return made
        guard.in_a_row = 0
        return made

    return safe


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
        lanes, names, codec = len(self._names), self._names, self._codec
        found: dict[int, LaneBatch] = {}
        for place, (key, value) in enumerate(items):
            lane = lane_of(key, lanes)
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
            assert whole is not None
            for place, value in zip(batch.places, batch.values, strict=True):
                whole.values[place] = value
            whole.missing -= 1
        # All batches of a whole come within one epoch, so what waits here for the last of them is not left behind.
        while under_way and not under_way[0].missing:
            whole = under_way.popleft()
            joined += zip(whole.keys, whole.values, strict=True)
        return joined


@operator
def stateful_map_items(
    step_id: str,
    up: KeyedStream[V],
    mapper: LaneMapper,
    layout: Layout,
    store: Store,
    limits: Limits | None = None,
    guard: Guard | None = None,
    codec: Codec = PICKLED,
    in_order: bool = False,
    pace: LanePace = LanePace(),  # noqa: B008
) -> KeyedStream[W]:
    """As `bytewax.operators.stateful_map`: the mapper finds each key's state as the item before left it.

    Args:
        step_id: a recovery key: one that was released stays as it is.
        up: items by key.
        mapper: reads and writes the rows of a lane's items; see `LaneMapper`.
        layout: of the rows.
        store: where they are kept.
        limits: what is forgotten; without them, nothing is.
        guard: without one, what the mapper raises ends the flow.
        codec: how values go to another process.
        in_order: of one worker alone: items come out in the order in which they came in. With several workers the
            items of each key do, whatever this says.
        pace: how often lanes write.

    Raises:
        UserError: the store holds rows of another layout for this step.
    """
    divider = Divider(store.names, codec, in_order)
    safe = guarded(mapper, guard) if guard is not None else mapper
    name = step_name(step_id)

    def make_state(tables: Tables) -> MappedTables:
        return MappedTables(name, layout, tables, safe, limits)

    by_lane = op.flat_map_batch("divide_by_lane", up, divider.divide)
    # (name of the lane, LaneBatch)
    mapped = stateful_map(name, by_lane, make_state, layout, store, pace)
    # (name of the lane, LaneBatch)
    return op.flat_map_batch("join_lanes", mapped, divider.join)
