"""A merchant's profile: the sum of its statistics, and the kernel that reads and updates them, item by item.

What stands here of payments depends on how the partitions interleave; windows keep it tolerant of that. What stands
here of labels does not, as far as `fraud_run.LESSONS` reach. Numbers are float64 and counts of 32 bits, as a large
merchant has more than 16.7 million transactions in 30 days, to which float32 counts.
"""

import math
from typing import Any, Final

import numpy as np

from dataflow.profiles import amounts, excess, fraud_run, windows
from dataflow.profiles import columns as c
from dataflow.profiles.compilation import compiled, float64, int64
from dataflow.profiles.labels import DAY
from dataflow.profiles.side_table import has_room

DTYPE: Final = np.dtype([
    ("last_at", "f8"),  # event time of the newest transaction, -inf without one
    ("active_day", "f4"),  # day of the newest event
    *amounts.fields("f8"), *excess.MERCHANT_FIELDS, *windows.fields("u4", "f8"), *fraud_run.FIELDS,
])  # fmt: skip
BLANK: Final = {"last_at": -math.inf, "active_day": -math.inf, **windows.BLANK}
MOST: Final = 2**32 - 1
"""Transactions that a bucket of a merchant's windows counts at most."""


ITEM: Final = np.dtype([
    ("row", "i4"),  # of the merchant, in the table
    ("is_lesson", "?"),
    ("place", "i8"),  # among the lessons, or among the payments
])  # fmt: skip
"""Payments and lessons in their order."""


@compiled
def release_rows(rows: Any, side: Any, blank: Any, numbers: Any) -> None:
    """Makes rows blank."""
    for number in numbers:
        fraud_run.release(rows[number], side)
        rows[number] = blank[0]


@compiled
def _read(p: Any, side: Any, at: float, amount: float, usual: float, spread: float, o: Any) -> None:
    """Writes the features of a payment into `o`."""
    n24, _, n7, _, n30, s30 = windows.totals(p, int64(at // windows.BUCKET))
    o[c.MERCHANT_PER_DAY], o[c.MERCHANT_PER_WEEK], o[c.MERCHANT_PER_MONTH] = n24, n7, n30
    o[c.MERCHANT_MEAN_AMOUNT] = s30 / n30 if n30 > 0.0 else 0.0
    o[c.MERCHANT_AMOUNT_Z], o[c.MERCHANT_AMOUNT_RATIO] = amounts.compare(amount, usual, spread)
    o[c.MERCHANT_UNUSUAL] = excess.read_merchant(p, at, p["last_at"])

    labels1, frauds1, labels7, frauds7, labels30, frauds30 = fraud_run.read_labels(p, side, at)
    o[c.MERCHANT_LABELS_WEEK], o[c.MERCHANT_LABELS_MONTH] = labels7, labels30
    o[c.MERCHANT_FRAUDS_DAY], o[c.MERCHANT_RISK_DAY] = frauds1, frauds1 / (labels1 + 1.0)
    o[c.MERCHANT_FRAUDS_WEEK], o[c.MERCHANT_RISK_WEEK] = frauds7, frauds7 / (labels7 + 1.0)
    o[c.MERCHANT_FRAUDS_MONTH], o[c.MERCHANT_RISK_MONTH] = frauds30, frauds30 / (labels30 + 1.0)
    (
        o[c.MERCHANT_COMPROMISED], o[c.RUN_DAYS], o[c.RUN_FRAUDS], o[c.RUN_GENUINE], o[c.GENUINE_SINCE],
        o[c.DAYS_SINCE_MERCHANT_FRAUD], o[c.DAYS_SINCE_MERCHANT_GENUINE],
    ) = fraud_run.read_run(p, side, at)  # fmt: skip


@compiled
def _update(p: Any, at: float, amount: float, z: float, usual: float, spread: float) -> None:
    """Takes a payment in; `z` is the amount in the user's spreads, `usual` and `spread` as read before it."""
    amount = min(amount, amounts.MAX_AMOUNT)
    amounts.update(p, amount, usual, spread)
    excess.update_merchant(p, excess.excess(z), at, p["last_at"])
    windows.update(p, int64(at // windows.BUCKET), 1, amount, MOST)
    p["last_at"] = max(at, p["last_at"])


@compiled
def observe(
    rows: Any, blank: Any, side: Any, items: Any, first: int, prior: Any, age_days: float,
    payments: Any, lessons: Any, features: Any, anew: Any,
) -> int:  # fmt: skip
    """Takes items in from place `first` on; how far it came: it stops where the side table lacks room.

    `payments` are records with the fields `at`, `amount` and `counts`, a row of `features` each, in which the users'
    stand already. `anew[0]` counts the profiles that began anew.
    """
    for i in range(first, len(items)):
        if not has_room(side):
            return i
        item = items[i]
        p, place = rows[item["row"]], item["place"]
        day = (lessons[place]["labelled_at"] if item["is_lesson"] else payments[place]["at"]) / DAY
        if day - float64(p["active_day"]) > age_days and p["active_day"] > -math.inf:
            fraud_run.release(p, side)
            rows[item["row"]] = blank[0]
            anew[0] += 1
        p["active_day"] = max(day, float64(p["active_day"]))
        if item["is_lesson"]:
            fraud_run.update(p, side, lessons[place])
        else:
            at, amount, o = payments[place]["at"], payments[place]["amount"], features[place]
            usual, spread = amounts.read(p, prior)
            _read(p, side, at, amount, usual, spread, o)
            if payments[place]["counts"]:
                _update(p, at, amount, o[c.AMOUNT_Z], usual, spread)
    return len(items)
