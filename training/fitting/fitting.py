"""From a history to a fitted model, and how good it is: on the flow's own features, with labels as they come."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from dataflow.errors import UserError
from dataflow.profiles.amounts import AmountPrior
from dataflow.rules import RuleSet
from dataflow.scoring.isolation_forest import Model
from dataflow.scoring.metadata import ISOLATION_FOREST, Metadata, Window
from dataflow.scoring.tiers import TieredModel, needed
from dataflow.scoring.trees import Bools, Floats, Rows
from training.fitting.infinities import CannotFitError, bounded
from training.fitting.options import Options
from training.fitting.tiers import FOREST_FEATURES, SUPERVISED_FEATURES, TooFewLabelsError
from training.fitting.tiers import fit as fit_tiers
from training.histories.history import History, after
from training.histories.replay import replay
from training.operating_points.operating_points import Scored, rule_alerts

BATCH = 4_096  # transactions that are scored at a time


class Replayed(NamedTuple):
    """A history as the model sees it: one row a transaction, and what is known of it."""

    rows: Rows  # (n, features)
    fraud: Bools  # (n,)
    labelled: Bools  # (n,), whether `fraud` is known
    times: Floats  # (n,), event times, ascending
    amounts: Floats  # (n,)
    by_rules: Bools  # (n,), alerts of the active rules without the model

    def part(self, which: slice) -> "Replayed":
        """Those of these places."""
        columns: Any = [column[which] for column in self]
        return Replayed(*columns)

    def with_features(self, mine: Sequence[str], wanted: Sequence[str]) -> "Replayed":
        """With other columns of features: some of those that it has."""
        return self._replace(rows=np.ascontiguousarray(self.rows[:, [mine.index(name) for name in wanted]]))

    def window(self, source: str) -> Window:
        """From when to when, and how many."""
        return Window(source=source, first=iso(self.times[0]), last=iso(self.times[-1]), rows=len(self.times))

    def known_by(self, moment: float, delay: float) -> Bools:
        """Of which transactions the label had come by `moment`, so many seconds after its transaction."""
        known: Bools = self.labelled & (self.times + delay <= moment)
        return known


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
    features = features_of(options)
    blocks: list[Rows] = []
    truth: list[bytes] = []
    times: list[Floats] = []  # copies: a view would keep all features of its batch
    amounts: list[Floats] = []
    by_rules: list[Bools] = []
    label_time = None if options.tiers == [ISOLATION_FOREST] else after(options.label_delay)
    for past, batch in replay(history, prior, label_time):
        blocks.append(batch.floats(features))
        truth.append(bytes(2 if each.fraud is None else each.fraud for each in past))
        times.append(np.array(batch.column("timestamp")))
        amounts.append(np.array(batch.column("amount")))
        by_rules.append(rule_alerts(rules, batch))
        tell(history.progress)
    tell(1.0)
    count = sum(map(len, blocks))
    if count < 2:
        msg = f"the history ({history.source}) holds {count} transactions: a model needs 2, and many to be good"
        raise UserError(msg)
    fraud = np.frombuffer(b"".join(truth), np.uint8)
    return Replayed(
        np.concatenate(blocks),
        fraud == 1,
        fraud < 2,
        np.concatenate(times),
        np.concatenate(amounts),
        np.concatenate(by_rules),
    )


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
    return Model(metadata, artifact) if metadata.tiers == [ISOLATION_FOREST] else TieredModel(metadata, artifact)


def iso(at: float) -> str:
    """A time as ISO 8601, UTC, to the second."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
