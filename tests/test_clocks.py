"""An event dated ahead is decided, counted and marked; it blinds no rule, and ruins no profile."""

from typing import Any

import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_LOG_APPEND_TIME, Message

from dataflow.events.feedback import Feedback
from dataflow.events.transaction import Transaction
from dataflow.settings import Settings
from tests.support.builders import DAY, HOUR, MINUTE, NOON, iso, raw
from tests.support.lanes import Lanes


def message(
    at: float, record: float | None = None, *, offset: int = 0, kind: int = TIMESTAMP_CREATE_TIME, **others: Any
) -> Message:
    """A transaction as it stands on the topic; `record` is its Kafka timestamp, the event time if not given."""
    return Message(
        topic="transactions", partition=0, offset=offset, key=b"ann", value=raw(at=at, **others),
        timestamp=(kind, int(1000 * (at if record is None else record))),
    )  # fmt: skip


class Topic:
    """A topic that the flow reads as it is written: the wall clock stands at each message's arrival."""

    def __init__(self, **settings: Any) -> None:
        self.lanes = Lanes(NOON, **settings)

    def put(self, when: float, each: Message) -> None:
        self.lanes.clock = when
        (txn,) = self.lanes.steps.parse([each])
        assert isinstance(txn, Transaction), txn
        self.lanes.read([txn])

    def forty(self, begin: float = NOON) -> None:
        """One payment a minute, each in another country than the one before."""
        for n in range(1, 41):
            when = begin + n * MINUTE
            self.put(when, message(when, offset=n, location="US" if n % 2 else "IN", amount=10.0))

    def changes(self) -> list[float]:
        """Seconds since the last for each location change that the rule would see."""
        pairs = zip(self.lanes.fact("location_changed"), self.lanes.fact("seconds_since_last"), strict=True)
        return [seconds for changed, seconds in pairs if changed and seconds <= HOUR]


@pytest.mark.parametrize("ahead", [301.0, HOUR, 3 * HOUR, DAY])
@pytest.mark.parametrize("record_ahead", [0.0, 1.0], ids=["record right", "record wrong too"])
@pytest.mark.parametrize("location", ["IN", "US"])
def test_after_a_payment_dated_ahead_every_location_change_and_payment_counts(
    ahead: float, record_ahead: float, location: str
) -> None:
    topic = Topic()
    topic.put(NOON, message(NOON + ahead, NOON + record_ahead * ahead, location=location))
    topic.forty()
    assert topic.changes() == [MINUTE] * (40 if location == "IN" else 39)
    assert topic.lanes.fact("txn_per_hour") == list(range(41))
    assert topic.lanes.fact("txn_per_day") == list(range(41))
    assert topic.lanes.fact("merchant_per_day") == list(range(41))
    assert topic.lanes.fact("ahead_of_time") == [True] + [False] * 40
    assert topic.lanes.last_at("ann") == topic.lanes.merchant_last_at("Amazon") == NOON + 40 * MINUTE


def test_nor_does_a_record_without_a_time_move_clocks() -> None:
    topic = Topic()
    topic.put(NOON, message(NOON + DAY, 0.0, location="IN"))
    topic.forty()
    assert len(topic.changes()) == 40
    assert topic.lanes.fact("timestamp")[0] == NOON


def test_what_leads_by_less_counts_at_its_own_time() -> None:
    topic = Topic(max_event_lead_seconds=HOUR)
    topic.put(NOON, message(NOON + HOUR, NOON))
    assert topic.lanes.fact("ahead_of_time") == [False]
    assert topic.lanes.last_at("ann") == NOON + HOUR


def test_a_record_that_the_broker_dated_is_not_held_against_the_wall_clock() -> None:
    topic = Topic()
    topic.put(NOON - 9 * DAY, message(NOON, kind=TIMESTAMP_LOG_APPEND_TIME))  # the clock of this machine is wrong
    assert topic.lanes.fact("ahead_of_time") == [False]
    assert topic.lanes.last_at("ann") == NOON


def test_labels_are_held_against_the_same_clocks() -> None:
    lanes = Lanes(NOON)
    value = (
        b'{"transaction_id": "t", "user": "ann", "merchant": "Amazon", "fraud": true, "timestamp": "%b", '
        b'"labelled_at": "%b"}' % (iso(NOON).encode(), iso(NOON + HOUR).encode())
    )
    for kind, record, at in (
        (TIMESTAMP_CREATE_TIME, NOON, NOON),
        (TIMESTAMP_CREATE_TIME, NOON + HOUR, NOON),
        (TIMESTAMP_LOG_APPEND_TIME, NOON + HOUR, NOON + HOUR),
    ):
        topic, stamp = Settings().feedback_topic, (kind, int(record * 1000))
        message = Message(topic=topic, partition=0, offset=0, key=None, value=value, timestamp=stamp)
        (found,) = lanes.steps.parse([message])
        assert isinstance(found, Feedback)
        assert (found.at, found.labelled_at) == (NOON, at)
