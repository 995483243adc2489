"""Who would have raised an alert alone, told from a decision: the rules, or the model."""

from collections.abc import Sequence

import msgspec

from dataflow.rules import RuleSet
from dataflow.scoring.operating_point import MODEL_FIELD_NAMES, OperatingPoint


class WrittenDecision(msgspec.Struct, gc=False):
    """What a decision's message says, as far as it is counted."""

    transaction_id: str
    timestamp: str
    fraudulent: bool
    amount: float
    rules: list[str]
    shadow_rules: list[str]
    action: str
    model_score: float
    alert_threshold: float
    suppressed: bool = False


class Deciders:
    """Tells from a decision who would have raised an alert alone."""

    def __init__(self, rules: RuleSet, point: OperatingPoint):
        self._threshold_decides = not point.of_forest
        both = list(zip(rules.rules, rules.reads, strict=True))
        self._of_model = {rule.id for rule, reads in both if not set(reads).isdisjoint(MODEL_FIELD_NAMES)}
        flag = "model_anomaly" if point.of_forest else "model_alert"
        plain = [rule.id for rule, _ in both if rule.effect in ("active", "shadow")]
        self._exactly = {rule.id for rule, _ in both if rule.id in plain and rule.when.strip() in ("model_alert", flag)}
        self._deny = {rule.id for rule, _ in both if rule.effect == "deny"}
        self._allow = {rule.id for rule, _ in both if rule.effect == "allow"}

    @property
    def model_told(self) -> bool:
        """Whether `model` knows: a forest's own verdict shows only in a rule that says it."""
        return bool(self._exactly) or self._threshold_decides

    def rules(self, fired: Sequence[str]) -> bool:
        """Whether rules and lists that read nothing of the model raise an alert; `fired` are the ids of a decision."""
        if not self._deny.isdisjoint(fired):
            return True
        return self._allow.isdisjoint(fired) and any(rule not in self._of_model for rule in fired)

    def model(self, out: WrittenDecision) -> bool:
        """Whether the model does by itself, whatever the rules and lists say."""
        if self._exactly:  # to the last bit, where the score that is written has six digits
            return not self._exactly.isdisjoint(out.rules) or not self._exactly.isdisjoint(out.shadow_rules)
        return self._threshold_decides and out.model_score >= out.alert_threshold
