"""The facts that rules and model may read: one documented schema, one function that makes them.

Training replays history through these very functions, so training and serving cannot drift apart.
"""

from typing import Literal, NamedTuple

from dataflow.profile import UserProfile
from dataflow.transaction import UNKNOWN, Transaction

Facts = tuple[float | str | bool, ...]
INFINITY = float("inf")
NAN = float("nan")


class Field(NamedTuple):
    """One fact: its name in rules and models, its kind, what it means."""

    name: str
    kind: Literal["number", "text", "flag"]
    doc: str


FIELDS: tuple[Field, ...] = (
    Field("amount", "number", "the transaction's amount, in its own currency"),
    Field("user", "text", "who pays"),
    Field("merchant", "text", "who is paid"),
    Field("location", "text", "where: an ISO 3166 alpha-2 country code where the producer has one"),
    Field("device", "text", "with which device"),
    Field("txn_type", "text", "purchase, transfer, withdrawal, deposit, ..."),
    Field("category", "text", "the merchant's line of business, 'unknown' without one"),
    Field("ip", "text", "the network address, 'unknown' without one"),
    Field("timestamp", "number", "event time, seconds since 1970 UTC"),
    Field("txn_per_hour", "number", "the user's earlier transactions in the hour before this one"),
    Field("last_location", "text", "location of the user's newest earlier transaction, '' without one"),
    Field("location_changed", "flag", "there is an earlier transaction, and it was elsewhere"),
    Field("seconds_since_last", "number", "between this and the user's newest earlier one, infinite without one"),
)


def facts(txn: Transaction, profile: UserProfile) -> Facts:
    """The facts of a transaction and of its user as he was before it, in the order of `FIELDS`."""
    at = txn.at
    last = profile.last_location
    location = txn.location
    return (
        txn.amount,
        txn.user,
        txn.merchant,
        location,
        txn.device,
        txn.txn_type,
        txn.category or UNKNOWN,
        txn.ip or UNKNOWN,
        at,
        profile.per_hour(at),
        last,
        last not in ("", location),
        abs(at - profile.last_at),
    )
