"""One lane of a step, as Bytewax sees it: takes batches, writes what changed, and gives a token for its state.

What a lane keeps is behind `LaneState`; this file knows only when it is written, committed, and in an image.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from bytewax.operators import StatefulBatchLogic

from dataflow.process import lifecycle
from dataflow.state.chunk import pack_chunk
from dataflow.state.crash_points import Point, reached
from dataflow.state.log import BEGINNING, HEAD_BYTES, ChunkId, Token
from dataflow.state.store import Step
from dataflow.tables.table import TableChanges, Tables, new_tables

FLUSH_SECONDS = 2.0
"""What changed in a lane is written when its last flush is that old.

A user who pays several times meanwhile is written once: of 5,000 users at 20,000/s one transaction in eight, at half a
second one in two."""
BEFORE_END, OVER = 0.4, 0.2
"""Seconds before an epoch's end at which lanes begin to write what changed, and over which they do so one by one: its
end, in which nothing is decided, then finds a third of a second to write and to sync, and not up to two."""
LONG_EPOCH = 4.0
"""Seconds of an epoch from which on the helper leaves the disk alone while it ends: of a shorter one that would be too
much of its time."""
COMPACT_PART = 0.5
"""A new image is made when the chunks since are larger than this part of the old one..."""
COMPACT_BYTES = 4_000_000
"""... and than this, so that small lanes do not make images all the time."""
FAR_BEHIND = 4
"""Times as much as makes a new image due: a lane that begins with so much is one whose images the helper did not get
to make."""
LOG_BYTES = 512_000_000
"""A lane whose oldest chunk lies so far back in the log (or as far as all images are large) gets a new image, too:
else a lane with little to do would keep every log file in being."""
OLD_FILES = 32
"""A lane whose chunks of earlier executions lie in more log files than these gets a new image, too: by its bytes alone,
one of a few hundred a start would keep a file of each start, and be read from all of them."""
RETRY_SECONDS = 60.0
"""Until an image that could not be made is tried again."""


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
    old_files: int = OLD_FILES
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
        self._old_files = 0  # in which there are chunks of earlier executions
        self._snapshot: ChunkId | None = None  # given to Bytewax, and not known to be committed
        self._committed = BEGINNING
        self._asked = False
        self._try_image_at = -math.inf
        self._flush_at = 0.0
        self._before_end = math.inf  # when to write before the epoch ends
        if token is not None:
            self._begin(token.lane, token.chunk)

    @lifecycle.exit_on_user_error
    def on_batch(self, values: list[Any]) -> tuple[list[Any], bool]:
        """Takes batches of this lane in; each comes out with what became of its values."""
        if self._lane < 0:
            self._begin(values[0].lane, BEGINNING)
        if self._snapshot is not None:
            # One epoch is in flight: the sources waited until the last one was committed on all workers.
            self._committed, self._snapshot = self._snapshot, None
            reached(Point.FIRST_BATCH_OF_EPOCH)
            self._epoch_began()
        state = self.state
        assert state is not None  # noqa: S101
        made = [state.take(batch) for batch in values]
        now = self._clock()
        if now >= self._flush_at or now >= self._before_end:
            self._flush_at = now + self._pace.flush_seconds
            state.tidy()
            self._flush()
            self._compact(now)
            if now >= self._before_end:
                self._before_end = math.inf
                self._epoch_ends_soon()
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

    @lifecycle.exit_on_user_error
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
        self._old_files = len({chunk.place.file for chunk in loaded.chain.chunks})
        for chunk in loaded.chain.chunks:
            self._add(chunk)
        if store.compactor is not None and self._bytes_since_image > FAR_BEHIND * self._image_due():
            store.compactor.hurry()

    def _epoch_began(self) -> None:
        store = self._step.store
        self._before_end = self._clock() + store.epoch_seconds - BEFORE_END + OVER * self._lane / store.lanes
        if store.compactor is not None:
            store.compactor.hold(False)

    def _epoch_ends_soon(self) -> None:
        store = self._step.store
        if store.compactor is not None and store.epoch_seconds >= LONG_EPOCH:
            store.compactor.hold(True)
        if store.log is not None and self._lane + 1 == store.lanes:
            store.log.ask_sync()  # once for all lanes, as syncs fight Kafka for the disk

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

    def _image_due(self) -> float:
        """How many bytes of chunks since the last image make a new one due."""
        return max(self._pace.compact_bytes, self._pace.compact_part * self._image_bytes)

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
            self._old_files = 0  # what an earlier execution left was committed when the image was asked for
            store.needs_no_more(gone)
            reached(Point.COMPACTION_KNOWN)
        if not self._since_image or self._since_image[0].version > self._committed.version or now < self._try_image_at:
            return
        behind = log.appended - log.position(self._since_image[0].place)
        if (
            self._bytes_since_image > self._image_due()
            or behind > max(pace.log_bytes, sum(store.image_bytes.values()))
            or self._old_files > pace.old_files
        ):
            self._asked = True
            compactor.ask(name, lane, self._committed)


class LaneToken(Token):
    """A token of a running flow: a disk that fails ends the flow with one line."""

    __slots__ = ()

    @lifecycle.exit_on_user_error
    def __reduce__(self) -> tuple[Any, ...]:
        return super().__reduce__()
