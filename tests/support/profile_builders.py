"""Profiles of users and merchants as tests drive them: events go in, and what came of each is read by name."""

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Self

import msgspec
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from dataflow.events.feedback import Feedback
from dataflow.events.transaction import Transaction
from dataflow.features.batch import FeatureBatch
from dataflow.features.catalogue import NUMBERS
from dataflow.profiles import fraud_run, labels
from dataflow.profiles.amounts import AmountPrior
from dataflow.profiles.columns import USER_FEATURES
from dataflow.profiles.hashing import hash_texts
from dataflow.profiles.labels import LESSON
from dataflow.profiles.last_hour import LATE
from dataflow.profiles.profiles import AGE_DAYS, CAP, NO_PRIOR, MerchantProfiles, UserProfiles, in_order
from dataflow.profiles.side_table import SIDE_FIELDS
from dataflow.profiles.user import EVENT, TRANSACTION
from tests.support.builders import DAY, HOUR, NOON, txn

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

Event = Transaction | Feedback

USER_REFERENCES = ("busy", "unusual", "labelled", "last_location", "locations")
"""Fields of a user's row that are numbers of other rows or of names: which numbers these are means nothing."""
CHAINED = tuple(name for name, _ in SIDE_FIELDS)
"""Fields of side tables that say nothing of a profile: which row follows, and whether the log has it."""

_TYPICAL = txn()
_ids = iter(range(10**9))


def payment(at: float = NOON, amount: float = 25.0, name: str | None = None, **others: Any) -> Transaction:
    """A transaction of Ann's with an id of its own; without a detour over JSON, as tests make very many."""
    name = name or f"n{next(_ids)}"
    return msgspec.structs.replace(_TYPICAL, at=at, amount=amount, transaction_id=name, **others)


# Gaps in whole seconds, so that the edges of windows and buckets are hit, not just passed near.
gaps = st.sampled_from([0, 0, 1, 59, 1800, 3599, 3600, 3601, 7199, 7200, 7201]) | st.integers(0, 40 * 86_400)
amounts = st.floats(0, 5000).map(lambda amount: round(amount, 2))


@st.composite
def streams(draw: st.DrawFn, latest: float = LATE) -> list[Transaction]:
    """Transactions of one user at one merchant, some of them late by up to `latest` seconds."""
    at, events = NOON + draw(st.integers(0, 6 * 86_400)), []
    for gap, late, amount in draw(st.lists(st.tuples(gaps, st.integers(0, int(latest)), amounts), max_size=40)):
        at += gap
        events.append(payment(at - late * draw(st.sampled_from([0, 0, 1])), amount))
    return events


def awkward(seed: int, n: int, users: int, span: float) -> list[Event]:
    """Transactions, late, repeated or under a used id; labels before and after them, sent again, changed."""
    random = np.random.default_rng(seed)
    events: list[tuple[float, Event]] = []
    for number in range(n):
        at = NOON + float(np.round(random.uniform(0, span), 6))
        place = (
            {}
            if random.random() < 0.3
            else {"latitude": random.uniform(-90, 90), "longitude": random.uniform(-180, 180)}
        )
        paid = txn(
            f"user {random.integers(users)}",
            at=at,
            amount=float(np.round(random.lognormal(3, 1.5), 2)),
            location=str(random.choice(["US", "FR", "unknown", "IN", "DE", "NO"])),
            device=str(random.choice(["phone", "unknown", "till"])),
            merchant=f"shop {random.integers(25)}",
            transaction_id=f"id {number if random.random() < 0.95 else random.integers(number + 1)}",
            **place,
        )
        came = at + (random.uniform(0, 4 * HOUR) if random.random() < 0.2 else 0.0)
        events.append((came, paid))
        if random.random() < 0.05:
            events.append((came + random.uniform(0, HOUR), paid))
        for _ in range(random.integers(0, 4)):
            told = at + float(random.choice([0.0, DAY, random.uniform(0, 40 * DAY)]))
            name = paid.transaction_id or ""
            labelled = Feedback(name, paid.user, paid.merchant, at, bool(random.random() < 0.4), told)
            events.append((came + random.normal(0, DAY), labelled))
    return [event for _, event in sorted(events, key=lambda each: each[0])]


