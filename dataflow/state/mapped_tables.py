"""The state of a lane whose step maps items over rows: who begins a row, who loses one, and what becomes of a fault."""

import math
from typing import Any, NamedTuple, Protocol

from prometheus_client import Counter

from dataflow.errors import UserError
from dataflow.process.faults import Guard
from dataflow.state.batches import LaneBatch
from dataflow.tables.table import Layout, Numbers, TableChanges, Tables

SWEEPS = 128
"""Flushes in which all rows of a lane are looked at once for their age."""

EVICTED = Counter(
    "redflag_evicted_profiles_total",
    "Profiles that were forgotten: idle for longer than the age limit, or the oldest of too many",
    ["step", "why"],
)


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
