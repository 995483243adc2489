"""What the detection flow does, told by running it: messages in, decisions out."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from bytewax.testing import TestingSink, TestingSource, cluster_main, run_main
from confluent_kafka import Message

from dataflow.detect import build
from dataflow.events.output_record import Record, source_key
from dataflow.rules import LiveRules
from dataflow.scoring.isolation_forest import Model
from dataflow.scoring.metadata import Scorer
from dataflow.settings import Settings
from dataflow.steps import Routed, written
from tests.support.builders import HOUR, MINUTE, NOON, message, raw, split

SETTINGS = Settings()


@pytest.fixture(scope="session")
def model(forest: Model) -> Model:
    return forest


@pytest.fixture
def rules() -> LiveRules:
    return LiveRules(SETTINGS.rules_file, check_every=1.0)


def run(
    messages: Iterable[Message], model: Scorer, rules: LiveRules, workers: int = 1
) -> tuple[list[Record], list[Record]]:
    """The decisions and the dead letters."""
    out: list[Routed] = []
    flow = build(TestingSource(list(messages), 10), TestingSink(out), model, rules, SETTINGS, workers=workers)
    if workers == 1:
        run_main(flow)
    else:
        cluster_main(flow, [], 0, worker_count_per_proc=workers)
    return split(out)


def decided(*values: bytes, model: Model, rules: LiveRules) -> list[dict[str, Any]]:
    decisions, invalid = run([message(value) for value in values], model, rules)
    assert invalid == []
    return [json.loads(record.value or b"") | {"_topic": record.topic} for record in decisions]


def reasons(*values: bytes, model: Model, rules: LiveRules) -> list[list[str]]:
    """The reasons of each transaction, in the order of the input, without the model's."""
    found = sorted(decided(*values, model=model, rules=rules), key=lambda d: int(d["n"]))
    return [[reason for reason in d["reason"] if reason != "ML anomaly detection"] for d in found]


def test_an_ordinary_transaction_is_classified_with_a_score_and_without_a_reason(
    model: Model, rules: LiveRules
) -> None:
    (decision,) = decided(raw("ann", amount=25.0), model=model, rules=rules)
    assert decision["_topic"] == "classified_transactions"
    assert decision["fraudulent"] is False
    assert (decision["reason"], decision["rules"], decision["shadow_rules"]) == ([], [], [])
    assert 0 < decision["score"] < 1
    assert decision["ruleset_version"] == rules.current().version
    assert decision["model_version"] == model.version


def test_the_four_checks_give_their_reasons_in_order(model: Model, rules: LiveRules) -> None:
    first = raw("ann", location="US", n=0)
    second = raw("ann", location="IN", amount=4000.0, merchant="XYZ_Merchant", at=NOON + MINUTE, n=1)
    decision = max(decided(first, second, model=model, rules=rules), key=lambda d: d["n"])
    assert decision["_topic"] == "fraud_alerts"
    assert decision["reason"] == [
        "High amount",
        "Location change from US to IN",
        "Merchant XYZ_Merchant flagged",
        "ML anomaly detection",
    ]
    assert decision["rules"] == ["high_amount", "location_change", "flagged_merchant", "ml_anomaly"]
    assert decision["score"] > 0.8


def test_an_amount_of_exactly_400_is_not_high(model: Model, rules: LiveRules) -> None:
    assert reasons(raw(amount=400.0, n=0), raw(amount=400.01, n=1), model=model, rules=rules) == [[], ["High amount"]]


def test_a_location_change_counts_within_an_hour_of_event_time(model: Model, rules: LiveRules) -> None:
    def change(seconds: float) -> list[str]:
        first = raw("ann", location="US", n=0)
        return reasons(first, raw("ann", location="FR", at=NOON + seconds, n=1), model=model, rules=rules)[1]

    assert change(HOUR) == ["Location change from US to FR"]
    assert change(HOUR + 1) == []


def test_users_do_not_share_a_last_location(model: Model, rules: LiveRules) -> None:
    assert reasons(raw("ann", location="US", n=0), raw("bob", location="FR", n=1), model=model, rules=rules) == [[], []]


def test_a_late_transaction_does_not_move_the_last_location_back(model: Model, rules: LiveRules) -> None:
    found = reasons(
        raw("ann", location="US", at=NOON, n=0),
        raw("ann", location="FR", at=NOON - 10 * HOUR, n=1),
        raw("ann", location="US", at=NOON + MINUTE, n=2),
        model=model,
        rules=rules,
    )
    assert found == [[], [], []]


def test_a_bad_message_goes_aside_as_it_was_and_the_next_is_decided(model: Model, rules: LiveRules) -> None:
    bad = raw("ann", amount=-1.0)
    decisions, invalid = run(
        [message(bad, key=b"k", partition=2, offset=7), message(None, key=b"t"), message(raw("ann"))], model, rules
    )
    assert len(decisions) == 1
    record, tombstone = invalid
    assert (record.topic, record.key, record.value) == ("invalid_transactions", b"k", bad)
    assert (record.source_topic, record.partition, record.offset) == ("transactions", 2, 7)
    assert dict(record.headers or ())["field"] == b"amount"
    assert b">= 0" in dict(record.headers or ())["error"]
    assert (tombstone.key, tombstone.value) == (b"t", None)