class Profiles:
    """Profiles of users and of merchants as a lane and a replay hold them, and all that they said so far.

    A user's events go through the user's profile, payments and lessons on to the merchants'.
    """

    def __init__(self, prior: AmountPrior = NO_PRIOR, age_days: float = AGE_DAYS, cap: int = CAP):
        self.users = UserProfiles(prior, age_days, cap)
        self.merchants = MerchantProfiles(prior, age_days, cap)
        self.events: list[Event] = []
        self._how = (prior, age_days, cap)
        self._last_locations: list[str] = []
        self._numbers = [np.empty((0, len(NUMBERS)))]
        self._counts: list[bool] = []
        self._lessons = [np.empty(0, LESSON)]
        self._taught: list[str] = []

    def read(self, *events: Event) -> Self:
        """Takes events in one after the other, each in a batch of its own."""
        for event in events:
            self.read_together([event])
        return self

    def read_together(self, events: Sequence[Event]) -> Self:
        """Takes events in as one batch."""
        records = self.users.events(events)
        features = np.full((len(events), len(NUMBERS)), np.nan)  # what no kernel writes shows
        lessons = self.users.update(records, np.arange(len(events)), features)
        payments = np.flatnonzero(records["kind"] == TRANSACTION)
        taught = self.users.texts(lessons["merchant"])
        items = in_order(payments, lessons["event"])
        merchants = [
            taught[place] if is_lesson else events[place].merchant
            for place, is_lesson in zip(items["place"].tolist(), items["is_lesson"].tolist(), strict=True)
        ]
        items["row"] = self.merchants.table.rows_of(merchants)
        self.merchants.observe(items, records, lessons, features)
        lessons["event"] += len(self.events)
        self._last_locations += self.users.texts(records["last_location"][payments])
        self._numbers.append(features[payments])
        self._counts += records["counts"][payments].tolist()
        self._lessons.append(lessons)
        self._taught += taught
        self.events += events
        return self

    def read_cut(self, events: Sequence[Event], cuts: Iterable[int]) -> Self:
        """Takes events in as batches that end at these places, and at the end."""
        begin = 0
        for end in chain(sorted(min(cut, len(events)) for cut in cuts), [len(events)]):
            self.read_together(events[begin:end])
            begin = end
        return self

    # ------------------------------------------------------------------------------------------------ what was said

    @property
    def transactions(self) -> list[Transaction]:
        """All transactions so far, in their order."""
        return [event for event in self.events if isinstance(event, Transaction)]

    def batch(self) -> FeatureBatch:
        """All transactions so far with their features, as the model and the rules read them."""
        return FeatureBatch(self.transactions, list(self._last_locations), np.concatenate(self._numbers))

    def features(self, name: str) -> list[Any]:
        """A feature of all transactions so far, in their order."""
        values: list[Any] = np.asarray(self.batch().column(name)).tolist()
        return values

    def last(self, name: str) -> Any:
        """A feature of the newest transaction."""
        return self.features(name)[-1]

    def last_features(self) -> dict[str, Any]:
        """All features of the newest transaction but the texts that are its own."""
        numbers = dict(zip(NUMBERS, self._numbers[-1][-1].tolist(), strict=True))
        return {**numbers, "last_location": self._last_locations[-1]}

    def peek(self, txn: Transaction) -> dict[str, Any]:
        """As `last_features` of a transaction that would come now; it is not taken in.

        All that came goes through new profiles, in one batch with the transaction.
        """
        return Profiles(*self._how).read_together([*self.events, txn]).last_features()

    def counts(self) -> list[bool]:
        """Of each transaction so far whether it counts; False for a repeat."""
        return self._counts

    @property
    def outcomes(self) -> dict[str, int]:
        """How many labels so far had each outcome beyond being applied: see `labels.OUTCOMES`."""
        return self.users.outcomes

    def lessons(self) -> list[dict[str, Any]]:
        """What labels taught merchants so far, in order: the fields of `labels.LESSON`, the merchant by its name."""
        lessons = np.concatenate(self._lessons)
        return [
            dict(zip(LESSON.names or (), lesson, strict=True)) | {"merchant": merchant}
            for lesson, merchant in zip(lessons.tolist(), self._taught, strict=True)
        ]

    # ---------------------------------------------------------------------------------------------- what is remembered

    def user(self, name: str) -> dict[str, Any]:
        """All that is remembered of a user: see `user_state`."""
        return user_state(self.users, name)

    def merchant(self, name: str) -> dict[str, Any]:
        """All that is remembered of a merchant, as `user`."""
        return merchant_state(self.merchants, name)

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """All that is remembered, by user and by merchant."""
        users = {name: self.user(name) for name in sorted(self.users.table.row_of)}
        return users, {name: self.merchant(name) for name in sorted(self.merchants.table.row_of)}


