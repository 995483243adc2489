"""The generator flow: paced, reproducible, each transaction once, its truth beside it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from bytewax.testing import TestingSink, TestingSource, cluster_main, run_main

from dataflow import generate
from dataflow.connectors.embedded_broker import EmbeddedBroker
from dataflow.events.feedback import Feedback, parse_feedback
from dataflow.generate import MAX_BATCH, Event, Labelled, SimulationSource, build, feedback_on
from dataflow.settings import Settings
from dataflow.simulation.simulator import (
    Simulated,
    history,
    label_to_json,
    life_after,
    natural_rate,
    stream,
    to_json,
)
from tests.support.kafka_server import free_ports
from tests.support.reading import read_all

pytestmark = pytest.mark.slow

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
LONG_AGO = datetime(2026, 1, 5, tzinfo=UTC)

Item = tuple[bytes, bytes]
Run = Callable[[Any], None]


class Clock:
    """A wall clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Generator:
    """A part of the source with its clock, driven the way Bytewax does it."""

    def __init__(self, resume: tuple[str, int, int] | None = None, clock: Clock | None = None, **more: Any):
        self.clock = clock or Clock()
        self.asked_to_stop = False
        settings = {"seed": 42, "rate": 10.0, "clock": self.clock, "stopping": lambda: self.asked_to_stop} | more
        source = SimulationSource(**settings)
        assert source.list_parts() == ["everybody"]
        self.part = source.build_part("simulate_people", "everybody", resume)

    def after(self, seconds: float) -> list[Event]:
        self.clock.advance(seconds)
        return self.part.next_batch()

    def until_it_ends(self, limit: int = 10_000) -> list[Event]:
        found: list[Event] = []
        for _ in range(limit):
            try:
                found += self.part.next_batch()
            except StopIteration:
                return found
            self.clock.now = max(self.clock.now, self.part.next_awake() or self.clock.now)
        msg = "it did not end"
        raise AssertionError(msg)


def simulated(count: int, seed: int = 42, rate: float = 10.0, start: datetime = NOON, **more: Any) -> list[Simulated]:
    return list(islice(stream(seed, rate, start, **more), count))


def on_one_worker(flow: Any) -> None:
    run_main(flow)


def on_two_workers(flow: Any) -> None:
    cluster_main(flow, [], 0, worker_count_per_proc=2)


workers = pytest.mark.parametrize("run", [on_one_worker, on_two_workers])


# The source: what is due, and when it wakes.


def test_nothing_comes_before_it_is_due() -> None:
    expected = simulated(1)
    generator = Generator()
    wait = expected[0].at - NOON.timestamp()
    assert generator.after(wait - 0.001) == []
    assert generator.after(0.001) == expected


def test_what_is_due_comes_and_no_more() -> None:
    generator = Generator()
    assert generator.after(1.0) == simulated(10)
    assert generator.after(0.0) == []
    assert generator.after(2.0) == simulated(30)[10:]


def test_without_a_start_event_time_begins_now() -> None:
    first = Generator().after(1.0)[0]
    assert isinstance(first, Simulated)
    assert first.timestamp.startswith("2026-11-23T12:00:00.")


def test_a_start_sets_event_time_and_not_the_pace() -> None:
    generator = Generator(start=LONG_AGO)
    assert generator.after(1.0) == simulated(10, start=LONG_AGO)
    assert generator.after(0.0) == []


def test_a_start_without_offset_means_utc() -> None:
    naive = LONG_AGO.replace(tzinfo=None)
    assert Generator(start=naive).after(1.0) == simulated(10, start=LONG_AGO)


def test_it_sleeps_until_the_next_one_is_due() -> None:
    generator = Generator()
    assert generator.part.next_awake() == datetime.fromisoformat(simulated(1)[0].timestamp)


def test_it_never_sleeps_so_long_that_a_stop_would_wait() -> None:
    generator = Generator(rate=0.001)
    assert generator.part.next_awake() == NOON + timedelta(seconds=0.25)


