"""Flood control: which alert on a user repeats one that stands already, within the cooldown of its rules."""

from collections.abc import Mapping

from dataflow.rules.ruleset import Cooldowns

RULES_KEPT = 16
"""Rules whose last alert is remembered of a user; beyond it the one of longest ago is forgotten, and may alert again
too early."""


def record_alert(times: Mapping[str, float], cooldowns: Cooldowns, at: float) -> tuple[Mapping[str, float], bool]:
    """What is remembered of a user after an alert at `at`, seconds since 1970, and whether it repeats one.

    An alert is a repeat when every rule that made it has a cooldown and alerted less than that ago; a late one, when
    they did so less than that after it. A late alert moves no time back.

    Args:
        times: when each rule with a cooldown last made an alert on the user, in event time; it is not changed.
        cooldowns: id and seconds of every rule that made the alert; empty when none of them has a cooldown.
        at: when the transaction was.
    """
    if not cooldowns or all(rule in times and abs(at - times[rule]) < seconds for rule, seconds in cooldowns):
        return times, bool(cooldowns)
    later = dict(times)
    for rule, seconds in cooldowns:
        if seconds:
            # Taken out first: so the rule that alerted longest ago stands first.
            later[rule] = max(at, later.pop(rule, at))
    while len(later) > RULES_KEPT:
        del later[next(iter(later))]
    return later, False
