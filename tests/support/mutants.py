"""The detection flow with a fault put in on purpose, to see that the checks of its guarantee bite.

An entry module as `dataflow.detect` is one, for tests only: REDFLAG_MUTANT names the fault.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from bytewax.dataflow import Dataflow

from dataflow import detect
from dataflow.connectors import already_written, delivery, exactly_once_sink, kafka_source
from dataflow.connectors.offset_set import OffsetSet
from dataflow.profiles import labels
from dataflow.profiles.side_table import SideTable
from dataflow.settings import Settings
from dataflow.state import recovery, store
from dataflow.state.disk import Disk
from dataflow.state.log import Log
from dataflow.tables.table import Table

SYNC_SECONDS = 1.0
"""How long the disk that loses what was not synced takes to sync: a kill falls into that time for sure."""
INTERPRETED = "labels_at_once"
"""The fault that changes a kernel, which is possible only with the compiler switched off."""


def ignore_what_stands() -> None:
    """What stands in the outputs already is written again."""
    already_written.AlreadyWritten.find = lambda *_: OffsetSet()  # type: ignore[method-assign]


def ignore_delivery_errors() -> None:
    """A record that the broker refuses vanishes without a word, as with Bytewax's own sink."""
    delivery.Delivery._failed = lambda *_: None  # type: ignore[method-assign]
    delivery.RecordDelivery._refused = lambda *_: None  # type: ignore[method-assign]


def leave_out_the_flush() -> None:
    """The snapshot is taken with records still in the producer's queue."""
    delivery.Delivery.flush = delivery.Delivery.check  # type: ignore[method-assign]


def look_only_where_it_writes() -> None:
    """What was written before the outputs grew, in another partition than now, is written again."""
    take = already_written.AlreadyWritten._take

    def taken(self: Any, message: Any) -> None:
        count = 1 + max(number for topic, number in self._next if topic == message.topic())
        origin = already_written.read_origin(message.headers())
        if origin is not None and message.partition() == origin.partition % count:
            take(self, message)

    already_written.AlreadyWritten._take = taken  # type: ignore[method-assign]


def ignore_the_topic_id() -> None:
    """What was decided on a topic that is no more is taken for a decision on the one that has its name now."""
    take = already_written.AlreadyWritten._take

    def taken(self: Any, message: Any) -> None:
        self._sources = {
            topic: already_written.SourceTopic("any", source.ends) for topic, source in self._sources.items()
        }
        take(self, message)

    def same(headers: Any) -> Any:
        origin = read(headers)
        return origin._replace(topic_id="any") if origin is not None else None

    read = already_written.read_origin
    already_written.read_origin = same
    already_written.AlreadyWritten._take = taken  # type: ignore[method-assign]


def lose_what_is_too_large() -> None:
    """A record that is too large is left out, and no pointer to it is written."""

    def forget(self: Any) -> None:
        self.delivery.too_large.clear()

    exactly_once_sink._Writer.write_pointers = forget  # type: ignore[method-assign]


def read_labels_first() -> None:
    """Labels are handed out as soon as they come, as by a source of their own: after a crash before the payments."""
    fetcher = kafka_source._Fetcher

    def at_once(self: Any, number: int) -> list[Any]:
        batch: list[Any] = []
        for place, partition in sorted(self._partitions.items()):  # the topic of the labels stands first
            if place[1] == number:
                batch += [self._next(partition) for _ in range(len(partition.messages))]
        return batch

    fetcher._all_ended = lambda *_: False  # type: ignore[method-assign]
    fetcher._in_step = at_once  # type: ignore[method-assign]


def settle_labels_when_they_come() -> None:
    """A label counts at once, and what it says of an amount that is not known yet is never mended."""
    read_labels_first()
    labels._explain = lambda *_: None
    labels.WAITING = 0  # type: ignore[misc]


def leave_rows_unmarked() -> None:
    """Of a profile the log has what it was when it was new: a row that is written again is not marked."""
    mark = Table.mark

    def marked(self: Table, numbers: Any) -> None:
        if not self.keyed:
            mark(self, numbers)

    Table.mark = marked  # type: ignore[method-assign]


def leave_side_rows_unmarked() -> None:
    """Rows of side tables are in the log as they were when the table grew: what is written later is not marked."""
    make_room = SideTable.make_room

    def grown(self: SideTable) -> None:
        before = self._table.used
        make_room(self)
        self._table.mark(np.arange(before, self._table.used))

    SideTable.make_room = grown  # type: ignore[method-assign]
    SideTable.mark_written = lambda self: self.rows["written"].fill(0)  # type: ignore[method-assign]


class DiskThatLoses(Disk):
    """A disk that has what was not synced in this process's memory only, so that a kill is a loss of power."""

    def __init__(self) -> None:
        self._unsynced: dict[int, bytearray] = {}

    def write(self, fd: int, parts: Sequence[bytes | memoryview]) -> int:
        kept = self._unsynced.setdefault(fd, bytearray())
        before = len(kept)
        for part in parts:
            kept += part
        return len(kept) - before

    def sync(self, fd: int) -> None:
        kept = self._unsynced.pop(fd, bytearray())
        time.sleep(SYNC_SECONDS if kept else 0.0)
        self._put(fd, kept)
        super().sync(fd)

    def close(self, fd: int) -> None:
        self._put(fd, self._unsynced.pop(fd, bytearray()))
        super().close(fd)

    def _put(self, fd: int, kept: bytearray) -> None:
        left = memoryview(kept)
        while left:
            left = left[os.write(fd, left) :]


def lose_what_was_not_synced() -> None:
    """No fault: a disk as it is when the power fails. What is committed is on it."""
    store.Disk = DiskThatLoses  # type: ignore[misc]


def give_tokens_at_once() -> None:
    """A token does not wait until what it names is on disk, and the power fails."""
    lose_what_was_not_synced()
    Log.wait_synced = lambda *_: None  # type: ignore[method-assign]


MUTANTS: dict[str, Callable[[], Any]] = {
    "skip_list": ignore_what_stands,
    "delivery_errors": ignore_delivery_errors,
    "flush": leave_out_the_flush,
    "grown_outputs": look_only_where_it_writes,
    "topic_id": ignore_the_topic_id,
    "too_large": lose_what_is_too_large,
    "labels_first": read_labels_first,
    "labels_at_once": settle_labels_when_they_come,
    "unmarked_rows": leave_rows_unmarked,
    "unmarked_side_rows": leave_side_rows_unmarked,
    "power_loss": lose_what_was_not_synced,
    "tokens_at_once": give_tokens_at_once,
}


def flow() -> Dataflow:
    """The flow with the fault."""
    MUTANTS[os.environ["REDFLAG_MUTANT"]]()
    return detect.flow()


def main() -> None:
    """As `dataflow.detect`."""
    if os.environ["REDFLAG_MUTANT"] == INTERPRETED:
        os.environ["NUMBA_DISABLE_JIT"] = "1"
    settings = Settings.load()
    recovery.prepare(settings.recovery_dir, settings.recovery_partitions)
    options = ["-r", str(settings.recovery_dir), "-s", str(settings.recovery_interval), "-b", "0", *sys.argv[1:]]
    os.execv(sys.executable, [sys.executable, "-m", "bytewax.run", "tests.support.mutants:flow", *options])  # noqa: S606


if __name__ == "__main__":
    main()
