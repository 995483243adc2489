"""How long messages took until what became of them was acknowledged by the broker.

A callback for each record would cost 1 µs (see `make_producer`). So acknowledgements are not matched with records but
counted: what was handed over, less what the producer still has, is acknowledged, in the order in which it was handed
over. Where the leaders of several partitions answer out of that order, the times of two records change places: their
number and their mean stay right.
"""

import time
from collections import deque
from collections.abc import Callable, Sized
from typing import Final, NamedTuple

import numpy as np

from dataflow.events.output_record import Record
from dataflow.metrics import LATENCY, BatchHistogram

LOOK_PART: Final = 0.1
"""While records wait, they are looked at whenever they have waited for so much longer, as a part of that..."""
LOOK_SECONDS: Final = 0.001
"""... but at most so often."""


class _Batch(NamedTuple):
    record_ms: list[int]  # timestamps of the source's records, in ms since 1970; 0 or less: none
    handed_over: float  # on the monotonic clock


class Acknowledgements:
    """Of the records of one worker; only `waiting_seconds` may be asked from another thread.

    Args:
        producer: its length is the number of records that it still has.
        histogram: where the times go.
        clock: seconds since 1970.
        monotonic: seconds since any moment.
    """

    def __init__(
        self,
        producer: Sized,
        histogram: BatchHistogram = LATENCY,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ):
        self._producer = producer
        self._histogram = histogram
        self._clock = clock
        self._monotonic = monotonic
        self._waiting: deque[_Batch] = deque()
        self._missing = 0  # records in `_waiting`
        self._looked = 0.0

    def handed_over(self, records: list[Record]) -> None:
        """These records were handed to the producer, just now."""
        if records:
            self._waiting.append(_Batch([record.record_ms for record in records], self._monotonic()))
            self._missing += len(records)

    def look(self) -> None:
        """Takes the times of what was acknowledged since the last look; the producer must just have been polled."""
        self._looked = self._monotonic()
        acknowledged = self._missing - len(self._producer)
        if not self._waiting or acknowledged <= 0:
            return
        self._missing -= acknowledged
        found: list[int] = []
        while acknowledged > 0:
            times, handed_over = self._waiting[0]
            if acknowledged < len(times):
                self._waiting[0] = _Batch(times[acknowledged:], handed_over)
                times = times[:acknowledged]
            else:
                self._waiting.popleft()
            acknowledged -= len(times)
            found += times
        record_ms = np.array(found, np.int64)
        taken = self._clock() - record_ms[record_ms > 0] / 1000
        self._histogram.add(np.maximum(taken, 0.0))  # clocks of two machines differ

    def waiting_seconds(self) -> float | None:
        """How long the oldest record that is not acknowledged has waited; None where there is none."""
        try:
            return self._monotonic() - self._waiting[0].handed_over
        except IndexError:
            return None

    def look_again_seconds(self) -> float | None:
        """In how many seconds the next look is due, 0 if it is; None where nothing waits."""
        waiting = self.waiting_seconds()
        if waiting is None:
            return None
        return max(0.0, max(LOOK_SECONDS, waiting * LOOK_PART) - (self._monotonic() - self._looked))
