"""History through the detection flow's own graph, with a history for its source and a tally for its sink."""

from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime
from itertools import combinations, islice
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME

from dataflow.detect import build
from dataflow.events.feedback import feedback_to_json
from dataflow.events.output_record import Record
from dataflow.events.parsing import event_time
from dataflow.events.transaction import DAY, Transaction
from dataflow.rules import LiveRules
from dataflow.scoring.metadata import Scorer
from dataflow.scoring.operating_point import OperatingPoint
from dataflow.settings import Settings
from dataflow.steps import Routed, written
from training.backtesting.deciders import Deciders, WrittenDecision
from training.histories.history import History
from training.histories.kafka_history import KafkaHistory

BATCH = 1000
OFFSETS = 1 << 44
"""Offsets of a partition that one number holds, the partition above them."""


class Confusion(msgspec.Struct):
    """What is known of the transactions that something picked out."""

    fraud: int = 0
    genuine: int = 0
    unknown: int = 0

    def add(self, truth: bool | None) -> None:
        """Counts one."""
        if truth is None:
            self.unknown += 1
        elif truth:
            self.fraud += 1
        else:
            self.genuine += 1

    @property
    def total(self) -> int:
        """All of them."""
        return self.fraud + self.genuine + self.unknown

    @property
    def precision(self) -> float | None:
        """Frauds among those whose truth is known; None without any."""
        known = self.fraud + self.genuine
        return self.fraud / known if known else None


class Caught(Confusion):
    """As `Confusion`, with the amounts of the known frauds among them."""

    money: float = 0.0

    def add_amount(self, truth: bool | None, amount: float) -> None:
        """Counts one of this amount."""
        self.add(truth)
        if truth:
            self.money += amount


DECIDERS = ("rules", "model", "both")
"""Who would alert: the rules and lists that read nothing of the model; the model, as if there were no rule and no list;
and what did, rules, lists and model together."""


class Tally(msgspec.Struct):
    """What one ruleset decided on a history; an alert costs 17 bytes here, and its message in the spool on disk."""

    ruleset_version: str
    model_version: str
    decided: Confusion = msgspec.field(default_factory=Confusion)
    alerts: Confusion = msgspec.field(default_factory=Confusion)
    by_action: dict[str, Confusion] = msgspec.field(default_factory=dict)  # of the alerts
    by_decider: dict[str, Caught] = msgspec.field(default_factory=lambda: {name: Caught() for name in DECIDERS})
    scenarios: dict[str, dict[str, Caught]] = msgspec.field(default_factory=dict)  # known frauds by kind and decider
    money: Caught = msgspec.field(default_factory=Caught)  # all transactions, with the amounts of all known frauds
    model_told: bool = True  # whether the decisions tell what the model alone would alert on
    point: OperatingPoint | None = None  # the model's, without its curve
    suppressed: int = 0
    warm_up: int = 0  # transactions that only filled the profiles
    invalid: Counter[str] = msgspec.field(default_factory=Counter)  # by error
    by_day: dict[int, list[int]] = msgspec.field(default_factory=dict)  # day: decisions, alerts, those not suppressed
    fired: dict[str, Confusion] = msgspec.field(default_factory=dict)  # by rule, shadow rules and lists too
    fired_by_day: Counter[tuple[str, int]] = msgspec.field(default_factory=Counter)
    alone: Counter[str] = msgspec.field(default_factory=Counter)  # alerts that only this rule made
    pairs: Counter[tuple[str, str]] = msgspec.field(default_factory=Counter)  # rules on the same transaction
    keys: Any = msgspec.field(default_factory=lambda: array("q"))  # of the alerts: partition and offset
    places: Any = msgspec.field(default_factory=lambda: array("q"))  # in the spool
    truths: Any = msgspec.field(default_factory=lambda: array("b"))  # 1 fraud, 0 genuine, -1 not known

    @property
    def days(self) -> int:
        """From the first to the last day, both counted."""
        return max(self.by_day) - min(self.by_day) + 1 if self.by_day else 0


class _Wire(msgspec.Struct, gc=False, omit_defaults=True):
    """A transaction as a producer writes it."""

    transaction_id: str | None
    user: str
    amount: float
    timestamp: str
    location: str
    device: str
    merchant: str
    txn_type: str
    latitude: float | None = None
    longitude: float | None = None
    category: str | None = None
    ip: str | None = None


