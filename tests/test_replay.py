"""The dead-letter tool: what it counts and chooses, and that replaying twice decides once."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import Message, Producer

from dataflow import record, replay
from dataflow.connectors import exactly_once_sink, kafka_clients
from dataflow.settings import Settings
from tests.builders import MINUTE, NOON, iso, raw
from tests.chaos import train_model
from tests.conftest import Broker
from tests.reading import read_all


@pytest.fixture
def settings(broker: Broker, topics: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    names = {
        "TRANSACTIONS_TOPIC": topics("transactions"),
        "ALERTS_TOPIC": topics("alerts"),
        "CLASSIFIED_TOPIC": topics("classified"),
        "INVALID_TOPIC": topics("invalid"),
        "FEEDBACK_TOPIC": topics("feedback"),
        "KAFKA_BROKERS": broker.bootstrap,
    }
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    return Settings.load()


def give(settings: Settings, *values: bytes, key: bytes = b"ann", at: float | None = None) -> None:
    producer = Producer({"bootstrap.servers": settings.brokers})
    stamp = {} if at is None else {"timestamp": int(at * 1000)}
    for value in values:
        producer.produce(settings.transactions_topic, key=key, value=value, partition=1, **stamp)
    assert producer.flush(20) == 0


def reject(settings: Settings, *cases: tuple[int, str, str]) -> None:
    """Puts rejections of transactions[1] where the flow would: offset, error and field of each."""
    by_place = {(m.partition(), m.offset()): m for m in read_all(settings, [settings.transactions_topic])}
    sink = exactly_once_sink.ExactlyOnceSink(settings, {settings.transactions_topic: (settings.invalid_topic,)})
    part = sink.build_part("write", record.source_key(settings.transactions_topic, 1), None)
    part.write_batch(
        [
            [
                record.Record(
                    settings.invalid_topic,
                    by_place[1, offset].key(),
                    by_place[1, offset].value(),
                    settings.transactions_topic,
                    1,
                    offset,
                    by_place[1, offset].timestamp()[1],
                    [("error", error.encode()), ("field", field.encode())],
                )
                for offset, error, field in cases
            ]
        ]
    )
    part.snapshot()


def sent(settings: Settings) -> list[Message]:
    return [
        m for m in read_all(settings, [settings.transactions_topic]) if replay.REPLAYED_FROM in dict(m.headers() or ())
    ]


@pytest.fixture
def three(settings: Settings) -> Settings:
    give(settings, b"not json", raw(amount=-1.0), raw(location=""), at=time.time())
    reject(settings, (0, "not JSON: at 0", ""), (1, "Expected float >= 0", "amount"), (2, "too short", "location"))
    return settings


def test_without_send_it_counts_by_error_and_sends_nothing(three: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main([]) == 0
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
    assert replay.main([*options, "--send"]) == 0
    by_place = {(m.partition(), m.offset()): m for m in read_all(three, [three.transactions_topic])}
    found = {int(dict(m.headers())[replay.REPLAYED_FROM].rsplit(b"-", 1)[1]): m for m in sent(three)}
    assert sorted(found) == offsets
    for offset, message in found.items():
        original = by_place[1, offset]
        assert (message.key(), message.value(), message.partition()) == (original.key(), original.value(), 1)


def test_a_second_replay_sends_nothing(three: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main(["--field", "amount", "--send"]) == 0
    assert replay.main(["--send"]) == 0
    assert replay.main(["--send"]) == 0
    assert "0 of 3 messages sent back" in capsys.readouterr().out
    assert len(sent(three)) == 3


def test_what_was_rejected_again_counts_once_and_may_be_sent_again(three: Settings) -> None:
    assert replay.main(["--field", "amount", "--send"]) == 0
    (message,) = sent(three)
    reject(three, (message.offset(), "Expected float >= 0", "amount"))
    cases = replay.read_cases(three, three.transactions_topic)
    assert [case.root for case in cases] == [(1, 0), (1, 1), (1, 2)]
    assert not any(case.waits for case in cases)
    assert replay.main(["--field", "amount", "--send"]) == 0
    headers = [dict(m.headers())[replay.REPLAYED_FROM] for m in sent(three)]
    assert headers == [f"{three.transactions_topic}-1-1".encode()] * 2
    assert replay.main(["--field", "amount", "--send"]) == 0
    assert len(sent(three)) == 2


def test_rejected_feedback_is_another_matter(three: Settings) -> None:
    assert replay.read_cases(three, three.feedback_topic) == []


@pytest.mark.parametrize("options", [["--offset", "x"], ["--since", "yesterday"], ["--partition", "all"]])
def test_a_wrong_option_is_told(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        replay.main(options)
    assert options[1] in capsys.readouterr().err


def test_no_broker_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("KAFKA_BROKERS", "127.0.0.1:1")
    monkeypatch.setattr(kafka_clients, "BROKER_WAIT_SECONDS", 0.5)
    assert replay.main([]) == 2
    assert re.fullmatch(r"redflag: no broker answers at .*\n", capsys.readouterr().err)


def test_replaying_twice_decides_once(settings: Settings, tmp_path: Path) -> None:
    """A transaction of a day and a bit ahead is rejected; sent back when its time has come, it is decided, once."""
    env = {
        **os.environ,
        "MODEL_FILE": str(train_model(tmp_path / "model.pkl")),
        "RECOVERY_DIR": str(tmp_path / "recovery"),
        "RECOVERY_INTERVAL": "1",
    }
    # By the clock of its producer it was: its Kafka timestamp is that of two days before.
    early = raw(at=NOON + MINUTE, transaction_id="early")
    give(settings, early, b"not json", at=NOON - 2 * 86_400)
    flow = subprocess.Popen([sys.executable, "-m", "dataflow.detect"], env=env, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: len(read_all(settings, [settings.invalid_topic])) == 2)
        assert replay.main(["--error", "day ahead", "--send"]) == 0
        assert replay.main(["--error", "day ahead", "--send"]) == 0
        wait_for(lambda: len(read_all(settings, [settings.alerts_topic, settings.classified_topic])) >= 1)
        assert replay.main(["--error", "day ahead", "--send"]) == 0
        time.sleep(1.0)
        decisions = read_all(settings, [settings.alerts_topic, settings.classified_topic])
        assert [json.loads(m.value())["transaction_id"] for m in decisions] == ["early"]
        assert len(read_all(settings, [settings.invalid_topic])) == 2
    finally:
        flow.send_signal(signal.SIGTERM)
        assert flow.wait(20) == 0, flow.communicate()[1]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
