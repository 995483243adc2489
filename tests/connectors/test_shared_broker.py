"""The broker that a run's workers share: one, however many ask; and each is told why there is none."""

from types import SimpleNamespace

import pytest

from tests.support import shared_broker
from tests.support.kafka_server import KafkaServer, KafkaServerError
from tests.support.shared_broker import SharedBroker, ask_for_broker


def test_all_who_ask_are_told_of_one_broker_that_ends_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    monkeypatch.setattr(KafkaServer, "start", lambda _: done.append("start") or SimpleNamespace(bootstrap="here:1"))
    monkeypatch.setattr(KafkaServer, "close", lambda _: done.append("close"))
    shared = SharedBroker()
    assert done == []  # nobody needs one yet
    assert [ask_for_broker(shared.socket) for _ in range(3)] == ["here:1"] * 3
    shared.close()
    assert done == ["start", "start", "start", "close"]  # a start of what runs does nothing


def test_whoever_asks_is_told_why_it_did_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: KafkaServer) -> None:
        msg = "its log ends: no space"
        raise KafkaServerError(msg)

    monkeypatch.setattr(shared_broker.KafkaServer, "start", fail)
    shared = SharedBroker()
    for _ in range(2):
        with pytest.raises(KafkaServerError, match="no space"):
            ask_for_broker(shared.socket)
    shared.close()
