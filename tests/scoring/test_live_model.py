"""How a running flow takes a moved operating point: between two batches, of the same model only, or not at all."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bytewax.testing import TestingSink, TestingSource, cluster_main, run_main
from confluent_kafka import Message, Producer

from dataflow.detect import build
from dataflow.errors import UserError
from dataflow.rules import LiveRules
from dataflow.scoring.live_model import LiveModel
from dataflow.scoring.loading import load_model
from dataflow.scoring.metadata import Metadata, Scorer
from dataflow.scoring.operating_point import OperatingPoint
from dataflow.settings import Settings
from dataflow.steps import Routed, written
from tests.conftest import Broker
from tests.rules.builders import rule
from tests.rules.test_reloading import Clock, await_line, metric, until
from tests.support.builders import MINUTE, NOON, message, raw
from tests.support.reading import read_all
from training.train import main as train

RULES = rule("ml_anomaly", "model_alert", "ML anomaly detection")


@pytest.fixture
def model_file(forest_file: Path, tmp_path: Path) -> Path:
    """A copy, of the test's own, that is called as the other model of a test is not."""
    for file in (forest_file, forest_file.with_suffix(".json")):
        shutil.copy(file, tmp_path)
    return tmp_path / forest_file.name


def point(alert: float, block: float | None = None) -> OperatingPoint:
    return OperatingPoint(alert=alert, block=block, chosen_by=f"--at {alert}")


class Running:
    """A model in service, its JSON looked at when the test says so, by a clock of the test's own."""

    def __init__(self, path: Path):
        self.path = path
        self.clock = Clock()
        self.model: Scorer = load_model(path)
        self.live = LiveModel(self.model, path, 1.0, self.clock)
        self.look(3)  # as a flow does after its start

    def look(self, times: int = 2) -> None:
        for _ in range(times):
            self.clock.now += 1.0
            self.live.look()

    @property
    def json(self) -> Path:
        return self.path.with_suffix(".json")

    def write(self, content: str) -> None:
        """Puts the JSON in place at once, as `training.threshold` does: another number on the file system."""
        new = self.json.with_name("new")
        new.write_text(content)
        new.replace(self.json)

    def put(self, **changed: Any) -> None:
        """Changes fields of the JSON."""
        self.write(json.dumps(json.loads(self.json.read_text()) | changed))

    def move(self, to: OperatingPoint) -> None:
        self.put(operating_point=msgspec.to_builtins(to))


@pytest.fixture
def running(model_file: Path) -> Running:
    return Running(model_file)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """The lines logged of refused files since the last call; as many must have been counted."""
    counted = metric("model_reload_errors_total")

    def since() -> list[str]:
        nonlocal counted
        lines = [line for line in capsys.readouterr().err.splitlines() if "operating point of model" not in line]
        before, counted = counted, metric("model_reload_errors_total")
        assert counted - before == len(lines)
        assert all(line.startswith("redflag: the changed operating point is not used, the old one") for line in lines)
        return lines

    return since


