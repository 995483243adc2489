"""What would have been decided in the windows of a test: a line for each transaction, and how good it all is.

Everything here is of all transactions of the windows, those of cards known as compromised too, as the flow decides
these as well; what needs the truth is of those whose label is known.
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from dataflow.events.decision import combined
from dataflow.events.transaction import DAY
from dataflow.features.batch import FeatureBatch
from dataflow.rules import RuleSet
from dataflow.scoring.decision_tree import Bools, Floats, Indices
from dataflow.scoring.operating_point import OperatingPoint
from training.evaluation.evaluation import Replayed, Result
from training.evaluation.measures import calibration_errors, reliability


class Decided(NamedTuple):
    """The decisions of one window; arrays of shape (n,), one element a transaction."""

    week: str
    point: OperatingPoint
    rows: Indices  # of the replayed history
    risk: Floats  # the model's
    by_rules: Bools  # alerts of the rules without the model
    by_model: Bools  # the model's own alerts
    alerts: Bools  # what would go to fraud_alerts: rules and model together
    blocked: Bools
    fired: dict[str, Bools]  # of each rule: the alerts among which it fired


def scores_columns(tiers: list[str]) -> list[str]:
    """The columns of scores.csv, which has one line a transaction of the test, by the models of the first seed.

    transaction_id, user, amount; timestamp: the event time, ISO 8601, UTC. label: 1 fraud, 0 genuine, empty where it is
    not known; the truth, also where it became known after the test. score_TIER: 0 to 1, of each tier by itself. score:
    0 to 1, as the flow writes it, of the model's last tier and the rules that fired. fraudulent: 1 or 0, whether it
    would go to fraud_alerts, by the rules or the model. action: approve, review or block. reason: why, with " | "
    between several.
    """
    of_tiers = [f"score_{tier}" for tier in tiers]
    decided = ["score", "fraudulent", "action", "reason"]
    return ["transaction_id", "user", "timestamp", "amount", "label", *of_tiers, *decided]


def write_scores(path: Path, replayed: Replayed, results: list[Result], rules: RuleSet) -> list[Decided]:
    """Decides all transactions of the windows, writes one line for each (`scores_columns`), and gives the decisions."""
    tiers = list(results[0].measures)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(scores_columns(tiers))
        return [_decide(replayed, result, rules, tiers, writer.writerows) for result in results]


def _decide(
    replayed: Replayed,
    result: Result,
    rules: RuleSet,
    tiers: list[str],
    write: Callable[[Iterable[tuple[Any, ...]]], None],
) -> Decided:
    """The decisions of one window, whose lines it writes."""
    point = result.model.operating_point
    risks, own = [], []
    alerts: list[bool] = []
    blocked: list[bool] = []
    fired: dict[str, list[int]] = {}
    for rows, batch in _of_window(replayed, result.window):
        block = replayed.rows[rows]
        risk, anomaly = result.model.risk_first(block)
        batch.put(point.columns(risk, anomaly))
        risks.append(risk)
        own.append(np.asarray(batch.column("model_alert")))
        found = rules.evaluate(batch)
        for place, each in enumerate(found, len(alerts)):
            if each.fraudulent:
                for name in each.rules:
                    fired.setdefault(name, []).append(place)
        alerts += [each.fraudulent for each in found]
        blocked += [each.action == "block" for each in found]
        of_tiers = result.model.tiers(block)
        truth = zip(replayed.fraud[rows].tolist(), replayed.labelled[rows].tolist(), strict=True)
        write(
            zip(
                [txn.transaction_id or "" for txn in batch.transactions],
                batch.column("user"),
                [datetime.fromtimestamp(at, UTC).isoformat() for at in replayed.at[rows].tolist()],
                replayed.amounts[rows].tolist(),
                [int(fraud) if labelled else "" for fraud, labelled in truth],
                *(of_tiers[tier].tolist() for tier in tiers),
                combined(np.array([each.p_genuine for each in found]), risk).tolist(),
                [int(each.fraudulent) for each in found],
                [each.action for each in found],
                [" | ".join(each.reasons) for each in found],
                strict=True,
            )
        )
    return Decided(
        result.week,
        point,
        result.window,
        np.concatenate(risks),
        replayed.by_rules[result.window],
        np.concatenate(own),
        np.array(alerts, np.bool_),
        np.array(blocked, np.bool_),
        {name: _among(places, len(alerts)) for name, places in fired.items()},
    )


def _of_window(replayed: Replayed, window: Indices) -> Iterator[tuple[Indices, FeatureBatch]]:
    """The transactions of a window in batches, and their rows in the replayed history; they follow each other there."""
    for first, batch in replayed.tested:
        begin = max(int(window[0]) - first, 0)
        end = min(int(window[-1]) + 1 - first, len(batch))
        if begin < end:
            whole = end - begin == len(batch)
            yield np.arange(first + begin, first + end), batch if whole else batch.part(range(begin, end))


def _among(places: list[int], count: int) -> Bools:
    found = np.zeros(count, np.bool_)
    found[places] = True
    return found


class Windows:
    """The windows' decisions together, and what is known of their transactions."""

    def __init__(self, replayed: Replayed, decided: list[Decided]):
        rows = np.concatenate([each.rows for each in decided])
        self.fraud, self.labelled = replayed.fraud[rows] & replayed.labelled[rows], replayed.labelled[rows]
        self.amounts = replayed.amounts[rows]
        self.kinds = np.array(replayed.scenario, object)[rows]
        self.days = max(sum(float(np.ptp(replayed.at[each.rows])) for each in decided) / DAY, 1.0)

    def figures(self, alerts: Bools) -> dict[str, float | None]:
        """How good some alerts are; precision, recall and money are None where nothing is known of any."""
        hits, frauds = alerts & self.fraud, int(self.fraud.sum())
        labelled, genuine = int((alerts & self.labelled).sum()), int(self.labelled.sum()) - frauds
        money, caught = float(self.amounts[self.fraud].sum()), float(self.amounts[hits].sum())
        return {
            "alerts": int(alerts.sum()),
            "alerts_a_day": float(alerts.sum()) / self.days,
            "precision": float(hits.sum()) / labelled if labelled else None,
            "recall": float(hits.sum()) / frauds if frauds else None,
            "false_positive_rate": (labelled - float(hits.sum())) / genuine if genuine else None,
            "money_caught_a_day": caught / self.days,
            "money_missed_a_day": (money - caught) / self.days,
            "money_caught": caught / money if money > 0 else None,
        }

    def by_scenario(self, **alerts: Bools) -> dict[str, dict[str, float | None]]:
        """Of each kind of fraud: how many, their money, and what share of both each kind of alerts finds."""
        found: dict[str, dict[str, float | None]] = {}
        for kind in sorted({str(kind) for kind in self.kinds[self.fraud] if kind}):
            mine = self.fraud & (self.kinds == kind)
            money = float(self.amounts[mine].sum())
            found[kind] = {"frauds": int(mine.sum()), "money_a_day": money / self.days}
            for name, those in alerts.items():
                found[kind][f"recall_{name}"] = float(those[mine].mean())
                caught = float(self.amounts[mine & those].sum())
                found[kind][f"money_caught_{name}"] = caught / money if money > 0 else None
        return found


