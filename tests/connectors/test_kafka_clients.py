"""Waiting for a broker: what is said of it, and when. Without a broker, and by a clock of the tests' own."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from dataflow.connectors import kafka_clients
from dataflow.connectors.connection_reports import ConnectionReports
from dataflow.errors import UserError
from dataflow.settings import Settings
from tests.connectors.test_connection_reports import CLOSED_LATER, REFUSED, Clock, report

Lines = Callable[[], list[str]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(kafka_clients.time, "monotonic", made)
    monkeypatch.setattr(kafka_clients.time, "sleep", made.pass_by)
    monkeypatch.setattr(kafka_clients, "_waits_told", set())
    return made


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Lines:
    caplog.set_level(logging.INFO, logger="redflag.kafka")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "redflag.kafka"]


class Unanswered:
    """A consumer that gets no answer, and hears from `at` on that its connections fail in that way."""

    def __init__(self, clock: Clock, reports: ConnectionReports, failures: list[tuple[float, str]]):
        self._clock, self._reports, self._failures = clock, reports, failures

    def list_topics(self, _topic: str, timeout: float) -> Any:
        self._clock.now += timeout
        raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    def poll(self, _timeout: float) -> None:
        for at, text in self._failures:
            if self._clock.now >= at:
                report(self._reports, text)


def end(clock: Clock, *failures: tuple[float, str]) -> str:
    """How a start ends that never gets an answer."""
    settings = Settings(brokers="kafka:9092")
    reports = ConnectionReports(settings, clock)
    with pytest.raises(UserError) as ended:
        kafka_clients._wait_for_partitions(settings, "any", Unanswered(clock, reports, list(failures)), reports)
    return str(ended.value)


@pytest.mark.parametrize("at", [0.5, 1.5, 2.5, 3.5, 4.5, 5.5])
def test_a_mistake_is_said_in_one_line_however_late_its_first_sign_comes(clock: Clock, said: Lines, at: float) -> None:
    """On a busy machine the first connection may come about only seconds after the start."""
    assert "as if it expected a user and a password" in end(clock, (at, CLOSED_LATER))
    assert said() == []
    assert clock.now < kafka_clients.BROKER_WAIT_SECONDS / 2


def test_a_broker_that_refuses_connections_is_waited_for_and_that_is_said_once(clock: Clock, said: Lines) -> None:
    assert "Connection refused" in end(clock, (0.5, REFUSED))
    (line,) = said()
    assert "Connection refused" in line
    assert line.endswith("Waiting for up to 30 s")
    assert clock.now >= kafka_clients.BROKER_WAIT_SECONDS


def test_a_broker_of_which_nothing_is_heard_is_waited_for_and_that_is_said_once(clock: Clock, said: Lines) -> None:
    assert "no broker answers at kafka:9092" in end(clock)
    assert len(said()) == 1


def test_a_mistake_is_said_also_where_the_broker_was_not_up_at_first(clock: Clock, said: Lines) -> None:
    assert "as if it expected a user and a password" in end(clock, (0.5, REFUSED), (8.0, CLOSED_LATER))
    (line,) = said()
    assert "Connection refused" in line
