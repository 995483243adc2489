"""A history through the profiles' kernels, thousands of transactions at a time: the features that the flow makes."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataflow.events.transaction import Transaction
from dataflow.features.batch import FeatureBatch
from dataflow.profiles.amounts import AmountPrior
from dataflow.profiles.columns import FEATURES
from dataflow.profiles.profiles import NO_PRIOR, MerchantProfiles, Records, UserProfiles, in_order
from dataflow.profiles.table import Rows
from dataflow.profiles.user import EVENT, TRANSACTION
from training.histories.history import LabelTime, Past

BATCH: Final = 4096
"""Transactions that go through the kernels at a time; more are no faster."""


class ReplayedBatch(NamedTuple):
    """Transactions of a history, one after the other, and their features."""

    past: list[Past]
    batch: FeatureBatch  # of the same transactions


def replay(
    past: Iterable[Past],
    prior: AmountPrior = NO_PRIOR,
    label_time: LabelTime | None = None,
    *,
    batch: int = BATCH,
) -> Iterator[ReplayedBatch]:
    """The history in batches, with the features that the flow would have had: of the profiles as they were before.

    A label counts from its `label_time` on, and before the first transaction after its own that is not earlier than
    that; without a `label_time`, none does. Into which batches the history is cut changes nothing.
    """
    users, merchants = UserProfiles(prior), MerchantProfiles(prior)
    pending = _Pending(users)
    rows = iter(past)
    while these := list(islice(rows, batch)):
        txns = [each.transaction for each in these]
        events = users.transactions(txns)
        if label_time is not None:
            fraud = [bool(each.fraud) for each in these]
            comes = np.array([label_time(each) for each in these], np.float64)  # float64 makes NaN of None
            events = pending.among(events, txns, comes, np.array(fraud))
        features = np.empty((len(events), FEATURES))
        lessons = users.update(events, np.arange(len(events)), features)
        payments = np.flatnonzero(events["kind"] == TRANSACTION)
        items = in_order(payments, lessons["event"])
        is_lesson = items["is_lesson"]
        items["row"][~is_lesson] = merchants.table.rows_of([txn.merchant for txn in txns])
        items["row"][is_lesson] = merchants.table.rows_of(users.texts(lessons["merchant"]))
        merchants.observe(items, events, lessons, features)
        if len(payments) < len(events):
            features = features[payments]
        yield ReplayedBatch(these, FeatureBatch(txns, users.texts(events["last_location"][payments]), features))
        users.sweep_names(*pending.merchants)


class _Pending:
    """Labels that have not come yet: those of a batch together, with the time at which the first of them comes."""

    def __init__(self, users: UserProfiles):
        self._users = users
        self._batches: list[tuple[float, Records]] = []

    @property
    def merchants(self) -> list[Rows]:
        """The numbers of the names of the merchants in them."""
        return [labels["merchant_name"] for _, labels in self._batches]

    def among(
        self, events: Records, txns: list[Transaction], comes: NDArray[np.float64], fraud: NDArray[np.bool_]
    ) -> Records:
        """The transactions, and before each the labels that have come by its time.

        `comes`: when the label of each comes, NaN where it never does.
        """
        at, newest = events["at"], np.maximum.accumulate(events["at"])
        known = np.flatnonzero(~np.isnan(comes))
        its = [txns[place] for place in known.tolist()]
        own = self._users.labels_of(events[known], its, comes[known], fraud[known])
        # Before which transaction each comes: the first that is not earlier, and of the batch's own, comes after it.
        own_before = np.searchsorted(newest, comes[known])
        for place in np.flatnonzero(own_before <= known).tolist():
            own_before[place] = _first(at, int(known[place]) + 1, float(comes[known[place]]))
        batches, self._batches = self._batches, []
        due = []
        for first, labels in batches:
            if first > newest[-1]:
                self._batches.append((first, labels))
            else:
                due.append(self._split(labels, np.searchsorted(newest, labels["labelled_at"]), len(at)))
        due.append(self._split(own, own_before, len(at)))
        labels = np.concatenate([labels for labels, _ in due])
        before = np.concatenate([places for _, places in due])
        order = np.lexsort((labels["labelled_at"], before))  # stable: then in the order of their transactions
        is_label = np.zeros(len(at) + len(labels), np.bool_)
        is_label[before[order] + np.arange(len(labels))] = True
        among = np.empty(len(is_label), EVENT)
        among[is_label], among[~is_label] = labels[order], events
        return among

    def _split(self, labels: Records, before: NDArray[np.intp], n: int) -> tuple[Records, NDArray[np.intp]]:
        """Those that come before one of the `n` transactions, and before which; the others go on waiting."""
        due = before < n
        waiting = labels[~due]
        if len(waiting):
            self._batches.append((float(waiting["labelled_at"].min()), waiting))
        return labels[due], before[due]


def _first(at: NDArray[np.float64], begin: int, time: float) -> int:
    """The first place from `begin` on whose time is not before `time`; the number of places where there is none."""
    later = np.flatnonzero(at[begin:] >= time)
    return begin + int(later[0]) if len(later) else len(at)
