"""The generator flow: simulated transactions out, and the truth about them to a topic of its own.

With a label delay an analyst's feedback comes too, late as the delay says. `python -m bytewax.run
dataflow.generate:flow` runs it with the `GENERATOR_*` settings.
"""

from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile

import bytewax.operators as op
import msgspec
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, Source, StatefulSourcePartition
from bytewax.outputs import Sink

from dataflow.connectors.plain_sink import ProducerSink
from dataflow.errors import UserError
from dataflow.events.feedback import feedback_to_json
from dataflow.events.transaction import DAY
from dataflow.process import lifecycle, metrics_server
from dataflow.settings import Settings
from dataflow.simulation.simulator import Simulated, label_to_json, life_after, natural_rate, stream, to_json

MAX_BATCH = 1000  # transactions handed to the flow at once, and labels
TICK = timedelta(milliseconds=5)  # between batches at a high rate: fewer, larger ones cost less
STOP_CHECK = timedelta(seconds=0.25)  # the longest sleep, so that a stop is noticed at any rate
OVERTIME = timedelta(seconds=1)  # how long one that cannot keep up goes on after its duration
FARTHEST_BACK = 30 * 365 * DAY  # where event time outruns the clock: the earliest start, in seconds before now

KeyedBytes = tuple[bytes, bytes]
Position = tuple[str, int, int]


class Labelled(msgspec.Struct, gc=False):
    """An analyst has found out the truth about a transaction, at `at`: event time, seconds since 1970."""

    txn: Simulated
    at: float


Event = Simulated | Labelled


def build(
    source: Source[Event],
    transactions_sink: Sink[tuple[bytes | None, bytes]],
    labels_sink: Sink[tuple[bytes | None, bytes]],
    feedback_sink: Sink[tuple[bytes | None, bytes]] | None = None,
) -> Dataflow:
    """The graph: each simulated transaction as its producer would send it, its truth, and feedback, keyed by user."""
    flow = Dataflow("generate")
    events = op.input("simulate_people", flow, source)
    # Simulated | Labelled

    transactions = op.flat_map_batch("encode_transactions", events, _transactions)
    # (user, JSON of the transaction without the truth)
    op.output("write_transactions", transactions, transactions_sink)

    labels = op.flat_map_batch("encode_labels", events, _labels)
    # (user, JSON of transaction_id, fraud, scenario)
    op.output("write_labels", labels, labels_sink)

    if feedback_sink is not None:
        feedback = op.flat_map_batch("encode_feedback", events, _feedback)
        # (user, JSON of a label)
        op.output("write_feedback", feedback, feedback_sink)
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
            start=start_of(settings),
            population=settings.generator_population,
            people=_people(settings),
            lived_days=settings.generator_warm_up,
            count=settings.generator_count,
            duration=settings.generator_duration,
            label_delay=settings.generator_label_delay,
        )
    except UserError as error:
        lifecycle.fail(error)
    lifecycle.stop_gracefully(settings.stop_timeout_seconds)
    return build(
        source,
        ProducerSink(settings, settings.transactions_topic),
        ProducerSink(settings, settings.labels_topic),
        None if settings.generator_label_delay is None else ProducerSink(settings, settings.feedback_topic),
    )


def start_of(settings: Settings) -> datetime | None:
    """The event time that `GENERATOR_START` names, UTC without an offset; None where it names none.

    Raises:
        UserError: it is not a time.
    """
    text = settings.generator_start
    if text is None:
        return None
    try:
        start = datetime.fromisoformat(text)
    except ValueError as error:
        msg = f"GENERATOR_START={text!r} is wrong: it takes an ISO 8601 time; mend it in the environment or in .env"
        raise UserError(msg) from error
    return start if start.tzinfo else start.replace(tzinfo=UTC)


def _people(settings: Settings) -> int | None:
    if settings.generator_people is not None and settings.generator_population == "tutorial":
        msg = (
            f"GENERATOR_PEOPLE={settings.generator_people} goes with the realistic population only: the tutorial has "
            "three users; leave it out, or set GENERATOR_POPULATION=realistic"
        )
        raise UserError(msg)
    return settings.generator_people


def speed_of(rate: float, people: int | None) -> float:
    """How many seconds of event time go by in one on the wall, where so many people make `rate` transactions in it."""
    return 1.0 if people is None else rate / natural_rate(people)


