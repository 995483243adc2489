"""The generator flow: simulated transactions out, and the truth about them to a topic of its own.

`python -m bytewax.run dataflow.generate:flow` runs it with the `GENERATOR_*` settings.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, Source, StatefulSourcePartition
from bytewax.outputs import Sink

from dataflow import lifecycle, metrics_server
from dataflow.connectors.plain_sink import ProducerSink
from dataflow.settings import Settings, UserError
from dataflow.simulation import Simulated, label_to_json, stream, to_json

MAX_BATCH = 1000  # transactions handed to the flow at once
TICK = timedelta(milliseconds=5)  # between batches at a high rate: fewer, larger ones cost less
STOP_CHECK = timedelta(seconds=0.25)  # the longest sleep, so that a stop is noticed at any rate
OVERTIME = timedelta(seconds=1)  # how long one that cannot keep up goes on after its duration

KeyedBytes = tuple[bytes, bytes]
Position = tuple[str, int]


def build(
    source: Source[Simulated],
    transactions_sink: Sink[tuple[bytes | None, bytes]],
    labels_sink: Sink[tuple[bytes | None, bytes]],
) -> Dataflow:
    """The graph: each simulated transaction as its producer would send it, and its truth, both keyed by user."""
    flow = Dataflow("generate")
    simulated = op.input("simulate_people", flow, source)
    # Simulated

    transactions = op.flat_map_batch("encode_transactions", simulated, _transactions)
    # (user, JSON of the transaction without the truth)
    op.output("write_transactions", transactions, transactions_sink)

    labels = op.flat_map_batch("encode_labels", simulated, _labels)
    # (user, JSON of transaction_id, fraud, scenario)
    op.output("write_labels", labels, labels_sink)
    return flow


def flow() -> Dataflow:
    """The generator as the settings want it."""
    lifecycle.report_mistakes()
    metrics_server.leave_bytewax_api_off()
    try:
        settings = Settings.load()
        lifecycle.warn_of_unknown(settings)
        source = SimulationSource(
            seed=settings.generator_seed,
            rate=settings.generator_rate,
            start=_start(settings.generator_start),
            population=settings.generator_population,
            count=settings.generator_count,
            duration=settings.generator_duration,
        )
    except UserError as error:
        lifecycle.fail(error)
    lifecycle.stop_gracefully(settings.stop_timeout_seconds)
    return build(
        source,
        ProducerSink(settings, settings.transactions_topic),
        ProducerSink(settings, settings.labels_topic),
    )


def _start(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        msg = f"GENERATOR_START={text!r} is wrong: it takes an ISO 8601 time; mend it in the environment or in .env"
        raise UserError(msg) from error


def _transactions(batch: list[Simulated]) -> list[KeyedBytes]:
    return [(txn.user.encode(), to_json(txn)) for txn in batch]


def _labels(batch: list[Simulated]) -> list[KeyedBytes]:
    return [(txn.user.encode(), label_to_json(txn)) for txn in batch]


def _now() -> datetime:
    return datetime.now(UTC)


class SimulationSource(FixedPartitionedSource[Simulated, Position]):
    """The simulated stream at the pace of its event times, `rate` a second; one part, so each comes once.

    Ends after `count` transactions, or with the last one whose event time lies less than `duration` seconds after the
    start, or when `stopping` says so. A rate beyond what the machine can do ends `OVERTIME` after the duration, with
    fewer transactions. Without `start` (no offset means UTC) event time begins when the part is built.

    The state is the start and how many were handed out; resuming simulates those again to skip them: about 20 s for a
    million.
    """

    def __init__(
        self,
        *,
        seed: int,
        rate: float,
        start: datetime | None = None,
        population: str = "realistic",
        count: int | None = None,
        duration: float | None = None,
        stopping: Callable[[], bool] = lifecycle.stopping,
        clock: Callable[[], datetime] = _now,
    ):
        self._seed = seed
        self._rate = rate
        self._population = population
        self._start = start if start is None or start.tzinfo else start.replace(tzinfo=UTC)
        self._count = count
        self._duration = duration
        self._stopping = stopping
        self._clock = clock

    def list_parts(self) -> list[str]:
        """One part: whichever process it falls to simulates everybody."""
        return ["everybody"]

    def build_part(self, step_id: str, for_part: str, resume_state: Position | None) -> "_Simulation":
        """Begins at the start, or after the transactions that were handed out before."""
        begin, made = self._start or self._clock(), 0
        if resume_state is not None:
            begin, made = datetime.fromisoformat(resume_state[0]), resume_state[1]
        # Timestamps have milliseconds: a start between two would blur what lies within the duration.
        begin = begin.replace(microsecond=begin.microsecond // 1000 * 1000)
        transactions = stream(self._seed, self._rate, begin, self._population)
        if self._count is not None:
            transactions = islice(transactions, self._count)
        if self._duration is not None:
            end = begin.timestamp() + self._duration
            transactions = takewhile(lambda txn: txn.at < end, transactions)
        return _Simulation(transactions, begin, made, self._duration, self._stopping, self._clock)


class _Simulation(StatefulSourcePartition[Simulated, Position]):
    def __init__(
        self,
        transactions: Iterator[Simulated],
        begin: datetime,
        made: int,
        duration: float | None,
        stopping: Callable[[], bool],
        clock: Callable[[], datetime],
    ):
        self._transactions = transactions
        self._begin = begin
        self._made = made
        self._stopping = stopping
        self._clock = clock
        self._next = next(islice(transactions, made, None), None)
        # The wall-clock time that event time `begin` falls on. A resumed one goes on where it was: no rush to catch up.
        self._shift = clock() - begin
        if made and self._next is not None:
            self._shift -= timedelta(seconds=self._next.at - begin.timestamp())
        self._give_up = None if duration is None else begin + self._shift + timedelta(seconds=duration) + OVERTIME
        self._woken = clock()

    def next_batch(self) -> list[Simulated]:
        """The transactions that are due by now, at most `MAX_BATCH`."""
        now = self._woken = self._clock()
        if self._next is None or self._stopping() or (self._give_up is not None and now >= self._give_up):
            raise StopIteration
        due = (now - self._shift).timestamp()
        batch: list[Simulated] = []
        while self._next is not None and self._next.at <= due and len(batch) < MAX_BATCH:
            batch.append(self._next)
            self._next = next(self._transactions, None)
        self._made += len(batch)
        return batch

    def next_awake(self) -> datetime | None:
        """When the next one is due; a little later at high rates, sooner if that is far away; None to end."""
        if self._next is None:
            return None
        due = datetime.fromtimestamp(self._next.at, UTC) + self._shift
        if due < self._woken:  # a full batch: there is more
            return None
        return min(max(due, self._woken + TICK), self._woken + STOP_CHECK)

    def snapshot(self) -> Position:
        """The start, and how many were handed out."""
        return self._begin.isoformat(), self._made
