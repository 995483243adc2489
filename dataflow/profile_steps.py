"""The steps of the profiles: events keyed by the lane of their user, then by that of their merchant, in columns.

A parsed batch becomes an `EventBatch`: its events as records, and a matrix for their features. What belongs to a lane
is a part of it, which names its places. With one worker all parts share the batch, and each lane writes to its own
places: nothing is copied, and once all parts are back the batch goes on as it came, in the order of the source. With
several workers each part is a batch of its own, which can go to another process.
"""

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np

from dataflow.events.feedback import Feedback
from dataflow.events.transaction import Rejection, Transaction
from dataflow.features.batch import FeatureBatch
from dataflow.metrics import EVICTED, LABELS
from dataflow.process.faults import Guard
from dataflow.profiles.amounts import AmountPrior
from dataflow.profiles.columns import FEATURES
from dataflow.profiles.labels import DAY, LESSON
from dataflow.profiles.merchant import ITEM
from dataflow.profiles.profiles import EventColumns, Features, MerchantProfiles, Records, UserProfiles, in_order
from dataflow.profiles.table import ProfileTable, Rows
from dataflow.profiles.user import EVENT, TRANSACTION
from dataflow.state.batches import EncodedOnce, Reduced, lane_of
from dataflow.tables.table import TableChanges, Tables

Event = Transaction | Feedback
P = TypeVar("P", bound="UserPart | MerchantPart")

SWEEPS = 32
"""Flushes in which all profiles of a lane are looked at once for their age."""
FAILED = 255
"""Kind of the events that a step has raised on."""
FEWEST_SWEPT = 256
"""Profiles at least that are looked at in each."""
LANES_KEPT = 65_536
"""Merchants whose lane is kept at hand: to look it up takes a third of the time."""


class EventBatch:
    """Transactions and labels in their order, and by column what is found out about them."""

    __slots__ = (
        "events",
        "failed",
        "features",
        "last_locations",
        "lesson_merchants",
        "lessons",
        "missing",
        "newest_day",
        "records",
    )

    def __init__(self, events: list[Event], records: Records, failed: list[Rejection] | None = None):
        self.events = events
        self.records = records  # of `user.EVENT`, one each
        self.features: Features | None = None  # a row each; those of labels are never read
        self.last_locations: list[str] = [""] * len(events)
        self.lessons: Records = np.empty(0, LESSON)
        self.lesson_merchants: list[str] = []  # the name of the merchant of each
        self.failed = failed or []  # what a step has raised on
        self.missing = 1  # parts that are not back
        self.newest_day = float(records["at"].max(initial=0.0)) / DAY  # by event time

    def fail(self, place: int, letter: Rejection | None) -> None:
        """Takes an event out that a step has raised on; `letter` goes to the dead letters."""
        self.records["kind"][place] = FAILED
        if letter is not None:
            self.failed.append(letter)

    def payments(self) -> Rows:
        """The places of the transactions."""
        places: Rows = (self.records["kind"] == TRANSACTION).nonzero()[0]
        return places

    def learned(self) -> FeatureBatch:
        """The transactions, with their features."""
        places = self.payments()
        if self.features is None or not len(places):
            return FeatureBatch([], [], np.empty((0, FEATURES)))
        if len(places) == len(self.events):
            return FeatureBatch(self.events, self.last_locations, self.features)  # type: ignore[arg-type]
        there = places.tolist()
        transactions: list[Any] = [self.events[place] for place in there]
        return FeatureBatch(transactions, [self.last_locations[place] for place in there], self.features[places])


def merged(batches: Sequence[EventBatch]) -> EventBatch:
    """Batches as one, in their order."""
    if len(batches) == 1:
        return batches[0]
    whole = EventBatch(
        [event for batch in batches for event in batch.events],
        np.concatenate([batch.records for batch in batches]),
        [bad for batch in batches for bad in batch.failed],
    )
    if any(batch.features is not None for batch in batches):
        # Of a batch of which all failed there are none: its rows are never read.
        whole.features = np.concatenate(
            [np.empty((len(batch.events), FEATURES)) if batch.features is None else batch.features for batch in batches]
        )
    whole.last_locations = [text for batch in batches for text in batch.last_locations]
    first = np.cumsum([0, *(len(batch.events) for batch in batches)])
    for batch, begin in zip(batches, first.tolist(), strict=False):
        batch.lessons["event"] += begin
    whole.lessons = np.concatenate([batch.lessons for batch in batches])
    whole.lesson_merchants = [name for batch in batches for name in batch.lesson_merchants]
    return whole


