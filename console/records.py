"""What the console reads: an alert as it stands on its topic."""

from typing import Final

import msgspec

from dataflow.events.decision import Action, Explanation
from dataflow.events.parsing import event_time

LONGEST_NAME: Final = 256
"""Characters of what is looked up by its name; the flow writes none that is longer..."""
LONGEST_ID: Final = 300
"""... but for ids that it makes: a topic's name, which may have 249, and the numbers of a partition and an offset."""
TOLD: Final = 2
"""Entries of the explanation that the queue tells."""


class Decided(msgspec.Struct, gc=False):
    """A decision, as far as the console speaks of it; whatever else stands in the message is in its bytes."""

    transaction_id: str
    user: str
    merchant: str
    amount: float
    timestamp: str
    score: float
    fraudulent: bool
    location: str = ""
    latitude: float | None = None
    longitude: float | None = None
    device: str = ""
    txn_type: str = ""
    ip: str | None = None
    category: str | None = None
    scenario: str | None = None
    action: Action = "review"
    reason: list[str] = []
    rules: list[str] = []
    shadow_rules: list[str] = []
    model_score: float | None = None
    alert_threshold: float | None = None
    ruleset_version: str = ""
    model_version: str = ""
    explanation: list[Explanation] = []
    suppressed: bool = False


class Alert(msgspec.Struct, frozen=True, gc=False):
    """An alert, and where it stands."""

    identity: str  # of the topic
    partition: int
    offset: int
    decided_at: float  # the record's Kafka timestamp, s since 1970
    at: float  # event time, s since 1970
    decision: Decided
    raw: bytes

    @property
    def why(self) -> list[str]:
        """What an analyst reads first: the strongest of the explanation; the rules' reasons where there is none."""
        return [each.text for each in self.decision.explanation[:TOLD]] or self.decision.reason


decode_decision = msgspec.json.Decoder(Decided).decode


def parse_alert(value: bytes | None, identity: str, partition: int, offset: int, record_ms: int) -> Alert | None:
    """An alert from a record of the alerts topic; None where it is none (somebody else wrote it)."""
    if value is None:
        return None
    try:
        decision = decode_decision(value)
        at = event_time(decision.timestamp)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, OverflowError, RecursionError):
        return None
    names = (
        decision.user, decision.merchant, decision.device, decision.ip or "", *decision.rules, *decision.shadow_rules,
    )  # fmt: skip
    if max(map(len, names)) > LONGEST_NAME or len(decision.transaction_id) > LONGEST_ID:
        return None  # PostgreSQL's indexes take no such text, and the flow writes none
    if decision.scenario:  # the producer's own, of any length: to leave that out would hide the alert
        decision.scenario = decision.scenario[:LONGEST_NAME]
    return Alert(identity, partition, offset, record_ms / 1000, at, decision, value)


class Payment(msgspec.Struct, frozen=True, gc=False):
    """A decided transaction, as a user's recent past shows it."""

    at: float  # event time, s since 1970
    amount: float
    merchant: str
    location: str
    device: str
    score: float
    fraudulent: bool
    transaction_id: str
    latitude: float | None = None  # both, or none
    longitude: float | None = None


def payment_of(decision: Decided, at: float) -> Payment:
    """A decision as a payment of its user; a place that is none on Earth is left out."""
    latitude, longitude = decision.latitude, decision.longitude
    if latitude is None or longitude is None or abs(latitude) > 90 or abs(longitude) > 180:
        latitude = longitude = None
    return Payment(
        at, decision.amount, decision.merchant, decision.location, decision.device, decision.score,
        decision.fraudulent, decision.transaction_id, latitude, longitude,
    )  # fmt: skip
