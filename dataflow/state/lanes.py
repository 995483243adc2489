"""`stateful_map` in lanes: a step that is keyed as Bytewax's own, and whose state is rows of a few large tables.

Inside, the items of a batch are divided by lane and hop once, as one object a lane; Bytewax knows lanes, not keys. A
lane's rows go to the log when its last flush is half a second old, and at the end of an epoch, where Bytewax gets a
token in place of the state.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream, StatefulBatchLogic
from prometheus_client import Counter

from dataflow import lifecycle
from dataflow.faults import Guard
from dataflow.settings import UserError
from dataflow.state.batches import PICKLED, Codec, Divider, LaneBatch
from dataflow.state.chunk import pack_chunk
from dataflow.state.crash_points import Point, reached
from dataflow.state.log import BEGINNING, HEAD_BYTES, ChunkId, Token
from dataflow.state.store import Step, Store
from dataflow.state.table import Layout, Numbers, TableChanges, Tables, new_tables

V = TypeVar("V")
W = TypeVar("W")

FLUSH_SECONDS = 0.5
"""What changed in a lane is written when its last flush is that old: an epoch's end then finds no more than that."""
COMPACT_PART = 0.5
"""A new image is made when the chunks since are larger than this part of the old one..."""
COMPACT_BYTES = 4_000_000
"""... and than this, so that small lanes do not make images all the time."""
LOG_BYTES = 512_000_000
"""A lane whose oldest chunk lies so far back in the log (or as far as all images are large) gets a new image, too:
else a lane with little to do would keep every log file in being."""
RETRY_SECONDS = 60.0
"""Until an image that could not be made is tried again."""
SWEEPS = 128
"""Flushes in which all rows of a lane are looked at once for their age."""

EVICTED = Counter(
    "redflag_evicted_profiles_total",
    "Profiles that were forgotten: idle for longer than the age limit, or the oldest of too many",
    ["step", "why"],
)

_log = logging.getLogger("redflag.state")


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


class LaneState(Protocol):
    """What a step keeps of one lane, made of the tables as they were read from files."""

    def take(self, batch: Any, /) -> Any:
        """Takes a batch in; what comes of it goes on in the flow, under the lane's name."""

    def changes(self) -> Sequence[TableChanges]:
        """What changed in each table of the layout, in its order, since the last call."""

    def tidy(self) -> None:
        """Is called between batches, some times a second: gives up what is too old."""


class LanePace(NamedTuple):
    """How often a lane writes and gets a new image; the defaults are for a flow, others for tests."""

    flush_seconds: float = FLUSH_SECONDS
    compact_part: float = COMPACT_PART
    compact_bytes: int = COMPACT_BYTES
    log_bytes: int = LOG_BYTES
    retry_seconds: float = RETRY_SECONDS