class PastMessage:
    """A transaction of a file as a message; its place is the row's number, its Kafka timestamp the event time."""

    __slots__ = ("_at", "_offset", "_txn")

    def __init__(self, txn: Transaction, offset: int):
        self._txn = txn
        self._offset = offset

    def value(self) -> bytes:
        """The JSON object."""
        t = self._txn
        return _encode(
            _Wire(
                t.transaction_id,
                t.user,
                t.amount,
                t.timestamp,
                t.location,
                t.device,
                t.merchant,
                t.txn_type,
                t.latitude,
                t.longitude,
                t.category,
                t.ip,
            )
        )

    def topic(self) -> str:
        """None of Kafka's."""
        return ""

    def headers(self) -> None:
        """None."""
        return

    def key(self) -> bytes:
        """The user."""
        return self._txn.user.encode()

    def partition(self) -> int:
        """Always 0."""
        return 0

    def offset(self) -> int:
        """The row's number, from 0."""
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        """Its kind, and milliseconds since 1970; as if the broker had set it: the past needs no wall clock."""
        return TIMESTAMP_LOG_APPEND_TIME, int(self._txn.at * 1000)


class PastFeedback(PastMessage):
    """What is known of a transaction as a message of feedback; its Kafka timestamp is when it comes."""

    __slots__ = ("_topic", "fraud", "labelled_at")

    def __init__(self, txn: Transaction, offset: int, fraud: bool, delay: float, topic: str):
        super().__init__(txn, offset)
        self._topic = topic
        self.fraud = fraud
        self.labelled_at = txn.at + delay

    def topic(self) -> str:
        """That of the feedback, by which the flow knows it."""
        return self._topic

    def value(self) -> bytes:
        """The JSON object."""
        txn, labelled_at = self._txn, datetime.fromtimestamp(self.labelled_at, UTC).isoformat()
        name = txn.transaction_id or ""  # a history gives each of its transactions one
        return feedback_to_json(name, txn.user, txn.merchant, txn.timestamp, self.fraud, labelled_at)

    def timestamp(self) -> tuple[int, int]:
        """Its kind, and milliseconds since 1970."""
        return TIMESTAMP_LOG_APPEND_TIME, int(self.labelled_at * 1000)


_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(WrittenDecision).decode


class _Dated(msgspec.Struct, gc=False):
    timestamp: str


_decode_dated = msgspec.json.Decoder(_Dated).decode


def _event_time(message: Any) -> float:
    """The event time that a message says, in seconds since 1970; infinite where it says none."""
    try:
        return event_time(_decode_dated(message.value() or b"").timestamp)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError):
        return float("inf")  # the flow refuses it, and says why


class Messages(Protocol):
    """What the flow reads: a history's messages, in order, with their truth where the history itself knows it."""

    source: str
    truths: "array[int]"  # by offset: 1 fraud, 0 genuine, -1 not known; empty where labels come from elsewhere
    scenarios: dict[int, str]  # by offset: which kind of fraud, where the history names it

    @property
    def progress(self) -> float:
        """How much is done, 0 to 1."""

    def __iter__(self) -> Iterator[Any]: ...

    def feedback(self, now: float) -> list[Any]:
        """Messages of the feedback that has come by `now`, seconds since 1970, and was not handed out yet."""


class FromFile:
    """A file's or the simulation's transactions as messages.

    What is known of a transaction comes back as feedback `label_delay` seconds after it; with None, nothing does.
    """

    def __init__(self, history: History, label_delay: float | None = None, feedback_topic: str = "fraud_feedback"):
        self._feedback_topic = feedback_topic
        self.source = history.source
        self.truths = array("b")  # by offset: a byte a transaction
        self.scenarios: dict[int, str] = {}  # by offset: of the frauds alone
        self._history = history
        self._label_delay = label_delay
        self._labels: deque[PastFeedback] = deque()  # those still to come, in their order

    @property
    def progress(self) -> float:
        """How much is done, 0 to 1."""
        return self._history.progress

    def __iter__(self) -> Iterator[PastMessage]:
        del self.truths[:]
        self.scenarios.clear()
        self._labels.clear()
        for offset, past in enumerate(self._history):
            self.truths.append(-1 if past.fraud is None else past.fraud)
            if past.scenario:
                self.scenarios[offset] = past.scenario
            yield PastMessage(past.transaction, offset)
            if self._label_delay is not None and past.fraud is not None:
                label = PastFeedback(past.transaction, offset, past.fraud, self._label_delay, self._feedback_topic)
                self._labels.append(label)

    def feedback(self, now: float) -> list["PastFeedback"]:
        """The feedback that has come by `now`."""
        labels, due = self._labels, []
        while labels and labels[0].labelled_at <= now:
            due.append(labels.popleft())
        return due


