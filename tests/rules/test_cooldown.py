"""Which alerts repeat one that stands already."""

from collections.abc import Mapping

from dataflow.rules.cooldown import RULES_KEPT, record_alert
from tests.support.builders import MINUTE, NOON

TEN = ("ten", 10 * MINUTE)
HOURLY = ("hourly", 60 * MINUTE)
ALWAYS = ("always", 0.0)


def repeats(*alerts: tuple[float, tuple[tuple[str, float], ...]]) -> list[bool]:
    """Whether each alert, minutes after noon, repeats one before it."""
    times: Mapping[str, float] = {}
    found = []
    for minutes, cooldowns in alerts:
        times, repeat = record_alert(times, cooldowns, NOON + minutes * MINUTE)
        found.append(repeat)
    return found


def test_an_alert_repeats_one_within_the_cooldown_and_does_not_prolong_it() -> None:
    assert repeats((0, (TEN,)), (4, (TEN,)), (9.99, (TEN,)), (10, (TEN,)), (11, (TEN,))) == [
        False,
        True,
        True,
        False,
        True,
    ]


def test_an_alert_with_any_other_reason_is_none_and_begins_all_its_cooldowns() -> None:
    assert repeats((0, (TEN,)), (5, (TEN, HOURLY)), (14, (TEN,)), (15, (TEN, HOURLY)), (16, (TEN, HOURLY))) == [
        False,
        False,
        True,
        False,
        True,
    ]


def test_a_rule_without_a_cooldown_always_alerts() -> None:
    assert repeats((0, (TEN, ALWAYS)), (1, (TEN, ALWAYS)), (2, (TEN,)), (3, (ALWAYS, TEN))) == [
        False,
        False,
        True,
        False,
    ]


def test_a_late_alert_repeats_one_little_after_it_and_moves_nothing_back() -> None:
    assert repeats((30, (TEN,)), (21, (TEN,)), (19, (TEN,)), (39, (TEN,)), (41, (TEN,))) == [
        False,
        True,
        False,
        True,
        False,
    ]


def test_without_a_cooldown_nothing_is_kept() -> None:
    assert record_alert({}, (), NOON) == ({}, False)


def test_what_is_kept_is_bounded() -> None:
    times: Mapping[str, float] = {}
    for n in range(10 * RULES_KEPT):
        times, _ = record_alert(times, ((f"r{n}", 60.0), TEN), NOON + n)
    assert len(times) == RULES_KEPT
    assert "ten" in times
    assert f"r{10 * RULES_KEPT - 1}" in times


def test_what_was_remembered_before_is_not_changed() -> None:
    before, _ = record_alert({}, (TEN,), NOON)
    copy = dict(before)
    record_alert(before, (HOURLY,), NOON + 1)
    assert before == copy
