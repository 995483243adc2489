"""Features that mean one thing, together: what is usual for each, and how a person is told that it is not.

Of a group the features are set to the usual all at once: an amount that were usual would have a usual ratio as well.
The usual is this user's or this merchant's own where the features hold it; else it is the median of the training
window.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from dataflow.events.transaction import Transaction
from dataflow.features.catalogue import FIELDS, FLAGS, NUMBERS
from dataflow.profiles.labels import DAY, NEVER
from dataflow.profiles.last_hour import HOUR

Usual = Mapping[str, float]
Value = float | str | bool | None

_PLACES = {name: place for place, name in enumerate(NUMBERS)}
_MEANINGS = {field.name: field.doc for field in FIELDS}


NO_REASONS = frozenset(("history", "usual_amount"))
"""Features that say what a user is like, and so what the others mean: by themselves no reason."""

LONG_SILENCE = 5.0
"""Usual times between two transactions: a longer one is unusual, too."""


class Alert:
    """The features of one alert, and what is typical of all transactions."""

    __slots__ = ("last_location", "numbers", "txn", "typical")

    def __init__(self, txn: Transaction, last_location: str, numbers: list[float], typical: Mapping[str, float]):
        """`numbers`: the features, in the order of `features.catalogue.NUMBERS`."""
        self.txn = txn
        self.last_location = last_location
        self.numbers = numbers
        self.typical = typical

    def __getitem__(self, name: str) -> float:
        return self.numbers[_PLACES[name]]


class Said(NamedTuple):
    """What is told of a group: the feature that names it, its value and usual one, and a plain sentence."""

    feature: str
    value: Value
    usual: Value
    text: str
    factors: tuple[str, ...] = ()
    """Features of the group that stand for the value among the fraud factors, the first that is there."""


class Group(NamedTuple):
    """Features that mean one thing."""

    name: str
    features: tuple[str, ...]
    usual: Callable[[Alert], Usual]  # of a feature that it leaves out, the typical value
    say: Callable[[Alert], Said]


def groups_of(features: Sequence[str]) -> list[Group]:
    """The groups of a model's features; what is in none of `GROUPS` is one by itself.

    But for `NO_REASONS`.
    """
    found = [group for group in GROUPS if not set(group.features).isdisjoint(features)]
    grouped = {name for group in found for name in group.features}
    return [*found, *(_alone(name) for name in features if name not in grouped | NO_REASONS)]


# ------------------------------------------------------------------------------------------------- numbers as words


def number(value: float, digits: int = 2) -> str:
    """A number as people write it."""
    if not math.isfinite(value):
        return "unknown"
    return f"{value:,.{digits}f}" if abs(value) < 1e12 else f"{value:.3g}"


def brief(value: float) -> str:
    """A number without digits that say nothing."""
    text = number(value, 2 if abs(value) < 1 else 1 if abs(value) < 100 else 0)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def counted(count: float, thing: str) -> str:
    """So many things: "1 fraud", "3 frauds"."""
    return f"{number(count, 0)} {thing}{'' if count == 1 else 's'}"


def lasting(seconds: float) -> str:
    """A time in the unit that suits it: "35 minutes"."""
    if not math.isfinite(seconds):
        return "an unknown time"
    for unit, name, limit in ((1.0, "second", 90.0), (60.0, "minute", 5_400.0), (HOUR, "hour", 36 * HOUR)):
        if seconds < limit:
            return counted(round(seconds / unit), name)
    return counted(round(seconds / DAY), "day")


def distance(km: float) -> str:
    """Kilometres, as exact as it matters."""
    return f"{number(round(km, -2) if km >= 1000.0 else km, 0)} km"


# ------------------------------------------------------------------------------------------------------- the groups


def _usual_amount(alert: Alert) -> Usual:
    amount = alert["amount"]
    usual = alert["usual_amount"] or alert.typical.get("amount", amount)
    return {
        "amount": usual,
        "amount_z": 0.0,
        "amount_z_above": 0.0,
        "amount_ratio": 1.0,
        "amount_to_largest": alert["amount_to_largest"] * usual / amount if alert["history"] and amount else 1.0,
        "merchant_amount_z": 0.0,
        "merchant_amount_ratio": 1.0,
    }


_AMOUNT_FACTORS = ("amount_z", "amount_z_above", "amount_ratio", "amount")


def _say_amount(alert: Alert) -> Said:
    amount = alert["amount"]
    usual = alert["usual_amount"] if alert["history"] > 0.0 else 0.0
    if usual > 0.0:
        ratio = amount / usual
        text = (
            f"amount {number(amount)} is {number(ratio, 1)} times this user's usual {number(usual)}"
            if ratio >= 1.05
            else f"amount {number(amount)}, where this user's usual is {number(usual)}"
        )
        return Said("amount", amount, usual, text, _AMOUNT_FACTORS)
    text = f"amount {number(amount)}, the first of this user"
    typical = alert.typical.get("amount", 0.0)
    text += f", where half of all are {number(typical)} or less" if typical > 0.0 else ""
    return Said("amount", amount, None, text, _AMOUNT_FACTORS)


def _pace(alert: Alert) -> float:
    """The user's own transactions a day, as `burst` has them: burst = (n24 - pace) / sqrt(pace + 1), solved for it."""
    burst = alert["burst"]
    root = (math.sqrt(burst * burst + 4.0 * (alert["txn_per_day"] + 1.0)) - burst) / 2.0
    pace = root * root - 1.0
    return pace if pace > 1e-6 else 0.0


