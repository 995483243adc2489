"""A user's profile: the sum of its statistics, and the kernel that reads and updates them, event by event.

Features are those of the profile as it was before the transaction, which is then taken in. An event older than the
newest counts in the windows that it falls in, and moves nothing back; windows are read as of the newest event. A repeat
of a recent transaction gets its features, and changes nothing.

A profile without an event for longer than the age limit begins anew at the next one. That depends on event times alone,
so a replay decides alike.
"""

import math
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataflow.profiles import (
    amounts,
    excess,
    labels,
    last_hour,
    names_seen,
    places,
    recent_ids,
    unusual_ids,
    windows,
)
from dataflow.profiles import columns as c
from dataflow.profiles.compilation import compiled, float64, int64
from dataflow.profiles.hashing import payment_word
from dataflow.profiles.labels import DAY
from dataflow.profiles.side_table import has_room

TRANSACTION, LABEL = range(2)
"""Kinds of events."""
MOST: Final = 2**16 - 1
"""Transactions that a bucket of a user's windows counts at most."""
MONTH_DAYS: Final = 30.0

DTYPE: Final = np.dtype([
    ("last_at", "f8"),  # event time of the newest transaction, -inf without one
    ("active_day", "f4"),  # day of the newest event
    ("first_day", "f4"),  # day of the first transaction
    *amounts.fields("f4"), *amounts.LARGEST, *excess.FIELDS, *windows.fields("u2", "f4"),
    *last_hour.FIELDS, ("last_location", "i4"), *names_seen.FIELDS, *recent_ids.FIELDS, *places.FIELDS,
    *unusual_ids.FIELDS, *labels.FIELDS,
])  # fmt: skip
BLANK: Final = {"last_at": -math.inf, "active_day": -math.inf, **windows.BLANK}

EVENT: Final = np.dtype([
    ("row", "i4"),  # of the user, in the table
    ("kind", "u1"),  # TRANSACTION or LABEL
    ("at", "f8"),  # event time of the transaction as it counts, seconds since 1970 UTC
    ("id", "i8"),  # hash of the transaction's id
    # Of transactions:
    ("amount", "f8"),
    ("ahead", "?"),  # the timestamp lies too far ahead to be believed
    ("latitude", "f8"), ("longitude", "f8"),  # degrees; NaN without coordinates
    ("merchant", "u4"),  # hash of the name
    ("device", "u4"),  # likewise; 0: not known
    ("location", "i4"),  # number in the dictionary of names; 0: not known
    ("word", "i8"),  # see `recent_ids`
    # Of labels:
    ("labelled_at", "f8"),
    ("fraud", "?"),
    ("user", "i8"),  # hash of the user's name
    ("merchant_name", "i4"),  # number in the dictionary of names
    # What the kernel says of transactions:
    ("counts", "?"),  # False for a repeat
    ("last_location", "i4"),  # number of the name of the user's last location before, 0 without one
])  # fmt: skip
"""Transactions and labels in their order; each column is a field of an array of these."""


class UserTables(NamedTuple):
    """The side tables of users, as a kernel takes them."""

    busy: NDArray[Any]
    unusual: NDArray[Any]
    labelled: NDArray[Any]
    blocks: NDArray[Any]


@compiled
def write_transactions(
    events: Any, at: Any, ids: Any, amounts: Any, ahead_at: Any, latitudes: Any, longitudes: Any, merchants: Any,
    devices: Any,
) -> None:  # fmt: skip
    """Writes what is known of transactions without their user's profile; `ahead_at` is 0 where `at` is believed."""
    dated = np.where(ahead_at != 0.0, ahead_at, at)
    amount_bits, dated_bits = amounts.view(np.int64), dated.view(np.int64)
    for i in range(len(events)):
        event = events[i]
        event["kind"] = TRANSACTION
        event["at"] = at[i]
        event["id"] = ids[i]
        event["amount"] = amounts[i]
        event["ahead"] = dated[i] != at[i]
        event["latitude"], event["longitude"] = latitudes[i], longitudes[i]
        event["merchant"], event["device"] = merchants[i], devices[i]
        event["word"] = payment_word(ids[i], amount_bits[i], dated_bits[i], merchants[i])


