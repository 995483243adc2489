"""Who alerted lately, in lanes: what is remembered, for how long, and what of it stands among Bytewax's own rows."""

import contextlib
import sqlite3
from datetime import timedelta
from pathlib import Path

import numpy as np
from bytewax.recovery import RecoveryConfig
from bytewax.testing import TestingSink, TestingSource, run_main

from dataflow.alert_steps import KEPT_AFTER, LAYOUT, AlertSteps, RecentAlerts
from dataflow.detect import build
from dataflow.events.decision import Decision, Verdict
from dataflow.profile_steps import FEWEST_SWEPT, SWEEPS
from dataflow.rules import LiveRules
from dataflow.rules.cooldown import RULES_KEPT
from dataflow.scoring.isolation_forest import Model
from dataflow.settings import Settings
from dataflow.state import recovery
from dataflow.state.batches import lane_of
from dataflow.state.chunk import apply_chunk, pack_chunk
from dataflow.state.store import Store
from dataflow.steps import Routed, dead_letter
from dataflow.tables.table import new_tables
from tests.support.builders import DAY, HOUR, MINUTE, NOON, message, raw, split, txn

TEN = ("ten", 10 * MINUTE)
HOURLY = ("hourly", HOUR)


def recent_alerts(cap: int = 1_000_000) -> RecentAlerts:
    return RecentAlerts(new_tables(LAYOUT), cap)


def forget_all(recent: RecentAlerts) -> None:
    for _ in range(SWEEPS + 1):
        recent.forget()


def test_each_user_has_cooldowns_of_their_own() -> None:
    recent = recent_alerts()
    assert not recent.repeats("ann", (TEN,), NOON)
    assert not recent.repeats("bob", (TEN,), NOON)
    assert recent.repeats("ann", (TEN,), NOON + 9 * MINUTE)
    assert not recent.repeats("ann", (TEN, HOURLY), NOON + 9 * MINUTE)
    assert recent.times("ann") == {"ten": NOON + 9 * MINUTE, "hourly": NOON + 9 * MINUTE}
    assert recent.times("bob") == {"ten": NOON}


def test_nothing_is_kept_of_an_alert_without_a_cooldown() -> None:
    recent = recent_alerts()
    assert not recent.repeats("ann", (), NOON)
    assert len(recent) == 0
    assert not recent.repeats("ann", (TEN, ("always", 0.0)), NOON)
    assert recent.times("ann") == {"ten": NOON}


def test_of_too_many_rules_the_one_of_longest_ago_is_forgotten() -> None:
    recent = recent_alerts()
    for n in range(RULES_KEPT + 3):
        recent.repeats("ann", ((f"r{n}", DAY),), NOON + n)
    assert list(recent.times("ann")) == [f"r{n}" for n in range(3, RULES_KEPT + 3)]


def test_what_changed_makes_another_lane_the_same() -> None:
    tables, others = new_tables(LAYOUT), new_tables(LAYOUT)
    recent = RecentAlerts(tables, 1000)
    random = np.random.default_rng(5)
    for step in range(40):
        for n in range(30):
            rule = ("ten", "hourly", "daily")[int(random.integers(3))]
            recent.repeats(f"u{int(random.integers(60))}", ((rule, 600.0),), NOON + (step * 30 + n) * HOUR)
        recent.forget()
        apply_chunk(others, b"".join(pack_chunk(recent.changes())))
    again = RecentAlerts(others, 1000)
    users = set(tables["recent_alerts"].row_of)
    assert users == set(others["recent_alerts"].row_of)
    assert len(users) > 10
    assert {user: recent.times(user) for user in users} == {user: again.times(user) for user in users}


def test_a_user_is_given_up_once_no_late_alert_can_repeat() -> None:
    recent = recent_alerts()
    count = 3 * FEWEST_SWEPT
    for n in range(count):
        recent.repeats(f"u{n}", (TEN,), NOON)
    recent.repeats("ann", (HOURLY,), NOON)
    recent.repeats("ann", (TEN,), NOON + 1)  # which ends earlier
    recent.repeats("last", (TEN,), NOON + 10 * MINUTE + KEPT_AFTER)
    forget_all(recent)
    assert len(recent) == count + 2
    recent.repeats("last", (TEN,), NOON + 11 * MINUTE + KEPT_AFTER)
    forget_all(recent)
    assert len(recent) == 2
    assert recent.times("ann") == {"hourly": NOON, "ten": NOON + 1}
    assert recent.repeats("ann", (HOURLY,), NOON + 59 * MINUTE)


def test_of_more_users_than_the_cap_those_go_whose_cooldowns_ended_first() -> None:
    recent = recent_alerts(cap=5)
    for n in range(9):
        recent.repeats(f"u{n}", (TEN,), NOON + (n if n else 20))
    recent.forget()
    assert len(recent) == 5
    assert recent.repeats("u0", (TEN,), NOON + 60)
    assert not recent.repeats("u1", (TEN,), NOON + 60)


def test_alerts_are_keyed_by_the_lane_of_their_user_in_the_order_of_the_source() -> None:
    verdict = Verdict(True, [], 0.9, [], [], "r", "m")
    alerts = [Decision(txn(f"u{n % 4}", offset=n), verdict) for n in (5, 3, 20, 1, 11, 8, 2)]
    names = ["a", "b", "c"]
    keyed = AlertSteps(names, 10, dead_letter).key_by_user(alerts)
    assert len(keyed) > 1
    for name, part in keyed:
        assert part.lane == names.index(name)
        assert {lane_of(alert.transaction.user, 3) for alert in part.alerts} == {part.lane}
        offsets = [alert.transaction.offset for alert in part.alerts]
        assert offsets == sorted(offsets)
    assert sorted(alert.transaction.offset for _, part in keyed for alert in part.alerts) == [1, 2, 3, 5, 8, 11, 20]


def test_bytewax_keeps_a_row_of_each_lane_and_none_of_a_user(tmp_path: Path, forest: Model) -> None:
    """Whoever had an alert stood among its rows for ever, and at the end of each epoch it looks at them all."""
    rules = tmp_path / "rules.toml"
    rule = "[[rule]]\nid = '{}'\nwhen = 'amount > {}'\nreason = 'High'\nweight = 0.5\ncooldown = '{}'\n"
    rules.write_text(rule.format("high", 400, "10m") + rule.format("huge", 1000, "0s"))
    directory = tmp_path / "recovery"
    values = [raw(f"user-{n % 300}", at=NOON + n, amount=500.0 + 1000 * (n % 2)) for n in range(300)]
    given = [message(value, offset=offset) for offset, value in enumerate([*values, *values[:100]])]
    repeats = 0
    for _ in range(2):  # the second execution goes on from what the first has kept
        recovery.prepare(directory, 1)
        store = Store.open(directory)
        out: list[Routed] = []
        source = TestingSource(given[:350], 10) if not repeats else TestingSource(given, 10)
        flow = build(source, TestingSink(out), forest, LiveRules(rules, check_every=1e9), Settings(), store)
        run_main(flow, epoch_interval=timedelta(0), recovery_config=RecoveryConfig(str(directory)))
        store.close()
        decided, _ = split(out)
        found = sum(b'"suppressed":true' in (record.value or b"") for record in decided)
        assert found == 25  # every second has a rule without a cooldown, too
        repeats += found
        with contextlib.closing(sqlite3.connect(directory / "part-0.sqlite3")) as rows:
            keys = rows.execute(
                "SELECT DISTINCT state_key FROM snaps WHERE step_id LIKE '%suppress_repeats%'"
            ).fetchall()
        assert 1 <= len(keys) <= len(store.names)
