"""From a history to a fitted model, and how good it is: on the flow's own features, with labels as they come."""

from collections.abc import Callable
from typing import Any

import numpy as np

from dataflow.errors import UserError
from dataflow.profiles.amounts import AmountPrior
from dataflow.rules import RuleSet
from dataflow.scoring.decision_tree import Floats, Rows
from dataflow.scoring.isolation_forest import Model
from dataflow.scoring.loading import of_parts, read_parts
from dataflow.scoring.metadata import ISOLATION_FOREST, Metadata
from dataflow.scoring.tiers import TieredModel, needed
from training.fitting.infinities import CannotFitError, bounded
from training.fitting.options import Options
from training.fitting.tiers import FOREST_FEATURES, SUPERVISED_FEATURES, TooFewLabelsError
from training.fitting.tiers import fit as fit_tiers
from training.histories.history import History, after
from training.histories.replay import replay
from training.histories.replayed import Keeper, Replayed
from training.operating_points.operating_points import Scored, rule_alerts

BATCH = 4_096  # transactions that are scored at a time


def features_of(options: Options) -> tuple[str, ...]:
    """The columns of the model that the options name."""
    if options.tiers == [ISOLATION_FOREST]:
        return options.features
    return tuple(needed(options.tiers, FOREST_FEATURES, SUPERVISED_FEATURES))


def collect(
    history: History, options: Options, prior: AmountPrior, rules: RuleSet, tell: Callable[[float], None]
) -> Replayed:
    """Replays the history and keeps the model's columns, 4 bytes a value, and what the rules alone alert on.

    Labels come in with their delay where the model has tiers that read them. `tell` is told how much is done, 0 to 1.

    Raises:
        UserError: the history is wrong, or too short for any model.
    """
    kept = Keeper(features_of(options))
    label_time = None if options.tiers == [ISOLATION_FOREST] else after(options.label_delay)
    for past, batch in replay(history, prior, label_time):
        kept.keep(past, batch, rule_alerts(rules, batch))
        tell(history.progress)
    tell(1.0)
    if kept.count < 2:
        msg = f"the history ({history.source}) holds {kept.count} transactions: a model needs 2, and many to be good"
        raise UserError(msg)
    return kept.replayed()


def fit(replayed: Replayed, options: Options, prior: AmountPrior, moment: float) -> Any:
    """What the pickle holds, fitted to what was known at a moment: a forest, or the artifact of several tiers.

    Raises:
        CannotFitError: there is too little to learn from.
    """
    features = features_of(options)
    rows = bounded(replayed.rows, features, options.tiers)
    if options.tiers == [ISOLATION_FOREST]:
        from sklearn.ensemble import IsolationForest

        forest = IsolationForest(
            n_estimators=options.trees, contamination=options.contamination, random_state=options.seed
        )
        return forest.fit(rows)
    known = replayed.known_by(moment, options.label_delay)
    try:
        return fit_tiers(
            options.tiers,
            rows,
            features,
            replayed.fraud,
            known,
            prior,
            options.seed,
            options.contamination,
        )
    except TooFewLabelsError as error:
        advice = (
            "take a longer history, or --tiers feedback"
            if replayed.labelled.any()
            else "name the column of the history's labels with --label-column, or take --tiers feedback"
        )
        raise CannotFitError(str(error), advice) from None


def scores(model: Model | TieredModel, rows: Rows, tell: Callable[[float], None]) -> dict[str, Floats]:
    """The risk of each tier, the forest's own under `isolation_forest`; each of shape (n,)."""
    blocks: list[dict[str, Floats]] = []
    for begin in range(0, len(rows), BATCH):
        block = np.ascontiguousarray(rows[begin : begin + BATCH])
        blocks.append(
            model.tiers(block) if isinstance(model, TieredModel) else {ISOLATION_FOREST: model.score(block)[0]}
        )
        tell((begin + len(block)) / len(rows))
    return {tier: np.concatenate([block[tier] for block in blocks]) for tier in blocks[0]}


def scored(model: Model | TieredModel, replayed: Replayed, tell: Callable[[float], None], measured_on: str) -> Scored:
    """What an operating point is chosen on: the risk of the last tier, and what is known of the transactions."""
    found = []
    for begin in range(0, len(replayed.rows), BATCH):
        found.append(model.score(np.ascontiguousarray(replayed.rows[begin : begin + BATCH])))
        tell(min((begin + BATCH) / len(replayed.rows), 1.0))
    risk, anomaly = (np.concatenate(part) for part in zip(*found, strict=True))
    _, fraud, labelled, times, amounts, by_rules = replayed
    return Scored(risk, anomaly, fraud, labelled, amounts, times, by_rules, measured_on)


def figures(risks: dict[str, Floats], threshold: float, replayed: Replayed) -> dict[str, Any]:
    """How good scores are: `labelled` and `tiers` only where both kinds are among the labels."""
    risk = risks[ISOLATION_FOREST]
    found: dict[str, Any] = {"threshold": threshold, "share_flagged": float(np.mean(risk > threshold))}
    fraud = replayed.fraud[replayed.labelled]
    if not 0 < fraud.sum() < len(fraud):
        return found
    from sklearn.metrics import average_precision_score, roc_auc_score

    flagged = risk[replayed.labelled] > threshold
    found["labelled"] = {
        "rows": len(fraud),
        "fraud_share": float(fraud.mean()),
        "precision_of_flagged": float(fraud[flagged].mean()) if flagged.any() else None,
        "recall_of_flagged": float(flagged[fraud].mean()),
    }
    found["tiers"] = {
        tier: {
            "average_precision": float(average_precision_score(fraud, values[replayed.labelled])),
            "roc_auc": float(roc_auc_score(fraud, values[replayed.labelled])),
        }
        for tier, values in risks.items()
    }
    return found


def make_model(metadata: Metadata, artifact: Any) -> Model | TieredModel:
    """What is fitted, ready to score."""
    return of_parts(metadata, read_parts(metadata, artifact))
