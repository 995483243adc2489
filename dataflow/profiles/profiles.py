"""The profiles of a lane or of a replay: tables of users and of merchants, and the batches that go through them."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dataflow.events.feedback import Feedback
from dataflow.events.transaction import UNKNOWN, Transaction
from dataflow.profiles import columns, fraud_run, labels, last_hour, merchant, unusual_ids, user
from dataflow.profiles.amounts import AmountPrior
from dataflow.profiles.compilation import quiet
from dataflow.profiles.hashing import NameHashes, hash_texts
from dataflow.profiles.labels import BEGUN_ANEW, COUNTS, LESSONS, OUTCOMES
from dataflow.profiles.side_table import SideTable
from dataflow.profiles.table import NAME, Names, ProfileTable, Rows
from dataflow.profiles.user import LABEL, TRANSACTION, UserTables
from dataflow.tables.table import Layout, TableChanges, Tables, new_tables

AGE_DAYS: Final = 400.0
"""Days without an event after which a profile begins anew: longer than any feature looks back (365)."""
CAP: Final = 100_000_000
"""Profiles that a table holds at most: as good as no cap."""
NO_PRIOR: Final = AmountPrior()
NAMES_KEPT: Final = 1024
"""Names at least that are kept before the dictionary is looked through for those no longer in use."""
LESSONS_AT_ONCE: Final = 1024
"""Room for what labels teach; where that is too little for a batch, the kernel is called again."""
LATEST_DAYS: Final = 1.0
"""Days by which an event may be late and still find a profile that is not freed for its age."""


# Of 4,096 transactions each takes half as long as a comprehension does.
_ahead_at = attrgetter("ahead_at")
_amount = attrgetter("amount")
_at = attrgetter("at")
_device = attrgetter("device")
_latitude = attrgetter("latitude")
_longitude = attrgetter("longitude")
_merchant = attrgetter("merchant")
_user = attrgetter("user")

Records = NDArray[Any]
"""Structured arrays: of events (`user.EVENT`), lessons (`labels.LESSON`) or items (`merchant.ITEM`)."""
Features = NDArray[np.float64]
"""Shape (transactions, columns.FEATURES)."""

USER_LAYOUT: Final = Layout(
    {
        "profiles": user.DTYPE,
        "names": NAME,
        "busy": np.dtype(last_hour.BUSY_FIELDS),
        "unusual": np.dtype(unusual_ids.UNUSUAL_FIELDS),
        "labelled": np.dtype(labels.LABELLED_FIELDS),
        "blocks": np.dtype(labels.BLOCK_FIELDS),
    },
    {
        ("profiles", "last_location"): "names",
        ("profiles", "locations"): "names",
        ("profiles", "busy"): "busy",
        ("profiles", "unusual"): "unusual",
        ("profiles", "labelled"): "labelled",
        ("labelled", "block"): "blocks",
        ("blocks", "merchant"): "names",
        **{(table, "next"): table for table in ("busy", "unusual", "labelled", "blocks")},
    },
    unkeyed=("busy", "unusual", "labelled", "blocks"),
)
"""The tables of users, and which of their fields are numbers of rows."""

MERCHANT_LAYOUT: Final = Layout(
    {"profiles": merchant.DTYPE, "labelled": np.dtype(fraud_run.LABELLED_FIELDS)},
    {("profiles", "labelled"): "labelled", ("labelled", "next"): "labelled"},
    unkeyed=("labelled",),
)
"""The same of merchants."""


LAYOUTS: Final = {"update_user_profile": USER_LAYOUT, "update_merchant_profile": MERCHANT_LAYOUT}
"""The layout of each step with profiles."""


class EventColumns:
    """What makes records of transactions and labels; it keeps the hashes of names at hand.

    The fields that differ from table to table, which are the row and the numbers of names, are still 0.
    """

    def __init__(self) -> None:
        self._hashes = NameHashes()
        self._devices = NameHashes(UNKNOWN)

    def of(self, batch: Sequence[Transaction | Feedback]) -> Records:
        """Transactions and labels as records, in their order."""
        if Feedback not in set(map(type, batch)):
            return self.transactions(batch)  # type: ignore[arg-type]
        is_label = np.fromiter((isinstance(event, Feedback) for event in batch), np.bool_, len(batch))
        events = np.empty(len(batch), user.EVENT)
        events[~is_label] = self.transactions([event for event in batch if isinstance(event, Transaction)])
        events[is_label] = self.labels([event for event in batch if isinstance(event, Feedback)])
        return events

    def transactions(self, txns: Sequence[Transaction]) -> Records:
        """Transactions as records."""
        events = np.zeros(len(txns), user.EVENT)
        columns = (
            np.fromiter(map(_at, txns), np.float64, len(txns)),
            hash_texts([txn.transaction_id or "" for txn in txns]),
            np.fromiter(map(_amount, txns), np.float64, len(txns)),
            np.fromiter(map(_ahead_at, txns), np.float64, len(txns)),
            np.array(list(map(_latitude, txns)), np.float64),  # float64 makes NaN of None
            np.array(list(map(_longitude, txns)), np.float64),
            self._hashes.of(list(map(_merchant, txns))),
            self._devices.of(list(map(_device, txns))),
        )
        with quiet():
            user.write_transactions(events, *columns)
        return events

    def labels(self, told: Sequence[Feedback]) -> Records:
        """Labels as records."""
        events = np.zeros(len(told), user.EVENT)
        events["kind"] = LABEL
        events["at"] = [label.at for label in told]
        events["id"] = hash_texts([label.transaction_id for label in told])
        events["labelled_at"] = [label.labelled_at for label in told]
        events["fraud"] = [label.fraud for label in told]
        events["user"] = hash_texts([label.user for label in told])
        return events


class UserProfiles:
    """Profiles by user. All methods are for one thread at a time."""

    def __init__(
        self,
        prior: AmountPrior = NO_PRIOR,
        age_days: float = AGE_DAYS,
        cap: int = CAP,
        tables: Tables | None = None,
    ):
        """`cap`: profiles at most. `tables`: where all is kept, of `USER_LAYOUT`; None for new ones."""
        self._tables = new_tables(USER_LAYOUT) if tables is None else tables
        self.table = ProfileTable(user.DTYPE, user.BLANK, self._release, cap, self._tables["profiles"])
        self.names = Names(UNKNOWN, table=self._tables["names"])
        self.busy = SideTable(np.dtype(last_hour.BUSY_FIELDS), {}, self._tables["busy"])
        self.unusual = SideTable(np.dtype(unusual_ids.UNUSUAL_FIELDS), {}, self._tables["unusual"])
        self.labelled = SideTable(np.dtype(labels.LABELLED_FIELDS), labels.LABELLED_BLANK, self._tables["labelled"])
        self.blocks = SideTable(np.dtype(labels.BLOCK_FIELDS), {}, self._tables["blocks"])
        self.begun_anew = 0
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self._prior = prior
        self._age = age_days
        self._columns = EventColumns()
        self._counts = np.zeros(COUNTS, np.int64)
        self._lessons = np.zeros(LESSONS_AT_ONCE, labels.LESSON)
        self._many_names = max(len(self.names), NAMES_KEPT)

    @property
    def _side_tables(self) -> tuple[SideTable, SideTable, SideTable, SideTable]:
        return self.busy, self.unusual, self.labelled, self.blocks

    def _side_rows(self) -> UserTables:
        return UserTables(self.busy.reserved, self.unusual.reserved, self.labelled.reserved, self.blocks.reserved)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows in use, without keys and names."""
        return len(self.table.keys) * user.DTYPE.itemsize + sum(table.rows.nbytes for table in self._side_tables)

    def changes(self) -> list[TableChanges]:
        """What changed in each table of `USER_LAYOUT`, in its order, since the last call."""
        for side in self._side_tables:
            side.mark_written()
        return [table.take_changes() for table in self._tables.values()]

    def _release(self, numbers: Rows) -> None:
        user.release_rows(self.table.rows, self._side_rows(), self.table.blank, numbers)

    def free_idle(self, day: float, first: int = 0, count: int | None = None) -> int:
        """Frees the profiles that would begin anew at that day (event time) or before; how many.

        It looks at `count` rows from `first` on. An event that is older than `day` by more than `LATEST_DAYS` may miss
        its profile for it.
        """
        idle = self.table.idle(day - self._age - LATEST_DAYS, first, count)
        self.table.free(idle)
        return len(idle)

    def events(self, batch: Sequence[Transaction | Feedback]) -> Records:
        """Transactions and labels as records, in their order."""
        events = self._columns.of(batch)
        self.find(events, np.arange(len(batch)), batch)
        return events

    def transactions(self, txns: Sequence[Transaction]) -> Records:
        """Transactions as records."""
        events = self._columns.transactions(txns)
        self.find(events, np.arange(len(txns)), txns)
        return events

    def find(self, events: Records, places: Rows, batch: Sequence[Transaction | Feedback]) -> None:
        """Fills in what these tables have of the events at these places: the rows, and the numbers of names.

        `batch`: the events at these places.
        """
        rows = self.table.rows_of(list(map(_user, batch)))
        names = [event.location if isinstance(event, Transaction) else event.merchant for event in batch]
        user.write_found(events, places, rows, self.names.numbers_of(names))

    def labels_of(self, events: Records, txns: Sequence[Transaction], labelled_at: Any, fraud: Any) -> Records:
        """The labels of transactions, as records; `events` are these transactions."""
        told = events.copy()
        told["kind"] = LABEL
        told["labelled_at"], told["fraud"] = labelled_at, fraud
        told["user"] = hash_texts([txn.user for txn in txns])
        told["merchant_name"] = self.names.numbers_of([txn.merchant for txn in txns])
        return told

    def observe(self, events: Records) -> tuple[Features, Records]:
        """Reads the features of each transaction as of before it, and takes all events in, in their order.

        The features of the transactions, with the merchants' columns still empty, and the lessons. The fields `counts`
        and `last_location` of the transactions are written.
        """
        features = np.empty((len(events), columns.FEATURES))
        lessons = self.update(events, np.arange(len(events)), features)
        is_transaction = events["kind"] == TRANSACTION
        return features if is_transaction.all() else features[is_transaction], lessons

    def update(self, events: Records, places: Rows, features: Features) -> Records:
        """As `observe`, of the events at these places, in their order; the features of each go to its own row.

        The lessons; the field `event` says which event gives each.
        """
        counts, lessons = self._counts, self._lessons
        counts[:] = 0
        parts: list[Records] = []
        came = 0
        while True:
            counts[LESSONS] = 0
            with quiet():
                came = user.observe(
                    self.table.rows, self.table.blank, self._side_rows(), events, places, came, self._prior, self._age,
                    lessons, counts, features,
                )  # fmt: skip
            if counts[LESSONS]:
                parts.append(lessons[: counts[LESSONS]].copy())
            if came == len(places):
                break
            for table in self._side_tables:
                table.make_room()
        counted = counts.tolist()
        self.begun_anew += counted[BEGUN_ANEW]
        if any(counted[: len(OUTCOMES)]):
            for outcome, count in zip(OUTCOMES, counted, strict=False):
                self.outcomes[outcome] += count
        return np.concatenate(parts) if parts else lessons[:0]

    def texts(self, numbers: Rows) -> list[str]:
        """The names of these numbers, "" for 0."""
        return list(map(self.names.texts.__getitem__, numbers.tolist()))  # type: ignore[arg-type]

    def _labelled_merchants(self) -> Rows:
        """The numbers of the names of all merchants in labels, and of some that are not any more."""
        numbers = self.blocks.rows["merchant"].ravel()
        return numbers[(numbers > 0) & (numbers < len(self.names.texts))]  # in a free block may stand anything

    def sweep_names(self, *used: Rows) -> None:
        """Gives back the numbers of names that no profile holds, nor `used`; call it between batches only.

        It looks through all profiles, but only when names have doubled since the last time.
        """
        if len(self.names) < 2 * self._many_names:
            return
        users = self.table.rows[: len(self.table.keys)]
        self.names.keep([users["last_location"], users["locations"], self._labelled_merchants(), *used])
        self._many_names = max(len(self.names), NAMES_KEPT)


