"""Which alerts repeat one that stands already."""

import copy
import pickle

import pytest

from dataflow.rules.cooldown import MAX_RULES_KEPT, RecentAlerts, record_alert
from tests.support.builders import MINUTE, NOON

TEN = ("ten", 10 * MINUTE)
HOURLY = ("hourly", 60 * MINUTE)
ALWAYS = ("always", 0.0)


def repeats(*alerts: tuple[float, tuple[tuple[str, float], ...]]) -> list[bool]:
    """Whether each alert, minutes after noon, repeats one before it."""
    recent: RecentAlerts | None = None
    found = []
    for minutes, cooldowns in alerts:
        recent, repeat = record_alert(recent, cooldowns, NOON + minutes * MINUTE)
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
    assert record_alert(None, (), NOON) == (None, False)


def test_what_is_kept_is_bounded() -> None:
    recent = None
    for n in range(10 * MAX_RULES_KEPT):
        recent, _ = record_alert(recent, ((f"r{n}", 60.0), TEN), NOON + n)
    assert recent is not None
    assert len(recent.times) == MAX_RULES_KEPT
    assert "ten" in recent.times
    assert f"r{10 * MAX_RULES_KEPT - 1}" in recent.times


def test_a_snapshot_is_not_touched_by_what_follows() -> None:
    recent, _ = record_alert(None, (TEN,), NOON)
    assert recent is not None
    snapshot = copy.deepcopy(recent)
    before = dict(snapshot.times)
    record_alert(recent, (HOURLY,), NOON + 1)
    assert snapshot.times == before
    assert pickle.loads(pickle.dumps(recent)).times == before


def test_the_state_of_another_version_is_refused() -> None:
    function, (version, times) = RecentAlerts({}).__reduce__()
    with pytest.raises(ValueError, match="version 2"):
        function(version + 1, times)
