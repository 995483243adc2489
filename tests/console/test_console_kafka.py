"""What the console reads from Kafka it has once, and what it tells stands there once, whenever it is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Message, Producer

from console import recent_payments
from console.feedback_sender import FeedbackSender
from console.reader import LAG_SECONDS, Reader, ends_of
from console.recent_payments import OF_A_USER, RecentPayments
from console.store import Batch, Store
from dataflow.connectors.embedded_broker import EmbeddedBroker
from dataflow.settings import Settings
from tests.conftest import MakeTopic
from tests.console.builders import alert, alert_json
from tests.support.builders import NOON, fields, iso
from tests.support.reading import read_all

COUNTED = "SELECT coalesce(sum(count), 0) FROM figures WHERE kind = 'transactions' AND minute = 0"
CONFIRMED = "SELECT count(*) FROM outbox WHERE confirmed IS NOT NULL"


@contextmanager
def running(settings: Settings, path: Path | str, reader_late: float = 0.0) -> Iterator[Store]:
    """A console without pages; its reader begins so many seconds after its sender."""
    store = Store(path)
    reader = Reader(settings, store)
    sender = FeedbackSender(settings, store, reader)
    sender.start()
    time.sleep(reader_late)
    reader.start()
    try:
        yield store
    finally:
        sender.close()
        reader.close()
        store.close()


def produce(settings: Settings, topic: str, *messages: tuple[str, bytes]) -> None:
    producer = Producer({"bootstrap.servers": settings.brokers, "log_level": 0})
    for user, value in messages:
        producer.produce(topic, key=user.encode(), value=value)
    assert producer.flush(30) == 0


def await_that(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def count(store: Store, query: str) -> int:
    return int(store.database.read().execute(query).fetchone()[0])


def feedback(settings: Settings) -> list[Message]:
    return read_all(settings, [settings.feedback_topic])


def told(settings: Settings) -> list[tuple[str, bool]]:
    values = [msgspec.json.decode(message.value() or b"") for message in feedback(settings)]
    return sorted((each["transaction_id"], each["fraud"]) for each in values)


def environment(settings: Settings) -> dict[str, str]:
    return os.environ | {
        "KAFKA_BROKERS": settings.brokers,
        "ALERTS_TOPIC": settings.alerts_topic,
        "FEEDBACK_TOPIC": settings.feedback_topic,
        "CLASSIFIED_TOPIC": settings.classified_topic,
    }


@contextmanager
def killed_console(settings: Settings, path: Path | str, point: str) -> Iterator[subprocess.Popen[str]]:
    program = Path(__file__).with_name("killed_console.py")
    with subprocess.Popen(
        [sys.executable, str(program), str(path), point],
        env=environment(settings) | {"PYTHONPATH": str(program.parents[2])},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_an_alert_is_stored_within_a_second_of_standing_on_its_topic(settings: Settings, tmp_path: Path) -> None:
    with running(settings, tmp_path / "console.db") as store:
        produce(settings, settings.alerts_topic, ("ann", alert_json("ann")))
        await_that(lambda: count(store, "SELECT count(*) FROM alerts") == 1)
        took = []
        for number in range(5):
            began = time.monotonic()
            produce(settings, settings.alerts_topic, ("ann", alert_json("ann")))
            await_that(lambda n=number: count(store, "SELECT count(*) FROM alerts") == n + 2)  # type: ignore[misc]
            took.append(time.monotonic() - began)
        assert max(took) < 1, took


def test_what_is_no_alert_is_left_out_and_reading_goes_on(settings: Settings, tmp_path: Path) -> None:
    with running(settings, tmp_path / "console.db") as store:
        bad = [
            b"",
            b"[]",
            b"{}",
            b"\xff",
            b'{"user":' * 2000,
            alert_json(timestamp="yesterday"),
            alert_json(amount="x"),
        ]
        produce(settings, settings.alerts_topic, *(("ann", each) for each in bad), ("ann", alert_json("ann")))
        await_that(lambda: count(store, "SELECT count(*) FROM alerts") == 1)


def test_a_console_that_is_killed_again_and_again_has_each_alert_once(settings: Settings, place: str) -> None:
    at_once = 400 if place.startswith("postgresql") else 3000  # so that each is killed in the midst of it
    for turn in range(4):
        produce(settings, settings.alerts_topic, *((f"u{n}", alert_json(f"u{n}", turn=turn)) for n in range(at_once)))
        with killed_console(settings, place, "") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.1 + 0.2 * turn)  # in the midst of reading
            process.send_signal(signal.SIGKILL)
            process.wait()
    with running(settings, place) as store:
        await_that(lambda: count(store, "SELECT count(*) FROM alerts") >= 4 * at_once, 60)
        time.sleep(0.5)
        assert count(store, "SELECT count(*) FROM alerts") == 4 * at_once
        assert count(store, "SELECT count(DISTINCT transaction_id) FROM alerts") == 4 * at_once
        assert count(store, "SELECT sum(alerts) FROM cases") == 4 * at_once
        assert count(store, "SELECT count FROM figures WHERE minute = 0 AND kind = 'alerts'") == 4 * at_once


@pytest.mark.parametrize("point", ["before sending", "before the commit", "after the commit"])
def test_feedback_stands_on_the_topic_once_wherever_the_sender_is_killed(
    settings: Settings, place: str, point: str
) -> None:
    store = Store(place)
    store.ingest(Batch([alert("ann", transaction_id="t1"), alert("bob", transaction_id="t2")]))
    store.label([1], "fraud", "eve")
    store.close()
    produce(settings, settings.feedback_topic, ("x", b"somebody else's"))
    with killed_console(settings, place, point) as process:
        assert process.wait(60) == -signal.SIGKILL
    # The sender must wait for what the reader has yet to read: only that says what stands there.
    with running(settings, place, reader_late=3.0) as store:
        store.label([2], "genuine", "eve")
        store.label([2], "genuine", "eve")
        await_that(lambda: count(store, "SELECT count(*) FROM outbox WHERE confirmed IS NULL") == 0)
    values = [message.value() for message in feedback(settings) if message.value() != b"somebody else's"]
    ids = sorted(msgspec.json.decode(value or b"")["transaction_id"] for value in values)
    assert ids == ["t1", "t2"]


def test_feedback_is_keyed_by_user_and_is_what_the_flow_reads(settings: Settings, tmp_path: Path) -> None:
    from dataflow.events.feedback import Feedback, parse_feedback

    with running(settings, tmp_path / "console.db") as store:
        store.ingest(Batch([alert("ann", transaction_id="t1")]))
        store.label([1], "fraud", "eve")
        await_that(lambda: count(store, "SELECT count(*) FROM outbox WHERE confirmed IS NOT NULL") == 1)
    (message,) = feedback(settings)
    assert message.key() == b"ann"
    label = parse_feedback(message.value(), message.key(), 0, 0, message.timestamp()[1])
    assert isinstance(label, Feedback)
    assert (label.transaction_id, label.user, label.merchant, label.fraud) == ("t1", "ann", "Amazon", True)


def test_on_the_embedded_broker_feedback_is_told_once_too(tmp_path: Path) -> None:
    broker = EmbeddedBroker()
    settings = Settings(brokers=broker.address)
    for _ in range(2):
        with running(settings, tmp_path / "console.db") as store:
            store.ingest(Batch([alert("ann", transaction_id="t1", offset=1)]))
            store.label([1], "fraud", "eve")
            await_that(lambda s=store: count(s, CONFIRMED) == 1)  # type: ignore[misc]
    assert told(settings) == [("t1", True)]
    broker.close()


@pytest.mark.real_kafka  # the embedded broker leaves no marks of transactions
def test_marks_of_transactions_are_not_messages_that_the_console_is_behind(settings: Settings, tmp_path: Path) -> None:
    store = Store(tmp_path / "console.db")
    reader = Reader(settings, store)
    sender = FeedbackSender(settings, store, reader)
    reader.start()
    sender.start()
    try:
        store.ingest(Batch([alert("ann", transaction_id="t1", offset=1)]))
        store.label([1], "fraud", "eve")
        await_that(lambda: count(store, CONFIRMED) == 1)
        assert sum(ends_of(settings, settings.feedback_topic).values()) == 2  # the message and the mark
        time.sleep(2 * LAG_SECONDS)  # by then it was looked at
        assert reader.behind == 0
        produce(settings, settings.alerts_topic, ("ann", alert_json("ann")))
        await_that(lambda: count(store, "SELECT count(*) FROM alerts") == 2)
    finally:
        sender.close()
        reader.close()
        store.close()


def test_labels_of_others_come_over_the_topic(settings: Settings, tmp_path: Path) -> None:
    with running(settings, tmp_path / "console.db") as store:
        store.ingest(Batch([alert("ann", transaction_id="t1")]))
        other = {
            "transaction_id": "t1", "user": "ann", "merchant": "Amazon", "timestamp": iso(NOON), "fraud": True,
            "labelled_at": iso(NOON + 10),
        }  # fmt: skip
        produce(settings, settings.feedback_topic, ("ann", b"no label"), ("ann", msgspec.json.encode(other)))
        await_that(lambda: count(store, "SELECT count(*) FROM alerts WHERE label = 'fraud'") == 1)
    assert len(feedback(settings)) == 2  # and are not told again


def test_alerts_of_a_topic_that_was_made_anew_are_new(settings: Settings, tmp_path: Path, topics: MakeTopic) -> None:
    path = tmp_path / "console.db"
    produce(settings, settings.alerts_topic, *(("ann", alert_json("ann")) for _ in range(5)))
    with running(settings, path) as store:
        await_that(lambda: count(store, "SELECT count(*) FROM alerts") == 5)
        # As if the offsets were those of an earlier topic of that name.
        store.database.write(lambda connection: connection.execute("UPDATE offsets SET identity = 'earlier'"))
        store.database.write(lambda connection: connection.execute("UPDATE alerts SET identity = 'earlier'"))
    with running(settings, path) as store:
        await_that(lambda: count(store, "SELECT count(*) FROM alerts") == 10)


def test_alerts_that_stream_are_stored_together(settings: Settings, tmp_path: Path) -> None:
    producer = Producer({"bootstrap.servers": settings.brokers, "log_level": 0})
    with running(settings, tmp_path / "console.db") as store:
        for number in range(300):
            producer.produce(settings.alerts_topic, key=b"ann", value=alert_json("ann", transaction_id=f"t{number}"))
            assert producer.flush(30) == 0
            time.sleep(0.005)
        await_that(lambda: count(store, "SELECT count(*) FROM alerts") == 300)
        stored_at_once = "SELECT count(DISTINCT arrived) FROM alerts"
        assert count(store, stored_at_once) < 60  # each by itself, without GATHER_SECONDS


def payment(user: str, amount: float) -> tuple[str, bytes]:
    decision = fields(user, NOON + amount, amount, fraudulent=False, score=0.1, transaction_id=f"p{amount}")
    return user, msgspec.json.encode(decision)


def test_a_users_last_payments_are_kept_in_bounds_and_are_there_after_a_restart(
    settings: Settings, tmp_path: Path
) -> None:
    store = Store(tmp_path / "console.db")
    payments = [payment("ann", n) for n in range(20)]
    produce(settings, settings.classified_topic, *payments, ("ann", b"nonsense"))
    for _ in range(2):
        recent = RecentPayments(settings, store)
        recent.start()
        await_that(lambda r=recent: len(r.of_user("ann")) == OF_A_USER)  # type: ignore[misc]
        await_that(lambda r=recent: r.of_user("ann")[-1].amount == 19)  # type: ignore[misc]
        recent.close()
        assert recent.of_user("bob") == []
    store.close()


def test_of_a_flood_of_payments_all_are_counted_and_the_newest_read(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent_payments, "A_SECOND", 100)
    store = Store(tmp_path / "console.db")
    recent = RecentPayments(settings, store)
    take_in, read = recent._take_in, []

    def note(message: Message, came: recent_payments._Came) -> None:
        read.append(message)
        take_in(message, came)

    monkeypatch.setattr(recent, "_take_in", note)
    recent.start()
    produce(settings, settings.classified_topic, *(payment(f"user{n % 50}", n) for n in range(30_000)))
    await_that(lambda: count(store, COUNTED) == 30_000)
    assert recent.of_user("user49")[-1].amount == 29_999
    produce(settings, settings.classified_topic, payment("ann", 7))
    await_that(lambda: [each.amount for each in recent.of_user("ann")] == [7])
    await_that(lambda: count(store, COUNTED) == 30_001)
    recent.close()
    assert len(read) < 10_000  # the others were not even handed over
    store.close()
