"""A history through the profiles' kernels, thousands of transactions at a time: the features that the flow makes."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataflow.profiles.amounts import AmountPrior
from dataflow.profiles.profiles import NO_PRIOR, Features, MerchantProfiles, Records, UserProfiles, in_order
from dataflow.profiles.user import EVENT, TRANSACTION
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
    pending = _Pending(users)
    rows = iter(past)
    while these := list(islice(rows, batch)):
        txns = [each.transaction for each in these]
        events = transactions = users.transactions(txns)
        if label_time is not None:
            fraud = [bool(each.fraud) for each in these]
            comes = np.array([label_time(each) for each in these], np.float64)  # float64 makes NaN of None
            events = pending.among(transactions, txns, comes, np.array(fraud))
        features, lessons = users.observe(events)
        if label_time is not None:
            transactions = events[events["kind"] == TRANSACTION]
        names = [txn.merchant for txn in txns]
        merchant_rows = merchants.table.rows_of(names + users.texts(lessons["merchant"]))
        items = in_order(merchant_rows[: len(names)], merchant_rows[len(names) :], lessons["after"])
        merchants.observe(items, transactions, lessons, features)
        yield Replayed(these, features, users.texts(transactions["last_location"]))
        users.sweep_names(pending.labels["merchant_name"])


class _Pending:
    """Labels that have not come yet, in the order in which they will."""

    def __init__(self, users: UserProfiles):
        self._users = users
        self.labels: Records = np.empty(0, EVENT)

    def among(
        self, events: Records, txns: list[Transaction], comes: NDArray[np.float64], fraud: NDArray[np.bool_]
    ) -> Records:
        """The transactions, and before each the labels that have come by its time.

        `comes`: when the label of each comes, NaN where it never does.
        """
        known = np.flatnonzero(~np.isnan(comes))
        own = self._users.labels_of(
            events[known], [txns[place] for place in known.tolist()], comes[known], fraud[known]
        )
        labels = np.concatenate((self.labels, own))
        # Before which transaction each label comes: the first that is not earlier, and comes after its own.
        at = events["at"]
        before = np.searchsorted(np.maximum.accumulate(at), labels["labelled_at"])
        own_before = before[len(self.labels) :]
        for place in np.flatnonzero(own_before <= known).tolist():
            own_before[place] = _first(at, int(known[place]) + 1, float(comes[known[place]]))
        comes_due = np.flatnonzero(before < len(events))
        order = comes_due[np.lexsort((comes_due, labels["labelled_at"][comes_due], before[comes_due]))]
        self.labels = labels[before == len(events)]
        labels, before, due = labels[order], before[order], len(order)
        among = np.empty(len(events) + due, EVENT)
        is_label = np.zeros(len(among), np.bool_)
        is_label[before + np.arange(due)] = True
        among[is_label], among[~is_label] = labels, events
        return among


def _first(at: NDArray[np.float64], begin: int, time: float) -> int:
    """The first place from `begin` on whose time is not before `time`; the number of places where there is none."""
    later = np.flatnonzero(at[begin:] >= time)
    return begin + int(later[0]) if len(later) else len(at)