class FromTopic:
    """A topic's messages as they are, as far as it reached when this was made; another process can take it over."""

    def __init__(self, history: KafkaHistory, feedback: Iterable[Any] = ()):
        self.source = history.source
        self.topic = history.topic
        self.truths = array("b")
        self.scenarios: dict[int, str] = {}
        self._history = history
        self._told = feedback  # by Kafka timestamp
        self._feedback: Iterator[Any] = iter(())
        self._next: Any = None

    @property
    def progress(self) -> float:
        """How much is done, 0 to 1."""
        return self._history.progress

    def __iter__(self) -> Iterator[Any]:
        self._feedback, self._next = iter(self._told), None
        return iter(self._history)

    def feedback(self, now: float) -> list[Any]:
        """The feedback that has come by `now`."""
        due = []
        while (label := self._next or next(self._feedback, None)) is not None:
            self._next = label
            if label.timestamp()[1] > now * 1000:
                break
            due.append(label)
            self._next = None
        return due


def run(
    messages: Messages,
    rules: Path,
    model: Scorer,
    settings: Settings,
    spool: IO[bytes],
    *,
    labels: dict[str, bool] | None = None,
    warm_up: float = 0.0,
    progress: Callable[[float], None] = lambda done: None,
) -> Tally:
    """Decides on all messages, with the profile of each user as it was at the time; alerts go to `spool`, one a line.

    What lies in the first `warm_up` seconds fills the profiles and is not counted: by event time, from that of the
    first transaction of the history, so that every ruleset is counted on the same transactions.

    Raises:
        UserError: the rules or the history are wrong.
    """
    live = LiveRules(rules, check_every=float("inf"))
    deciders = Deciders(live.current(), model.operating_point)
    tally = Tally(live.current().version, model.version, model_told=deciders.model_told)
    tally.point = msgspec.structs.replace(model.operating_point, curve=[])
    source = _Source(messages, progress)
    decided = _Counting(tally, spool, source, labels, warm_up, deciders)
    refused = _refusals(tally)

    def take(routed: list[Routed]) -> None:
        records = written(routed)
        decided([record for record in records if record.topic != settings.invalid_topic])
        refused([record for record in records if record.topic == settings.invalid_topic])

    run_main(build(source, _Sink(take), model, live, settings))  # type: ignore[no-untyped-call]
    if source.error is not None:
        raise source.error
    spool.flush()
    return tally


def _refusals(tally: Tally) -> Callable[[list[Record]], None]:
    def count(records: list[Record]) -> None:
        for record in records:
            headers = {name: (value or b"").decode() for name, value in record.headers or ()}
            tally.invalid[f"{headers['field']}: {headers['error']}".removeprefix(": ")] += 1

    return count