def test_the_input_is_carried_through_with_its_key_and_headers(model: Model, rules: LiveRules) -> None:
    value = raw("zoë", note={"deep": [1, 2]}, fraudulent=True, score=0.0)
    headers = [("trace", b"7")]
    (record,), _ = run([message(value, partition=3, key=b"k", headers=headers)], model, rules)
    assert (record.source_topic, record.partition, record.key) == ("transactions", 3, b"k")
    assert record.headers == headers
    out = json.loads(record.value or b"")
    assert out["note"] == {"deep": [1, 2]}
    assert out["fraudulent"] is False
    assert out["score"] > 0


@pytest.mark.parametrize("workers", [1, 2])
def test_decisions_do_not_depend_on_workers_or_batches(model: Model, rules: LiveRules, workers: int) -> None:
    messages = [
        message(raw(f"u{n % 7}", at=NOON + n * MINUTE, amount=float(n), location="US" if n % 3 else "FR"), offset=n)
        for n in range(200)
    ]
    one, _ = run(messages, model, rules)
    several, _ = run(messages, model, rules, workers)
    by_offset = [sorted(records, key=lambda record: record.offset) for records in (one, several)]
    assert by_offset[0] == by_offset[1]
    assert len(by_offset[0]) == len(messages)


def test_records_go_out_by_the_partition_that_they_came_from_each_once(model: Model, rules: LiveRules) -> None:
    messages = [
        message(raw(f"u{n}", amount=25.0 if n % 4 else -1.0), partition=n % 3, offset=n // 3, key=b"k")
        for n in range(60)
    ]
    out: list[Routed] = []
    run_main(build(TestingSource(messages, 10), TestingSink(out), model, rules, SETTINGS))
    assert all(key == source_key("transactions", record.partition) for key, records in out for record in records)
    assert all(records for _, records in out)
    places = [(record.partition, record.offset) for record in written(out)]
    assert len(places) == len(set(places)) == len(messages)


def _several_topics() -> list[Message]:
    """Transactions of three partitions in turn, of users who come again, of which one in five is an alert."""
    return [
        message(
            raw(
                f"u{n % 11}",
                at=NOON + n * MINUTE,
                amount=100_000.0 if n % 5 == 0 else -1.0 if n % 17 == 0 else 25.0,
                merchant=f"shop {n % 7}",
            ),
            partition=n % 3,
            offset=n // 3,
        )
        for n in range(400)
    ]


@pytest.mark.parametrize("batch", [1, 10, 64])
def test_with_one_worker_each_topic_keeps_the_order_of_each_source_partition(
    model: Model, rules: LiveRules, batch: int
) -> None:
    out: list[Routed] = []
    run_main(build(TestingSource(_several_topics(), batch), TestingSink(out), model, rules, SETTINGS))
    found: dict[tuple[str, int], list[int]] = {}
    for record in written(out):
        found.setdefault((record.topic, record.partition), []).append(record.offset)
    assert {topic for topic, _ in found} == {"fraud_alerts", "classified_transactions", "invalid_transactions"}
    assert all(offsets == sorted(offsets) for offsets in found.values())
    assert sum(map(len, found.values())) == 400


@pytest.mark.parametrize("workers", [2, 3])
def test_with_several_workers_a_users_payments_at_one_merchant_keep_their_order(
    model: Model, rules: LiveRules, workers: int
) -> None:
    decisions, invalid = run(_several_topics(), model, rules, workers)
    found: dict[tuple[str, str, str, int], list[int]] = {}
    for record in decisions:
        told = json.loads(record.value or b"")
        key = told["user"], told["merchant"], record.topic, record.partition
        found.setdefault(key, []).append(record.offset)
    assert all(offsets == sorted(offsets) for offsets in found.values())
    assert any(len(offsets) > 1 for offsets in found.values())
    assert len(decisions) + len(invalid) == 400


def test_a_flow_that_was_built_for_one_worker_does_not_run_on_several(model: Model, rules: LiveRules) -> None:
    flow = build(TestingSource(_several_topics(), 10), TestingSink([]), model, rules, SETTINGS)
    with pytest.raises(RuntimeError) as raised:
        cluster_main(flow, [], 0, worker_count_per_proc=2)
    cause: BaseException = raised.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert "built for one worker, and runs on several" in str(cause)


@pytest.mark.slow
def test_importing_the_flow_touches_neither_broker_nor_model(tmp_path: Path) -> None:
    code = "import dataflow.detect, dataflow.generate, sys; print('joblib' in sys.modules, 'sklearn' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": "."}, timeout=60
    )
    assert found.stdout.split() == ["False", "False"]
