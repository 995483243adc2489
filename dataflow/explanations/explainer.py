"""Why a decision is an alert, in entries that people read and programs sort.

An entry is of the model or of a rule. The model's say by how much its risk falls if a group of features (see
`feature_groups`) were usual and all others stayed: asked of the very model that decides, for all alerts of a batch at
once. A rule's says by how much the score falls without that rule.
"""

import logging
import math
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from dataflow.events.decision import Explanation
from dataflow.explanations.feature_groups import Alert, Group, groups_of, number
from dataflow.features.batch import FeatureBatch
from dataflow.metrics import UNEXPLAINED
from dataflow.rules import NUMBER_OF, Rule, RuleResult, RuleSet, value_of
from dataflow.scoring.common_values import CommonValues
from dataflow.scoring.decision_tree import Floats, Rows
from dataflow.scoring.metadata import Scorer
from dataflow.scoring.operating_point import MODEL_FIELD_NAMES

MOST: Final = 5
"""Entries of an explanation."""
CLEAR: Final = 0.02
"""Of the model's risk: a group without which it falls by less is not told, unless there is nothing else."""
LOG_SECONDS: Final = 60.0
"""Between two lines about explanations that failed."""

_MODEL = frozenset(MODEL_FIELD_NAMES)

log = logging.getLogger("redflag.explanation")