def _usual_pace(alert: Alert) -> Usual:
    """What is slower than usual stays: only haste is unusual, and a silence of many times the usual one."""
    pace = _pace(alert)
    an_hour, a_day, amount = round(pace / 24.0), round(pace), alert["usual_amount"]
    since = alert["seconds_since_last"]
    gap = DAY / pace if pace else alert.typical.get("seconds_since_last", DAY)
    return {
        "txn_per_hour": min(alert["txn_per_hour"], an_hour),
        "amount_per_hour": min(alert["amount_per_hour"], an_hour * amount),
        "mean_amount_hour": amount if an_hour else 0.0,
        "txn_per_day": min(alert["txn_per_day"], a_day),
        "amount_per_day": min(alert["amount_per_day"], a_day * amount),
        "mean_amount_day": amount if a_day else 0.0,
        "burst": min(alert["burst"], (a_day - pace) / math.sqrt(pace + 1.0)),
        "seconds_since_last": since if gap <= since <= LONG_SILENCE * gap else gap,
    }


def _say_pace(alert: Alert) -> Said:
    in_hour, since = alert["txn_per_hour"], alert["seconds_since_last"]
    n24, pace = alert["txn_per_day"], _pace(alert)
    own = f", where this user makes {brief(pace)} a day" if pace else ""
    if in_hour >= 2.0:
        text = f"{counted(in_hour, 'transaction')} of this user in the hour before{own}"
        return Said("txn_per_hour", in_hour, pace / 24.0 if pace else None, text, ("txn_per_hour", "burst"))
    if n24 >= pace + 1.0:
        text = f"{counted(n24, 'transaction')} of this user in 24 hours before{own}"
        return Said("txn_per_day", n24, pace if pace else None, text, ("burst", "txn_per_day"))
    usual = DAY / pace if pace else None
    if not math.isfinite(since):
        return Said("seconds_since_last", None, usual, "the first transaction of this user", ("seconds_since_last",))
    text = f"{lasting(since)} after this user's last transaction"
    text += f", where {lasting(usual)} are usual" if usual is not None else ""
    return Said("seconds_since_last", since, usual, text, ("seconds_since_last", "burst"))


def _usual_place(alert: Alert) -> Usual:
    """As far from the centre as usual, and from there no faster than the usual way in the usual time."""
    ratio, km = alert["centre_ratio"], alert["km_from_centre"]
    way = km / ratio if ratio else 0.0
    return {
        "location_changed": 0.0,
        "new_location": 0.0,
        "km_since_last": min(alert["km_since_last"], way),
        "speed": min(alert["speed"], way * _pace(alert) / 24.0),
        "centre_ratio": min(ratio, 1.0),
        "km_from_centre": min(km, way),
    }


