"""Basic profiles: what they give is what full ones give, and what reads more is refused."""

import copy
import json
import math
import pickle
import random
from pathlib import Path

import pytest
from bytewax.testing import TestingSink, TestingSource, run_main

from dataflow import recovery
from dataflow.detect import build, check_fields
from dataflow.features import BASIC, FIELDS, USER_FIELDS, observe_basic, row, user_facts
from dataflow.profile import HOUR, RECENT, BasicProfile, UserProfile
from dataflow.rules import LiveRules, load_rules
from dataflow.scoring import load_model
from dataflow.settings import TUTORIAL_RULES, Settings, UserError
from dataflow.steps import Routed
from tests.builders import DAY, NOON, message, raw, split, txn
from tests.rules.builders import rule
from tests.rules.test_reloading import Running
from training.train import main as train

SETTINGS = Settings(profiles="basic", rules_file=TUTORIAL_RULES)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.pkl"
    plain = ["--features", "amount,txn_per_hour", "--tiers", "isolation_forest"]
    assert train([*plain, "--users", "100", "--out", str(path)]) == 0
    return path


@pytest.mark.parametrize("seed", range(5))
def test_its_facts_are_those_of_a_full_profile(seed: int) -> None:
    """Of streams with bursts, lulls, late events, repeats and unknown places."""
    draw = random.Random(seed)
    basic, full = BasicProfile(), UserProfile()
    at, names = NOON, ["first"]
    for number in range(1500):
        at += draw.choice((1.0, 30.0, 2 * HOUR, DAY)) * draw.random()
        late = draw.random() < 0.1
        repeat = draw.random() < 0.1
        names.append(draw.choice(names[-RECENT // 2 :]) if repeat else f"n{number}")
        each = txn(
            at=at - draw.random() * 3 * HOUR if late else at,
            amount=draw.choice((0.0, 10.0, 1e16, draw.random() * 100)),
            location=draw.choice(("US", "IN", "unknown")),
            transaction_id=names[-1],
        )
        expected = user_facts(each, full)
        full.update(each)
        found = row(each, *observe_basic(each, basic))
        assert found == expected[: len(BASIC)]
        if number % 100 == 0:
            basic = pickle.loads(pickle.dumps(basic))
            kept, basic = basic, copy.deepcopy(basic)
            kept.update(txn(at=at + 1.0, transaction_id="another"))  # the copy knows nothing of it
    assert {field.name for field in USER_FIELDS[: len(BASIC)]} == BASIC


def test_a_new_one_knows_nothing() -> None:
    first = txn()
    known = row(first, *observe_basic(first, BasicProfile()))
    facts = dict(zip((field.name for field in FIELDS), known, strict=False))
    assert (facts["txn_per_hour"], facts["last_location"], facts["location_changed"]) == (0, "", False)
    assert facts["seconds_since_last"] == math.inf


def test_merchants_have_no_state(model_file: Path) -> None:
    out: list[Routed] = []
    rules = LiveRules(SETTINGS.rules_file, check_every=1e9)
    source = TestingSource([message(raw(amount=500.0)), message(b"no transaction")])
    flow = build(source, TestingSink(out), load_model(model_file), rules, SETTINGS)
    run_main(flow)
    decisions, invalid = split(out)
    assert [json.loads(record.value or b"")["reason"][0] for record in decisions] == ["High amount"]
    assert len(invalid) == 1
    assert [step.step_name for step in flow.substeps if "profile" in step.step_name] == ["update_basic_profile"]


def test_what_reads_other_facts_is_refused_at_the_start() -> None:
    with pytest.raises(UserError, match=r"model\.pkl reads amount_z, run_days, which PROFILES=basic does not keep"):
        check_fields(SETTINGS, Path("model.pkl"), ["run_days", "amount", "amount_z", "model_score"])
    check_fields(SETTINGS, Path("model.pkl"), [*BASIC, "model_score", "model_anomaly"])
    check_fields(Settings(), Path("model.pkl"), [field.name for field in FIELDS])


def test_the_tutorials_rules_are_taken_and_the_line_that_refuses_the_default_ones_names_them() -> None:
    check_fields(SETTINGS, TUTORIAL_RULES, load_rules(TUTORIAL_RULES).fields)
    default = Settings().rules_file
    with pytest.raises(UserError) as refused:
        check_fields(Settings(profiles="basic"), default, load_rules(default).fields)
    assert str(refused.value).startswith(f"{default} reads amount_ratio, ")
    assert str(refused.value).endswith(f", or use RULES_FILE={TUTORIAL_RULES}")


@pytest.mark.parametrize(
    "lacking",
    [rule("new", "amount_z > 3"), rule("new", "amount > 3", reason="{amount_z} spreads")],
)
def test_a_changed_ruleset_that_reads_other_facts_is_refused_and_the_old_one_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lacking: str
) -> None:
    running = Running(tmp_path)
    running.rules = LiveRules(
        running.path, 1.0, running.clock, lambda rules: check_fields(SETTINGS, running.path, rules.fields)
    )
    running.write(lacking)
    running.look(3)
    assert running.ids() == ["high"]
    assert "amount_z, which PROFILES=basic does not keep" in capsys.readouterr().err
    # One that is off is not read.
    running.write(rule("low", "amount < 10") + rule("new", "amount_z > 3", mode="off"))
    running.look(3)
    assert running.ids() == ["low", "new"]
    running.write(lacking)
    with pytest.raises(UserError, match="amount_z"):
        LiveRules(running.path, 1.0, check=lambda rules: check_fields(SETTINGS, running.path, rules.fields))


def test_recovery_data_of_other_profiles_is_refused() -> None:
    own = [recovery.identity(settings)["profiles"] for settings in (Settings(), SETTINGS)]
    assert own == ["full", "basic"]
