"""The rules of one file, and what they say of transactions."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Literal, NamedTuple

from dataflow.events.decision import Action
from dataflow.rules.conditions import Conditions
from dataflow.rules.fields import Batch, value_of
from dataflow.rules.language import Condition
from dataflow.rules.lists import Pause, no_pause
from dataflow.rules.reasons import parse_reason, show

CACHED_COMBINATIONS = 4096
"""Of rules that fired together, whose results are kept."""

Effect = Literal["deny", "allow", "active", "shadow"]
Cooldowns = tuple[tuple[str, float], ...]


class Rule(NamedTuple):
    """One rule of the file, or one line of its allow and deny tables."""

    id: str
    when: str
    reason: str
    weight: float
    effect: Effect | Literal["off"]
    cooldown: float  # seconds; 0 without one
    action: Action = "review"  # what an alert of it asks for; of an allow list "approve"


class RuleResult(NamedTuple):
    """What the rules say of a transaction; its lists are shared between transactions and never changed."""

    fraudulent: bool
    reasons: list[str]
    rules: list[str]  # ids of the active rules, and of the lists, that fired
    shadow_rules: list[str]
    p_genuine: float  # product of 1 - weight over the rules that made the alert: the chance that they leave, 0 to 1
    cooldowns: Cooldowns  # of an alert: id and seconds of each rule that made it; empty where none has a cooldown
    action: Action = "approve"  # of an alert the strictest of what made it, "review" or "block"


class _Template(NamedTuple):
    """The result of one combination of rules that fired; what differs between transactions is filled in."""

    result: RuleResult
    placeholders: list[tuple[int, str, tuple[str, ...]]]  # which reason, its format, the fields it takes
    fired: list[Rule]


class RuleSet:
    """The rules of one file, ready to be evaluated.

    `version` is a digest of the file and of the lists that it names: the same version decides the same way. `count`,
    where it is set, hears once a batch how often each rule fired; `count_actions` how many decisions asked for each
    action.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        conditions: Sequence[Condition],
        lists: Mapping[str, AbstractSet[str]],
        version: str,
        files: tuple[Path, ...] = (),
        pause: Pause = no_pause,
    ):
        """Compiles the conditions, one of each rule, with a `pause` after each step."""
        self.rules = tuple(rules)
        self.reads = tuple(condition.fields for condition in conditions)  # the fields that each rule reads
        self.version = version
        self.files = files  # of the lists
        self.lists = lists
        self.count: Callable[[Rule, int], None] | None = None
        self.count_actions: Callable[[Action, int], None] | None = None
        live = [(rule, condition) for rule, condition in zip(rules, conditions, strict=True) if rule.effect != "off"]
        self._live = [rule for rule, _ in live]
        shown = {name for rule, _ in live for name in parse_reason(rule.reason)[1]}
        self.fields = frozenset(shown.union(*(condition.fields for _, condition in live)))
        """What is read by the rules that are not off, and by their reasons."""
        self._conditions = Conditions([condition for _, condition in live], lists, pause)
        self._quiet = RuleResult(False, [], [], [], 1.0, ())
        self._templates: dict[int, _Template] = {}

    def evaluate(self, batch: Batch) -> list[RuleResult]:
        """What the rules say of each transaction; never raises."""
        results = [self._quiet] * len(batch)
        fired = self._fired(batch)
        if not fired:
            if self.count_actions is not None and results:
                self.count_actions("approve", len(results))
            return results
        templates: list[_Template] = []
        for place, combination in sorted(fired.items()):
            template = self._templates.get(combination) or self._template(combination)
            templates.append(template)
            results[place] = _filled_in(template, batch, place) if template.placeholders else template.result
        if self.count is not None:
            for rule, times in Counter(rule for template in templates for rule in template.fired).items():
                self.count(rule, times)
        if self.count_actions is not None:
            for action, times in Counter(result.action for result in results).items():
                self.count_actions(action, times)
        return results

    def matches(self, batch: Batch) -> list[int]:
        """How many of the transactions meet each rule's condition, in the order of `rules`; 0 for one that is off."""
        counts = {self._live[number].id: len(places) for number, places in self._conditions.where(batch)}
        return [counts.get(rule.id, 0) for rule in self.rules]

    def _fired(self, batch: Batch) -> dict[int, int]:
        """The rules that fired on a transaction, by its place: bit n stands for rule n of those that are not off."""
        fired: dict[int, int] = {}
        for number, places in self._conditions.where(batch):
            for place in places:
                fired[place] = fired.get(place, 0) | 1 << number
        return fired

    def _template(self, combination: int) -> _Template:
        fired: dict[Effect, list[Rule]] = {"deny": [], "allow": [], "active": [], "shadow": []}
        for number, rule in enumerate(self._live):
            if combination >> number & 1 and rule.effect != "off":
                fired[rule.effect].append(rule)
        deny, allow, active, shadow = fired.values()
        # A deny list wins over all, an allow list over the rules; each leaves its reason.
        accused = deny + active if deny or not allow else []
        reasons, placeholders = [], []
        for place, rule in enumerate(accused or allow):
            form, names = parse_reason(rule.reason)
            reasons.append("" if names else form.format())
            if names:
                placeholders.append((place, form, names))
        cooldowns = tuple((rule.id, rule.cooldown) for rule in accused)
        actions = {rule.action for rule in accused}
        template = _Template(
            RuleResult(
                fraudulent=bool(accused),
                reasons=reasons,
                rules=[rule.id for rule in (*deny, *allow, *active)],
                shadow_rules=[rule.id for rule in shadow],
                p_genuine=math.prod(1 - rule.weight for rule in accused),
                cooldowns=cooldowns if any(seconds for _, seconds in cooldowns) else (),
                action="block" if "block" in actions else "review" if accused else "approve",
            ),
            placeholders,
            deny + allow + active + shadow,
        )
        if len(self._templates) >= CACHED_COMBINATIONS:
            self._templates.clear()
        self._templates[combination] = template
        return template


def _filled_in(template: _Template, batch: Batch, place: int) -> RuleResult:
    """The result for one transaction, whose values its reasons show."""
    reasons = template.result.reasons.copy()
    for number, form, names in template.placeholders:
        reasons[number] = form.format(*[show(value_of(batch, name, place)) for name in names])
    return template.result._replace(reasons=reasons)
