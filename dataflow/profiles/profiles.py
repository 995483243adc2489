"""The profiles of a lane or of a replay: tables of users and of merchants, and the batches that go through them."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dataflow.feedback import Feedback
from dataflow.profiles import columns, fraud_run, labels, last_hour, merchant, unusual_ids, user
from dataflow.profiles.amounts import AmountPrior
from dataflow.profiles.hashing import NameHashes, hash_texts, payment_words
from dataflow.profiles.labels import BEGUN_ANEW, COUNTS, LESSONS, OUTCOMES
from dataflow.profiles.side_table import SideTable
from dataflow.profiles.table import Names, Rows, Table
from dataflow.profiles.user import LABEL, TRANSACTION, UserTables
from dataflow.transaction import UNKNOWN, Transaction

AGE_DAYS: Final = 400.0
"""Days without an event after which a profile begins anew: longer than any feature looks back (365)."""
CAP: Final = 100_000_000
"""Profiles that a table holds at most: as good as no cap."""
NO_PRIOR: Final = AmountPrior()
NAMES_KEPT: Final = 1024
"""Names at least that are kept before the dictionary is looked through for those no longer in use."""
LATEST_DAYS: Final = 1.0
"""Days by which an event may be late and still find a profile that is not freed for its age."""


# Of 4,096 transactions each takes half as long as a comprehension does.
_ahead_at = attrgetter("ahead_at")
_amount = attrgetter("amount")
_at = attrgetter("at")
_device = attrgetter("device")
_latitude = attrgetter("latitude")
_location = attrgetter("location")
_longitude = attrgetter("longitude")
_merchant = attrgetter("merchant")
_user = attrgetter("user")

Records = NDArray[Any]
"""Structured arrays: of events (`user.EVENT`), lessons (`labels.LESSON`) or items (`merchant.ITEM`)."""
Features = NDArray[np.float64]
"""Shape (transactions, columns.FEATURES)."""


class UserProfiles:
    """Profiles by user. All methods are for one thread at a time."""

    def __init__(self, prior: AmountPrior = NO_PRIOR, age_days: float = AGE_DAYS, cap: int = CAP):
        self.table = Table(user.DTYPE, user.BLANK, self._release, cap)
        self.busy = SideTable(np.dtype(last_hour.BUSY_FIELDS), {})
        self.unusual = SideTable(np.dtype(unusual_ids.SIDE_FIELDS), {})
        self.labelled = SideTable(np.dtype(labels.LABELLED_FIELDS), labels.LABELLED_BLANK)
        self.blocks = SideTable(np.dtype(labels.BLOCK_FIELDS), {})
        self.names = Names(UNKNOWN)
        self.begun_anew = 0
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self._prior = prior
        self._age = age_days
        self._hashes = NameHashes()
        self._devices = NameHashes(UNKNOWN)
        self._many_names = NAMES_KEPT

    @property
    def _side_tables(self) -> tuple[SideTable, SideTable, SideTable, SideTable]:
        return self.busy, self.unusual, self.labelled, self.blocks

    def _tables(self) -> UserTables:
        return UserTables(*[table.rows for table in self._side_tables])

    @property
    def nbytes(self) -> int:
        """Bytes of all rows in use, without keys and names."""
        return len(self.table.keys) * user.DTYPE.itemsize + sum(table.rows.nbytes for table in self._side_tables)

    def _release(self, numbers: Rows) -> None:
        user.release_rows(self.table.rows, self._tables(), self.table.blank, numbers)

    def free_idle(self, day: float) -> int:
        """Frees the profiles that would begin anew at that day (event time) or before; how many.

        An event that is older than `day` by more than `LATEST_DAYS` may miss its profile for it.
        """
        idle = self.table.idle(day - self._age - LATEST_DAYS)
        self.table.free(idle)
        return len(idle)

    def events(self, batch: Sequence[Transaction | Feedback]) -> Records:
        """Transactions and labels as records, in their order."""
        is_label = np.fromiter((isinstance(event, Feedback) for event in batch), np.bool_, len(batch))
        if not is_label.any():
            return self.transactions(batch)  # type: ignore[arg-type]
        events = np.empty(len(batch), user.EVENT)
        events[~is_label] = self.transactions([event for event in batch if isinstance(event, Transaction)])
        events[is_label] = self.labels([event for event in batch if isinstance(event, Feedback)])
        return events

    def transactions(self, txns: Sequence[Transaction]) -> Records:
        """Transactions as records."""
        events = np.zeros(len(txns), user.EVENT)
        events["kind"] = TRANSACTION
        events["row"] = self.table.rows_of(list(map(_user, txns)))
        events["at"] = at = np.fromiter(map(_at, txns), np.float64, len(txns))
        events["id"] = ids = hash_texts([txn.transaction_id or "" for txn in txns])
        events["amount"] = amounts = np.fromiter(map(_amount, txns), np.float64, len(txns))
        ahead_at = np.fromiter(map(_ahead_at, txns), np.float64, len(txns))
        dated = np.where(ahead_at != 0.0, ahead_at, at)
        events["ahead"] = dated != at
        # float64 makes NaN of None.
        events["latitude"] = np.array(list(map(_latitude, txns)), np.float64)
        events["longitude"] = np.array(list(map(_longitude, txns)), np.float64)
        events["merchant"] = merchants = self._hashes.of(list(map(_merchant, txns)))
        events["device"] = self._devices.of(list(map(_device, txns)))
        events["location"] = self.names.numbers_of(list(map(_location, txns)))
        events["word"] = payment_words(ids, amounts, dated, merchants)
        return events

    def labels(self, told: Sequence[Feedback]) -> Records:
        """Labels as records."""
        users = [label.user for label in told]
        events = np.zeros(len(told), user.EVENT)
        events["row"] = self.table.rows_of(users)
        events["at"] = [label.at for label in told]
        events["id"] = hash_texts([label.transaction_id for label in told])
        return self._labelled(
            events, users, [label.merchant for label in told], [label.labelled_at for label in told],
            [label.fraud for label in told],
        )  # fmt: skip

    def labels_of(self, events: Records, txns: Sequence[Transaction], labelled_at: Any, fraud: Any) -> Records:
        """The labels of transactions, as records; `events` are these transactions."""
        users, merchants = [txn.user for txn in txns], [txn.merchant for txn in txns]
        return self._labelled(events.copy(), users, merchants, labelled_at, fraud)

    def _labelled(
        self, events: Records, users: Sequence[str], merchants: Sequence[str], labelled_at: Any, fraud: Any
    ) -> Records:
        events["kind"] = LABEL
        events["labelled_at"], events["fraud"] = labelled_at, fraud
        events["user"], events["merchant_name"] = hash_texts(users), self.names.numbers_of(merchants)
        return events

    def observe(self, events: Records) -> tuple[Features, Records]:
        """Reads the features of each transaction as of before it, and takes all events in, in their order.

        The features, with the merchants' columns still empty, and the lessons. The fields `counts` and `last_location`
        of the transactions are written.
        """
        transactions = int(np.count_nonzero(events["kind"] == TRANSACTION))
        features = np.empty((transactions, columns.FEATURES))
        counts = np.zeros(COUNTS, np.int64)
        parts: list[Records] = []
        came = 0
        while True:
            for table in self._side_tables:
                table.make_room()
            lessons = np.empty(_room(len(events) - transactions), labels.LESSON)
            counts[LESSONS] = 0
            with np.errstate(all="ignore"):  # with the JIT off NumPy would warn of what is meant: x / 0 and the like
                came = user.observe(
                    self.table.rows, self.table.blank, self._tables(), events, came, self._prior, self._age, lessons,
                    counts, features,
                )  # fmt: skip
            parts.append(lessons[: counts[LESSONS]])
            if came == len(events):
                break
        self.begun_anew += int(counts[BEGUN_ANEW])
        for outcome, count in zip(OUTCOMES, counts.tolist(), strict=False):
            self.outcomes[outcome] += count
        return features, parts[0] if len(parts) == 1 else np.concatenate(parts)

    def texts(self, numbers: Rows) -> list[str]:
        """The names of these numbers, "" for 0."""
        return list(map(self.names.texts.__getitem__, numbers.tolist()))

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


def _room(of_labels: int) -> int:
    """Room for lessons: what a batch with so many labels mostly needs; where it is too little, there is more later."""
    return labels.MOST_LESSONS + of_labels + of_labels // 4


class MerchantProfiles:
    """Profiles by merchant. All methods are for one thread at a time."""

    def __init__(self, prior: AmountPrior = NO_PRIOR, age_days: float = AGE_DAYS, cap: int = CAP):
        self.table = Table(merchant.DTYPE, merchant.BLANK, self._release, cap)
        self.labelled = SideTable(np.dtype(fraud_run.LABELLED_FIELDS), fraud_run.LABELLED_BLANK)
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

    def _release(self, numbers: Rows) -> None:
        merchant.release_rows(self.table.rows, self.labelled.rows, self.table.blank, numbers)

    def free_idle(self, day: float) -> int:
        """As `UserProfiles.free_idle`."""
        idle = self.table.idle(day - self._age - LATEST_DAYS)
        self.table.free(idle)
        return len(idle)

    def observe(self, items: Records, payments: Records, lessons: Records, features: Features) -> None:
        """Adds the merchants' features as of before each payment, and takes all items in, in their order.

        `features`: of the payments, with the users' filled in.
        """
        came = 0
        while True:
            self.labelled.make_room()
            with np.errstate(all="ignore"):
                came = merchant.observe(
                    self.table.rows, self.table.blank, self.labelled.rows, items, came, self._prior, self._age,
                    payments, lessons, features, self._anew,
                )  # fmt: skip
            if came == len(items):
                break


def in_order(payments: Rows, lessons: Rows, after: NDArray[np.int64]) -> Records:
    """Payments and lessons as items, in their order; `payments` and `lessons` are the rows of the merchants.

    `after`: how many payments come before each lesson; those that come with a payment follow it.
    """
    items = np.zeros(len(payments) + len(lessons), merchant.ITEM)
    is_lesson = items["is_lesson"]
    is_lesson[after + np.arange(len(lessons))] = True
    items["row"][~is_lesson], items["row"][is_lesson] = payments, lessons
    items["place"][~is_lesson], items["place"][is_lesson] = np.arange(len(payments)), np.arange(len(lessons))
    return items