def test_at_a_high_rate_it_hands_out_batches_instead_of_waking_for_each() -> None:
    generator = Generator(rate=20_000.0)
    generator.after(0.002)
    assert generator.part.next_awake() == NOON + timedelta(seconds=0.007)
    assert len(generator.after(0.005)) == pytest.approx(100, abs=25)


def test_when_it_is_behind_it_hands_out_full_batches_without_a_pause() -> None:
    generator = Generator(rate=20_000.0)
    assert len(generator.after(0.2)) == MAX_BATCH
    assert generator.part.next_awake() is None
    batches = [generator.after(0.0) for _ in range(3)]
    assert [len(batch) for batch in batches] == [MAX_BATCH] * 3
    assert len(generator.after(0.0)) < 25


# Its end.


def test_it_ends_after_its_count() -> None:
    assert Generator(count=25).until_it_ends() == simulated(25)


def test_a_count_of_none_at_all_ends_at_once() -> None:
    with pytest.raises(StopIteration):
        Generator(count=0).part.next_batch()


@pytest.mark.parametrize(("rate", "duration", "expected"), [(10.0, 3.0, 30), (2.0, 20.0, 40), (5000.0, 0.5, 2500)])
def test_it_makes_rate_times_duration(rate: float, duration: float, expected: int) -> None:
    generator = Generator(rate=rate, duration=duration)
    assert generator.until_it_ends() == simulated(expected, rate=rate)
    assert generator.clock.now <= NOON + timedelta(seconds=duration + 0.25)


def test_a_start_between_two_milliseconds_does_not_blur_the_duration() -> None:
    start = LONG_AGO + timedelta(microseconds=500)
    assert len(Generator(rate=5000.0, start=start, duration=0.5).until_it_ends()) == 2500


def test_the_sooner_of_count_and_duration_ends_it() -> None:
    assert len(Generator(count=5, duration=3.0).until_it_ends()) == 5
    assert len(Generator(count=50, duration=3.0).until_it_ends()) == 30


def test_one_that_cannot_keep_up_ends_soon_after_its_duration() -> None:
    generator = Generator(rate=20_000.0, duration=2.0)
    assert len(generator.after(2.9)) == MAX_BATCH
    with pytest.raises(StopIteration):
        generator.after(0.1)


def test_it_ends_when_it_is_asked_to() -> None:
    generator = Generator()
    assert generator.after(1.0)
    generator.asked_to_stop = True
    with pytest.raises(StopIteration):
        generator.after(1.0)


# Its state.


def test_it_resumes_behind_what_it_handed_out() -> None:
    before = Generator(count=50)
    handed_out = before.after(1.0)
    after = Generator(resume=before.part.snapshot(), count=50)
    assert handed_out + after.until_it_ends() == simulated(50)


def test_a_resumed_one_goes_on_at_its_pace_instead_of_catching_up() -> None:
    before = Generator()
    before.after(1.0)
    clock = Clock()
    clock.advance(3600)
    after = Generator(resume=before.part.snapshot(), clock=clock)
    resumed = after.after(1.0)
    assert 10 <= len(resumed) <= 12
    assert resumed == simulated(10 + len(resumed))[10:]


def test_a_resumed_one_has_the_rest_of_the_duration() -> None:
    before = Generator(duration=3.0)
    handed_out = before.after(1.0)
    clock = Clock()
    clock.advance(3600)
    after = Generator(resume=before.part.snapshot(), clock=clock, duration=3.0)
    assert handed_out + after.until_it_ends() == simulated(30)


# People who live faster than the clock.

PEOPLE = 864  # who make 0.03 transactions a second by themselves


def lived(count: int) -> list[Simulated]:
    return list(islice(life_after(42, PEOPLE, 0.0, LONG_AGO), count))


