"""When a process is live, and when it is ready."""

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from dataflow.connectors.delivery import Delivery
from dataflow.errors import UserError
from dataflow.process import health, metrics_server
from dataflow.process.health import Health, goes_round, stops_going_round, waits_for_broker
from dataflow.settings import Settings
from tests.support.kafka_server import free_ports


class Clock:
    """Seconds that the test moves."""

    now = 50.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(health, "time", found)
    monkeypatch.setattr(health, "_rounds", {})
    return found


@pytest.fixture
def served(clock: Clock) -> Iterator[tuple[Health, str]]:
    it = Health()
    url = metrics_server.serve("127.0.0.1:0", 0, it)
    assert url is not None
    yield it, url.removeprefix("http://").removesuffix("/metrics")


def ask(place: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{place}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_before_it_reads_it_is_live_and_not_ready(served: tuple[Health, str]) -> None:
    assert ask(served[1] + "/live") == (200, "live\n")
    assert ask(served[1] + "/ready") == (503, "not ready: it does not read\n")


def test_ready_says_in_one_line_all_that_is_wrong_and_is_back_when_nothing_is(served: tuple[Health, str]) -> None:
    it, url = served
    wrong: list[str | None] = [None, None]
    it.requires(lambda: wrong[0])
    it.requires(lambda: wrong[1])
    goes_round()
    assert ask(url + "/ready") == (200, "ready\n")
    wrong[:] = "no broker has answered for 12 s", "the last snapshot is 40 s old"
    assert ask(url + "/ready") == (
        503,
        "not ready: no broker has answered for 12 s; the last snapshot is 40 s old\n",
    )
    assert ask(url + "/live")[0] == 200
    wrong[:] = None, None
    assert ask(url + "/ready") == (200, "ready\n")


def test_a_worker_that_does_not_go_round_is_not_live_and_neither_ready(
    served: tuple[Health, str], clock: Clock
) -> None:
    thread = threading.Thread(target=goes_round)  # which then hangs
    thread.start()
    thread.join()
    clock.now += health.HUNG_SECONDS
    goes_round()
    assert ask(served[1] + "/live") == (200, "live\n")
    clock.now += 1
    goes_round()
    assert ask(served[1] + "/live") == (503, "not live: a worker has not gone round for 61 s\n")
    assert ask(served[1] + "/ready") == (503, "not ready: a worker has not gone round for 61 s\n")


def test_a_worker_that_waits_for_the_broker_or_has_ended_has_not_hung(clock: Clock) -> None:
    it = Health()
    goes_round()
    for _ in range(100):
        clock.now += 50
        waits_for_broker()
        assert it.hung() is None
    stops_going_round()
    clock.now += 1_000
    assert it.hung() is None


def test_who_reads_nothing_is_not_watched_for_having_waited_once(clock: Clock) -> None:
    waits_for_broker()
    clock.now += 1_000
    assert Health().hung() is None


def test_a_worker_that_flushes_to_a_broker_that_is_away_goes_round_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_rounds", {})
    (port,) = free_ports(1)
    delivery = Delivery(Settings(brokers=f"127.0.0.1:{port}", delivery_timeout_seconds=2))
    delivery.produce("topic", value=b"x")
    goes_round()
    began = time.monotonic()
    with pytest.raises(UserError, match="was not taken"):
        delivery.flush()
    assert time.monotonic() - began > 1.5
    assert health._rounds[threading.get_ident()] - began > 1


def test_what_is_not_there_says_what_is(served: tuple[Health, str]) -> None:
    assert ask(served[1] + "/") == (404, "there are /metrics, /ready and /live\n")
    status, metrics = ask(served[1] + "/metrics")
    assert status == 200
    assert "# TYPE redflag_decisions_total counter" in metrics
