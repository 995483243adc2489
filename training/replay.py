"""A history through the profiles' kernels, thousands of transactions at a time: the features that the flow would make."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataflow.feedback import Feedback
from dataflow.profiles.profiles import NO_PRIOR, Features, MerchantProfiles, UserProfiles, in_order
from dataflow.profiles.amounts import AmountPrior
from dataflow.profiles.user import TRANSACTION
from dataflow.transaction import Transaction
from training.history import LabelTime, Past

BATCH: Final = 4096
"""Transactions that go through the kernels at a time; more are no faster."""


class Replayed(NamedTuple):
    """Transactions of a history, and what the profiles knew before each."""

    past: list[Past]
    features: Features  # shape (transactions, columns.FEATURES)
    last_locations: list[str]


def replay(
    past: Iterable[Past],
    prior: AmountPrior = NO_PRIOR,
    label_time: LabelTime | None = None,
    *,
    batch: int = BATCH,
) -> Iterator[Replayed]:
    """The history in batches, with the features that the flow would have had: of the profiles as they were before.

    A label counts from its `label_time` on, and before the first transaction after its own that is not earlier than
    that; without a `label_time`, none does. Into which batches the history is cut changes nothing.
    """
    users, merchants = UserProfiles(prior), MerchantProfiles(prior)
    pending = _Pending(label_time)
    rows = iter(past)
    while these := list(islice(rows, batch)):
        events = users.events(pending.among(these))
        features, lessons = users.observe(events)
        payments = events[events["kind"] == TRANSACTION]
        names = [each.transaction.merchant for each in these]
        merchant_rows = merchants.table.rows_of(names + users.texts(lessons["merchant"]))
        items = in_order(merchant_rows[: len(names)], merchant_rows[len(names) :], lessons["after"])
        merchants.observe(items, payments, lessons, features)
        yield Replayed(these, features, users.texts(payments["last_location"]))
        users.sweep_names()


class _Pending:
    """Labels that have not come yet, in the order in which they will."""

    def __init__(self, label_time: LabelTime | None):
        self._label_time = label_time
        self._waiting: list[Past] = []
        self._comes = np.empty(0)

    def among(self, these: list[Past]) -> list[Transaction | Feedback]:
        """The transactions, and before each the labels that have come by its time."""
        txns: list[Transaction | Feedback] = [each.transaction for each in these]
        if self._label_time is None:
            return txns
        comes = np.array([self._label_time(each) for each in these], np.float64)  # NaN of None
        known = np.flatnonzero(~np.isnan(comes))
        at = np.array([each.transaction.at for each in these])
        # Before which transaction each label comes: the first that is not earlier, and comes after its own.
        newest = np.maximum.accumulate(at)
        before = np.searchsorted(newest, np.concatenate((self._comes, comes[known])))
        own = before[len(self._comes) :]
        for place in np.flatnonzero(own <= known).tolist():
            own[place] = _first(at, known[place] + 1, comes[known[place]])
        waiting = self._waiting + [these[place] for place in known.tolist()]
        all_comes = np.concatenate((self._comes, comes[known]))
        order = np.lexsort((np.arange(len(waiting)), all_comes, before))
        events: list[Transaction | Feedback] = []
        done = 0
        due = order[before[order] < len(these)]
        for place, until in zip(due.tolist(), before[due].tolist(), strict=True):
            events += txns[done:until]
            done = until
            events.append(_label(waiting[place], float(all_comes[place])))
        left = order[len(due) :]
        self._waiting = [waiting[place] for place in left.tolist()]
        self._comes = all_comes[left]
        return events + txns[done:]


def _first(at: NDArray[np.float64], begin: int, time: float) -> int:
    """The first place from `begin` on whose time is not before `time`; the number of places where there is none."""
    later = np.flatnonzero(at[begin:] >= time)
    return begin + int(later[0]) if len(later) else len(at)


def _label(known: Past, comes: float) -> Feedback:
    txn = known.transaction
    return Feedback(txn.transaction_id or "", txn.user, txn.merchant, txn.at, bool(known.fraud), comes)