def user_state(users: UserProfiles, name: str) -> dict[str, Any]:
    """All that is remembered of a user, by field, numbers of other rows and of names replaced by what they name.

    Two profiles of which this is equal go on alike. Nothing is left out but what is no longer read: places of labels
    that were given up; and whether a row is in the log.
    """
    row = users.table.rows[users.table.row_of[name]]
    texts = users.names.texts
    state = {field: row[field].tobytes() for field in row.dtype.names if field not in USER_REFERENCES}
    state["last_location"] = texts[row["last_location"]]
    state["locations"] = [texts[number] for number in row["locations"]]
    for field, table in (("busy", users.busy), ("unusual", users.unusual)):
        state[field] = _without(table.rows[row[field]], *CHAINED) if row[field] else None
    if row["labelled"]:
        labelled = users.labelled.rows[row["labelled"]]
        state["labelled"] = _without(labelled, *CHAINED, "block")
        state["labels"] = _labels(users, int(labelled["block"]), int(labelled["n"]))
    return state


def _labels(users: UserProfiles, block: int, n: int) -> list[tuple[Any, ...]]:
    """The labels of a chain of blocks: times, id, merchant, flags."""
    found = []
    for place in range(n):
        if place and place % labels.BLOCK == 0:
            block = int(users.blocks.rows[block]["next"])
        row = users.blocks.rows[block]
        at, labelled_at, name, merchant, flags = (
            row[field][place % labels.BLOCK].item() for field in ("at", "labelled_at", "id", "merchant", "flags")
        )
        found.append((at, labelled_at, name, users.names.texts[merchant], flags))
    return found


def merchant_state(merchants: MerchantProfiles, name: str) -> dict[str, Any]:
    """All that is remembered of a merchant, by field; places of lessons that were forgotten are left out."""
    row = merchants.table.rows[merchants.table.row_of[name]]
    state: dict[str, Any] = {field: row[field].tobytes() for field in row.dtype.names if field != "labelled"}
    if row["labelled"]:
        labelled = merchants.labelled.rows[row["labelled"]]
        state["labels"] = _without(labelled, *CHAINED, "at", "key", "fraud")
        n = int(labelled["n"])
        state["lessons"] = [labelled[field][:n].tobytes() for field in ("at", "key", "fraud")]
    return state


def _without(row: Any, *fields: str) -> list[bytes]:
    """The bytes of a row's other fields."""
    return [row[field].tobytes() for field in row.dtype.names if field not in fields]


