"""What a run adds to the settings; the run itself is in test_end_to_end.py."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace
from rich.console import Console

from dataflow.demo.__main__ import PAST_LABEL_DELAY, past_of, train_tutorial_model, with_defaults
from dataflow.errors import UserError
from dataflow.rules import load_rules
from dataflow.settings import TUTORIAL_RULES, Settings
from dataflow.simulation.simulator import natural_rate


def settings(**environ: str) -> Settings:
    return Settings.load(environ, dotenv=None)


def test_people_live_at_their_own_pace_and_event_time_is_never_ahead_of_the_clock() -> None:
    before = datetime.now(UTC)
    wished = with_defaults(settings(), 60.0)
    assert wished.generator_people is not None
    assert wished.generator_start is not None
    begin = datetime.fromisoformat(wished.generator_start)
    speed = wished.generator_rate / natural_rate(wished.generator_people)
    assert begin.timestamp() + 60.0 * speed <= before.timestamp()
    # A tenth and a day of margin, and the hour that it begins with.
    assert begin.timestamp() + 1.1 * 60.0 * speed > before.timestamp() - 86_400.0 - 3600.0 - 5.0


def test_without_a_duration_it_goes_on_for_a_day_and_event_time_is_not_ahead_then_either() -> None:
    wished = with_defaults(settings(), None)
    assert wished.generator_duration == 86_400.0
    assert wished.generator_people is not None
    assert wished.generator_start is not None
    speed = wished.generator_rate / natural_rate(wished.generator_people)
    begin = datetime.fromisoformat(wished.generator_start)
    assert begin.timestamp() + 86_400.0 * speed <= datetime.now(UTC).timestamp()


def test_what_the_user_sets_stays() -> None:
    wished = with_defaults(
        settings(
            GENERATOR_RATE="7",
            GENERATOR_PEOPLE="400",
            GENERATOR_LABEL_DELAY="3",
            GENERATOR_START="2026-01-05T00:00:00Z",
            MODEL_FILE="mine.pkl",
        ),
        10.0,
    )
    assert (wished.generator_rate, wished.generator_people, wished.generator_label_delay) == (7.0, 400, 3.0)
    assert wished.generator_start == "2026-01-05T00:00:00+00:00"
    assert wished.model_file == Path("mine.pkl")


def test_the_past_ends_where_the_live_part_begins() -> None:
    wished = with_defaults(settings(GENERATOR_SEED="3", GENERATOR_WARM_UP="5"), 60.0)
    past = past_of(wished)
    assert past is not None
    assert (past.seed, past.people, past.days) == (3, wished.generator_people, 5.0)
    assert past.end.isoformat() == wished.generator_start
    assert past.label_delay == PAST_LABEL_DELAY


def test_a_warm_up_of_no_days_is_none() -> None:
    assert past_of(with_defaults(settings(GENERATOR_WARM_UP="0"), 60.0)) is None


def test_the_tutorial_has_a_model_and_rules_of_its_own_and_no_past() -> None:
    wished = with_defaults(settings(GENERATOR_POPULATION="tutorial"), 60.0)
    assert wished.model_file == Path("fraud_model_tutorial.pkl")
    assert wished.rules_file == TUTORIAL_RULES
    assert past_of(wished) is None
    given = settings(GENERATOR_POPULATION="tutorial", MODEL_FILE="mine.pkl", RULES_FILE="mine.toml")
    mine = with_defaults(given, 60.0)
    assert (mine.model_file, mine.rules_file) == (Path("mine.pkl"), Path("mine.toml"))


def test_the_tutorials_rules_are_its_four_checks() -> None:
    active = [rule.id for rule in load_rules(TUTORIAL_RULES).rules if rule.effect == "active"]
    assert active == ["high_amount", "location_change", "flagged_merchant", "ml_anomaly"]


@pytest.mark.slow
def test_a_tutorial_model_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere" / "fraud_model.pkl")
    wished = with_defaults(settings(GENERATOR_POPULATION="tutorial"), 60.0)
    wished = replace(wished, model_file=Path(nowhere))
    with pytest.raises(UserError, match=r"no model of the tutorial's population: .*there is no folder"):
        train_tutorial_model(wished, Console(quiet=True))


def test_a_tutorial_model_that_is_there_is_not_trained_again(tmp_path: Path) -> None:
    there = tmp_path / "there.pkl"
    there.write_bytes(b"")
    wished = replace(settings(GENERATOR_POPULATION="tutorial"), model_file=there)
    train_tutorial_model(wished, Console(quiet=True))
    assert there.read_bytes() == b""