class MerchantProfiles:
    """Profiles by merchant. All methods are for one thread at a time."""

    def __init__(
        self,
        prior: AmountPrior = NO_PRIOR,
        age_days: float = AGE_DAYS,
        cap: int = CAP,
        tables: Tables | None = None,
    ):
        """As `UserProfiles`, with tables of `MERCHANT_LAYOUT`."""
        self._tables = new_tables(MERCHANT_LAYOUT) if tables is None else tables
        self.table = ProfileTable(merchant.DTYPE, merchant.BLANK, self._release, cap, self._tables["profiles"])
        self.labelled = SideTable(
            np.dtype(fraud_run.LABELLED_FIELDS), fraud_run.LABELLED_BLANK, self._tables["labelled"]
        )
        self._anew = np.zeros(1, np.int64)
        self._prior = prior
        self._age = age_days

    @property
    def begun_anew(self) -> int:
        """How many profiles began anew as they had been idle for too long."""
        return int(self._anew[0])

    @property
    def nbytes(self) -> int:
        """Bytes of all rows in use, without keys."""
        return len(self.table.keys) * merchant.DTYPE.itemsize + self.labelled.rows.nbytes

    def changes(self) -> list[TableChanges]:
        """What changed in each table of `MERCHANT_LAYOUT`, in its order, since the last call."""
        self.labelled.mark_written()
        return [table.take_changes() for table in self._tables.values()]

    def _release(self, numbers: Rows) -> None:
        merchant.release_rows(self.table.rows, self.labelled.rows, self.table.blank, numbers)

    def free_idle(self, day: float, first: int = 0, count: int | None = None) -> int:
        """As `UserProfiles.free_idle`."""
        idle = self.table.idle(day - self._age - LATEST_DAYS, first, count)
        self.table.free(idle)
        return len(idle)

    def find(self, merchants: Sequence[str]) -> Rows:
        """The rows of merchants."""
        return self.table.rows_of(merchants)

    def observe(self, items: Records, payments: Records, lessons: Records, features: Features) -> None:
        """Adds the merchants' features as of before each payment, and takes all items in, in their order.

        `features`: of the payments, with the users' filled in.
        """
        came = 0
        while True:
            with quiet():
                came = merchant.observe(
                    self.table.rows, self.table.blank, self.labelled.reserved, items, came, self._prior, self._age,
                    payments, lessons, features, self._anew,
                )  # fmt: skip
            if came == len(items):
                break
            self.labelled.make_room()


def in_order(payments: Rows, lessons: Rows) -> Records:
    """Payments and lessons as items, in the order of their events: a lesson that comes with a payment follows it.

    `payments`: the place of each among the events, rising; `lessons`: of each the place of the event that gives it.
    The rows of the items are still 0.
    """
    items = np.zeros(len(payments) + len(lessons), merchant.ITEM)
    if not len(lessons):
        items["place"] = payments
        return items
    order = np.argsort(np.concatenate([payments, lessons]), kind="stable")
    items["is_lesson"] = order >= len(payments)
    items["place"] = np.concatenate([payments, np.arange(len(lessons))])[order]
    return items