def test_so_many_people_live_at_their_own_pace_and_event_time_goes_as_fast_as_the_rate_asks() -> None:
    generator = Generator(rate=3000.0, people=PEOPLE, start=LONG_AGO)
    expected = lived(2 * MAX_BATCH)
    assert generator.after(1.0) == expected[:MAX_BATCH]
    assert generator.after(1.0) == expected[MAX_BATCH:]
    days = (expected[-1].at - LONG_AGO.timestamp()) / 86_400
    assert len(expected) / days == pytest.approx(natural_rate(PEOPLE) * 86_400, rel=0.5)  # not all of a night


def test_people_go_on_with_the_life_that_they_have_lived() -> None:
    generator = Generator(rate=30.0, people=PEOPLE, start=LONG_AGO, lived_days=2.0)
    past = list(history(42, PEOPLE, 2.0, LONG_AGO - timedelta(days=2)))
    whole = list(islice(history(42, PEOPLE, 9.0, LONG_AGO - timedelta(days=2)), len(past) + 30))
    assert generator.after(0.99) == whole[len(past) :]


def test_faster_people_wake_it_when_the_next_one_is_due() -> None:
    generator = Generator(rate=5.0, people=PEOPLE, start=LONG_AGO)
    assert generator.after(0.0) == lived(1)
    assert generator.part.next_awake() == NOON + timedelta(seconds=0.2)


@pytest.mark.parametrize("rate", [30.0, 3000.0])
def test_event_time_that_outruns_the_clock_begins_so_early_that_it_is_never_ahead(rate: float) -> None:
    generator = Generator(rate=rate, people=PEOPLE, duration=20.0)
    events = generator.until_it_ends()
    assert len(events) == rate * 20
    assert all(isinstance(event, Simulated) and event.at <= NOON.timestamp() for event in events)


def test_it_ends_before_event_time_comes_to_the_clock_though_nobody_said_how_long() -> None:
    generator = Generator(rate=30.0, people=PEOPLE)
    assert generator.after(86_400.0 - 1.0)
    generator.clock.advance(3.0)
    with pytest.raises(StopIteration):
        generator.part.next_batch()


def test_a_resumed_one_goes_on_at_the_faster_pace() -> None:
    before = Generator(rate=30.0, people=PEOPLE, start=LONG_AGO)
    before.after(0.99)
    clock = Clock()
    clock.advance(3600)
    after = Generator(resume=before.part.snapshot(), clock=clock, rate=30.0, people=PEOPLE)
    resumed = after.after(1.0)
    assert 30 <= len(resumed) <= 32
    assert resumed == lived(62)[30 : 30 + len(resumed)]


# An analyst's feedback.


def told(events: list[Event]) -> tuple[list[Simulated], list[Labelled]]:
    return [e for e in events if isinstance(e, Simulated)], [e for e in events if isinstance(e, Labelled)]


def test_each_transaction_is_labelled_once_so_long_after_it_as_the_delay_says() -> None:
    generator = Generator(label_delay=2.0)
    txns, labels = told(generator.after(2.0))
    assert (len(txns), labels) == (20, [])
    more, labels = told(generator.after(1.0))
    assert labels == [Labelled(txn, txn.at + 2.0) for txn in txns[:10]]
    assert txns + more == simulated(30)


def test_labels_and_transactions_come_in_the_order_of_their_times() -> None:
    events = Generator(rate=100.0, label_delay=0.5, count=300).until_it_ends()
    times = [event.at for event in events]
    assert times == sorted(times)
    assert len(told(events)[1]) == pytest.approx(250, abs=2)


def test_where_event_time_goes_faster_a_label_is_dated_with_the_transaction_that_follows_it() -> None:
    generator = Generator(rate=4.0, people=PEOPLE, start=LONG_AGO, label_delay=2.0)
    events = generator.after(4.0)
    txns, labels = told(events)
    assert len(labels) == pytest.approx(8, abs=1)
    assert labels == [Labelled(txn, txns[number + 8].at) for number, txn in enumerate(txns[: len(labels)])]
    assert [event.at for event in events] == sorted(event.at for event in events)


