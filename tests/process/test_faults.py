"""A transaction that makes a step raise goes to the dead letters, and all others are decided as without it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bytewax.testing import TestingSink, TestingSource, run_main

from dataflow import alert_steps, steps
from dataflow.detect import build
from dataflow.errors import UserError
from dataflow.events.feedback import Feedback
from dataflow.events.output_record import Record
from dataflow.features.batch import FeatureBatch
from dataflow.process import faults
from dataflow.process.faults import IN_A_ROW, Guard
from dataflow.profiles.profiles import EventColumns, MerchantProfiles, UserProfiles
from dataflow.rules import LiveRules, RuleSet
from dataflow.scoring.isolation_forest import Model
from dataflow.settings import Settings
from dataflow.steps import Routed, dead_letter
from tests.support.builders import MINUTE, NOON, iso, message, raw, split, txn

SETTINGS = Settings()
POISON = 999.25
"""The amount of the transactions on which the faulty steps raise."""
RULES = """
[[rule]]
id = "high_amount"
when = "amount > 400"
reason = "High amount"
weight = 0.6
cooldown = "10m"

[[rule]]
id = "pace"
when = "txn_per_hour >= 3 and merchant_per_day >= 3"
reason = "{txn_per_hour} within an hour"
"""


@pytest.fixture(scope="session")
def model(forest: Model) -> Model:
    return forest


@pytest.fixture
def rules(tmp_path: Path) -> LiveRules:
    path = tmp_path / "rules.toml"
    path.write_text(RULES)
    return LiveRules(path, check_every=1e9)


def run(messages: list[Any], model: Model, rules: LiveRules) -> tuple[list[Record], list[Record]]:
    out: list[Routed] = []
    run_main(build(TestingSource(messages, 10), TestingSink(out), model, rules, SETTINGS))
    return split(out)


def fault(real: Callable[..., Any], poisoned: Callable[..., bool], late: bool = False) -> Callable[..., Any]:
    """A function that raises on the poison: before it does anything, or after it has done it."""

    def faulty(*args: Any, **kwargs: Any) -> Any:
        made = real(*args, **kwargs) if late or not poisoned(*args) else None
        if poisoned(*args):
            msg = f"no {args}"
            raise ZeroDivisionError(msg)
        return made

    return faulty


def of_amount(this: Any, *_: Any) -> bool:
    return bool(this.amount == POISON)


def poisoned_batch(batch: FeatureBatch) -> bool:
    return any(map(of_amount, batch.transactions))


FAULTS: dict[str, tuple[Any, str, Callable[..., bool], str]] = {
    "parsing": (steps, "parse", lambda value, *_: b"999.25" in value, "parse_messages"),
    "making columns": (EventColumns, "of", lambda _, events: any(map(of_amount, events)), "key_by_user"),
    "the user's profile": (
        UserProfiles,
        "find",
        lambda _self, _records, _places, events: any(map(of_amount, events)),
        "update_user_profile",
    ),
    "the merchant's profile": (
        MerchantProfiles,
        "find",
        lambda _, merchants: "poisoned" in merchants,
        "update_merchant_profile",
    ),
    "scoring": (FeatureBatch, "floats", lambda batch, _: poisoned_batch(batch), "score_and_check_rules"),
    "rules": (RuleSet, "evaluate", lambda _rules, batch: poisoned_batch(batch), "score_and_check_rules"),
    "suppressing": (
        alert_steps,
        "record_alert",
        lambda _times, _cooldowns, at: at == NOON + 5 * MINUTE,
        "suppress_repeats",
    ),
    "writing": (steps, "to_json", lambda made: of_amount(made.transaction), "route_decisions"),
}


@pytest.mark.parametrize("late", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("where", FAULTS)
def test_its_batch_mates_are_decided_as_if_it_had_not_been(
    where: str, late: bool, model: Model, rules: LiveRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, poisoned, step = FAULTS[where]
    sound = [
        message(raw("ann", at=NOON + n * MINUTE, amount=25.0 + 100 * n, transaction_id=f"t{n}"), offset=n)
        for n in range(5)
    ]
    rest = [
        message(raw("ann", at=NOON + n * MINUTE, amount=25.0 + 100 * n, transaction_id=f"t{n}"), offset=n)
        for n in range(6, 12)
    ]
    value = raw("ann", at=NOON + 5 * MINUTE, amount=POISON, transaction_id="t5", merchant="poisoned")
    poison = message(value, key=b"k", partition=0, offset=5, headers=[("trace", b"7")])
    expected, _ = run([*sound, *rest], model, rules)

    monkeypatch.setattr(owner, name, fault(getattr(owner, name), poisoned, late))
    decisions, invalid = run([*sound, poison, *rest], model, rules)
    (dead,) = invalid
    assert (dead.key, dead.value, dead.source_topic, dead.partition, dead.offset) == (b"k", value, "transactions", 0, 5)
    headers = dict(dead.headers or ())
    assert headers == {"trace": b"7", "error": b"ZeroDivisionError", "field": b"", "step": step.encode()}
    if where not in ("the merchant's profile", "scoring", "rules", "suppressing", "writing"):
        assert by_offset(decisions) == by_offset(expected)
    else:  # what came before has taken it in: then the others are decided as if it had been sound
        assert [r.offset for r in by_offset(decisions)] == [r.offset for r in by_offset(expected)]
        monkeypatch.undo()
        as_if_sound, _ = run([*sound, poison, *rest], model, rules)
        others = [r for r in by_offset(as_if_sound) if r.offset != 5]
        if where == "the merchant's profile":  # which has one transaction less to tell of in an explanation
            assert verdicts(decisions) == verdicts(others)
        else:
            assert by_offset(decisions) == others


def verdicts(records: list[Record]) -> list[dict[str, Any]]:
    """The decisions without their explanations."""
    decided = [msgspec.json.decode(record.value or b"") for record in by_offset(records)]
    return [{name: value for name, value in each.items() if name != "explanation"} for each in decided]


def by_offset(records: list[Record]) -> list[Record]:
    return sorted(records, key=lambda record: record.offset)


def test_a_label_that_a_step_fails_on_goes_to_the_dead_letters(
    model: Model, rules: LiveRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = {"transaction_id": "t1", "user": "ann", "merchant": "Amazon", "timestamp": iso(NOON)}
    value = msgspec.json.encode({**label, "fraud": True, "labelled_at": iso(NOON + 60)})
    find = UserProfiles.find

    def faulty(self: Any, records: Any, places: Any, events: Any) -> Any:
        if any(isinstance(event, Feedback) for event in events):
            raise KeyError(events[0].user)
        return find(self, records, places, events)

    monkeypatch.setattr(UserProfiles, "find", faulty)
    feedback = message(value, key=b"ann", partition=1, offset=3, topic="fraud_feedback")
    decisions, (dead,) = run([feedback, message(raw("ann"))], model, rules)
    assert len(decisions) == 1
    assert (dead.source_topic, dead.partition, dead.offset, dead.value) == ("fraud_feedback", 1, 3, value)
    assert dict(dead.headers or ()) == {"error": b"KeyError", "field": b"", "step": b"update_user_profile"}


def test_so_many_in_a_row_are_a_fault_of_the_program_and_a_success_between_them_is_none() -> None:
    guard = Guard("score", dead_letter)
    for _ in range(2):
        for _ in range(IN_A_ROW - 1):
            guard.failed(txn(), KeyError("x"))
        assert guard.each([txn()], list)[1] == []
    for _ in range(IN_A_ROW - 1):
        guard.failed(txn(), KeyError("x"))
    with pytest.raises(UserError, match=rf"the step score has failed {IN_A_ROW} times in a row.*KeyError at .*\[0\]@"):
        guard.failed(txn(), KeyError("x"))


def test_a_fault_that_concerns_every_transaction_ends_the_flow(
    model: Model, rules: LiveRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UserProfiles, "find", fault(UserProfiles.find, lambda *_: True))
    with pytest.raises(RuntimeError) as raised:
        run([message(raw(f"u{n}"), offset=n) for n in range(2 * IN_A_ROW)], model, rules)
    cause: BaseException | None = raised.value
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__
    assert "update_user_profile has failed 100 times in a row" in str(cause)


def test_it_is_said_once_a_minute_at_most_and_without_what_stands_in_the_transaction(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(faults.time, "monotonic", lambda: now)
    guard = Guard("score", dead_letter)
    with caplog.at_level(logging.INFO):
        for second in range(90):
            now = 1000.0 + second
            guard.failed(txn("secret", offset=second), ValueError("secret"))
    assert [record.getMessage() for record in caplog.records] == [
        "the step score failed with ValueError at transactions[0]@0: that goes to the dead letters",
        "the step score failed with ValueError at transactions[0]@60: that goes to the dead letters",
    ]


def test_a_users_mistake_still_ends_the_flow() -> None:
    with pytest.raises(UserError, match="the file"):
        Guard("score", dead_letter).failed(txn(), UserError("the file"))