def summarise(replayed: Replayed, decided: list[Decided], rules: RuleSet) -> dict[str, Any]:
    """How good the decisions are: of rules, model and both; by rule, by scenario; what was promised, and what came."""
    whole = Windows(replayed, decided)
    of_rules = np.concatenate([each.by_rules for each in decided])
    of_model = np.concatenate([each.by_model for each in decided])
    alerts = np.concatenate([each.alerts for each in decided])
    risk = np.concatenate([each.risk for each in decided])
    names = sorted({name for each in decided for name in each.fired})
    nothing = [np.zeros(len(each.rows), np.bool_) for each in decided]
    by_rule = {
        name: np.concatenate([each.fired.get(name, none) for each, none in zip(decided, nothing, strict=True)])
        for name in names
    }
    known = whole.labelled
    return {
        "ruleset_version": rules.version,
        "chosen_by": decided[0].point.chosen_by,
        "all": whole.figures(alerts),
        "rules_alone": whole.figures(of_rules),
        "model_alone": whole.figures(of_model),
        "blocked": whole.figures(np.concatenate([each.blocked for each in decided])),
        "by_rule": {name: whole.figures(those) for name, those in by_rule.items()},
        "by_scenario": whole.by_scenario(rules=of_rules, model=of_model, all=alerts),
        "weeks": [promise(replayed, each) for each in decided],
        "calibration": calibration_errors(risk[known], whole.fraud[known])
        | {
            name: [each._asdict() for each in reliability(risk[known], whole.fraud[known], equal_counts=equal)]
            for name, equal in (("equal_widths", False), ("equal_counts", True))
        },
    }


def promise(replayed: Replayed, decided: Decided) -> dict[str, Any]:
    """What the operating point of one window promised, beside what came."""
    point = decided.point
    return {
        "week": decided.week,
        "alert_threshold": point.alert,
        "block_threshold": point.block,
        "measured_on": point.measured_on,
        "promised": None if point.expected is None else msgspec.to_builtins(point.expected),
        "came": Windows(replayed, [decided]).figures(decided.alerts),
    }