_MOVED = ("speed", "km_since_last", "location_changed", "centre_ratio", "new_location")


def _say_place(alert: Alert) -> Said:
    here, before, since = alert.txn.location, alert.last_location, alert["seconds_since_last"]
    hop = alert["km_since_last"]
    if alert["location_changed"]:
        where = f", {distance(hop)} away" if hop >= 1.0 else f", now in {here}"
        return Said("location", here, before, f"paid in {before} {lasting(since)} ago{where}", _MOVED)
    if alert["new_location"]:
        text = f"location {here} is none of those that are known of this user"
        return Said("new_location", True, False, text, ("new_location", "centre_ratio"))
    speed = alert["speed"]
    if (speed >= 5.0 and alert["centre_ratio"] < 3.0) or (speed >= 100.0 and hop >= 50.0):
        text = f"paid {lasting(since)} ago, {distance(hop)} away: {brief(speed)} km/h"
        return Said("speed", speed, None, text, _MOVED)
    km, ratio = alert["km_from_centre"], alert["centre_ratio"]
    usual = km / ratio if ratio > 0.0 else None
    text = f"{distance(km)} from the centre of this user's places"
    text += f", where {distance(usual)} are usual" if usual is not None else ""
    return Said("km_from_centre", km, usual, text, ("centre_ratio", "km_from_centre"))


def _usual_merchant_frauds(alert: Alert) -> Usual:
    """None of the frauds, and of its labels those that are left."""
    return {
        **_NO_FRAUDS,
        "merchant_labels_week": alert["merchant_labels_week"] - alert["merchant_frauds_week"],
        "merchant_labels_month": alert["merchant_labels_month"] - alert["merchant_frauds_month"],
    }


_MERCHANT_FRAUDS = (
    *("merchant_compromised", "merchant_frauds_day", "merchant_frauds_week", "merchant_frauds_month"),
    *("merchant_risk_day", "merchant_risk_week", "merchant_risk_month", "merchant_labels_week"),
    *("merchant_labels_month", "run_days", "run_frauds", "run_genuine", "genuine_since", "days_since_merchant_fraud"),
)

_NO_FRAUDS = {**dict.fromkeys(_MERCHANT_FRAUDS, 0.0), "run_days": NEVER, "days_since_merchant_fraud": NEVER}


def _say_merchant_frauds(alert: Alert) -> Said:
    factors = ("merchant_compromised", "merchant_frauds_week", "merchant_risk_week")
    for feature, span in (("merchant_frauds_week", "7 days"), ("merchant_frauds_month", "30 days")):
        frauds = alert[feature]
        if frauds > 0.0:
            text = f"{counted(frauds, 'fraud')} confirmed at this merchant in {span}"
            return Said(feature, frauds, 0.0, text, (feature, *factors))
    days = alert["days_since_merchant_fraud"]
    if days < NEVER:
        text = f"the last confirmed fraud at this merchant was {lasting(days * DAY)} ago"
        return Said("days_since_merchant_fraud", days, None, text, ("days_since_merchant_fraud", *factors))
    return Said("merchant_frauds_month", 0.0, 0.0, "no fraud is confirmed at this merchant in 30 days", factors)


def _say_user_frauds(alert: Alert) -> Said:
    frauds, days = alert["confirmed_frauds"], alert["days_since_fraud"]
    text = f"{counted(frauds, 'fraud')} of this user confirmed"
    text += f", the last {lasting(days * DAY)} ago" if days < NEVER else ""
    return Said("confirmed_frauds", frauds, 0.0, text, ("card_frauds", "confirmed_frauds"))


def _say_recent_amounts(alert: Alert) -> Said:
    day, fortnight = alert["unusual_day"], alert["unusual_fortnight"]
    feature, value, span = (
        ("unusual_day", day, "the last day") if day >= 0.05 else ("unusual_fortnight", fortnight, "the last 14 days")
    )
    text = f"earlier amounts of {span} exceeded this user's usual by {brief(value)} spreads in all"
    return Said(feature, value, 0.0, text, (feature, "unusual_day"))