# --------------------------------------------------------------------------------------------- to another process


class _Sent(msgspec.Struct, array_like=True):
    """A part as it goes to another process; timely asks for it twice, for the length and for the bytes."""

    transactions: list[Transaction]
    labels: list[Feedback]
    records: bytes
    failed: list[Rejection]
    features: bytes = b""
    last_locations: list[str] = []
    lessons: bytes = b""
    lesson_merchants: list[str] = []
    items: bytes = b""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Sent).decode


def _sent(batch: EventBatch, items: Records | None = None) -> bytes:
    sent = _Sent(
        [event for event in batch.events if isinstance(event, Transaction)],
        [event for event in batch.events if isinstance(event, Feedback)],
        batch.records.tobytes(),
        batch.failed,
    )
    if items is not None and batch.features is not None:
        sent.features = batch.features.tobytes()
        sent.last_locations = batch.last_locations
        sent.lessons = batch.lessons.tobytes()
        sent.lesson_merchants = batch.lesson_merchants
        sent.items = items.tobytes()
    return _encode(sent)


def _received(data: bytes) -> tuple[EventBatch, Records]:
    sent = _decode(data)
    records = np.frombuffer(bytearray(sent.records), EVENT)
    of_kind: dict[bool, Iterator[Event]] = {True: iter(sent.transactions), False: iter(sent.labels)}
    batch = EventBatch(
        [next(of_kind[each]) for each in (records["kind"] == TRANSACTION).tolist()], records, sent.failed
    )
    if sent.items:  # of merchants; of labels alone there are no features
        batch.features = np.frombuffer(bytearray(sent.features)).reshape(len(records), FEATURES)
        batch.last_locations = sent.last_locations
    batch.lessons = np.frombuffer(bytearray(sent.lessons), LESSON)
    batch.lesson_merchants = sent.lesson_merchants
    return batch, np.frombuffer(bytearray(sent.items), ITEM)


def read_user_part(lane: int, data: bytes) -> "UserPart":
    """A part from another process."""
    batch, _ = _received(data)
    return UserPart(lane, batch, np.arange(len(batch.events)))


def read_merchant_part(lane: int, data: bytes) -> "MerchantPart":
    """A part from another process."""
    batch, items = _received(data)
    return MerchantPart(lane, batch, items)


class UserPart(EncodedOnce):
    """What of a batch belongs to a lane of users: the places of the events."""

    __slots__ = ("batch", "lane", "places")

    def __init__(self, lane: int, batch: EventBatch, places: Rows):
        super().__init__()
        self.lane = lane
        self.batch = batch
        self.places = places

    def alone(self) -> "UserPart":
        """The same as a batch of its own."""
        there = self.places.tolist()
        batch = EventBatch([self.batch.events[place] for place in there], self.batch.records.take(self.places))
        return UserPart(self.lane, batch, np.arange(len(there)))

    def encoded(self) -> Reduced:
        """See `EncodedOnce`."""
        return read_user_part, (self.lane, _sent(self.batch))


class MerchantPart(EncodedOnce):
    """What of a batch belongs to a lane of merchants: payments and lessons, by their places among the batch's."""

    __slots__ = ("batch", "items", "lane")

    def __init__(self, lane: int, batch: EventBatch, items: Records):
        super().__init__()
        self.lane = lane
        self.batch = batch
        self.items = items  # of `merchant.ITEM`

    def alone(self) -> "MerchantPart":
        """The same as a batch of its own."""
        whole, items = self.batch, self.items.copy()
        is_lesson = items["is_lesson"]
        places, lessons = items["place"][~is_lesson], items["place"][is_lesson]
        there = places.tolist()
        batch = EventBatch([whole.events[place] for place in there], whole.records.take(places))
        if whole.features is not None:  # there are none where all events of the batch failed
            batch.features = whole.features[places]
        batch.last_locations = [whole.last_locations[place] for place in there]
        batch.lessons = whole.lessons[lessons]
        batch.lesson_merchants = [whole.lesson_merchants[place] for place in lessons.tolist()]
        items["place"][~is_lesson], items["place"][is_lesson] = np.arange(len(places)), np.arange(len(lessons))
        return MerchantPart(self.lane, batch, items)

    def encoded(self) -> Reduced:
        """See `EncodedOnce`."""
        return read_merchant_part, (self.lane, _sent(self.batch, self.items))


