"""What `benchmarks.state` measures on: payments that are ordinary to model and rules, and what it reads of the flow."""

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bytewax.testing import TestingSink, TestingSource, run_main

from benchmarks import stage, state
from benchmarks.flow_metrics import Pauses, Values
from benchmarks.measured_flow import TooManyAlerts, check_alerts
from benchmarks.payments import CHUNK, OWN_MERCHANTS, Message, Payments, stamp, stamped
from dataflow.detect import build
from dataflow.rules import LiveRules
from dataflow.scoring.isolation_forest import Model
from dataflow.settings import Settings
from dataflow.simulation.population import DAY, PER_DAY
from dataflow.steps import Routed
from tests.support.builders import message, split

SETTINGS = Settings()


def bodies(payments: Iterable[Message]) -> list[dict[str, Any]]:
    return [json.loads(value) for _, value in payments]


def second(body: dict[str, Any]) -> float:
    return datetime.fromisoformat(body["timestamp"]).timestamp()


def test_every_user_pays_once_a_round() -> None:
    users = CHUNK + 7
    made = bodies(Payments(users).everyone(2))
    assert Counter(body["user"] for body in made) == {f"user-{user:07}": 2 for user in range(users)}
    assert len({body["transaction_id"] for body in made}) == len(made)


@pytest.mark.parametrize("users", [10, 1000])
def test_a_user_pays_at_the_same_pace_among_any_number_of_users(users: int) -> None:
    payments = Payments(users)
    first, *_, last = bodies(payments.anyone(users * 30))
    assert (second(last) - second(first)) / DAY == pytest.approx(30 / PER_DAY, rel=0.2)
    (after,) = bodies(payments.anyone(1))
    assert second(last) < second(after) < time.time()


def test_payments_go_on_where_others_were_made_before() -> None:
    made = bodies(Payments(50).anyone(300))
    then, *_ = bodies(Payments(50, after=300).anyone(1))
    assert 0 < second(then) - second(made[-1]) <= DAY / PER_DAY / 50 + 0.001
    assert then["transaction_id"] not in {body["transaction_id"] for body in made}


def test_a_payment_is_stamped_with_the_moment_and_is_else_the_same() -> None:
    (_, value), *_ = Payments(5).anyone(1)
    before = time.time_ns()
    other = stamped(value, 7)
    assert before <= stamp(other) <= time.time_ns()
    assert json.loads(other) | {"transaction_id": ""} == json.loads(value) | {"transaction_id": ""}


def test_users_keep_to_their_place_card_and_merchants() -> None:
    made = [body for body in bodies(Payments(5).anyone(2000)) if body["user"] == "user-0000003"]
    assert len({body["location"] for body in made}) == 1
    (card, often), *_ = Counter(body["device"] for body in made).most_common()
    assert card == "card-user-0000003"
    assert often / len(made) > 0.95
    merchants = Counter(body["merchant"] for body in made).most_common(OWN_MERCHANTS)
    assert sum(count for _, count in merchants) / len(made) > 0.85
    assert max(body["latitude"] for body in made) - min(body["latitude"] for body in made) < 0.3


@pytest.mark.parametrize("users", [200, 2000])
def test_about_one_payment_in_a_hundred_is_an_alert_among_any_number_of_users(users: int, forest: Model) -> None:
    payments = Payments(users)
    sent = [*payments.everyone(2), *payments.anyone(6000)]
    messages = [message(value, offset=offset) for offset, (_, value) in enumerate(sent)]
    out: list[Routed] = []
    rules = LiveRules(SETTINGS.rules_file, check_every=1.0)
    run_main(build(TestingSource(messages, 1000), TestingSink(out), forest, rules, SETTINGS))
    decisions, invalid = split(out)
    assert invalid == []
    assert len(decisions) == len(sent)
    alerts = sum(record.topic == SETTINGS.alerts_topic for record in decisions)
    assert 0.005 < alerts / len(decisions) < 0.025


def test_too_many_alerts_are_refused_in_one_line() -> None:
    assert check_alerts("under a backlog", 50, 1000) == 0.05
    with pytest.raises(TooManyAlerts, match=r"^under a backlog: 87% of 1,000 decisions are alerts.*--model") as found:
        check_alerts("under a backlog", 870, 1000)
    assert "\n" not in str(found.value)


def test_the_benchmark_ends_with_that_line_and_keeps_no_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flow = SimpleNamespace(alert_share=lambda step: check_alerts(step, 1, 1), job=SimpleNamespace(stop=lambda: None))
    candidate, alert_share = SimpleNamespace(flow=flow, payments=Payments(10)), state.Candidate.alert_share
    monkeypatch.setattr(state, "KafkaServer", lambda **_: contextlib.nullcontext())
    monkeypatch.setattr(state, "Candidate", lambda *_: candidate)
    monkeypatch.setattr(state, "measure", lambda candidates, _: alert_share(candidates[0], "everyone pays"))
    out = tmp_path / "state.jsonl"
    monkeypatch.setattr(sys, "argv", ["state", "--users", "10", "--model", "m.pkl", "--out", str(out)])
    with pytest.raises(SystemExit, match=r"^10 users: everyone pays: 100% of 1 decisions are alerts"):
        state.main()
    assert not out.exists()


def test_each_snapshot_is_one_pause_and_none_is_taken_for_shorter_than_it_was() -> None:
    readings = iter([(3, 1.0), (3, 1.0), (4, 1.5), (6, 1.75)])

    def metrics() -> Values:
        count, total = next(readings)
        name = "redflag_snapshot_pause_seconds"
        return {(f"{name}_count", ()): float(count), (f"{name}_sum", ()): total}

    pauses = Pauses(metrics)
    for _ in range(3):
        pauses.look()
    assert pauses.taken == [0.5, 0.25, 0.25]


def test_costs_are_compared_within_each_round_with_those_among_the_fewest_users() -> None:
    def rounds(*costs: float) -> list[dict[str, float]]:
        return [{"per_second": 1000.0, "cpu_seconds_per_million": cost} for cost in costs]

    fewest = rounds(20.0, 40.0, 10.0)
    found = state.compared(rounds(30.0, 40.0, 12.0), fewest)
    assert (found["cost_to_smallest_min"], found["cost_to_smallest"], found["cost_to_smallest_max"]) == (1.0, 1.2, 1.5)
    assert (found["backlogs"], found["cpu_seconds_per_million"]) == (3, 30.0)
    assert state.compared(fewest, fewest)["cost_to_smallest_max"] == 1.0


def test_what_is_paced_comes_evenly_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = 100.0, 0

    def sleep(seconds: float) -> None:
        nonlocal now, slept
        now, slept = now + seconds, slept + 1

    monkeypatch.setattr(stage.time, "monotonic", lambda: now)
    monkeypatch.setattr(stage.time, "sleep", sleep)
    came = [(item, now - 100.0) for item in stage.paced("abcd", 10.0)]
    assert [item for item, _ in came] == list("abcd")
    assert [at for _, at in came] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    slept = 0
    assert len(list(stage.paced(range(1000), 1000.0, slack=0.0105))) == 1000
    assert slept < 110  # it is let come early, and sleeps seldom
