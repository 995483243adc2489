"""How the flow serves: what its metrics, the model's JSON and the newest alerts say, and what is said of that."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry, Gauge

from console.flow_metrics import READ_EVERY_SECONDS, WINDOW_SECONDS, FlowMetrics, quantile
from console.pages.service_part import rows_of
from console.service import Promise, Service, newest_of, promise_of
from dataflow.metrics import BatchHistogram, Metric
from dataflow.process import metrics_server
from tests.console.builders import Clock, Console, alert
from tests.support.builders import HOUR, NOON, iso
from tests.support.kafka_server import free_ports


class Flow:
    """Metrics as a process of the flow serves them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.lag = Gauge("redflag_consumer_lag_messages", "behind", ["topic", "partition"], registry=self.registry)
        about = Metric("redflag_end_to_end_latency_seconds", "histogram", "seconds", (), "latency")
        self.latency = BatchHistogram(about, (0.01, 0.1, 1.0), self.registry)
        url = metrics_server.serve("127.0.0.1:0", 0, registry=self.registry)
        assert url is not None
        self.address = url.removeprefix("http://").removesuffix("/metrics")


def nobody() -> str:
    (port,) = free_ports(1)
    return f"127.0.0.1:{port}"


def test_lag_and_latency_are_summed_over_the_processes_of_the_flow() -> None:
    one, other = Flow(), Flow()
    one.lag.labels("transactions", "0").set(7)
    other.lag.labels("transactions", "1").set(5)
    one.latency.add([0.05] * 98)
    other.latency.add([0.5] * 2)
    found = FlowMetrics(f"{one.address},{other.address}").figures()
    assert (found.missing, found.lag, found.since_start) == ("", 12, True)
    assert 0.01 < found.p50 < 0.1
    assert 0.1 < found.p99 < 1.0


def test_latency_is_of_the_last_minute_once_that_has_been_looked_at() -> None:
    flow, clock = Flow(), Clock()
    flow.latency.add([0.5] * 1000)
    flow.lag.labels("transactions", "0").set(0)
    read = FlowMetrics(flow.address, clock)
    assert read.figures().p50 > 0.1
    flow.latency.add([0.005] * 10)
    clock.now += READ_EVERY_SECONDS / 2
    assert read.figures().p50 > 0.1  # not asked again so soon
    clock.now += WINDOW_SECONDS
    found = read.figures()
    assert not found.since_start
    assert found.p99 < 0.01  # none of the thousand


def test_a_flow_that_was_started_anew_is_counted_anew() -> None:
    first, second, clock = Flow(), Flow(), Clock()
    for flow, value, times in ((first, 0.5, 1000), (second, 0.005, 10)):
        flow.lag.labels("transactions", "0").set(0)
        flow.latency.add([value] * times)
    read = FlowMetrics(first.address, clock)
    read.figures()
    read._addresses = [second.address]
    clock.now += 2 * WINDOW_SECONDS
    found = read.figures()
    assert found.since_start
    assert found.p99 < 0.01
    second.latency.add([0.005] * 2000)  # more than the first had when it ended
    clock.now += READ_EVERY_SECONDS
    assert read.figures().since_start


@pytest.mark.parametrize(("addresses", "said"), [
    (nobody, "refused"),
    (lambda: Flow().address + "/other?", "Not Found"),
])  # fmt: skip
def test_a_flow_that_does_not_answer_is_said(addresses: Callable[[], str], said: str) -> None:
    found = FlowMetrics(addresses()).figures()
    assert said in found.missing
    assert math.isnan(found.lag)


def test_metrics_of_something_else_are_no_flows() -> None:
    url = metrics_server.serve("127.0.0.1:0", 0, registry=CollectorRegistry())
    assert url is not None
    assert "no flow of Redflag" in FlowMetrics(url.split("/")[2]).figures().missing


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ({1.0: 50, 2.0: 100, math.inf: 100}, 0.5, 1.0),
        ({1.0: 50, 2.0: 100, math.inf: 100}, 0.75, 1.5),
        ({1.0: 0, 2.0: 4, math.inf: 4}, 0.25, 1.25),
        ({1.0: 1, math.inf: 100}, 0.99, 1.0),  # beyond the last bound
    ],
)
def test_quantiles_are_those_of_prometheus(buckets: dict[float, float], share: float, expected: float) -> None:
    assert quantile(buckets, share) == pytest.approx(expected)
    assert math.isnan(quantile({1.0: 0, math.inf: 0}, share))