class InFlight(Generic[P]):
    """Batches whose parts are in the lanes of one step.

    Args:
        names: of the lanes, by their number.
        alone: there is one worker: parts share their batch, and batches come out whole, in the order in which they
            came in. Else each part is a batch of its own, and comes out as it comes.
    """

    def __init__(self, names: Sequence[str], alone: bool):
        self._names = names
        self._queue: deque[EventBatch] | None = deque() if alone else None
        self._thread = 0

    def divide(self, batch: EventBatch, parts: list[P]) -> list[tuple[str, P]]:
        """The parts of a batch, of which there must be one at least, by the names of their lanes."""
        if self._queue is not None:
            self._thread = self._thread or threading.get_ident()
            self._check_thread()
            batch.missing = len(parts)
            self._queue.append(batch)
        else:
            parts = [part.alone() for part in parts]  # type: ignore[misc]
            parts[0].batch.failed = batch.failed
        return [(self._names[part.lane], part) for part in parts]

    def join(self, parts: Iterable[tuple[str, P]]) -> list[EventBatch]:
        """The batches that are whole again with these parts."""
        if self._queue is None:
            return [part.batch for _, part in parts]
        self._check_thread()
        for _, part in parts:
            part.batch.missing -= 1
        whole = []
        # All parts of a batch come within one epoch, so what waits here for the last of them is not left behind.
        while self._queue and not self._queue[0].missing:
            whole.append(self._queue.popleft())
        return whole

    def _check_thread(self) -> None:
        if self._thread != threading.get_ident():
            msg = "the flow was built for one worker, and runs on several: parts of a batch would wait for ever"
            raise RuntimeError(msg)


# ------------------------------------------------------------------------------------------------------- the lanes


class ProfileLimits(msgspec.Struct, frozen=True):
    """What is forgotten: profiles idle for longer than `age_days`, and the oldest beyond `cap` in a lane."""

    age_days: float
    cap: int