def test_a_moved_operating_point_is_taken_once_it_stands_still(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = metric("model_reloads_total")
    before = running.model.operating_point
    running.move(point(0.7, block=0.9))
    running.look(1)
    assert running.model.operating_point is before
    running.look(1)
    assert running.model.operating_point == point(0.7, block=0.9)
    running.look(3)
    assert metric("model_reloads_total") - taken == 1
    assert (metric("model_alert_threshold"), metric("model_block_threshold")) == (0.7, 0.9)
    assert capsys.readouterr().err == (
        f"redflag: operating point of model {running.model.version} from {running.json}: "
        "alert from 0.7, block from 0.9 (--at 0.7)\n"
    )


def test_a_point_that_was_moved_while_the_flow_started_is_taken(model_file: Path) -> None:
    model = load_model(model_file)
    running = Running(model_file)
    running.move(point(0.7))
    clock = Clock()
    live = LiveModel(model, model_file, 1.0, clock)
    for _ in range(2):
        clock.now += 1.0
        live.look()
    assert model.operating_point == point(0.7)


def test_without_an_operating_point_the_forest_has_its_own_threshold_again(running: Running) -> None:
    running.move(point(0.7))
    running.look()
    fields = json.loads(running.json.read_text())
    del fields["operating_point"]
    running.write(json.dumps(fields))
    running.look()
    assert running.model.operating_point == OperatingPoint.of_the_forest(running.model.threshold)
    assert load_model(running.path).operating_point == running.model.operating_point
    assert metric("model_alert_threshold") == running.model.threshold
    assert metric("model_block_threshold") == float("inf")


def test_a_change_of_anything_else_changes_nothing(running: Running, refused: Callable[[], list[str]]) -> None:
    taken, before = metric("model_reloads_total"), running.model.operating_point
    running.put(metrics={"note": "measured anew"})
    running.look(5)
    assert running.model.operating_point is before
    assert metric("model_reloads_total") == taken
    assert refused() == []


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"operating_point": {"alert": 1.5}}, "operating_point.alert is 1.5, no number from 0 to 1"),
        ({"operating_point": {"alert": -0.1}}, "operating_point.alert is -0.1, no number from 0 to 1"),
        ({"operating_point": {"alert": 0.5, "block": 2}}, "operating_point.block is 2, no number from 0 to 1"),
        ({"operating_point": {"alert": "high"}}, "$.operating_point.alert"),
        ({"operating_point": 0.5}, "$.operating_point"),
        ({"fingerprint": "f" * 64}, "its features are not those"),
        ({"features": ["amount"]}, "its features are not those"),
        ({"format": 99}, "format 99"),
    ],
)
def test_a_json_that_is_wrong_changes_nothing_is_told_once_and_would_stop_a_start(
    running: Running, refused: Callable[[], list[str]], changed: dict[str, Any], says: str
) -> None:
    running.move(point(0.7))
    running.look()
    refused_before = metric("model_reload_errors_total")
    good = running.json.read_text()
    running.put(**changed)
    running.look(5)
    assert running.model.operating_point == point(0.7)
    assert metric("model_reload_errors_total") - refused_before == 1
    with pytest.raises(UserError) as stopped:
        load_model(running.path)
    assert says in str(stopped.value)
    assert "\n" not in str(stopped.value)
    running.write(good)
    running.move(point(0.6))
    running.look()
    assert running.model.operating_point == point(0.6)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"operating_point": {"alert": 0.5}}', "\udcff"])
def test_a_broken_json_changes_nothing_and_is_told_once(
    running: Running, refused: Callable[[], list[str]], content: str
) -> None:
    before = running.model.operating_point
    running.json.write_bytes(content.encode("utf-8", "surrogateescape"))
    running.look(5)
    assert running.model.operating_point is before
    (line,) = refused()
    assert str(running.json) in line


def test_a_json_of_another_model_changes_nothing(
    running: Running, refused: Callable[[], list[str]], tmp_path: Path
) -> None:
    """As after a new training: what is in service stays until a restart."""
    other = tmp_path / "other.pkl"
    assert train(["--out", str(other), "--users", "50", "--days", "3", "--trees", "5", "--seed", "9"]) == 0
    before = running.model.operating_point
    shutil.copy(other, running.path)
    metadata = json.loads(other.with_suffix(".json").read_text())
    running.write(json.dumps(metadata | {"operating_point": msgspec.to_builtins(point(0.1))}))
    running.look(5)
    assert running.model.operating_point is before
    (line,) = refused()
    assert f"describes model {metadata['fingerprint'][:12]}, and {running.model.version} is in service" in line


