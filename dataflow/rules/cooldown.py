"""Flood control: which alert on a user repeats one that stands already, within the cooldown of its rules."""

from typing import Any

from dataflow.rules.ruleset import Cooldowns

VERSION = 2
"""Of the state as it is pickled into snapshots; a new layout takes a new number, and old recovery data is refused."""

MAX_RULES_KEPT = 64
"""Rules whose last alert is remembered of a user; beyond it the oldest is forgotten, and may alert again too early."""


class RecentAlerts:
    """When each rule with a cooldown last made an alert on a user, in event time. It is never changed, only replaced.

    An alert is a repeat when every rule that made it has a cooldown and alerted less than that ago; a late one, when
    they did so less than that after it. A late alert moves no time back.
    """

    __slots__ = ("times",)

    def __init__(self, times: dict[str, float]):
        self.times = times

    def __deepcopy__(self, memo: Any) -> "RecentAlerts":
        """A snapshot may share it, as it never changes."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (VERSION, self.times)


def record_alert(recent: RecentAlerts | None, cooldowns: Cooldowns, at: float) -> tuple[RecentAlerts | None, bool]:
    """What is remembered after an alert at `at`, seconds since 1970, and whether it repeats one.

    `cooldowns` are the id and the seconds of every rule that made the alert; empty when none of them has a cooldown.
    """
    if not cooldowns:
        return recent, False
    times = recent.times if recent is not None else {}
    if all(rule in times and abs(at - times[rule]) < seconds for rule, seconds in cooldowns):
        return recent, True
    times = times.copy()
    for rule, seconds in cooldowns:
        if seconds:
            # Taken out first: so the rule that alerted longest ago stands first.
            times[rule] = max(at, times.pop(rule, at))
    while len(times) > MAX_RULES_KEPT:
        del times[next(iter(times))]
    return RecentAlerts(times), False


def _restore(version: int, times: dict[str, float]) -> RecentAlerts:
    if (
        version != VERSION
    ):  # recovery.lock_and_verify() refuses such data before it gets here; this is the last line of defence
        msg = f"recent alerts of version {version}, but this is version {VERSION}"
        raise ValueError(msg)
    return RecentAlerts(times)