def _say_device(alert: Alert) -> Said:
    device = alert.txn.device
    known = "is none of those that are known of this user" if alert["new_device"] else "is known of this user"
    return Said("new_device", alert["new_device"] != 0.0, False, f"device {device} {known}", ("new_device",))


def _say_new_merchant(alert: Alert) -> Said:
    met = "has not been paid by this user of late" if alert["new_merchant"] else "is known to this user"
    text = f"merchant {alert.txn.merchant} {met}"
    return Said("new_merchant", alert["new_merchant"] != 0.0, False, text, ("new_merchant",))


def _usual_merchant_pace(alert: Alert) -> Usual:
    a_day = alert["merchant_per_month"] / 30.0
    return {"merchant_per_day": round(a_day), "merchant_per_week": round(7.0 * a_day)}


def _say_merchant_pace(alert: Alert) -> Said:
    today, usual = alert["merchant_per_day"], alert["merchant_per_month"] / 30.0
    text = f"{counted(today, 'transaction')} at this merchant in 24 hours, where {brief(usual)} a day are usual"
    return Said("merchant_per_day", today, usual, text, ("merchant_per_day",))


def _say_merchant_amounts(alert: Alert) -> Said:
    value = alert["merchant_unusual"]
    text = (
        f"amounts at this merchant have lately exceeded what its payers are used to, by {brief(value)} spreads in all"
    )
    return Said("merchant_unusual", value, 0.0, text, ("merchant_unusual",))


def _always(**usual: float) -> Callable[[Alert], Usual]:
    return lambda alert: usual


GROUPS = (
    Group(
        "amount",
        ("amount", *_AMOUNT_FACTORS[:3], "amount_to_largest", "merchant_amount_z", "merchant_amount_ratio"),
        _usual_amount,
        _say_amount,
    ),
    Group(
        "recent amounts",
        ("unusual_day", "unusual_fortnight"),
        _always(unusual_day=0.0, unusual_fortnight=0.0),
        _say_recent_amounts,
    ),
    Group(
        "pace",
        (
            *("txn_per_hour", "amount_per_hour", "mean_amount_hour", "txn_per_day", "amount_per_day"),
            *("mean_amount_day", "burst", "seconds_since_last"),
        ),
        _usual_pace,
        _say_pace,
    ),
    Group(
        "place",
        ("location_changed", "new_location", "km_since_last", "speed", "centre_ratio", "km_from_centre"),
        _usual_place,
        _say_place,
    ),
    Group("device", ("new_device",), _always(new_device=0.0), _say_device),
    Group("new merchant", ("new_merchant",), _always(new_merchant=0.0), _say_new_merchant),
    Group("merchant's frauds", _MERCHANT_FRAUDS, _usual_merchant_frauds, _say_merchant_frauds),
    Group(
        "user's frauds",
        ("confirmed_frauds", "days_since_fraud", "card_frauds", "days_since_card_fraud"),
        _always(confirmed_frauds=0.0, days_since_fraud=NEVER, card_frauds=0.0, days_since_card_fraud=NEVER),
        _say_user_frauds,
    ),
    Group("merchant's pace", ("merchant_per_day", "merchant_per_week"), _usual_merchant_pace, _say_merchant_pace),
    Group("merchant's amounts", ("merchant_unusual",), _always(merchant_unusual=0.0), _say_merchant_amounts),
)
"""In the order in which those of the same effect are told."""


def _alone(name: str) -> Group:
    """A feature that means something of its own: the typical value is its usual one, of a flag "not set"."""

    def say(alert: Alert) -> Said:
        value, typical = alert[name], alert.typical.get(name)
        if name in FLAGS:
            return Said(name, value != 0.0, False, f"{name}: {_MEANINGS[name]}", (name,))
        common = f", where half of all have {brief(typical)} or less" if typical is not None else ""
        return Said(name, value, None, f"{name} is {brief(value)}{common}", (name,))

    return Group(name, (name,), _always(**({name: 0.0} if name in FLAGS else {})), say)
