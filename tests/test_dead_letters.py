"""The command for dead letters: what it counts and chooses, that each message goes back once, and mended ones."""

import base64
import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import OFFSET_END, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from dataflow.connectors import kafka_clients
from dataflow.connectors.transactional_producer import TransactionalProducer
from dataflow.dead_letters import ledger, mending
from dataflow.dead_letters.__main__ import main
from dataflow.dead_letters.cases import Case, DeadLetters, Rejected, State, read_dead_letters
from dataflow.dead_letters.ledger import Place, Sender, SentBack
from dataflow.errors import UserError
from dataflow.events import output_record as record
from dataflow.settings import Settings
from tests.conftest import Broker
from tests.support.builders import MINUTE, NOON, iso, raw
from tests.support.kafka_server import create_topics
from tests.support.reading import read_all


@pytest.fixture
def settings(broker: Broker, topics: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    names = {
        "TRANSACTIONS_TOPIC": topics("transactions"),
        "INVALID_TOPIC": topics("invalid"),
        "FEEDBACK_TOPIC": topics("feedback"),
        "KAFKA_BROKERS": broker.bootstrap,
    }
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    settings = Settings.load()
    yield settings
    if not broker.embedded:
        admin = AdminClient({"bootstrap.servers": settings.brokers, "log_level": 0})
        for deleted in admin.delete_topics([ledger.ledger_topic(settings)]).values():
            with contextlib.suppress(KafkaException):
                deleted.result(30)


def cut(settings: Settings, topic: str, partition: int, before: int) -> None:
    """As retention does."""
    admin = AdminClient({"bootstrap.servers": settings.brokers, "log_level": 0})
    for done in admin.delete_records([TopicPartition(topic, partition, before)]).values():
        done.result(30)


def produce(settings: Settings, topic: str, value: bytes | None, **others: Any) -> None:
    producer = Producer({"bootstrap.servers": settings.brokers})
    producer.produce(topic, value=value, partition=1, **others)
    assert producer.flush(20) == 0


def give(
    settings: Settings, *values: bytes, key: bytes = b"ann", at: float | None = None, topic: str | None = None
) -> None:
    stamp = {} if at is None else {"timestamp": int(at * 1000)}
    for value in values:
        produce(settings, topic or settings.transactions_topic, value, key=key, **stamp)


def reject(
    settings: Settings,
    *bad: tuple[int, str, str],
    topic: str | None = None,
    headers: tuple[tuple[str, bytes | None], ...] = (),
    more: tuple[tuple[str, bytes | None], ...] = (),
) -> None:
    """Puts rejections of transactions[1] where the flow would: offset, error and field of each."""
    topic = topic or settings.transactions_topic
    by_place = {(m.partition(), m.offset()): m for m in read_all(settings, [topic])}
    for offset, error, field in bad:
        message = by_place[1, offset]
        origin = (
            (record.SOURCE_TOPIC, topic.encode()),
            (record.SOURCE_PARTITION, b"1"),
            (record.SOURCE_OFFSET, str(offset).encode()),
            (record.SOURCE_TIMESTAMP, str(message.timestamp()[1]).encode()),
        )
        about = (("error", error.encode()), ("field", field.encode()), *more)
        key, value = message.key(), message.value()
        produce(settings, settings.invalid_topic, value, key=key, headers=[*headers, *about, *origin])


def sent(settings: Settings, topic: str | None = None) -> list[Message]:
    """What was sent back, as who reads what is committed sees it."""
    messages = read_all(settings, [topic or settings.transactions_topic])
    return [m for m in messages if ledger.REPLAYED_FROM in dict(m.headers() or ())]


def entries(settings: Settings) -> list[SentBack]:
    """What is recorded, in the order in which it was sent; the embedded broker's topics have several partitions."""
    found = ledger.read_ledger(settings, settings.transactions_topic)
    return sorted(found, key=lambda entry: entry.sent_to.offset)


def states(settings: Settings, topic: str | None = None) -> dict[tuple[int, int], State]:
    found = read_dead_letters(settings, topic or settings.transactions_topic).cases
    return {(case.origin.partition, case.origin.offset): case.state for case in found}


@pytest.fixture
def three(settings: Settings) -> Settings:
    give(settings, b"not json", raw(amount=-1.0), raw(location=""), at=time.time())
    reject(settings, (0, "not JSON: at 0", ""), (1, "Expected float >= 0", "amount"), (2, "too short", "location"))
    return settings


def test_without_send_it_counts_by_error_and_sends_nothing(three: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "not JSON: at 0" in out
    assert "3 of 3 messages chosen; nothing was sent" in out
    assert sent(three) == []


@pytest.mark.parametrize(
    ("options", "offsets"),
    [
        (["--error", "not json"], [0]),
        (["--error", "json", "--error", "short"], [0, 2]),
        (["--field", "amount"], [1]),
        (["--offset", "1-2"], [1, 2]),
        (["--offset", "1"], [1]),
        (["--partition", "0"], []),
        (["--limit", "1"], [0]),
        (["--since", iso(time.time() + 86_400)], []),
        (["--until", iso(time.time() - 3600)], []),
    ],
)
def test_what_is_chosen_goes_back_as_it_was(three: Settings, options: list[str], offsets: list[int]) -> None:
    assert main([*options, "--send"]) == 0
    by_place = {(m.partition(), m.offset()): m for m in read_all(three, [three.transactions_topic])}
    found = {int(dict(m.headers())[ledger.REPLAYED_FROM].rsplit(b"-", 1)[1]): m for m in sent(three)}
    assert sorted(found) == offsets
    for offset, message in found.items():
        original = by_place[1, offset]
        assert (message.key(), message.value(), message.partition()) == (original.key(), original.value(), 1)


def test_a_second_replay_sends_nothing(three: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--field", "amount", "--send"]) == 0
    assert main(["--send"]) == 0
    assert main(["--send"]) == 0
    assert "0 of 3 messages sent back" in capsys.readouterr().out
    assert len(sent(three)) == 3


def test_what_was_rejected_again_is_one_message_and_not_sent_again(
    three: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--field", "amount", "--send"]) == 0
    (message,) = sent(three)
    reject(three, (message.offset(), "Expected float >= 0", "amount"))
    assert states(three) == {(1, 0): State.OPEN, (1, 1): State.AGAIN, (1, 2): State.OPEN}
    assert main(["--field", "amount", "--send"]) == 0
    assert len(sent(three)) == 1
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", "120")
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"Expected float >= 0 +│ amount +│ +1 │ +0 │ +1 │ +0 │", shown), shown
    assert "2 of 3 messages chosen" in shown


@pytest.mark.real_kafka
def test_what_was_sent_back_stays_so_when_retention_has_cut_the_topic(three: Settings) -> None:
    assert main(["--field", "amount", "--send"]) == 0
    topic = three.transactions_topic
    cut(three, topic, 1, OFFSET_END)
    assert read_all(three, [topic]) == []
    assert states(three) == {(1, 0): State.OPEN, (1, 1): State.SENT, (1, 2): State.OPEN}
    assert main(["--send"]) == 0
    assert len(sent(three)) == 2


def test_a_header_that_a_producer_forged_hides_no_dead_letter(three: Settings) -> None:
    names = [f"{three.transactions_topic}-1-{offset}".encode() for offset in range(3)]
    for name in names:
        produce(three, three.transactions_topic, raw(), headers=[(ledger.REPLAYED_FROM, name)])
    assert set(states(three).values()) == {State.OPEN}
    assert main(["--send"]) == 0
    assert sorted(dict(m.headers())[ledger.REPLAYED_FROM] for m in sent(three)) == sorted(2 * names)


def test_a_rejection_of_a_forged_message_is_one_of_its_own(three: Settings) -> None:
    name = f"{three.transactions_topic}-1-1".encode()
    produce(three, three.transactions_topic, b"no", headers=[(ledger.REPLAYED_FROM, name)])
    reject(three, (3, "not JSON: at 0", ""))
    assert list(states(three)) == [(1, 0), (1, 1), (1, 2), (1, 3)]


@pytest.mark.real_kafka
@pytest.mark.parametrize("call", [0, 1], ids=["before the entries are written", "before the commit"])
def test_a_sender_killed_in_between_has_sent_nothing(three: Settings, call: int) -> None:
    """The next one sends everything, once."""
    fault = f"""
import os, signal
from dataflow.connectors.transactional_producer import TransactionalProducer
from dataflow.dead_letters.__main__ import main
append = TransactionalProducer.append
calls = 0
def append_and_die(self, records):
    global calls
    written = append(self, records)
    if calls == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    calls += 1
    return written
TransactionalProducer.append = append_and_die
main(["--send"])
"""
    done = subprocess.run([sys.executable, "-c", fault], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert set(states(three).values()) == {State.OPEN}
    assert main(["--send"]) == 0
    assert [dict(m.headers())[ledger.REPLAYED_FROM][-3:] for m in sent(three)] == [b"1-0", b"1-1", b"1-2"]
    assert set(states(three).values()) == {State.SENT}


@pytest.mark.real_kafka
def test_of_two_senders_at_once_the_earlier_ends_in_one_line(
    three: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first has read what is to be sent, and written it, when the second begins."""
    written, go_on = threading.Event(), threading.Event()
    append = TransactionalProducer.append

    def append_and_wait(self: TransactionalProducer, records: Any) -> Any:
        places = append(self, records)
        if not written.is_set():
            written.set()
            assert go_on.wait(60)
        return places

    monkeypatch.setattr(TransactionalProducer, "append", append_and_wait)
    ended: list[int] = []
    first = threading.Thread(target=lambda: ended.append(main(["--send"])))
    first.start()
    assert written.wait(60)
    assert main(["--send"]) == 0
    go_on.set()
    first.join(60)
    assert ended == [2]
    assert re.fullmatch(
        r"redflag: another process began to send as .*; 0 of 3 messages were sent back, .*\n", capfd.readouterr().err
    )
    assert len(sent(three)) == 3


def test_what_another_sent_before_this_one_could_is_not_sent_again(
    three: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one comes when this one is about to end all others."""
    begin = Sender.__init__

    def after_the_other(self: Sender, *arguments: Any) -> None:
        monkeypatch.setattr(Sender, "__init__", begin)
        assert main(["--send"]) == 0
        begin(self, *arguments)

    monkeypatch.setattr(Sender, "__init__", after_the_other)
    assert main(["--send"]) == 0
    assert len(sent(three)) == 3


def test_the_same_offset_of_a_topic_made_anew_is_another_message(three: Settings) -> None:
    assert main(["--send"]) == 0
    (stamp,) = (entry.rejected.timestamp for entry in entries(three) if entry.rejected.offset == 1)
    origin = {
        record.SOURCE_TOPIC: three.transactions_topic.encode(),
        record.SOURCE_PARTITION: b"1",
        record.SOURCE_OFFSET: b"1",
        record.SOURCE_TIMESTAMP: str(stamp + 1).encode(),
    }
    produce(three, three.invalid_topic, b"no", headers=list(origin.items()))
    found = read_dead_letters(three, three.transactions_topic).cases
    assert [case.state for case in found if case.origin.offset == 1] == [State.SENT, State.OPEN]


@pytest.mark.real_kafka
def test_a_second_rejection_is_traced_where_the_broker_sets_the_time(
    settings: Settings, topics: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSACTIONS_TOPIC", topics("transactions", config={"message.timestamp.type": "LogAppendTime"}))
    settings = Settings.load()
    give(settings, b"no")
    reject(settings, (0, "not JSON: at 0", ""))
    assert main(["--send"]) == 0
    (message,) = sent(settings)
    reject(settings, (message.offset(), "not JSON: at 0", ""))
    assert states(settings) == {(1, 0): State.AGAIN}


@pytest.mark.real_kafka
def test_small_messages_go_back_to_a_topic_that_takes_small_batches(
    settings: Settings, topics: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSACTIONS_TOPIC", topics("transactions", config={"max.message.bytes": 2000}))
    settings = Settings.load()
    give(settings, *[b"x" * 400] * 10)
    reject(settings, *[(offset, "not JSON: at 0", "") for offset in range(10)])
    assert main(["--send"]) == 0
    assert len(sent(settings)) == 10


def test_the_headers_of_the_producer_go_back_too(settings: Settings) -> None:
    give(settings, b"no")
    reject(settings, (0, "not JSON: at 0", ""), headers=(("traceparent", b"00-ab"), ("producer_error", None)))
    assert main(["--send"]) == 0
    (message,) = sent(settings)
    name = f"{settings.transactions_topic}-1-0".encode()
    assert message.headers() == [("traceparent", b"00-ab"), ("error", None), (ledger.REPLAYED_FROM, name)]


def test_headers_of_the_producer_that_have_our_names_say_nothing(three: Settings) -> None:
    (message,) = (m for m in read_all(three, [three.transactions_topic]) if m.offset() == 1)
    forged = (
        (record.SOURCE_TOPIC, b"other"),
        (record.SOURCE_OFFSET, b"7"),
        (record.ERROR, b"forged"),
        (ledger.REPLAYED_FROM, b"other-1-7"),
    )
    reject(three, (1, "again", "amount"), headers=forged)
    (case,) = (
        c for c in read_dead_letters(three, three.transactions_topic).cases if c.origin.offset == message.offset()
    )
    assert (case.newest.error, case.newest.headers, case.state) == ("again", [], State.OPEN)


def test_the_beginning_of_a_value_too_large_is_not_sent_back(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    give(settings, b'{"user"')
    reject(settings, (0, "too large", ""), more=((record.FULL_SIZE, b"1000100"),))
    assert main(["--send"]) == 0
    assert sent(settings) == []
    assert "1 of them are only the beginning of a message too large" in capsys.readouterr().out


def test_a_record_that_the_flow_did_not_write_is_counted_and_left_out(
    three: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    produce(three, three.invalid_topic, b"x", headers=[(record.SOURCE_TOPIC, three.transactions_topic.encode())])
    produce(three, three.invalid_topic, b"x")
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert "2 other records there do not say where they come from" in shown
    assert "3 of 3 messages chosen" in shown


def test_rejected_feedback_is_another_matter_and_goes_back_to_its_own_topic(three: Settings) -> None:
    assert states(three, three.feedback_topic) == {}
    give(three, b"no label", topic=three.feedback_topic)
    reject(three, (0, "not JSON: at 0", ""), topic=three.feedback_topic)
    assert main(["--feedback", "--send"]) == 0
    (message,) = sent(three, three.feedback_topic)
    assert (message.partition(), message.value()) == (1, b"no label")
    assert states(three, three.feedback_topic) == {(1, 0): State.SENT}
    assert set(states(three).values()) == {State.OPEN}
    assert sent(three) == []


def test_to_look_makes_no_topic(three: Settings) -> None:
    assert main([]) == 0
    consumer = kafka_clients.make_consumer(three)
    assert ledger.ledger_topic(three) not in consumer.list_topics(timeout=10).topics
    consumer.close()


@pytest.mark.real_kafka
def test_a_record_of_what_was_sent_that_the_broker_would_cut_is_refused(
    three: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    create_topics(three.brokers, {ledger.ledger_topic(three): 1}, {"retention.ms": 60_000})
    assert main(["--send"]) == 2
    assert re.fullmatch(
        r"redflag: topic '.*_sent_back' has cleanup.policy=delete.*set it to compact\n", capsys.readouterr().err
    )
    assert sent(three) == []


@pytest.mark.real_kafka
def test_a_record_of_what_was_sent_that_was_cut_is_refused(three: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    name = ledger.ledger_topic(three)
    create_topics(three.brokers, {name: 1})  # kept without limit by the broker's own settings
    assert main(["--field", "amount", "--send"]) == 0
    cut(three, name, 0, 1)
    assert main(["--send"]) == 2
    assert f"{name}[0] begins at offset 1: some of what was sent back is no longer recorded" in capsys.readouterr().err
    assert len(sent(three)) == 1


def test_what_is_no_entry_in_the_record_of_what_was_sent_is_told(
    three: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--field", "amount", "--send"]) == 0
    name = ledger.ledger_topic(three)
    producer = Producer({"bootstrap.servers": three.brokers})
    producer.produce(name, b'{"topic": 1}', key=b"x", partition=0)
    assert producer.flush(20) == 0
    assert main([]) == 2
    assert re.fullmatch(rf"redflag: {name}\[0\] holds at offset \d+ what is no entry .*\n", capsys.readouterr().err)


def exported(settings: Settings, path: Path, *options: str) -> list[dict[str, Any]]:
    assert main([*options, "--export", str(path)]) == 0
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_the_export_says_what_is_wrong_and_is_for_its_owner_only(three: Settings, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    first, second, _ = exported(three, path)
    timestamp = first.pop("timestamp")
    assert abs(timestamp / 1000 - time.time()) < 60
    place = {"topic": three.transactions_topic, "partition": 1}
    assert first == {**place, "offset": 0, "error": "not JSON: at 0", "key": "ann", "value": "not json"}
    assert (second["error"], second["field"]) == ("Expected float >= 0", "amount")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sent(three) == []


def test_an_export_replaces_no_file(three: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mended.jsonl"
    path.write_text("an hour's work")
    assert main(["--export", str(path)]) == 2
    assert path.read_text() == "an hour's work"
    assert re.fullmatch(r"redflag: .*mended.jsonl is there already.*\n", capsys.readouterr().err)


def test_what_was_mended_goes_back_with_its_key_to_its_partition_once(
    three: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = exported(three, tmp_path / "bad.jsonl", "--field", "amount", "--field", "location")
    for line in lines:
        line["value"] = raw(transaction_id=f"mended {line['offset']}").decode()
    mended = write(tmp_path / "mended.jsonl", lines)
    assert main(["--import", mended]) == 0
    assert main(["--import", mended]) == 0
    told = capsys.readouterr()
    assert re.fullmatch(r"redflag: .*: sent back already, and left out: .*-1-1, line 1, and 1 more\n", told.err)
    assert "2 of 2 messages" in told.out
    assert "0 of 2 messages" in told.out
    found = sent(three)
    assert [json.loads(m.value())["transaction_id"] for m in found] == ["mended 1", "mended 2"]
    assert [(m.key(), m.partition()) for m in found] == [(b"ann", 1)] * 2
    assert [(e.rejected.offset, e.origin.offset, e.sent_to.offset, e.mended) for e in entries(three)] == [
        (1, 1, found[0].offset(), True),
        (2, 2, found[1].offset(), True),
    ]
    assert main(["--send"]) == 0
    assert len(sent(three)) == 3


def test_a_key_or_value_that_is_no_text_survives_the_file(settings: Settings, tmp_path: Path) -> None:
    give(settings, b"\xff\x00", key=b"\xfe")
    reject(settings, (0, "not valid UTF-8", ""))
    (line,) = exported(settings, tmp_path / "bad.jsonl")
    assert base64.b64decode(line.pop("value_base64")) == b"\xff\x00"
    assert "value" not in line
    assert "key" not in line
    line["value_base64"] = base64.b64encode(raw()).decode()
    assert main(["--import", write(tmp_path / "mended.jsonl", [line])]) == 0
    (message,) = sent(settings)
    assert (message.key(), message.value()) == (b"\xfe", raw())


def test_what_was_rejected_again_is_mended_and_traced_to_where_it_first_stood(
    three: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    early = exported(three, tmp_path / "early.jsonl", "--field", "amount")
    assert main(["--field", "amount", "--send"]) == 0
    (message,) = sent(three)
    reject(three, (message.offset(), "Expected float >= 0", "amount"))
    (line,) = exported(three, tmp_path / "again.jsonl", "--rejected-again")
    assert line["offset"] == message.offset()
    assert line["origin"] == f"{three.transactions_topic}-1-1"
    early[0]["value"] = line["value"] = raw().decode()
    assert main(["--import", write(tmp_path / "early.jsonl", early)]) == 0
    assert "sent back already, and left out" in capsys.readouterr().err
    assert main(["--import", write(tmp_path / "again.jsonl", [line])]) == 0
    assert len(sent(three)) == 2
    entry = entries(three)[-1]
    assert (entry.rejected.offset, entry.origin.offset) == (message.offset(), 1)
    assert states(three) == {(1, 0): State.OPEN, (1, 1): State.SENT, (1, 2): State.OPEN}


def test_mended_feedback_goes_back_to_its_topic(
    three: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    give(three, b"no label", topic=three.feedback_topic)
    reject(three, (0, "not JSON: at 0", ""), topic=three.feedback_topic)
    (line,) = exported(three, tmp_path / "bad.jsonl", "--feedback")
    label = {"transaction_id": "t", "user": "ann", "merchant": "m", "timestamp": iso(NOON), "labelled_at": iso(NOON)}
    line["value"] = json.dumps({**label, "fraud": True})
    mended = write(tmp_path / "mended.jsonl", [line])
    assert main(["--import", mended]) == 2
    assert "(--feedback is for that of feedback)" in capsys.readouterr().err
    assert main(["--feedback", "--import", mended]) == 0
    (message,) = sent(three, three.feedback_topic)
    assert json.loads(message.value())["fraud"] is True


GOOD = Rejected(Place(1, 1, 5), "Expected float >= 0", "amount", b"ann", raw(amount=-1.0), (), whole=True)
BAD = Rejected(Place(1, 2, 6), "too short", "location", b"ann", raw(location=""), (), whole=True)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"value": raw(amount=-2.0).decode()}, "t-1-2 would be rejected again: Expected .*field amount.*; mend it"),
        ({"value": "not json"}, "t-1-2 would be rejected again: not JSON"),
        ({"value": None}, "t-1-2 would be rejected again: the message has no value"),
        ({"key": "bob"}, "the key of t-1-2 is not the original's"),
        ({"offset": 99}, "t-1-99 of that timestamp is not among the rejected"),
        ({"timestamp": 1}, "t-1-2 of that timestamp is not among the rejected"),
        ({"offset": 1, "timestamp": 5}, "t-1-1 stands on line 1 already"),
        ({"topic": "other"}, "other-1-2 is not a message of"),
        ({"valu": "x"}, "Object contains unknown field `valu`"),
        ({"partition": "one"}, "Expected `int`"),
        ({"value_base64": "AAAA"}, "both value and value_base64"),
        ({"value": None, "value_base64": "?"}, "value_base64 is not base64"),
        ({"value": "\ud800"}, "Input data was truncated"),
        (b"{", "Input data was truncated"),
        (b'{"topic": "\xff"}', ".*utf-8"),
        (b"[" * 100_000, ".*recursion|Expected `object`"),
    ],
    ids=lambda case: str(case)[:40],
)
def test_a_bad_line_is_told_with_its_number(tmp_path: Path, change: dict[str, Any] | bytes, told: str) -> None:
    settings = Settings(transactions_topic="t")
    both = [Case(bad.place, bad, State.OPEN) for bad in (GOOD, BAD)]
    path = tmp_path / "bad.jsonl"
    mending.export(path, "t", both)
    good, bad = (json.loads(line) for line in path.read_text().splitlines())
    good["value"] = bad["value"] = raw().decode()
    text = change if isinstance(change, bytes) else json.dumps({**bad, **change}).encode()
    path.write_bytes(json.dumps(good).encode() + b"\n\n" + text + b"\n")
    with pytest.raises(UserError) as error:
        mending.match(path, mending.read_file(path), settings, "t", DeadLetters(both, {}, 0))
    assert re.fullmatch(rf"{re.escape(str(path))}:3: ({told}).*; nothing was sent", str(error.value)), error.value


def test_of_a_file_with_one_bad_line_nothing_is_sent(
    three: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = exported(three, tmp_path / "bad.jsonl")
    lines[0]["value"] = raw().decode()
    assert main(["--import", write(tmp_path / "mended.jsonl", lines)]) == 2
    assert re.fullmatch(
        r"redflag: .*mended.jsonl:2: .* would be rejected again.*; nothing was sent\n", capsys.readouterr().err
    )
    assert sent(three) == []
    assert set(states(three).values()) == {State.OPEN}


def test_a_file_that_is_not_there_is_one_line(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--import", "no/such/file"]) == 2
    assert capsys.readouterr().err == "redflag: no/such/file cannot be read (No such file or directory)\n"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--import", "f", "--field", "amount"], "--import sends all of its file"),
        (["--import", "f", "--send"], "not allowed with argument"),
        (["--send", "--rejected-again"], "--send does not send again"),
    ],
)
def test_options_that_contradict_each_other_are_told(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(options)
    assert told in capsys.readouterr().err


@pytest.mark.real_kafka
def test_a_message_that_the_topic_does_not_take_is_told_and_the_others_are_sent_later(
    three: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = exported(three, tmp_path / "bad.jsonl", "--field", "amount")
    line["value"] = raw(note="x" * 2_000_000).decode()
    assert main(["--import", write(tmp_path / "mended.jsonl", [line])]) == 2
    assert re.fullmatch(
        r"redflag: a record of 2000\d+ bytes was not taken by .*\[1\] .*; 0 of 1 messages were sent back, .*\n",
        capsys.readouterr().err,
    )
    assert main(["--send"]) == 0
    assert len(sent(three)) == 3


@pytest.mark.parametrize("options", [["--offset", "x"], ["--since", "yesterday"], ["--partition", "all"]])
def test_a_wrong_option_is_told(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(options)
    assert options[1] in capsys.readouterr().err


def test_no_broker_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("KAFKA_BROKERS", "127.0.0.1:1")
    monkeypatch.setattr(kafka_clients, "BROKER_WAIT_SECONDS", 0.5)
    assert main([]) == 2
    assert re.fullmatch(r"redflag: no broker answers at .*\n", capsys.readouterr().err)


def test_sending_twice_decides_once(
    settings: Settings,
    topics: Callable[..., str],
    model_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A transaction of a day and a bit ahead is rejected; sent back when its time has come, it is decided, once."""
    monkeypatch.setenv("ALERTS_TOPIC", topics("alerts"))
    monkeypatch.setenv("CLASSIFIED_TOPIC", topics("classified"))
    settings = Settings.load()
    env = {
        **os.environ,
        "MODEL_FILE": str(model_file),
        "RECOVERY_DIR": str(tmp_path / "recovery"),
        "RECOVERY_INTERVAL": "1",
    }
    # By the clock of its producer it was: its Kafka timestamp is that of two days before.
    early = raw(at=NOON + MINUTE, transaction_id="early")
    give(settings, early, b"not json", at=NOON - 2 * 86_400)
    flow = subprocess.Popen([sys.executable, "-m", "dataflow.detect"], env=env, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: len(read_all(settings, [settings.invalid_topic])) == 2)
        assert main(["--error", "day ahead", "--send"]) == 0
        assert main(["--error", "day ahead", "--send"]) == 0
        wait_for(lambda: len(read_all(settings, [settings.alerts_topic, settings.classified_topic])) >= 1)
        assert main(["--error", "day ahead", "--send"]) == 0
        time.sleep(1.0)
        decisions = read_all(settings, [settings.alerts_topic, settings.classified_topic])
        assert [json.loads(m.value())["transaction_id"] for m in decisions] == ["early"]
        assert len(read_all(settings, [settings.invalid_topic])) == 2
    finally:
        flow.send_signal(signal.SIGTERM)
        assert flow.wait(60) == 0, flow.communicate()[1]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
