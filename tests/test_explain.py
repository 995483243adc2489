"""The command that prints an alert: its layout, what it finds, and what it says where there is nothing."""

from collections.abc import Callable

import msgspec
import pytest
from confluent_kafka import Producer
from rich.cells import cell_len

from dataflow.connectors import kafka_clients
from dataflow.events.decision import Explanation
from dataflow.explain import Decided, find, layout, main
from dataflow.settings import Settings
from tests.conftest import Broker
from tests.support.builders import fields

WHY = [
    Explanation("amount", 412.5, 67.8, 0.4, "amount 412.50 is 6.1 times this user's usual 67.80", 6.1),
    Explanation("new_device", True, False, 0.1, "device mobile-3 is none of those that are known of this user"),
    Explanation("rule:high_amount", 412.5, None, 0.0, "High amount (amount 412.50)"),
]


def decision(**others: object) -> dict[str, object]:
    """A decision's message as an object."""
    verdict = {
        "transaction_id": "t-1", "fraudulent": True, "reason": ["High amount", "ML anomaly detection"], "score": 0.913,
        "rules": ["high_amount", "ml_anomaly"], "ruleset_version": "feed", "model_version": "beef", "action": "review",
        "model_score": 0.9, "alert_threshold": 0.412, "explanation": WHY,
    }  # fmt: skip
    return {**fields(amount=412.5), **verdict, **others}


def shown(**others: object) -> str:
    decided = find([msgspec.json.encode(decision(**others))], str(others.get("transaction_id", "t-1")))
    assert decided is not None
    return layout(decided)


def test_an_alert_says_what_it_is_and_why_the_strongest_reason_first() -> None:
    lines = shown().splitlines()
    assert lines[0] == "Alert t-1"
    assert "  amount    412.50" in lines
    assert "  merchant  Amazon (purchase)" in lines
    assert "  action    review" in lines
    assert "  score     0.913; the model's own 0.900, which alerts from 0.412" in lines
    assert "  reasons   High amount; ML anomaly detection" in lines
    assert lines[-1] == "  decided by model beef and rules feed"
    text = " ".join(shown().split())
    places = [text.index(piece) for piece in ("6.1 times this user's usual", "such values: 6.1", "device mobile-3")]
    assert places == sorted(places)


def test_bars_are_as_long_as_their_effects() -> None:
    bars = [line.count("#") for line in shown().splitlines() if "amount 412.50" in line or "device mobile" in line]
    assert bars == [20, 5, 0]
    only = [Explanation("rule:r", True, None, 0.0, "High")]
    assert "#" not in shown(explanation=only)


@pytest.mark.parametrize("long", ["x" * 256, "word " * 51, "漢字" * 128])
def test_nothing_is_wider_than_80_columns(long: str) -> None:
    why = [Explanation("rule:r", long, None, 0.5, long)]
    out = shown(merchant=long, device=long, reason=[long, long], transaction_id=long.strip(), explanation=why)
    assert max(cell_len(line) for line in out.splitlines()) <= 80
    for piece in ("x" * 40, "word word", "漢字漢字"):
        assert (piece in out) == (piece[:4] in long)


@pytest.mark.parametrize("name", ["merchant", "device", "location", "user", "txn_type"])
def test_control_characters_and_markup_are_shown_not_obeyed(name: str) -> None:
    out = shown(**{name: "a\x1b[31mb\x07\u202ec\rd[bold]e"})
    assert not [c for c in out if not c.isprintable() and c != "\n"]
    assert "a�[31mb�" in out
    assert "[bold]e" in out


def test_a_decision_of_an_older_version_is_shown_as_far_as_it_goes() -> None:
    names = ("action", "model_score", "alert_threshold", "explanation")
    old = {name: value for name, value in decision().items() if name not in names}
    decided = find([msgspec.json.encode(old)], "t-1")
    assert decided is not None
    assert "  score     0.913\n" in layout(decided)
    assert "an older version" in layout(decided)


def test_the_last_of_several_is_found_and_what_others_wrote_is_passed_over() -> None:
    values = [b"no json", None, b"\xff", b"[]", b'{"transaction_id": "t-1"}']
    values += [msgspec.json.encode(decision(score=score)) for score in (0.1, 0.2)]
    values.append(msgspec.json.encode(decision(transaction_id="t-2")))
    found = find(values, "t-1")
    assert isinstance(found, Decided)
    assert found.score == 0.2
    assert find(values, "t-3") is None


@pytest.fixture
def settings(broker: Broker, topics: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    names = {
        "ALERTS_TOPIC": topics("alerts"),
        "CLASSIFIED_TOPIC": topics("classified"),
        "KAFKA_BROKERS": broker.bootstrap,
    }
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    settings = Settings.load()
    producer = Producer({"bootstrap.servers": settings.brokers})
    genuine = decision(transaction_id="t-2", fraudulent=False, reason=[], rules=[], action="approve", explanation=[])
    for topic, value in ((settings.alerts_topic, decision()), (settings.classified_topic, genuine)):
        kafka_clients.count_partitions(settings, topic)
        producer.produce(topic, msgspec.json.encode(value))
    assert producer.flush(20) == 0
    return settings


def test_it_finds_what_stands_on_the_topics(
    settings: Settings, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["t-1"]) == 0
    assert capsys.readouterr().out.startswith("Alert t-1\n")
    assert main(["t-2", "--from", "classified"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Not an alert: t-2\n")
    assert "#" not in out

    for arguments, says in (
        (["t-2"], f"there is no decision on 't-2' on '{settings.alerts_topic}': --from classified looks"),
        (["t-1", "--from", "classified"], f"there is no decision on 't-1' on '{settings.classified_topic}'"),
        (["\x1b[31m"], r"there is no decision on '\x1b[31m'"),
    ):
        caplog.clear()
        assert main(arguments) == 2
        assert capsys.readouterr().out == ""
        (record,) = caplog.records
        assert record.getMessage().startswith(says)
