"""All features, each once: its name in rules and models, its kind, what it means.

Those that are no texts are columns of a matrix, in the order of this list: first what the user's profile knows of a
transaction, then what the merchant's adds. The kernels of `dataflow.profiles` write it, `dataflow.features.batch` reads
it. The merchant's depend on how partitions interleave; the user's do not.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Final, Literal, NamedTuple

from dataflow.events.transaction import UNKNOWN, Transaction


class Field(NamedTuple):
    """One feature: its name in rules and models, its kind, what it means."""

    name: str
    kind: Literal["number", "text", "flag"]
    doc: str


USER_FIELDS: tuple[Field, ...] = (
    Field("amount", "number", "the transaction's amount, in its own currency"),
    Field("user", "text", "who pays"),
    Field("merchant", "text", "who is paid"),
    Field("location", "text", "where: an ISO 3166 alpha-2 country code where the producer has one"),
    Field("device", "text", "with which device"),
    Field("txn_type", "text", "purchase, transfer, withdrawal, deposit, ..."),
    Field("category", "text", "the merchant's line of business, 'unknown' without one"),
    Field("ip", "text", "the network address, 'unknown' without one"),
    Field("timestamp", "number", "event time as it counts, seconds since 1970 UTC"),
    Field("txn_per_hour", "number", "the user's earlier transactions in the hour before this one"),
    Field("last_location", "text", "location of the user's newest earlier transaction, '' without one"),
    Field("location_changed", "flag", "there is an earlier transaction, and it was elsewhere; both places are known"),
    Field("seconds_since_last", "number", "between this and the user's newest earlier one, infinite without one"),
    Field("amount_per_hour", "number", "sum of the user's amounts in the hour before this one"),
    Field("ahead_of_time", "flag", "dated further ahead than MAX_EVENT_LEAD_SECONDS: counts at its record's time"),
    Field("reused_id", "flag", "the user's recent transactions have another amount, merchant or time under this id"),
    Field("txn_per_day", "number", "the user's earlier transactions in 24 h (20 to 24 h: buckets of 4 h)"),
    Field("amount_per_day", "number", "sum of their amounts"),
    Field("txn_per_week", "number", "the user's earlier transactions in 7 d (6 to 7: buckets of a day)"),
    Field("amount_per_week", "number", "sum of their amounts"),
    Field("txn_per_month", "number", "the user's earlier transactions in 30 d (25 to 30: buckets of 5 d)"),
    Field("amount_per_month", "number", "sum of their amounts"),
    Field("mean_amount_hour", "number", "mean of the user's amounts in the hour before, 0 without any"),
    Field("mean_amount_day", "number", "likewise in 24 h"),
    Field("mean_amount_week", "number", "likewise in 7 d"),
    Field("mean_amount_month", "number", "likewise in 30 d"),
    Field("amount_z", "number", "spreads by which the amount exceeds the user's mean; both without it, shrunk"),
    Field("amount_z_above", "number", "the same where it is above 0, else 0"),
    Field("amount_ratio", "number", "the amount in the user's means, 1 without history"),
    Field("amount_to_largest", "number", "the amount in the user's largest so far, 1 without history"),
    Field("usual_amount", "number", "the user's mean amount, shrunk and without extremes"),
    Field("history", "number", "the user's earlier transactions, all of them"),
    Field("burst", "number", "how far the last 24 h exceed the user's own daily pace, in its Poisson spreads"),
    Field("unusual_day", "number", "how far the user's earlier amounts exceeded the usual, fading over a day"),
    Field("unusual_fortnight", "number", "the same, fading over 14 days"),
    Field("km_from_centre", "number", "from the centre of the user's places, km; 0 where not known"),
    Field("centre_ratio", "number", "the same in the user's usual distance from it"),
    Field("km_since_last", "number", "from the user's newest earlier transaction, km; 0 where not known"),
    Field("speed", "number", "km/h that this takes, at least a minute; 0 where not known"),
    Field("new_merchant", "flag", "the user has paid others, but not this merchant, of late"),
    Field("new_device", "flag", "the user's devices are known, and this is none of them"),
    Field("new_location", "flag", "the user's locations are known, and this is none of them"),
    Field("confirmed_frauds", "number", "of the user, by feedback"),
    Field("days_since_fraud", "number", "since the newest of them took place, 365 without one"),
    Field("card_frauds", "number", "those among them with an amount unusual for the user: the card, not the merchant"),
    Field("days_since_card_fraud", "number", "since the newest of these, 365 without one"),
)

MERCHANT_FIELDS: tuple[Field, ...] = (
    Field("merchant_per_day", "number", "the merchant's earlier transactions in 24 h"),
    Field("merchant_per_week", "number", "in 7 d"),
    Field("merchant_per_month", "number", "in 30 d"),
    Field("merchant_mean_amount", "number", "mean of its amounts in 30 d, 0 without any"),
    Field("merchant_amount_z", "number", "spreads by which the amount exceeds what is normal at the merchant"),
    Field("merchant_amount_ratio", "number", "the amount in the merchant's means"),
    Field("merchant_unusual", "number", "how far earlier amounts there exceeded what its payers are used to, fading"),
    Field("merchant_labels_week", "number", "labels of its transactions that came in 7 d"),
    Field("merchant_labels_month", "number", "in 30 d"),
    Field("merchant_frauds_day", "number", "frauds confirmed there in 24 h"),
    Field("merchant_frauds_week", "number", "in 7 d"),
    Field("merchant_frauds_month", "number", "in 30 d"),
    Field("merchant_risk_day", "number", "frauds in labels that came in 24 h, (f + 0) / (n + 1)"),
    Field("merchant_risk_week", "number", "likewise in 7 d"),
    Field("merchant_risk_month", "number", "likewise in 30 d"),
    Field("merchant_compromised", "number", "chance that its run of unexplained frauds goes on, 0 to 1"),
    Field("run_days", "number", "since the first fraud of that run took place, 365 without one"),
    Field("run_frauds", "number", "frauds in it"),
    Field("run_genuine", "number", "genuine ones between them"),
    Field("genuine_since", "number", "genuine ones since its last fraud"),
    Field("days_since_merchant_fraud", "number", "since that last fraud took place, 365 without one"),
    Field("days_since_merchant_genuine", "number", "since the newest genuine one, 365 without one"),
)

FIELDS = USER_FIELDS + MERCHANT_FIELDS

NUMBERS: tuple[str, ...] = tuple(field.name for field in FIELDS if field.kind != "text")
"""The features that are no texts, in the order of their columns: see `dataflow.profiles.columns`."""
FLAGS = frozenset(field.name for field in FIELDS if field.kind == "flag")
LAST_LOCATION: Final = "last_location"
"""The one text that is not the transaction's own."""
TEXTS: dict[str, Callable[[Transaction], str]] = {
    **{name: attrgetter(name) for name in ("user", "merchant", "location", "device", "txn_type")},
    "category": lambda txn: txn.category or UNKNOWN,
    "ip": lambda txn: txn.ip or UNKNOWN,
}
"""The other texts among the features, and what reads each."""
