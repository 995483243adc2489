"""How a running flow takes a changed rules file: all of it, between two batches, or nothing."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bytewax.testing import TestingSink, TestingSource, cluster_main, run_main
from confluent_kafka import Message, Producer
from prometheus_client import REGISTRY

from dataflow.detect import build
from dataflow.errors import UserError
from dataflow.process.file_watch import LOOKS
from dataflow.rules import LiveRules
from dataflow.scoring.isolation_forest import Model
from dataflow.settings import Settings
from dataflow.steps import Routed, written
from tests.conftest import Broker
from tests.rules.builders import evaluate, row, rule
from tests.support.builders import MINUTE, NOON, message, raw
from tests.support.reading import read_all
from training.train import main as train

HIGH = rule("high", "amount > 400")
LOW = rule("low", "amount < 10")
LISTED = '[lists]\nbad = "bad.txt"\n' + rule("listed", "merchant in lists.bad")


class Clock:
    """Time that goes on only when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Running:
    """Rules in a directory, looked at when the test says so, by a clock of the test's own."""

    def __init__(self, directory: Path):
        self.path = directory / "rules.toml"
        self.path.write_text(HIGH)
        self.clock = Clock()
        self.ticks = 0  # writes
        self.rules = LiveRules(self.path, 1.0, self.clock)

    def write(self, content: str, name: str = "rules.toml") -> None:
        path = self.path.with_name(name)
        path.write_text(content)
        self.ticks += 1  # the file system's clock may be too coarse to tell two writes of a test apart
        os.utime(path, ns=(self.ticks, self.ticks))

    def look(self, times: int = 1) -> None:
        """Lets `times` seconds pass, and looks after each."""
        for _ in range(times):
            self.clock.now += 1.0
            self.rules.look()

    def watch(self) -> LiveRules:
        """The same rules, looked at by the real clock on a thread of its own; to be used with `with`."""
        self.rules = LiveRules(self.path, 0.04)
        return self.rules.watch()

    def ids(self) -> list[str]:
        return [r.id for r in self.rules.current().rules]


@pytest.fixture
def running(tmp_path: Path) -> Running:
    return Running(tmp_path)


