"""A transaction as the flow knows it, and what a message is that is none; `parsing` makes either of a message."""

from typing import Annotated, Final

import msgspec
from msgspec import Meta, field

DAY = 86_400.0
MAX_AHEAD = DAY  # seconds an event time may lie ahead of the record's own Kafka timestamp
MAX_LEAD: Final = 300.0
"""Seconds by which an event time may lead the record's before it is no longer believed: see `credible`."""
UNKNOWN: Final = "unknown"

RESERVED = (
    "fraudulent",
    "reason",
    "score",
    "rules",
    "shadow_rules",
    "suppressed",
    "ruleset_version",
    "model_version",
    "action",
    "model_score",
    "alert_threshold",
    "explanation",
)
"""The fields of a decision: an input that carries one cannot smuggle in a verdict, ours replaces it."""

Text = Annotated[str, Meta(min_length=1, max_length=256)]
Latitude = Annotated[float, Meta(ge=-90, le=90)]
Longitude = Annotated[float, Meta(ge=-180, le=180)]


Headers = list[tuple[str, bytes | None]]


class Transaction(msgspec.Struct, gc=False, kw_only=True):
    """One valid transaction: the fields of the contract, and where it came from.

    The JSON is decoded straight into this struct: one pass and one object a message. The fields that are ours carry
    wire names that no producer would choose, and are overwritten after decoding, so nothing can be smuggled in.
    `gc=False`: nothing in it can form a cycle, so the collector need not track it.
    """

    user: Text
    amount: Annotated[float, Meta(ge=0)]
    location: Text
    device: Text
    merchant: Text
    txn_type: Text
    timestamp: str
    transaction_id: Text | None = None
    latitude: Latitude | None = None
    longitude: Longitude | None = None
    category: Text | None = None
    ip: Text | None = None

    at: float = field(default=0.0, name="redflag::at")  # event time as it counts, seconds since 1970 UTC
    # What the timestamp says, where it is too far ahead to be believed (then `at` is the record's time); else 0.
    ahead_at: float = field(default=0.0, name="redflag::ahead_at")
    partition: int = field(default=0, name="redflag::partition")
    offset: int = field(default=0, name="redflag::offset")
    body: bytes = field(default=b"", name="redflag::body")  # the JSON object to which the verdict is spliced
    record_ms: int = field(default=0, name="redflag::record_ms")  # the record's Kafka timestamp, ms since 1970
    id_is_ours: bool = field(default=False, name="redflag::id_is_ours")  # the input carried no transaction_id
    topic: str = field(default="", name="redflag::topic")
    key: bytes | None = field(default=None, name="redflag::key")  # the message's own
    value: bytes = field(default=b"", name="redflag::value")  # likewise, as it came
    headers: Headers | None = field(default=None, name="redflag::headers")  # likewise


class Rejection(msgspec.Struct, gc=False, frozen=True):
    """A message that is no transaction: what is wrong, in which field, and the message itself, untouched."""

    error: str
    field: str
    partition: int
    offset: int
    record_ms: int
    key: bytes | None
    value: bytes | None
    topic: str = ""
    headers: Headers | None = None
    step: str = ""  # that raised on it, where it is sound by itself