def longest(speed: float) -> float:
    """How many seconds the simulation can go on without a set start: where event time outruns the clock, a day."""
    return min(DAY, FARTHEST_BACK / speed) if speed > 1 else float("inf")


def early_start(now: datetime, speed: float, duration: float) -> datetime:
    """An event time to start at, so that event time is not ahead of the clock when `duration` seconds are over.

    A tenth and a day earlier than that: chance may bring fewer transactions, and the night does.
    """
    if speed <= 1:
        return now
    lived = timedelta(seconds=1.1 * speed * min(duration, longest(speed)), days=1)
    return (now - lived).replace(minute=0, second=0, microsecond=0)


def _transactions(batch: list[Event]) -> list[KeyedBytes]:
    return [(event.user.encode(), to_json(event)) for event in batch if isinstance(event, Simulated)]


def _labels(batch: list[Event]) -> list[KeyedBytes]:
    return [(event.user.encode(), label_to_json(event)) for event in batch if isinstance(event, Simulated)]


def _feedback(batch: list[Event]) -> list[KeyedBytes]:
    return [feedback_on(event.txn, event.at) for event in batch if isinstance(event, Labelled)]


def feedback_on(txn: Simulated, at: float) -> KeyedBytes:
    """User and message of the feedback topic: the truth about a transaction, found out at that event time."""
    labelled_at = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return txn.user.encode(), feedback_to_json(
        txn.transaction_id, txn.user, txn.merchant, txn.timestamp, txn.fraud, labelled_at
    )


def _now() -> datetime:
    return datetime.now(UTC)