class _Sweep:
    """Gives up the profiles of a lane that are too old, and counts who is forgotten."""

    def __init__(self, step: str, table: ProfileTable, free_idle: Callable[[float, int, int], int]):
        self._newest = 0.0  # day of the newest event, by event time
        self._table = table
        self._free_idle = free_idle
        self._at = 0
        self._evicted = 0
        self._idle = EVICTED.labels(step, "idle")
        self._too_many = EVICTED.labels(step, "too many")

    def came(self, day: float) -> None:
        """To be called with the day of the newest event of each batch, by event time."""
        self._newest = max(self._newest, day)

    def go_on(self) -> None:
        """Looks at a part of the profiles."""
        used = len(self._table.keys)
        first = self._at if self._at < used else 0
        count = max(FEWEST_SWEPT, used // SWEEPS)
        self._at = first + count
        self._idle.inc(self._free_idle(self._newest, first, count))
        self._too_many.inc(self._table.evicted - self._evicted)
        self._evicted = self._table.evicted


class UserLane:
    """The profiles of a lane of users."""

    def __init__(self, guard: Guard, prior: AmountPrior, limits: ProfileLimits, tables: Tables):
        self._guard = guard
        self._profiles = UserProfiles(prior, limits.age_days, limits.cap, tables)
        self._sweep = _Sweep(guard.step, self._profiles.table, self._profiles.free_idle)
        self._told = dict.fromkeys(self._profiles.outcomes, 0)

    def take(self, part: UserPart, /) -> UserPart:
        """Reads the features of the part's transactions, and takes its events in."""
        batch, profiles = part.batch, self._profiles
        places = self._found(batch, part.places)
        if not len(places):
            return part
        if batch.features is None:
            batch.features = np.empty((len(batch.events), FEATURES))
        there = places.tolist()
        lessons = profiles.update(batch.records, places, batch.features)
        # Numbers of names mean nothing outside of the lane.
        for place, text in zip(there, profiles.texts(batch.records["last_location"][places]), strict=True):
            batch.last_locations[place] = text
        if len(lessons):
            batch.lessons = np.concatenate([batch.lessons, lessons])
            batch.lesson_merchants += profiles.texts(lessons["merchant"])
        self._count_outcomes()
        self._sweep.came(batch.newest_day)
        return part

    def _found(self, batch: EventBatch, places: Rows) -> Rows:
        """Finds the rows of these events; the places of those for which that does not raise.

        What may raise is done before anything of the profiles is changed; the kernels are compiled, and raise nothing.
        """
        events = [batch.events[place] for place in places.tolist()]
        try:
            self._profiles.find(batch.records, places, events)
        except Exception:
            sound = []
            for number, event in enumerate(events):
                place = places[number : number + 1]
                try:
                    self._profiles.find(batch.records, place, [event])
                    self._guard.in_a_row = 0
                    sound.append(number)
                except Exception as error:
                    batch.fail(int(place[0]), self._guard.failed(event, error))
            # Together: one by one, where there is no room, a user may have got the row of one just found.
            if sound:
                self._profiles.find(batch.records, places[sound], [events[number] for number in sound])
            return places[sound]
        self._guard.in_a_row = 0
        return places

    def _count_outcomes(self) -> None:
        if self._profiles.outcomes != self._told:
            for outcome, count in self._profiles.outcomes.items():
                LABELS.labels(outcome).inc(count - self._told[outcome])
            self._told = dict(self._profiles.outcomes)

    def changes(self) -> list[TableChanges]:
        """What changed in each table of `USER_LAYOUT`."""
        return self._profiles.changes()

    def tidy(self) -> None:
        """Gives up what is too old."""
        self._sweep.go_on()
        self._profiles.sweep_names()


class MerchantLane:
    """The profiles of a lane of merchants."""

    def __init__(self, guard: Guard, prior: AmountPrior, limits: ProfileLimits, tables: Tables):
        self._guard = guard
        self._profiles = MerchantProfiles(prior, limits.age_days, limits.cap, tables)
        self._sweep = _Sweep(guard.step, self._profiles.table, self._profiles.free_idle)

    def take(self, part: MerchantPart, /) -> MerchantPart:
        """Adds what the merchants' profiles know to the features of the part's payments, and takes its items in."""
        batch, items = part.batch, self._found(part.batch, part.items)
        if len(items):
            assert batch.features is not None  # noqa: S101
            self._profiles.observe(items, batch.records, batch.lessons, batch.features)
            self._sweep.came(batch.newest_day)
        return part

    def _found(self, batch: EventBatch, items: Records) -> Records:
        """Finds the rows of these items; those for which that does not raise."""
        events, names = batch.events, batch.lesson_merchants
        places = items["place"].tolist()
        if names:
            told = zip(places, items["is_lesson"].tolist(), strict=True)
            merchants = [names[place] if is_lesson else events[place].merchant for place, is_lesson in told]
        else:
            merchants = [events[place].merchant for place in places]
        try:
            items["row"] = self._profiles.find(merchants)
        except Exception:
            sound = []
            for number, (merchant, place) in enumerate(zip(merchants, places, strict=True)):
                is_lesson = items["is_lesson"][number]
                try:
                    self._profiles.find([merchant])
                    self._guard.in_a_row = 0
                    sound.append(number)
                except Exception as error:
                    letter = self._guard.failed(merchant if is_lesson else events[place], error)
                    if not is_lesson:  # of a label the message was taken in by the user's profile
                        batch.fail(place, letter)
            # Together, as above.
            if sound:
                items["row"][sound] = self._profiles.find([merchants[number] for number in sound])
            return items[sound]
        self._guard.in_a_row = 0
        return items

    def changes(self) -> list[TableChanges]:
        """What changed in each table of `MERCHANT_LAYOUT`."""
        return self._profiles.changes()

    def tidy(self) -> None:
        """Gives up what is too old."""
        self._sweep.go_on()


# ------------------------------------------------------------------------------------------------------- the steps


def _places_by_lane(lanes: list[int]) -> dict[int, list[int]]:
    """The places at which each lane stands."""
    found = defaultdict[int, list[int]](list)
    for place, lane in enumerate(lanes):
        found[lane].append(place)
    return found


class ProfileSteps:
    """The steps from parsed events to transactions with all their features.

    Args:
        names: of the lanes.
        prior: what amounts are like among all, of the model.
        limits: what is forgotten.
        dead_letter: what becomes of an event that a step raises on: see `Guard`.
        alone: there is one worker.
    """

    def __init__(
        self,
        names: Sequence[str],
        prior: AmountPrior,
        limits: ProfileLimits,
        dead_letter: Callable[[Any, str, str], Rejection | None],
        alone: bool = True,
    ):
        self._lanes = len(names)
        self._prior = prior
        self._limits = limits
        self._keying = Guard("key_by_user", dead_letter)
        self._of_users = Guard("update_user_profile", dead_letter)
        self._of_merchants = Guard("update_merchant_profile", dead_letter)
        self._columns = EventColumns()
        self._lane_of_merchant: dict[str, int] = {}
        self._at_users: InFlight[UserPart] = InFlight(names, alone)
        self._at_merchants: InFlight[MerchantPart] = InFlight(names, alone)

    def users(self, tables: Tables) -> UserLane:
        """The profiles of a lane of users, from its tables."""
        return UserLane(self._of_users, self._prior, self._limits, tables)

    def merchants(self, tables: Tables) -> MerchantLane:
        """The profiles of a lane of merchants, from its tables."""
        return MerchantLane(self._of_merchants, self._prior, self._limits, tables)

    def key_by_user(self, parsed: list[Event | Rejection]) -> list[tuple[str, UserPart]]:
        """Keys events by the lane of their user, so that one worker sees all of a user's, in their order.

        Rejections end here.
        """
        events: list[Event] = [event for event in parsed if not isinstance(event, Rejection)]
        if not events:
            return []
        batch = self._columns_of(events)
        found = [lane_of(event.user, self._lanes) for event in batch.events]
        parts = [UserPart(lane, batch, np.array(places)) for lane, places in _places_by_lane(found).items()]
        return self._at_users.divide(batch, parts or [UserPart(0, batch, np.empty(0, np.int64))])

    def _columns_of(self, events: list[Event]) -> EventBatch:
        sound = events
        bad: list[Rejection] = []
        try:
            records = self._columns.of(events)
        except Exception:
            sound, bad = self._keying.each(events, self._checked)
            records = self._columns.of(sound)
        else:
            self._keying.in_a_row = 0
        return EventBatch(sound, records, bad)

    def _checked(self, events: list[Event]) -> list[Event]:
        self._columns.of(events)
        return events

    def key_by_merchant(self, profiled: list[tuple[str, UserPart]]) -> list[tuple[str, MerchantPart]]:
        """Keys payments by the lane of their merchant, and lessons by that of theirs.

        A lesson that comes with a payment follows it. What the step before failed on passes by.
        """
        batches = self._at_users.join(profiled)
        return self._divide_by_merchant(merged(batches)) if batches else []

    def _divide_by_merchant(self, batch: EventBatch) -> list[tuple[str, MerchantPart]]:
        payments = batch.payments()
        items = in_order(payments, batch.lessons["event"])
        events, names, lane_of_merchant = batch.events, batch.lesson_merchants, self._lane_of
        if len(batch.lessons):
            told = zip(items["place"].tolist(), items["is_lesson"].tolist(), strict=True)
            lanes = [lane_of_merchant(names[n] if is_lesson else events[n].merchant) for n, is_lesson in told]
        else:
            lanes = [lane_of_merchant(events[place].merchant) for place in payments.tolist()]
        parts = [MerchantPart(lane, batch, items.take(places)) for lane, places in _places_by_lane(lanes).items()]
        if not parts:
            if not batch.failed:
                return []
            parts = [MerchantPart(0, batch, items)]
        return self._at_merchants.divide(batch, parts)

    def _lane_of(self, merchant: str) -> int:
        lane = self._lane_of_merchant.get(merchant)
        if lane is None:
            lane = lane_of(merchant, self._lanes)
            if len(self._lane_of_merchant) >= LANES_KEPT:
                self._lane_of_merchant = {}
            self._lane_of_merchant[merchant] = lane
        return lane

    def learned(self, known: list[tuple[str, MerchantPart]]) -> tuple[FeatureBatch, list[Rejection]]:
        """Transactions with all their features, and what the steps before failed on.

        They are in the order of the source where there is one worker.
        """
        batches = self._at_merchants.join(known)
        if not batches:
            return FeatureBatch([], [], np.empty((0, FEATURES))), []
        batch = merged(batches)
        return batch.learned(), batch.failed