class _Counting:
    def __init__(
        self,
        tally: Tally,
        spool: IO[bytes],
        source: "_Source",
        labels: dict[str, bool] | None,
        warm_up: float,
        deciders: Deciders,
    ):
        self._deciders = deciders
        self._tally = tally
        self._spool = spool
        self._source = source
        self._messages = source.messages
        self._labels = labels
        self._warm_up = warm_up

    def __call__(self, records: list[Record]) -> None:
        tally, by_day = self._tally, self._tally.by_day
        # Not from the first decision that comes here: alerts come before others, and which are alerts is the question.
        counted_from = self._source.begin + self._warm_up if self._warm_up else float("-inf")
        for record in records:
            value = record.value or b""
            out = _decode(value)
            at = event_time(out.timestamp)
            if at < counted_from:
                tally.warm_up += 1
                continue
            if self._labels is not None:
                truth = self._labels.get(out.transaction_id)
            else:
                known = self._messages.truths[record.offset] if self._messages.truths else -1
                truth = None if known < 0 else bool(known)
            day = int(at // DAY)
            counts = by_day.get(day)
            if counts is None:
                counts = by_day[day] = [0, 0, 0]
            counts[0] += 1
            tally.decided.add(truth)
            self._count_deciders(out, truth, record.offset)
            if out.fraudulent:
                tally.by_action.setdefault(out.action, Confusion()).add(truth)
                counts[1] += 1
                counts[2] += not out.suppressed
                tally.alerts.add(truth)
                tally.suppressed += out.suppressed
                tally.keys.append(record.partition * OFFSETS + record.offset)
                tally.truths.append(-1 if truth is None else truth)
                tally.places.append(self._spool.tell())
                self._spool.write(value.replace(b"\n", b" ") + b"\n")
                if len(out.rules) == 1:
                    tally.alone[out.rules[0]] += 1
            fired = [*out.rules, *out.shadow_rules]
            for rule in fired:
                if rule not in tally.fired:
                    tally.fired[rule] = Confusion()
                tally.fired[rule].add(truth)
                tally.fired_by_day[rule, day] += 1
            if len(fired) > 1:
                tally.pairs.update(combinations(sorted(fired), 2))

    def _count_deciders(self, out: WrittenDecision, truth: bool | None, offset: int) -> None:
        tally, deciders = self._tally, self._deciders
        tally.money.add_amount(truth, out.amount)
        alerted = dict(zip(DECIDERS, (deciders.rules(out.rules), deciders.model(out), out.fraudulent), strict=True))
        scenario = self._messages.scenarios.get(offset) if truth else None
        if scenario is not None:
            caught = tally.scenarios.setdefault(scenario, {name: Caught() for name in ("all", *DECIDERS)})
            caught["all"].add_amount(truth, out.amount)
        for name, alert in alerted.items():
            if alert:
                tally.by_decider[name].add_amount(truth, out.amount)
                if scenario is not None:
                    caught[name].add_amount(truth, out.amount)


class _Source(FixedPartitionedSource[Any, None]):
    """One part, so that the history's order is kept; a mistake in it ends the flow and is kept in `error`."""

    def __init__(self, messages: Messages, progress: Callable[[float], None]):
        self.messages = messages
        self.report = progress
        self.error: Exception | None = None
        self.begin = float("inf")  # event time of the first transaction that says one, seconds since 1970

    def list_parts(self) -> list[str]:
        return ["history"]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> "_SourcePart":
        return _SourcePart(self)


class _SourcePart(StatefulSourcePartition[Any, None]):
    def __init__(self, source: _Source):
        self._source = source
        self._messages = iter(source.messages)

    def next_batch(self) -> Iterable[Any]:
        try:
            batch = self._in_step()
        except Exception as error:  # Bytewax would make a panic of many lines of it
            self._source.error = error
            batch = []
        if not batch:
            raise StopIteration
        self._source.report(self._source.messages.progress)
        return batch

    def _in_step(self) -> list[Any]:
        """The next messages, before each the feedback that had come when it came, as in a running flow."""
        feedback = self._source.messages.feedback
        batch: list[Any] = []
        for message in islice(self._messages, BATCH):
            if self._source.begin == float("inf"):
                self._source.begin = _event_time(message)
            batch += feedback((message.timestamp()[1] - 1) / 1000)
            batch.append(message)
        return batch

    def snapshot(self) -> None:
        return None


class _Sink(DynamicSink[Routed]):
    def __init__(self, take: Callable[[list[Routed]], None]):
        self.take = take

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_SinkPart":
        return _SinkPart(self)


class _SinkPart(StatelessSinkPartition[Routed]):
    def __init__(self, sink: _Sink):
        self._take = sink.take

    def write_batch(self, items: list[Routed]) -> None:
        self._take(items)


def date_of(day: int) -> date:
    """The date of a day that is counted from 1970-01-01."""
    return datetime.fromtimestamp(day * DAY, UTC).date()