def test_it_wakes_for_a_label_too() -> None:
    generator = Generator(rate=0.5, label_delay=0.1)
    (txn,) = simulated(1, rate=0.5)
    generator.after(txn.at - NOON.timestamp())
    assert generator.part.next_awake() == datetime.fromtimestamp(round(txn.at + 0.1, 3), UTC)


def test_without_a_delay_nothing_is_labelled() -> None:
    assert told(Generator(count=50).until_it_ends())[1] == []


def test_a_resumed_one_labels_what_it_has_not_labelled_yet() -> None:
    before = Generator(label_delay=2.0, count=100)
    handed_out = before.after(5.0)
    after = Generator(resume=before.part.snapshot(), label_delay=2.0, count=100)
    assert handed_out + after.until_it_ends() == Generator(label_delay=2.0, count=100).until_it_ends()


def test_feedback_is_what_the_flow_takes_for_a_label() -> None:
    (txn,) = simulated(1)
    txn.fraud = True
    user, value = feedback_on(txn, txn.at + 60.0)
    label = parse_feedback(value, user, 0, 0, int((txn.at + 60.0) * 1000))
    assert label == Feedback(txn.transaction_id, txn.user, txn.merchant, txn.at, True, txn.at + 60.0)


# The graph.


@workers
def test_each_transaction_is_written_once_with_its_truth_beside_it(run: Run) -> None:
    txns = simulated(3000, rate=1000.0)
    transactions: list[Item] = []
    labels: list[Item] = []
    run(build(TestingSource(txns, batch_size=100), TestingSink(transactions), TestingSink(labels)))
    assert transactions == [(txn.user.encode(), to_json(txn)) for txn in txns]
    assert labels == [(txn.user.encode(), label_to_json(txn)) for txn in txns]
    assert any(json.loads(label)["fraud"] for _, label in labels)


@workers
@pytest.mark.parametrize("kind", ["realistic", "tutorial"])
def test_the_simulation_runs_through_the_graph_once_on_any_number_of_workers(run: Run, kind: str) -> None:
    transactions: list[Item] = []
    labels: list[Item] = []
    source = SimulationSource(seed=1, rate=10_000.0, start=LONG_AGO, population=kind, count=2500)
    run(build(source, TestingSink(transactions), TestingSink(labels)))
    expected = simulated(2500, seed=1, rate=10_000.0, start=LONG_AGO, population=kind)
    assert [value for _, value in transactions] == [to_json(txn) for txn in expected]
    assert [value for _, value in labels] == [label_to_json(txn) for txn in expected]


@workers
def test_feedback_goes_to_a_topic_of_its_own(run: Run) -> None:
    txns = simulated(20)
    events: list[Event] = [*txns, *(Labelled(txn, txn.at + 60.0) for txn in txns)]
    transactions: list[Item] = []
    labels: list[Item] = []
    feedback: list[Item] = []
    source = TestingSource(events, batch_size=7)
    run(build(source, TestingSink(transactions), TestingSink(labels), TestingSink(feedback)))
    assert transactions == [(txn.user.encode(), to_json(txn)) for txn in txns]
    assert labels == [(txn.user.encode(), label_to_json(txn)) for txn in txns]
    assert feedback == [feedback_on(txn, txn.at + 60.0) for txn in txns]


def test_the_steps_are_named_after_what_they_do() -> None:
    flow = build(TestingSource([]), TestingSink([]), TestingSink([]))
    assert [step.step_id for step in flow.substeps] == [
        "generate.simulate_people",
        "generate.encode_transactions",
        "generate.write_transactions",
        "generate.encode_labels",
        "generate.write_labels",
    ]


# The program, on the Kafka protocol.


@contextmanager
def embedded() -> Iterator[str]:
    broker = EmbeddedBroker()
    try:
        yield broker.address
    finally:
        broker.close()