def until(holds: Callable[[], bool]) -> None:
    """Waits until it holds."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"redflag_{name}", labels) or 0.0


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """The lines logged of refused files since the last call; as many must have been counted."""
    counted = metric("rules_reload_errors_total")

    def since() -> list[str]:
        nonlocal counted
        lines = [line for line in capsys.readouterr().err.splitlines() if "not used" in line]
        before, counted = counted, metric("rules_reload_errors_total")
        assert counted - before == len(lines)
        return lines

    return since


def test_a_bad_file_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(rule("a", "amont > 4"))
    with pytest.raises(UserError, match="amont"):
        LiveRules(path, 1.0)


def test_a_changed_file_is_taken_once_it_stands_still(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    taken = metric("rules_reloads_total")
    before = running.rules.current()
    running.write(LOW)
    running.look()
    assert running.rules.current() is before
    running.look()
    assert running.ids() == ["low"]
    assert running.rules.current().version != before.version
    running.look(3)
    assert metric("rules_reloads_total") - taken == 1
    assert capsys.readouterr().err == f"redflag: rules {running.rules.current().version} from {running.path}\n"


def test_a_batch_looks_at_no_file(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    running.write(LOW)
    running.clock.now += 1e6
    monkeypatch.setattr("dataflow.rules.reloading.stamp", lambda path: pytest.fail("looked"))
    assert running.ids() == ["high"]


def test_a_file_that_is_still_being_written_is_not_taken(running: Running, refused: Callable[[], list[str]]) -> None:
    whole = HIGH + LOW
    for end in range(0, len(whole), 15):  # also halves that are valid by themselves
        running.write(whole[:end])
        running.look()
        assert running.ids() == ["high"]
    running.write(whole)
    running.look(2)
    assert running.ids() == ["high", "low"]
    assert refused() == []


@pytest.mark.parametrize("bad", ["", "[[rule]\n", rule("a", "amont > 4"), HIGH + HIGH, LISTED])
def test_a_bad_file_changes_nothing_and_is_told_once(
    running: Running, refused: Callable[[], list[str]], bad: str
) -> None:
    before = running.rules.current()
    running.write(bad)
    running.look(5)
    assert running.rules.current() is before
    (line,) = refused()
    assert line.startswith("redflag: the changed rules are not used, the old ones stay: ")
    running.write(LOW)
    running.look(2)
    assert running.ids() == ["low"]


def test_a_file_with_more_than_one_mistake_is_told_in_one_line(
    running: Running, refused: Callable[[], list[str]]
) -> None:
    running.write(rule("a", "amont > 4", "{locaton}") + rule("b", "amount"))
    running.look(2)
    (line,) = refused()
    assert "and 2 more" in line


def test_a_deleted_file_changes_nothing_and_may_come_back(running: Running, refused: Callable[[], list[str]]) -> None:
    running.path.unlink()
    running.look(5)
    assert running.ids() == ["high"]
    assert len(refused()) == 1
    running.write(HIGH)
    running.look(2)
    running.write(LOW)
    running.look(2)
    assert running.ids() == ["low"]
    assert refused() == []


def test_a_file_that_is_replaced_is_taken(running: Running) -> None:
    new = running.path.with_name("new.toml")
    new.write_text(LOW)
    new.replace(running.path)
    running.look(2)
    assert running.ids() == ["low"]


def test_a_changed_list_is_taken_and_has_another_version(running: Running) -> None:
    running.write("x\n", "bad.txt")
    running.write(LISTED)
    running.look(2)
    first = running.rules.current()
    running.write("x\ny\n", "bad.txt")
    running.look(2)
    second = running.rules.current()
    assert (first.lists["bad"], second.lists["bad"]) == ({"x"}, {"x", "y"})
    assert first.version != second.version


def test_a_changed_rules_file_does_not_read_unchanged_lists_again(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.write("x\n", "bad.txt")
    running.write(LISTED)
    running.look(2)
    entries = running.rules.current().lists["bad"]
    monkeypatch.setattr("dataflow.rules.lists._read", lambda *given: pytest.fail("read again"))
    running.write(LISTED + LOW)
    running.look(2)
    assert running.ids() == ["listed", "low"]
    assert running.rules.current().lists["bad"] is entries


def test_a_list_that_was_missing_is_looked_for_again(running: Running, refused: Callable[[], list[str]]) -> None:
    running.write(LISTED)
    running.look(4)
    assert len(refused()) == 1
    running.write("x\n", "bad.txt")
    running.look(2)
    assert running.ids() == ["listed"]
    running.path.with_name("bad.txt").unlink()
    running.look(4)
    assert running.rules.current().lists["bad"] == {"x"}
    assert len(refused()) == 1


def test_an_emptied_list_changes_nothing_unless_the_file_says_that_it_may_be_empty(
    running: Running, refused: Callable[[], list[str]]
) -> None:
    running.write("x\n", "bad.txt")
    running.write(LISTED)
    running.look(2)
    running.write("# nobody\n", "bad.txt")
    running.look(4)
    assert running.rules.current().lists["bad"] == {"x"}
    (line,) = refused()
    assert f"list 'bad' has no entry in {str(running.path.with_name('bad.txt'))!r}: add one, or say" in line
    running.write(LISTED.replace('"bad.txt"', '{file = "bad.txt", may_be_empty = true}'))
    running.look(2)
    assert running.rules.current().lists["bad"] == set()


def test_a_file_that_changes_while_it_is_read_is_read_again(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    running.write("x\n", "bad.txt")
    running.write(LISTED)
    running.look(2)
    from dataflow.rules import lists

    read = lists._read

    def reads_and_is_overtaken(*given: Any) -> Any:
        found = read(*given)
        monkeypatch.setattr(lists, "_read", read)
        running.write("z\n", "bad.txt")
        return found

    monkeypatch.setattr(lists, "_read", reads_and_is_overtaken)
    running.write("y\n", "bad.txt")
    running.look(2)
    assert running.rules.current().lists["bad"] == {"y"}
    running.look(2)
    assert running.rules.current().lists["bad"] == {"z"}


def test_a_change_must_have_stood_still_for_the_whole_time_however_many_the_looks(running: Running) -> None:
    for _ in range(10):  # a writer that pauses for longer than it takes from one look to the next
        running.write(LOW + "\n" * running.ticks)
        for _ in range(LOOKS - 1):
            running.clock.now += 1.0 / LOOKS
            running.rules.look()
            assert running.ids() == ["high"]


@pytest.mark.parametrize("offset", [0.0, 0.01, 0.12, 0.24])
def test_a_change_is_in_use_within_one_look_more_than_it_must_stand_still(running: Running, offset: float) -> None:
    looks_from_the_change_on = 0
    running.clock.now = offset
    running.write(LOW)
    while running.ids() != ["low"]:
        running.rules.look()
        looks_from_the_change_on += 1
        running.clock.now += 1.0 / LOOKS
    # Just before the first of these looks it may have been changed a look earlier.
    assert looks_from_the_change_on == LOOKS + 1
    assert looks_from_the_change_on / LOOKS < 1.5  # at the default of one second: two seconds, with the load


# -------------------------------------------------------------------------------------------------------- by the clock


def test_without_a_batch_a_change_is_taken_and_the_next_batch_is_by_it(running: Running) -> None:
    taken = metric("rules_reloads_total")
    with running.watch():
        running.write(LOW)
        until(lambda: metric("rules_reloads_total") == taken + 1)  # nothing asks for the rules meanwhile
        assert running.ids() == ["low"]


def test_without_a_batch_a_broken_file_is_told(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    refusals = metric("rules_reload_errors_total")
    with running.watch():
        running.write("[[rule]\n")
        until(lambda: metric("rules_reload_errors_total") == refusals + 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("redflag: the changed rules are not used, the old ones stay: ")


def test_no_thread_looks_unless_it_was_asked_for_and_none_once_it_is_stopped(running: Running) -> None:
    def looking() -> int:
        return sum(thread.name == "redflag-rules" for thread in threading.enumerate())

    assert looking() == 0
    with running.watch() as rules:
        rules.watch()
        assert looking() == 1
    assert looking() == 0
    running.write(LOW)
    running.rules.current()
    assert looking() == 0
    with running.rules.watch():
        until(lambda: running.ids() == ["low"])
    assert looking() == 0


def test_a_fault_of_a_load_is_told_and_the_looks_go_on(
    running: Running, refused: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataflow.rules import reloading

    def no_memory(*arguments: Any) -> Any:
        monkeypatch.undo()
        msg = "too many"
        raise MemoryError(msg)

    monkeypatch.setattr(reloading, "load_rules", no_memory)
    running.write(LOW)
    running.look(4)
    assert running.ids() == ["high"]
    (line,) = refused()
    assert line.endswith(f"{running.path}: MemoryError: too many")
    running.write(HIGH + LOW)
    running.look(2)
    assert running.ids() == ["high", "low"]


def test_the_flow_goes_on_while_rules_are_loaded(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataflow.rules import reloading

    load, begun, may_go_on = reloading.load_rules, threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert may_go_on.wait(60)
        return load(*arguments)

    with running.watch():
        monkeypatch.setattr(reloading, "load_rules", slow)
        running.write(LOW)
        assert begun.wait(60)
        assert running.ids() == ["high"]
        may_go_on.set()
        until(lambda: running.ids() == ["low"])


def test_a_load_beside_the_flow_pauses_between_its_steps_and_hands_the_interpreter_over_sooner(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataflow.rules import conditions, reloading

    pauses, steps = [], []
    compile_step = conditions._compile_step
    monkeypatch.setattr(reloading, "WORK_SECONDS", 0.0)
    monkeypatch.setattr(reloading.time, "sleep", lambda seconds: pauses.append(sys.getswitchinterval()))
    monkeypatch.setattr(conditions, "_compile_step", lambda *given: steps.append(len(pauses)) or compile_step(*given))
    usual = sys.getswitchinterval()
    monkeypatch.setattr(conditions, "STEP_CHARACTERS", 500)
    running.write("".join(rule(f"r{n}", f"amount > {n}") for n in range(50)))
    running.look(2)
    assert len(running.ids()) == 50
    assert len(steps) > 3
    assert all(before < after for before, after in itertools.pairwise(steps))
    assert steps[0] >= 50  # one after the check of each rule, too
    assert set(pauses) == {reloading.SWITCH_SECONDS}
    assert sys.getswitchinterval() == usual


def test_workers_change_over_together_and_the_files_are_loaded_once(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    load = LiveRules._load
    seen: list[list[str]] = []

    def work() -> None:
        versions: list[str] = []
        deadline = time.monotonic() + 60
        while not versions or running.ids() != ["low"]:
            assert time.monotonic() < deadline
            versions.append(running.rules.current().version)
        seen.append(versions)

    with running.watch():
        monkeypatch.setattr(LiveRules, "_load", lambda self, pause: (loads.append(1), load(self, pause))[1])
        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        running.write(LOW)
        for worker in workers:
            worker.join()
    assert len(seen) == 4
    assert all(sum(a != b for a, b in itertools.pairwise(versions)) <= 1 for versions in seen)
    assert loads == [1]


def test_hits_are_metrics_by_rule_and_mode(running: Running) -> None:
    running.write(HIGH + rule("huge", "amount > 1000", mode="shadow"))
    running.look(2)
    before = (
        metric("rule_hits_total", rule="high", mode="active"),
        metric("rule_hits_total", rule="huge", mode="shadow"),
    )
    evaluate(running.rules.current(), [row(amount=amount) for amount in (5.0, 500.0, 600.0, 2000.0)])
    after = metric("rule_hits_total", rule="high", mode="active"), metric("rule_hits_total", rule="huge", mode="shadow")
    assert (after[0] - before[0], after[1] - before[1]) == (3, 1)


def test_decisions_are_a_metric_by_action_and_go_on_under_a_changed_file(running: Running) -> None:
    def counted() -> list[float]:
        return [
            metric("decisions_total", outcome=outcome, action=action)
            for outcome, action in (("genuine", "approve"), ("fraudulent", "review"), ("fraudulent", "block"))
        ]

    rows = [row(amount=amount) for amount in (5.0, 6.0, 7.0, 500.0, 2000.0)]
    before = counted()
    evaluate(running.rules.current(), rows)
    assert [a - b for a, b in zip(counted(), before, strict=True)] == [3, 2, 0]
    running.write(HIGH + rule("huge", "amount > 1000", action="block"))
    running.look(2)
    evaluate(running.rules.current(), rows)
    assert [a - b for a, b in zip(counted(), before, strict=True)] == [6, 3, 1]


# ---------------------------------------------------------------------------------------------------------- in a flow


@pytest.fixture(scope="session")
def model(forest: Model) -> Model:
    return forest


def flow_decisions(
    running: Running,
    model: Model,
    values: Iterable[bytes],
    workers: int = 1,
    batch: int = 10,
) -> list[dict[str, Any]]:
    decisions: list[Routed] = []
    source = TestingSource((message(value, offset=n) for n, value in enumerate(values)), batch)
    flow = build(source, TestingSink(decisions), model, running.rules, Settings(), workers=workers)
    if workers == 1:
        run_main(flow)
    else:
        cluster_main(flow, [], 0, worker_count_per_proc=workers)
    return [json.loads(record.value or b"") | {"_offset": record.offset} for record in written(decisions)]


def test_a_decision_carries_its_action_and_a_changed_file_changes_it(running: Running, model: Model) -> None:
    amounts = (5.0, 500.0, 2000.0)

    def values() -> Iterator[bytes]:
        for n, amount in enumerate(amounts):
            yield raw("ann", amount=amount, n=n, at=NOON + n * MINUTE)
        running.write(HIGH + rule("huge", "amount > 1000", action="block"))
        running.look(2)
        for n, amount in enumerate(amounts):
            yield raw("ben", amount=amount, n=3 + n, at=NOON + n * MINUTE)

    found = sorted(flow_decisions(running, model, values(), batch=3), key=lambda d: d["n"])
    assert [d["action"] for d in found] == ["approve", "review", "review", "approve", "review", "block"]
    assert [d["fraudulent"] for d in found] == [False, True, True] * 2


def test_a_user_put_on_the_deny_list_while_it_is_quiet_is_denied_at_the_next_payment(
    running: Running, model: Model
) -> None:
    running.write("mallory\n", "denied.txt")
    denied = '[lists]\ndenied = "denied.txt"\n[[deny]]\nfield = "user"\nlist = "denied"\n'
    running.write(denied)
    taken = metric("rules_reloads_total")

    def values() -> Iterator[bytes]:
        yield raw("eve", amount=5.0)
        running.write("mallory\neve\n", "denied.txt")
        until(lambda: metric("rules_reloads_total") == taken + 1)  # the flow is idle meanwhile
        yield raw("eve", at=NOON + MINUTE, amount=5.0)

    with running.watch():
        decisions = flow_decisions(running, model, values(), batch=1)
    assert [d["reason"] for d in sorted(decisions, key=lambda d: d["_offset"])] == [[], ["user eve on denied"]]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_change_under_load_loses_nothing_and_switches_once(running: Running, model: Model, workers: int) -> None:
    numbers = itertools.count()

    def told() -> float:
        return metric("rules_reloads_total") + metric("rules_reload_errors_total")

    def some(many: int) -> Iterator[bytes]:
        for n in itertools.islice(numbers, many):
            if n % 10 == 0:
                time.sleep(0.001)
            assert n < 200_000
            yield raw(f"u{n % 50}", at=NOON + n * MINUTE, amount=float(n % 600), merchant=f"m{n % 9}", n=n)

    def values() -> Iterator[bytes]:
        yield from some(1000)
        for change in (HIGH + LOW, "[[rule]\n", LOW):
            before = told()
            running.write(change)
            while told() == before:
                yield from some(100)
            yield from some(1000)

    with running.watch():
        decisions = flow_decisions(running, model, values(), workers)
    assert sorted(d["n"] for d in decisions) == list(range(next(numbers)))
    by_version: dict[str, set[str]] = {}
    for decision in decisions:
        by_version.setdefault(decision["ruleset_version"], set()).update(decision["rules"])
        high, low = decision["amount"] > 400, decision["amount"] < 10
        if decision["rules"]:  # a verdict is all by one ruleset
            assert set(decision["rules"]) == {"high"} if high else {"low"}
            assert high or low
    assert len(by_version) == 3
    if workers == 1:
        in_order = [d["ruleset_version"] for d in sorted(decisions, key=lambda d: d["_offset"])]
        assert sum(a != b for a, b in itertools.pairwise(in_order)) == 2


# ---------------------------------------------------------------------------------------------------------- cooldown


def test_within_a_cooldown_an_alert_is_marked_and_still_an_alert(running: Running, model: Model) -> None:
    running.write(rule("high", "amount > 400", cooldown="10m") + rule("huge", "amount > 1000"))
    running.look(2)
    counted = metric("alerts_suppressed_total")
    minutes_amounts = [(0, 500), (9, 500), (9.5, 2000), (15, 500), (19.6, 500), (12, 500), (40, 50)]
    values = [raw("ann", at=NOON + m * MINUTE, amount=float(a), n=n) for n, (m, a) in enumerate(minutes_amounts)]
    values.append(raw("bob", at=NOON + MINUTE, amount=500.0, n=len(values)))
    decisions = sorted(flow_decisions(running, model, values), key=lambda d: int(d["n"]))
    assert [d["fraudulent"] for d in decisions] == [True] * 6 + [False, True]
    # The second repeats the first; the third has another reason, and is told; what follows repeats that.
    assert [d.get("suppressed") for d in decisions] == [None, True, None, True, None, True, None, None]
    assert all(d["reason"] == ["High"] for d in decisions if d.get("suppressed"))
    assert metric("alerts_suppressed_total") - counted == 3


# ------------------------------------------------------------------------------------------------------- in a process


def test_a_change_at_5000_a_second_loses_nothing_and_switches_once_a_partition(
    broker: Broker, topics: Callable[..., str], tmp_path: Path
) -> None:
    names = {name: topics(name) for name in ("transactions", "alerts", "classified", "invalid", "labels", "feedback")}
    path, rules = tmp_path / "fraud_model.pkl", tmp_path / "rules.toml"
    assert train(["--out", str(path), "--users", "100", "--days", "7", "--trees", "10"]) == 0
    rules.write_text(HIGH)
    environ = {
        **os.environ,
        "KAFKA_BROKERS": broker.bootstrap,
        **{f"{name.upper()}_TOPIC": topic for name, topic in names.items()},
        "MODEL_FILE": str(path),
        "RULES_FILE": str(rules),
        "RULES_CHECK_SECONDS": "0.2",
        "RECOVERY_DIR": str(tmp_path / "recovery"),
        "RECOVERY_INTERVAL": "1",
    }
    log = tmp_path / "log"
    with log.open("w") as stderr:
        detector = subprocess.Popen([sys.executable, "-m", "dataflow.detect"], env=environ, stderr=stderr)
    try:
        await_line(log, "redflag: reading")
        put(rules, "[[rule]\n")  # told with no transaction at all
        await_line(log, "redflag: the changed rules are not used")
        put(rules, HIGH)
        settings = Settings(brokers=broker.bootstrap)
        outputs = [names["alerts"], names["classified"], names["invalid"]]
        producer = Producer({"bootstrap.servers": broker.bootstrap})
        count = 0

        def send(many: int) -> None:
            nonlocal count
            begin = time.monotonic()
            for sent in range(many):
                value = raw(f"u{count % 500}", amount=count % 600 + 0.5)
                producer.produce(names["transactions"], key=b"u%d" % (count % 500), value=value)
                count += 1
                if sent % 50 == 0:
                    producer.poll(0)
                    time.sleep(max(0.0, begin + sent / 5000 - time.monotonic()))

        def await_decisions() -> list[Message]:
            assert producer.flush(20) == 0
            deadline = time.monotonic() + 60
            while len(found := read_all(settings, outputs)) < count:
                assert time.monotonic() < deadline, f"{len(found)} of {count}"
            return found

        send(2000)
        await_decisions()
        for change in (HIGH + LOW, "[[rule]\n", LOW):
            before = told(log)
            put(rules, change)
            while told(log) == before:
                send(1000)
                assert count < 200_000, log.read_text()
            send(1000)
            messages = await_decisions()  # of each partition some by these rules
    finally:
        detector.terminate()
        assert detector.wait(30) == 0
    assert len(messages) == count
    versions: dict[int, list[tuple[int, str]]] = {}
    for found in messages:
        headers = dict(found.headers())
        decided = int(headers["source_offset"]), json.loads(found.value())["ruleset_version"]
        versions.setdefault(int(headers["source_partition"]), []).append(decided)
    in_order = [[version for _, version in sorted(decided)] for decided in versions.values()]
    assert all(len(set(offsets)) == len(offsets) for offsets in ([o for o, _ in d] for d in versions.values()))
    assert [sum(a != b for a, b in itertools.pairwise(each)) for each in in_order] == [2] * len(in_order)
    assert len({version for each in in_order for version in each}) == 3
    assert log.read_text().count("the changed rules are not used") == 2


def put(rules: Path, text: str) -> None:
    """Writes the file as a whole: the flow looks five times a second, and once saw it empty in between."""
    aside = rules.with_suffix(".new")
    aside.write_text(text)
    aside.replace(rules)


def told(log: Path) -> int:
    """How many changes the flow has taken or refused."""
    return sum("redflag: rules " in line or "are not used" in line for line in log.read_text().splitlines())


def await_line(log: Path, beginning: str) -> None:
    deadline = time.monotonic() + 60
    while not any(line.startswith(beginning) for line in log.read_text().splitlines()):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