class Lane(StatefulBatchLogic[Any, Any, Token | None]):
    """One lane of a step: its tables, and how far they are written, committed and in an image.

    Args:
        step: whose lane it is.
        make_state: what is kept of the lane, from its tables: those of a new lane are empty.
        token: what an earlier execution left, None at the beginning; which lane it is, the first batch says then, by
            its attribute `lane`.
        pace: how often it writes.
        clock: seconds, of any beginning.
    """

    def __init__(
        self,
        step: Step,
        make_state: Callable[[Tables], LaneState],
        token: Token | None = None,
        pace: LanePace = LanePace(),  # noqa: B008
        clock: Callable[[], float] = time.monotonic,
    ):
        self._step = step
        self._make_state = make_state
        self._pace = pace
        self._clock = clock
        self._lane = -1
        self.state: LaneState | None = None
        self._last = BEGINNING  # the last chunk that was written
        self._last_end = 0  # among all bytes that this process wrote
        self._since_image: deque[ChunkId] = deque()
        self._bytes_since_image = 0
        self._image_bytes = 0
        self._snapshot: ChunkId | None = None  # given to Bytewax, and not known to be committed
        self._committed = BEGINNING
        self._asked = False
        self._try_image_at = -math.inf
        self._flush_at = 0.0
        if token is not None:
            self._begin(token.lane, token.chunk)

    @lifecycle.mistakes_end_the_flow
    def on_batch(self, values: list[Any]) -> tuple[list[Any], bool]:
        """Takes batches of this lane in; each comes out with what became of its values."""
        if self._lane < 0:
            self._begin(values[0].lane, BEGINNING)
        if self._snapshot is not None:
            # One epoch is in flight: the sources waited until the last one was committed on all workers.
            self._committed, self._snapshot = self._snapshot, None
            reached(Point.FIRST_BATCH_OF_EPOCH)
        state = self.state
        assert state is not None  # noqa: S101
        made = [state.take(batch) for batch in values]
        now = self._clock()
        if now >= self._flush_at:
            self._flush_at = now + self._pace.flush_seconds
            state.tidy()
            self._flush()
            self._compact(now)
        return made, False

    def on_notify(self) -> tuple[list[Any], bool]:
        """Never due."""
        return [], False

    def on_eof(self) -> tuple[list[Any], bool]:
        """The state stays: the next execution goes on from it."""
        return [], False

    def notify_at(self) -> None:
        """No time is asked for."""
        return

    @lifecycle.mistakes_end_the_flow
    def snapshot(self) -> Token | None:
        """Writes what changed since the last flush, and returns what stands for the lane as it is now."""
        log = self._step.store.log
        if log is None:
            return None
        self._flush()
        log.ask_sync()
        self._snapshot = self._last
        reached(Point.SNAPSHOT_TAKEN)
        return LaneToken(self._lane, self._last, log, self._last_end)

    def _begin(self, lane: int, last: ChunkId) -> None:
        self._lane = lane
        store = self._step.store
        # Lanes flush one after the other, not all at once.
        self._flush_at = self._clock() + self._pace.flush_seconds * (1 + lane / store.lanes)
        if store.directory is None:
            self.state = self._make_state(new_tables(self._step.layout))
            return
        loaded = self._step.load(lane, last)
        self.state = self._make_state(loaded.tables)
        self._last = self._committed = last
        if loaded.chain.head is not None:
            self._image_bytes = store.image_bytes[self._step.name, lane] = loaded.chain.head.size
        for chunk in loaded.chain.chunks:
            self._add(chunk)

    def _add(self, chunk: ChunkId) -> None:
        self._since_image.append(chunk)
        self._bytes_since_image += HEAD_BYTES + chunk.place.length
        self._step.store.needs(chunk)

    def _flush(self) -> None:
        log = self._step.store.log
        if log is None or self.state is None:
            return
        parts = pack_chunk(self.state.changes())
        if parts:
            self._last, self._last_end = log.append(self._step.name, self._lane, self._last, parts)
            self._add(self._last)

    def _compact(self, now: float) -> None:
        """Has an image made of what is committed, where one is due; and goes on from one that was made."""
        store, name, lane, pace = self._step.store, self._step.name, self._lane, self._pace
        compactor, log = store.compactor, store.log
        if compactor is None or log is None:
            return
        if self._asked:
            done, image = compactor.answer(name, lane)
            if not done:
                return
            self._asked = False
            if image is None:
                self._try_image_at = now + pace.retry_seconds
                return
            self._image_bytes = store.image_bytes[name, lane] = image.size
            gone = []
            while self._since_image and self._since_image[0].version <= image.chunk.version:
                gone.append(self._since_image.popleft())
            self._bytes_since_image -= sum(HEAD_BYTES + chunk.place.length for chunk in gone)
            store.needs_no_more(gone)
            reached(Point.COMPACTION_KNOWN)
        if not self._since_image or self._since_image[0].version > self._committed.version or now < self._try_image_at:
            return
        behind = log.appended - log.position(self._since_image[0].place)
        if self._bytes_since_image > max(pace.compact_bytes, pace.compact_part * self._image_bytes) or (
            behind > max(pace.log_bytes, sum(store.image_bytes.values()))
        ):
            self._asked = True
            compactor.ask(name, lane, self._committed)


class LaneToken(Token):
    """A token of a running flow: a disk that fails ends the flow with one line."""

    __slots__ = ()

    @lifecycle.mistakes_end_the_flow
    def __reduce__(self) -> tuple[Any, ...]:
        return super().__reduce__()


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


@operator
def stateful_lanes(
    step_id: str,
    up: KeyedStream[Any],
    make_state: Callable[[Tables], LaneState],
    layout: Layout,
    store: Store,
    pace: LanePace = LanePace(),  # noqa: B008
) -> KeyedStream[Any]:
    """A step whose items are batches of lanes already: keyed by the lane's name, with its number as `lane`.

    Args:
        step_id: a recovery key.
        up: batches, by the name of their lane (`Store.names`).
        make_state: what is kept of a lane.
        layout: of its tables.
        store: where they are kept.
        pace: how often lanes write.

    Raises:
        UserError: the store holds rows of another layout for this step.
    """
    step = store.step(step_name(step_id), layout)

    @lifecycle.mistakes_end_the_flow
    def build(token: Token | None) -> Lane:
        return Lane(step, make_state, token, pace)

    return op.stateful_batch("stateful_batch", up, build)


@operator
def stateful_map(
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
    mapped = stateful_lanes(name, by_lane, make_state, layout, store, pace)
    # (name of the lane, LaneBatch)
    return op.flat_map_batch("join_lanes", mapped, divider.join)


def step_name(step_id: str) -> str:
    """A step's own id: Bytewax puts the flow's name before it, and the id of the operator that it is in."""
    return step_id.rpartition(".")[2]