def start(tmp_path: Path, brokers: str, *options: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bytewax.run", "dataflow.generate:flow", *options],
        cwd=tmp_path,  # no .env of whoever runs the tests
        env={name: value for name, value in os.environ.items() if not name.startswith(("GENERATOR_", "KAFKA_"))}
        | {"PYTHONPATH": str(Path(generate.__file__).parents[1]), "KAFKA_BROKERS": brokers}
        | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read(brokers: str, topic: str, at_least: int) -> list[Item]:
    """All that stands on a topic, once so much does, and what came in a minute otherwise."""
    deadline = time.monotonic() + 60
    while len(found := read_all(Settings(brokers=brokers), [topic])) < at_least and time.monotonic() < deadline:
        time.sleep(0.1)
    return [(m.key(), m.value()) for m in found]


WISHES = {
    "GENERATOR_COUNT": "500",
    "GENERATOR_RATE": "1000",
    "GENERATOR_SEED": "9",
    "GENERATOR_START": "2026-01-05T00:00:00Z",
}


@pytest.mark.parametrize("processes", [1, 2])
def test_the_program_writes_the_same_transactions_once_on_one_process_and_on_two(
    tmp_path: Path, processes: int
) -> None:
    with embedded() as brokers:
        addresses = ";".join(f"127.0.0.1:{port}" for port in free_ports(processes))
        options = [["-i", str(i), "-a", addresses] if processes > 1 else [] for i in range(processes)]
        running = [start(tmp_path, brokers, *option, **WISHES) for option in options]
        for process in running:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
        expected = simulated(500, seed=9, rate=1000.0, start=LONG_AGO)
        transactions = read(brokers, "transactions", 500)
        labels = read(brokers, "transaction_labels", 500)
    assert sorted(transactions) == sorted((txn.user.encode(), to_json(txn)) for txn in expected)
    assert sorted(labels) == sorted((txn.user.encode(), label_to_json(txn)) for txn in expected)


def test_a_signal_ends_the_program_gracefully(tmp_path: Path) -> None:
    with embedded() as brokers:
        process = start(tmp_path, brokers, GENERATOR_RATE="200")
        assert read(brokers, "transactions", 20)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        transactions = read(brokers, "transactions", 20)
        labels = read(brokers, "transaction_labels", len(transactions))
    told = {json.loads(value)["transaction_id"] for _, value in transactions}
    assert told == {json.loads(value)["transaction_id"] for _, value in labels}


def test_the_program_writes_feedback_where_a_delay_is_set(tmp_path: Path) -> None:
    with embedded() as brokers:
        wishes = {**WISHES, "GENERATOR_RATE": "500", "GENERATOR_LABEL_DELAY": "0.5"}
        process = start(tmp_path, brokers, **wishes)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        feedback = read(brokers, "fraud_feedback", 200)
    expected = [feedback_on(txn, txn.at + 0.5) for txn in simulated(500, seed=9, rate=500.0, start=LONG_AGO)]
    assert len(feedback) >= 200
    assert set(feedback) <= set(expected)


def test_people_go_with_the_realistic_population_only(tmp_path: Path) -> None:
    process = start(tmp_path, "127.0.0.1:1", GENERATOR_POPULATION="tutorial", GENERATOR_PEOPLE="500")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert errors.startswith("redflag: GENERATOR_PEOPLE=500 goes with the realistic population only")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("GENERATOR_START", "yesterday"), ("GENERATOR_RATE", "fast"), ("GENERATOR_POPULATION", "martian")],
)
def test_a_wrong_setting_ends_the_program_with_one_line(tmp_path: Path, name: str, value: str) -> None:
    process = start(tmp_path, "127.0.0.1:1", **{name: value})
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert errors.startswith(f"redflag: {name}='{value}' is wrong: it takes ")
    assert errors.count("\n") == 1