class Explainer:
    """Explains the alerts of a model and of whatever rules are in service.

    The same alert is explained the same way whatever its batch, as a row's score does not depend on that.
    """

    def __init__(self, model: Scorer):
        self._model = model
        self._features = model.features
        self._groups = groups_of(model.features)
        common = model.metadata.common_values
        self._common = common if common is not None else CommonValues()
        places = {name: place for place, name in enumerate(model.features)}
        self._columns = [[(places[name], name) for name in g.features if name in places] for g in self._groups]
        self._members = np.zeros((len(self._groups), len(places)), np.bool_)  # whether a feature is of a group
        for number_of_group, columns in enumerate(self._columns):
            self._members[number_of_group, [column for column, _ in columns]] = True
        self._places = places
        self._rules: RuleSet | None = None
        self._by_id: dict[str, tuple[Rule, list[str]]] = {}
        self._said = -math.inf

    def explain(self, alerts: FeatureBatch, results: Sequence[RuleResult], rules: RuleSet) -> list[list[Explanation]]:
        """The explanation of each of these alerts, at least one entry; never raises.

        `alerts` has the model's columns, too; `results` are what `rules` say of them.
        """
        try:
            return self._explain(alerts, results, rules)
        except Exception:
            return [self._explain_one(alerts, place, result, rules) for place, result in enumerate(results)]

    def _explain_one(self, alerts: FeatureBatch, place: int, result: RuleResult, rules: RuleSet) -> list[Explanation]:
        """By itself, so that no other suffers from one that fails: that one tells its rules' reasons alone."""
        try:
            (explanation,) = self._explain(alerts.part([place]), [result], rules)
        except Exception as error:
            self._failed(error)
            ids = result.rules or ["unknown"]
            reasons = result.reasons or ["an alert"]
            return [
                Explanation(f"rule:{name}", True, None, 0.0, reason) for name, reason in zip(ids, reasons, strict=False)
            ][:MOST]
        return explanation

    def _failed(self, error: Exception) -> None:
        kind = type(error).__name__
        UNEXPLAINED.labels(kind).inc()
        now = time.monotonic()
        if now - self._said >= LOG_SECONDS:
            self._said = now
            # Without the error's text: it may hold what stands in the transaction.
            log.error("an alert could not be explained (%s): it says which rules fired, and is decided as ever", kind)

    def _explain(self, alerts: FeatureBatch, results: Sequence[RuleResult], rules: RuleSet) -> list[list[Explanation]]:
        if rules is not self._rules:
            self._by_id = {
                rule.id: (rule, sorted(reads, key=NUMBER_OF.__getitem__))
                for rule, reads in zip(rules.rules, rules.reads, strict=True)
            }
            self._rules = rules
        risks: list[float] = np.asarray(alerts.column("model_score")).tolist()
        rows = alerts.floats(self._features)
        last_locations = alerts.column("last_location")
        known = [
            Alert(txn, last, numbers, self._common.typical)
            for txn, last, numbers in zip(alerts.transactions, last_locations, alerts.numbers().tolist(), strict=True)
        ]
        effects = self._effects(rows, known, np.array(risks))
        explained = []
        for place, result in enumerate(results):
            model = self._of_model(known[place], rows[place], effects[place], risks[place])
            of_rules, by_model = self._of_rules(alerts, place, result, risks[place], rows[place])
            if by_model:
                # Sorting is stable: of the same effect, rules come first.
                entries = sorted([*of_rules, *model], key=_by_effect)
            else:
                entries = sorted(of_rules, key=_by_effect) + model
            explained.append(entries[:MOST])
        return explained

    def _effects(self, rows: Rows, alerts: Sequence[Alert], risks: Floats) -> Floats:
        """By how much the risk falls with each group usual, of shape (alerts, groups)."""
        with np.errstate(over="ignore"):
            usual = np.array([self._usual(alert) for alert in alerts], np.float64).astype(np.float32)
        # What is not known stays; and a group that is usual already needs no question.
        usual = np.where(np.isnan(usual), rows, usual)
        asked, groups = np.nonzero((usual != rows) @ self._members.T)
        effects = np.zeros((len(rows), len(self._groups)))
        risk, _ = self._model.risk_first(np.where(self._members[groups], usual[asked], rows[asked]))
        effects[asked, groups] = risks[asked] - risk
        return effects

    def _usual(self, alert: Alert) -> list[float]:
        """The usual value of each of the model's features; not a number where none is known."""
        usual = [math.nan] * len(self._features)
        typical = alert.typical
        for group, columns in zip(self._groups, self._columns, strict=True):
            own = group.usual(alert)
            for column, name in columns:
                value = own.get(name)
                usual[column] = typical.get(name, math.nan) if value is None else value
        return usual

    def _of_model(self, alert: Alert, row: Rows, effects: Floats, risk: float) -> list[Explanation]:
        """The groups that clearly add to the risk, the strongest first; the strongest alone where none does."""
        order = np.argsort(-effects, kind="stable").tolist()
        clear = [place for place in order[:MOST] if effects[place] > CLEAR * risk]
        return [self._entry(alert, row, self._groups[place], effects[place]) for place in clear or order[:1]]

    def _entry(self, alert: Alert, row: Rows, group: Group, effect: float) -> Explanation:
        said = group.say(alert)
        factor = next((name for name in said.factors if name in self._common.fraud_factors), None)
        return Explanation(
            said.feature, _plain(said.value), _plain(said.usual), _rounded(effect), said.text, self._factor(factor, row)
        )

    def _factor(self, feature: str | None, row: Rows) -> float | None:
        if feature is None:
            return None
        factor = self._common.fraud_factors[feature].factor(float(row[self._places[feature]]))
        return None if factor is None else round(factor, 2)

    def _of_rules(
        self, alerts: FeatureBatch, place: int, result: RuleResult, risk: float, row: Rows
    ) -> tuple[list[Explanation], bool]:
        """The rules that made the alert, and whether one of them is the model's: that one the model's entries explain.

        A rule's effect is how much of the score, 1 - p_genuine * (1 - risk), hangs on it: p_genuine is the product of
        1 - weight over all of them.
        """
        fired = [self._by_id[name] for name in result.rules]
        made = [each for each in fired if each[0].effect != "allow"]  # a deny list wins over an allow list
        entries, by_model = [], False
        for (rule, reads), reason in zip(made, result.reasons, strict=True):
            if reads and _MODEL.issuperset(reads):
                by_model = True
                continue
            others = math.prod(1.0 - other.weight for other, _ in made if other is not rule)
            effect = (others - result.p_genuine) * (1.0 - risk)
            values = [value_of(alerts, name, place) for name in reads]
            shown = ", ".join(f"{name} {_shown(value)}" for name, value in zip(reads, values, strict=True))
            alone = values[0] if len(values) == 1 else shown or True
            said = isinstance(alone, str) and alone in reason
            factor = reads[0] if len(reads) == 1 and reads[0] in self._common.fraud_factors else None
            entries.append(
                Explanation(
                    f"rule:{rule.id}",
                    _plain(alone),
                    None,
                    _rounded(effect),
                    f"{reason} ({shown})" if shown and not said else reason,
                    self._factor(factor, row),
                )
            )
        return entries, by_model


def _by_effect(entry: Explanation) -> float:
    return -entry.effect


def _rounded(effect: float) -> float:
    """Six digits, as scores have; no negative zero."""
    return round(float(effect), 6) + 0.0


def _plain(value: Any) -> float | str | bool | None:
    """A value with six digits behind the point; what is infinite or not a number is null in the JSON."""
    return round(value, 6) if isinstance(value, float) else value


def _shown(value: float | str | bool) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = number(value)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