@compiled
def write_found(events: Any, places: Any, rows: Any, names: Any) -> None:
    """Writes what tables have of the events at these places; `names`: numbers of locations, of merchants of labels."""
    for k in range(len(places)):
        event = events[places[k]]
        event["row"] = rows[k]
        if event["kind"] == LABEL:
            event["merchant_name"] = names[k]
        else:
            event["location"] = names[k]


@compiled
def release(p: Any, tables: Any) -> None:
    """Gives back what a profile has in side tables."""
    last_hour.release(p, tables.busy)
    unusual_ids.release(p, tables.unusual)
    labels.release(p, tables)


@compiled
def release_rows(rows: Any, tables: Any, blank: Any, numbers: Any) -> None:
    """Makes rows blank."""
    for number in numbers:
        release(rows[number], tables)
        rows[number] = blank[0]


@compiled
def _read(p: Any, tables: Any, event: Any, usual: float, spread: float, o: Any) -> None:
    """Writes the features of a transaction, but for those of its id and of places, into `o`."""
    at, amount, last_at = event["at"], event["amount"], p["last_at"]
    last, location, device = p["last_location"], event["location"], event["device"]
    o[c.AMOUNT] = amount
    o[c.TIMESTAMP] = at
    o[c.SECONDS_SINCE_LAST] = abs(at - last_at)
    o[c.AHEAD_OF_TIME] = event["ahead"]
    o[c.LOCATION_CHANGED] = last != 0 and location != 0 and last != location  # noqa: PLR1714 (Numba)

    n1, s1 = last_hour.read(p, tables.busy, at)
    n24, s24, n7, s7, n30, s30 = windows.totals(p, int64(at // windows.BUCKET))
    o[c.TXN_PER_HOUR], o[c.AMOUNT_PER_HOUR], o[c.MEAN_AMOUNT_HOUR] = n1, s1, s1 / n1 if n1 > 0.0 else 0.0
    o[c.TXN_PER_DAY], o[c.AMOUNT_PER_DAY], o[c.MEAN_AMOUNT_DAY] = n24, s24, s24 / n24 if n24 > 0.0 else 0.0
    o[c.TXN_PER_WEEK], o[c.AMOUNT_PER_WEEK], o[c.MEAN_AMOUNT_WEEK] = n7, s7, s7 / n7 if n7 > 0.0 else 0.0
    o[c.TXN_PER_MONTH], o[c.AMOUNT_PER_MONTH], o[c.MEAN_AMOUNT_MONTH] = n30, s30, s30 / n30 if n30 > 0.0 else 0.0

    seen = float64(p["seen"])
    age = at / DAY - float64(p["first_day"]) if seen > 0.0 else 0.0
    pace = n30 / min(max(age, 1.0), MONTH_DAYS)  # transactions a day
    o[c.HISTORY] = seen
    o[c.BURST] = (n24 - pace) / math.sqrt(pace + 1.0)

    z, ratio = amounts.compare(amount, usual, spread)
    o[c.USUAL_AMOUNT] = usual
    o[c.AMOUNT_Z], o[c.AMOUNT_Z_ABOVE], o[c.AMOUNT_RATIO] = z, max(z, 0.0), ratio
    o[c.AMOUNT_TO_LARGEST] = amounts.read_largest(p, amount)
    o[c.UNUSUAL_DAY], o[c.UNUSUAL_FORTNIGHT] = excess.read(p, at, last_at)

    o[c.NEW_MERCHANT] = seen > 0.0 and not names_seen.read(p["merchants"], event["merchant"])
    o[c.NEW_DEVICE] = names_seen.any_known(p["devices"]) and not names_seen.read(p["devices"], device) and device != 0
    o[c.NEW_LOCATION] = (
        names_seen.any_known(p["locations"]) and not names_seen.read(p["locations"], location) and location != 0
    )
    (
        o[c.CONFIRMED_FRAUDS], o[c.DAYS_SINCE_FRAUD], o[c.CARD_FRAUDS], o[c.DAYS_SINCE_CARD_FRAUD],
    ) = labels.read(p, tables, at)  # fmt: skip


@compiled
def _update(p: Any, tables: Any, event: Any, usual: float, spread: float, km: float, lessons: Any, counts: Any) -> None:
    """Takes in a transaction that is not a repeat; `usual`, `spread` and `km` as read before it."""
    at, last_at, id_hash = event["at"], p["last_at"], event["id"]
    amount = min(event["amount"], amounts.MAX_AMOUNT)
    late = at < last_at
    z, ratio = amounts.compare(amount, usual, spread)
    unusual = z > amounts.UNUSUAL_Z or ratio > amounts.UNUSUAL_RATIO
    if unusual:
        unusual_ids.update(p, tables.unusual, id_hash)
    if p["seen"] == 0.0:
        p["first_day"] = at / DAY
    amounts.update(p, amount, usual, spread)
    amounts.update_largest(p, amount)
    excess.update(p, excess.excess(z), at, last_at)
    windows.update(p, int64(at // windows.BUCKET), 1, amount, MOST)
    last_hour.update(p, tables.busy, at, amount, last_at)
    if not late:
        p["last_at"] = at
        if event["location"] != 0:
            p["last_location"] = event["location"]
    if not math.isnan(event["latitude"]):
        places.update(p, event["latitude"], event["longitude"], km, late)
    if not names_seen.read(p["merchants"], event["merchant"]):
        names_seen.update(p["merchants"], event["merchant"])
    if not names_seen.read(p["devices"], event["device"]) and event["device"] != 0:
        names_seen.update(p["devices"], event["device"])
    if not names_seen.read(p["locations"], event["location"]) and event["location"] != 0:
        names_seen.update(p["locations"], event["location"])
    recent_ids.update(p, event["word"])
    labels.transaction_came(p, tables, lessons, counts, id_hash, unusual)


@compiled
def _observe(p: Any, tables: Any, event: Any, prior: Any, lessons: Any, counts: Any, o: Any) -> None:
    """Reads the features of a transaction into `o`, and takes it in."""
    event["last_location"] = p["last_location"]
    usual, spread = amounts.read(p, prior)
    _read(p, tables, event, usual, spread, o)
    km, ratio, hop, speed = 0.0, 0.0, 0.0, 0.0
    if not math.isnan(event["latitude"]):
        hours = abs(event["at"] - p["last_at"]) / last_hour.HOUR
        km, ratio, hop, speed = places.read(p, event["latitude"], event["longitude"], hours)
    o[c.KM_FROM_CENTRE], o[c.CENTRE_RATIO], o[c.KM_SINCE_LAST], o[c.SPEED] = km, ratio, hop, speed
    identity = recent_ids.read(p, event["word"])
    o[c.REUSED_ID] = identity == recent_ids.REUSED
    event["counts"] = identity != recent_ids.REPEAT
    if identity != recent_ids.REPEAT:
        _update(p, tables, event, usual, spread, km, lessons, counts)


@compiled
def observe(
    rows: Any, blank: Any, tables: Any, events: Any, places: Any, first: int, prior: Any, age_days: float,
    lessons: Any, counts: Any, features: Any,
) -> int:  # fmt: skip
    """Takes the events at these places in, from the place at `first` on; the features of each go to its row.

    How far it came: it stops where a side table or the lessons lack room.
    """
    for k in range(first, len(places)):
        if (
            counts[labels.LESSONS] + labels.MOST_LESSONS > len(lessons)
            or not has_room(tables.busy)
            or not has_room(tables.unusual)
            or not has_room(tables.labelled)
            or not has_room(tables.blocks)
        ):
            return k
        i = places[k]
        event = events[i]
        counts[labels.EVENT] = i
        p = rows[event["row"]]
        day = (event["labelled_at"] if event["kind"] == LABEL else event["at"]) / DAY
        if day - float64(p["active_day"]) > age_days and p["active_day"] > -math.inf:
            release(p, tables)
            rows[event["row"]] = blank[0]
            counts[labels.BEGUN_ANEW] += 1
        p["active_day"] = max(day, float64(p["active_day"]))
        if event["kind"] == LABEL:
            labels.update(p, tables, lessons, counts, event)
        else:
            _observe(p, tables, event, prior, lessons, counts, features[i])
    return len(places)