def model(**point: Any) -> bytes:
    expected = {"threshold": 0.2, "alerts_a_day": {"value": 85.0, "low": 80.0, "high": 90.0}}
    at = {"alert": 0.2, "measured_on": "ten weeks", "expected": expected, **point}
    return msgspec.json.encode({"fingerprint": "0123456789abcdef", "operating_point": at})


def test_the_models_promise_is_read_and_read_again_once_it_is_moved(tmp_path: Path) -> None:
    held = Console(tmp_path / "console.db")
    path = tmp_path / "model.json"
    service = Service(FlowMetrics(nobody()), tmp_path / "model.pkl", lambda: 3)
    connection = held.store.database.read()
    assert "model.json cannot be read (No such file" in service.figures(connection).promise.missing
    path.write_bytes(model())
    found = service.figures(connection)
    assert found.promise.version == "0123456789ab"
    assert found.promise.alerts_a_day is not None
    assert found.promise.alerts_a_day.value == 85.0
    assert found.behind == 3
    path.write_bytes(model(alert=0.25))
    assert service.figures(connection).promise.threshold == 0.25
    held.store.close()


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"\xff", model(alert="x")])
def test_what_is_no_models_json_promises_nothing(raw: bytes) -> None:
    assert "not that of a model" in promise_of(raw).missing


def test_alerts_a_day_are_those_of_the_last_day_by_event_time(place: str) -> None:
    held = Console(place)

    def come(hours: float, count: int, **more: Any) -> None:
        held.come(*(alert("ann", timestamp=iso(NOON + hours * HOUR + n), **more) for n in range(count)))

    come(0, 5, model_version="m0")
    found = newest_of(held.store.database.read())
    assert (found.alerts, found.a_day) == (5, None)  # of four seconds nothing follows
    come(6, 7)
    found = newest_of(held.store.database.read())
    assert found.a_day == pytest.approx(12 * 4, rel=0.01)
    assert found.model_versions == ["m1", "m0"]
    come(40, 3)
    found = newest_of(held.store.database.read())
    assert (found.alerts, found.a_day) == (3, 3.0)  # a whole day with three
    held.store.close()


def said(held: Console, promise: Promise, flow: str) -> dict[str, str]:
    service = Service(FlowMetrics(flow), Path("no-model.pkl"), lambda: 0)
    figures = service.figures(held.store.database.read())
    return dict(rows_of(figures._replace(promise=promise)))


def test_the_overview_says_lag_latency_versions_and_promise_or_why_not(tmp_path: Path) -> None:
    held = Console(tmp_path / "console.db")
    flow = Flow()
    flow.lag.labels("transactions", "0").set(1234)
    flow.latency.add([0.005] * 10)
    rows = said(held, promise_of(model()), flow.address)
    assert rows["flow"] == "1,234 messages behind"
    assert rows["record to decision"] == "p50 5 ms, p99 10 ms, since its start"
    assert rows["alerts a day"] == "too few to say"
    flow.latency.add([3600.0] * 30)  # a backlog of before, say
    assert said(held, promise_of(model()), flow.address)["record to decision"] == (
        "p50 more than 1.0 s, p99 more than 1.0 s, since its start"
    )
    assert rows["promised"] == "85 a day (80 to 90) with alerts from 0.200, measured on ten weeks"
    held.clock.now = NOON + 1.0
    held.come(alert("ann", timestamp=iso(NOON - 3.0)))
    rows = said(held, promise_of(model()), nobody())
    assert "lag and latency are not known" in rows["flow"]
    assert "record to decision" not in rows
    assert rows["event to alert"] == "p50 3.0 s, p99 3.0 s"
    assert rows["alert to console"] == "p50 2.0 s, p99 2.0 s"
    assert rows["model in service"] == "m1"
    assert "the model 0123456789ab, which is not in service" in rows["promised"]
    held.come(alert("bob", timestamp=iso(NOON + HOUR), model_version="0123456789ab", alert_threshold=0.3))
    assert "raised from 0.300 on" in said(held, promise_of(model()), nobody())["promised"]
    held.store.close()


def test_events_of_another_clock_have_no_latency(tmp_path: Path) -> None:
    held = Console(tmp_path / "console.db")
    held.come(alert("ann", timestamp=iso(NOON + 30 * HOUR)))
    assert "another clock" in said(held, Promise("none"), nobody())["event to alert"]
    held.store.close()