class SimulationSource(FixedPartitionedSource[Event, Position]):
    """The simulated stream at the pace of its event times, `rate` a second; one part, so each comes once.

    Ends after `count` transactions, or with the last one whose event time lies less than `duration` seconds after the
    start, or when `stopping` says so. A rate beyond what the machine can do ends `OVERTIME` after the duration, with
    fewer transactions. Without `start` (no offset means UTC) event time begins when the part is built.

    With `people` so many live at their natural pace, by day and by night, as people do who have lived for `lived_days`
    already, and of their transactions `rate` a second are handed out: event time goes as much faster than the clock as
    that asks for (on average `speed_of`). Where that is faster, event time begins without `start` as long ago as lets
    it not get ahead of the clock, and the duration is `longest` at most.

    With `label_delay` each transaction's truth follows it as `Labelled`, so many seconds on the wall later; with
    `people` its event time is that of the next transaction. What is not due when the stream ends never comes.

    The state is the start, how many were handed out, and how many were labelled; resuming simulates those again, and
    the days lived before, to skip them: about 20 s for a million.
    """

    def __init__(
        self,
        *,
        seed: int,
        rate: float,
        start: datetime | None = None,
        population: str = "realistic",
        people: int | None = None,
        lived_days: float = 0.0,
        count: int | None = None,
        duration: float | None = None,
        label_delay: float | None = None,
        stopping: Callable[[], bool] = lifecycle.stopping,
        clock: Callable[[], datetime] = _now,
    ):
        self._seed = seed
        self._speed = speed_of(rate, people)
        self._rate = rate
        self._population = population
        self._people = people
        self._lived_days = lived_days
        self._start = start if start is None or start.tzinfo else start.replace(tzinfo=UTC)
        self._count = count
        self._duration = duration
        if start is None and self._speed > 1:
            self._duration = min(longest(self._speed) if duration is None else duration, longest(self._speed))
        self._label_delay = label_delay
        self._stopping = stopping
        self._clock = clock

    def list_parts(self) -> list[str]:
        """One part: whichever process it falls to simulates everybody."""
        return ["everybody"]

    def build_part(self, step_id: str, for_part: str, resume_state: Position | None) -> "_Simulation":
        """Begins at the start, or after the transactions that were handed out before."""
        made, labelled = 0, 0
        if resume_state is not None:
            text, made, labelled = resume_state
            begin = datetime.fromisoformat(text)
        else:
            begin = self._start or early_start(self._clock(), self._speed, self._duration or 0.0)
        # Timestamps have milliseconds: a start between two would blur what lies within the duration.
        begin = begin.replace(microsecond=begin.microsecond // 1000 * 1000)
        if self._people is None:
            transactions = stream(self._seed, self._rate, begin, self._population)
        else:
            transactions = life_after(self._seed, self._people, self._lived_days, begin)
        if self._count is not None:
            transactions = islice(transactions, self._count)
        if self._duration is not None:
            if self._people is None:
                end = begin.timestamp() + self._duration
                transactions = takewhile(lambda txn: txn.at < end, transactions)
            else:
                transactions = islice(transactions, round(self._duration * self._rate))
        return _Simulation(
            transactions,
            begin,
            (made, labelled),
            self._duration,
            self._rate if self._people is not None else None,
            self._label_delay,
            self._stopping,
            self._clock,
        )


class _Simulation(StatefulSourcePartition[Event, Position]):
    def __init__(
        self,
        transactions: Iterator[Simulated],
        begin: datetime,
        handed_out: tuple[int, int],
        duration: float | None,
        rate: float | None,
        label_delay: float | None,
        stopping: Callable[[], bool],
        clock: Callable[[], datetime],
    ):
        self._transactions = transactions
        self._begin = begin
        self._made, self._labelled = handed_out
        self._rate = rate  # by which transactions are due one after the other; None: by their event times
        self._label_delay = label_delay
        self._stopping = stopping
        self._clock = clock
        self._unlabelled: deque[Simulated] = deque()
        if label_delay is None:
            self._labelled = self._made
        for _ in islice(transactions, self._labelled):
            pass
        self._unlabelled.extend(islice(transactions, self._made - self._labelled))
        self._next = next(transactions, None)
        # The wall-clock time that event time `begin` falls on. A resumed one goes on where it was: no rush to catch up.
        self._began = clock()
        if self._made and self._next is not None:
            self._began -= timedelta(seconds=self._due(self._next, self._made))
        self._give_up = None if duration is None else self._began + timedelta(seconds=duration) + OVERTIME
        self._woken = clock()

    def next_batch(self) -> list[Event]:
        """The transactions and labels that are due by now, at most `MAX_BATCH`, in the order of their times."""
        now = self._woken = self._clock()
        if self._next is None or self._stopping() or (self._give_up is not None and now >= self._give_up):
            raise StopIteration
        elapsed = (now - self._began).total_seconds()
        batch: list[Event] = []
        while self._next is not None and len(batch) < MAX_BATCH:
            due, label_due = self._due(self._next, self._made), self._label_due()
            if label_due <= min(due, elapsed):
                batch.append(self._label(self._unlabelled.popleft(), self._next))
                self._labelled += 1
            elif due <= elapsed:
                batch.append(self._next)
                self._made += 1
                if self._label_delay is None:
                    self._labelled += 1
                else:
                    self._unlabelled.append(self._next)
                self._next = next(self._transactions, None)
            else:
                break
        return batch

    def _due(self, txn: Simulated, number: int) -> float:
        """When a transaction is due, in seconds on the wall after the beginning; `number` is its own, from 0."""
        if self._rate is not None:
            return number / self._rate
        # Microseconds, as the clock has them: what is due at a millisecond is due then, and not a rounding later.
        return round(txn.at - self._begin.timestamp(), 6)

    def _label_due(self) -> float:
        """When the next label is due, likewise: infinite if none waits."""
        if self._label_delay is None or not self._unlabelled:
            return float("inf")
        return round(self._due(self._unlabelled[0], self._labelled) + self._label_delay, 6)

    def _label(self, txn: Simulated, following: Simulated) -> Labelled:
        """The truth about a transaction, found out before the `following` one."""
        return Labelled(txn, txn.at + (self._label_delay or 0.0) if self._rate is None else following.at)

    def next_awake(self) -> datetime | None:
        """When the next one is due; a little later at high rates, sooner if that is far away; None to end."""
        if self._next is None:
            return None
        due = self._began + timedelta(seconds=min(self._due(self._next, self._made), self._label_due()))
        if due < self._woken:  # a full batch: there is more
            return None
        return min(max(due, self._woken + TICK), self._woken + STOP_CHECK)

    def snapshot(self) -> Position:
        """The start, how many were handed out, and how many of them labelled."""
        return self._begin.isoformat(), self._made, self._labelled