def check_windows(found: Sequence[float], past: Sequence[tuple[float, float]], newest: float) -> None:
    """Compares counts and sums of 24 h, 7 d, 30 d with a recount of (time, amount) of all that came."""
    for window, (width, buckets) in enumerate(((4 * HOUR, 6), (DAY, 7), (5 * DAY, 6))):
        live = [amount for at, amount in past if at // width > newest // width - buckets]
        assert found[2 * window] == len(live)
        assert found[2 * window + 1] == pytest.approx(sum(live), rel=1e-6, abs=1e-4)  # sums of float32
        # What the features' docs promise: at least one bucket less than the name says, at most all of it.
        whole, least = newest - buckets * width, newest - (buckets - 1) * width
        assert sum(at > least for at, _ in past) <= found[2 * window] <= sum(at > whole for at, _ in past)


Lesson = dict[str, Any]
"""What a label teaches a merchant: the fields of `labels.LESSON`, but for `merchant` and `event`."""


def lesson(
    at: float = NOON,
    labelled_at: float | None = None,
    fraud: bool = True,
    explained: bool = False,
    *,
    name: str | None = None,
) -> Lesson:
    """What a label teaches a merchant, a day after its transaction; of one of its own, without a name."""
    return {
        "key": hash_texts([name or f"lesson {next(_ids)}"])[0], "at": at,
        "labelled_at": at + DAY if labelled_at is None else labelled_at, "fraud": fraud, "explained": explained,
        "before": math.nan, "before_fraud": False, "before_explained": False,
    }  # fmt: skip


def in_place_of(old: Lesson, **changes: Any) -> Lesson:
    """The lesson that corrects another."""
    before = {"before": old["labelled_at"], "before_fraud": old["fraud"], "before_explained": old["explained"]}
    return old | before | changes


class TaughtMerchant:
    """A merchant that nobody pays, and of which labels tell."""

    def __init__(self) -> None:
        self.profiles = MerchantProfiles()
        self._rows = self.profiles.table.rows_of(["Amazon"])

    def learn(self, *taught: Lesson) -> Self:
        """Takes lessons in, one after the other."""
        lessons = np.zeros(len(taught), LESSON)
        for number, each in enumerate(taught):
            for field, value in each.items():
                lessons[field][number] = value
        items = in_order(self._rows[:0], lessons["event"])
        items["row"] = self._rows[0]
        self.profiles.observe(items, np.empty(0, EVENT), lessons, np.empty((0, len(NUMBERS))))
        return self

    @property
    def _row(self) -> Any:
        return self.profiles.table.rows[self._rows[0]]

    def labels(self, at: float) -> tuple[float, ...]:
        """Labels that came, and frauds among them, over 24 h, 7 d and 30 d: what the features are made of."""
        counts: tuple[float, ...] = fraud_run.read_labels(self._row, self.profiles.labelled.rows, at)
        return counts

    def run(self, at: float) -> dict[str, float]:
        """What the last run of unexplained frauds says, by the names of the features."""
        return dict(zip(RUN, fraud_run.read_run(self._row, self.profiles.labelled.rows, at), strict=True))

    def features(self, txn: Transaction) -> dict[str, float]:
        """The merchant's features of a payment, which is then taken in."""
        payments = np.zeros(1, EVENT)
        payments["at"], payments["amount"], payments["counts"] = txn.at, txn.amount, True
        features = np.zeros((1, len(NUMBERS)))
        items = in_order(np.zeros(1, np.int64), np.empty(0, np.int64))
        items["row"] = self._rows[0]
        self.profiles.observe(items, payments, np.empty(0, LESSON), features)
        return dict(zip(NUMBERS[USER_FEATURES:], features[0, USER_FEATURES:].tolist(), strict=True))

    def state(self) -> dict[str, Any]:
        """All that is remembered."""
        return merchant_state(self.profiles, "Amazon")


RUN = (
    "merchant_compromised", "run_days", "run_frauds", "run_genuine", "genuine_since", "days_since_merchant_fraud",
    "days_since_merchant_genuine",
)  # fmt: skip
"""The features that `fraud_run.read_run` gives, in its order."""