def test_a_json_that_is_still_being_written_is_not_taken(running: Running, refused: Callable[[], list[str]]) -> None:
    before = running.model.operating_point
    running.move(point(0.7))
    whole = running.json.read_bytes()
    for end in range(0, len(whole), len(whole) // 20):
        running.json.write_bytes(whole[:end])
        running.look(1)
        assert running.model.operating_point is before
    running.json.write_bytes(whole)
    running.look(2)
    assert running.model.operating_point == point(0.7)
    assert refused() == []


def test_a_deleted_json_changes_nothing_and_may_come_back(running: Running, refused: Callable[[], list[str]]) -> None:
    running.move(point(0.7))
    running.look()
    content = running.json.read_text()
    running.json.unlink()
    running.look(5)
    assert running.model.operating_point == point(0.7)
    running.write(content)
    running.move(point(0.6))
    running.look()
    assert running.model.operating_point == point(0.6)


def test_a_fault_is_told_and_the_looks_go_on(
    running: Running, refused: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(path: Path) -> Metadata:
        monkeypatch.undo()
        msg = "too many"
        raise MemoryError(msg)

    monkeypatch.setattr("dataflow.scoring.live_model.read_metadata", no_memory)
    running.move(point(0.7))
    running.look(4)
    (line,) = refused()
    assert line.endswith(f"{running.json}: MemoryError: too many")
    running.move(point(0.6))
    running.look()
    assert running.model.operating_point == point(0.6)


# ---------------------------------------------------------------------------------------------------------- in a flow


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_move_under_load_loses_nothing_and_each_decision_is_by_the_threshold_that_it_names(
    running: Running, tmp_path: Path, workers: int
) -> None:
    (tmp_path / "rules.toml").write_text(RULES)
    numbers = itertools.count()
    thresholds = [0.55, 0.45, 0.65]
    running.move(point(thresholds[0]))
    running.look()

    def told() -> float:
        return metric("model_reloads_total") + metric("model_reload_errors_total")

    def some(many: int) -> Iterator[bytes]:
        for n in itertools.islice(numbers, many):
            if n % 10 == 0:
                time.sleep(0.001)
            assert n < 200_000
            yield raw(f"u{n % 50}", at=NOON + n * MINUTE, amount=float(n % 900), merchant=f"m{n % 9}", n=n)

    def values() -> Iterator[bytes]:
        yield from some(1000)
        for change in (thresholds[1], 1.5, thresholds[2]):  # the second is refused
            before = told()
            running.move(point(change))
            while told() == before:
                yield from some(100)
            yield from some(1000)

    decisions: list[Routed] = []
    with LiveModel(running.model, running.path, 0.04).watch():
        source = TestingSource((message(value, offset=n) for n, value in enumerate(values())), 10)
        rules = LiveRules(tmp_path / "rules.toml", 1e9)
        flow = build(source, TestingSink(decisions), running.model, rules, Settings(), workers=workers)
        if workers == 1:
            run_main(flow)
        else:
            cluster_main(flow, [], 0, worker_count_per_proc=workers)
    found = {record.offset: json.loads(record.value or b"") for record in written(decisions)}
    assert sum(len(records) for _, records in decisions) == len(found) == next(numbers)
    for decision in found.values():
        assert decision["fraudulent"] == (decision["model_score"] >= decision["alert_threshold"])
        assert decision["action"] == ("review" if decision["fraudulent"] else "approve")
    in_order = [found[offset]["alert_threshold"] for offset in sorted(found)]
    assert set(in_order) == set(thresholds)
    if workers == 1:
        assert [key for key, _ in itertools.groupby(in_order)] == thresholds
    by_threshold = {t: sum(d["fraudulent"] for d in found.values() if d["alert_threshold"] == t) for t in thresholds}
    assert by_threshold[0.45] > by_threshold[0.55] > 0


# ------------------------------------------------------------------------------------------------------- in a process


class Service:
    """The detection flow as a process of its own, to be killed and started again."""

    def __init__(self, broker: Broker, topics: Callable[..., str], model_file: Path, tmp_path: Path):
        names = {
            name: topics(name) for name in ("transactions", "alerts", "classified", "invalid", "labels", "feedback")
        }
        self.transactions = names["transactions"]
        self.outputs = [names["alerts"], names["classified"], names["invalid"]]
        self.settings = Settings(brokers=broker.bootstrap)
        self.producer = Producer({"bootstrap.servers": broker.bootstrap})
        self.sent = 0
        self.log = tmp_path / "log"
        self.log.touch()
        (tmp_path / "rules.toml").write_text(RULES)
        self.environ = {
            **os.environ,
            "KAFKA_BROKERS": broker.bootstrap,
            **{f"{name.upper()}_TOPIC": topic for name, topic in names.items()},
            "MODEL_FILE": str(model_file),
            "RULES_FILE": str(tmp_path / "rules.toml"),
            "RULES_CHECK_SECONDS": "0.2",
            "RECOVERY_DIR": str(tmp_path / "recovery"),
            "RECOVERY_INTERVAL": "60",
            "KAFKA_CONFIG_FETCH_WAIT_MAX_MS": "20",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        readings = self.told("redflag: reading")
        with self.log.open("a") as stderr:
            self.process = subprocess.Popen([sys.executable, "-m", "dataflow.detect"], env=self.environ, stderr=stderr)
        until(lambda: self.told("redflag: reading") > readings)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        assert self.process.wait(30) == -signal.SIGKILL

    def told(self, beginning: str) -> int:
        return sum(line.startswith(beginning) for line in self.log.read_text().splitlines())

    def send(self, many: int) -> None:
        for n in range(self.sent, self.sent + many):
            value = raw(f"u{n % 100}", amount=float(n % 900), n=n)
            self.producer.produce(self.transactions, key=b"u%d" % (n % 100), value=value)
        self.sent += many
        assert self.producer.flush(20) == 0

    def decided(self) -> list[Message]:
        """All decisions, once there are as many as transactions."""
        deadline = time.monotonic() + 60
        while len(found := read_all(self.settings, self.outputs)) < self.sent:
            assert time.monotonic() < deadline, f"{len(found)} of {self.sent}; {self.log.read_text()}"
            time.sleep(0.1)
        return found

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)


@pytest.fixture
def service(broker: Broker, topics: Callable[..., str], running: Running, tmp_path: Path) -> Iterator[Service]:
    running.move(point(0.55))
    made = Service(broker, topics, running.path, tmp_path)
    yield made
    made.close()


def test_a_flow_killed_around_moves_decides_each_transaction_once_and_goes_on_by_the_newest_point(
    service: Service, running: Running
) -> None:
    service.start()
    assert "in force: operating point: alert from 0.55 (--at 0.55)" in service.log.read_text()
    service.send(2000)
    service.decided()
    running.move(point(0.45))
    await_line(service.log, "redflag: operating point of model")
    service.send(1000)
    service.decided()
    # Killed while it decides, with no snapshot yet, and moved while nothing runs: all is decided again, much of it
    # otherwise, and nothing of that may stand twice.
    service.send(3000)
    running.move(point(0.5))
    service.kill()
    running.move(point(0.65))
    service.start()
    service.send(1000)
    messages = service.decided()
    decisions = [json.loads(m.value()) for m in messages]
    assert sorted(d["n"] for d in decisions) == list(range(service.sent))
    for decision, found in zip(decisions, messages, strict=True):
        assert decision["fraudulent"] == (decision["model_score"] >= decision["alert_threshold"])
        assert found.topic() == service.outputs[not decision["fraudulent"]]
    thresholds = {d["n"]: d["alert_threshold"] for d in decisions}
    assert {thresholds[n] for n in range(2000)} == {0.55}
    assert {thresholds[n] for n in range(2000, 3000)} == {0.45}
    assert {thresholds[n] for n in range(3000, 6000)} <= {0.45, 0.5, 0.65}
    assert {thresholds[n] for n in range(6000, 7000)} == {0.65}
