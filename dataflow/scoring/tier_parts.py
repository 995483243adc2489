"""What is read of the artifact that training makes and the pickle holds: numbers, names and trees, nothing compiled."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from dataflow.scoring.decision_tree import Floats, Rows, Tree, remapped
from dataflow.scoring.isolation_forest import ForestAnswers, ForestParts, rows_at_splits

TailParts = tuple[Floats, int]
"""As `Tail` takes it."""

WeightParts = tuple[dict[str, float], float, float]
"""As `Weights` takes them."""


class SupervisedParts(NamedTuple):
    """What is read of a fitted `HistGradientBoostingClassifier` of two classes, and of its calibration."""

    features: list[str]
    trees: list[Tree]
    baseline: float  # the log odds that the leaves are added to
    gain_shares: list[float]  # of each feature
    calibration: tuple[Floats, Floats]  # as `Calibration` takes it


class TierParts(NamedTuple):
    """All that serving reads of the artifact of a model of several tiers."""

    forest: ForestParts
    forest_features: list[str]
    forest_tail: TailParts
    tails: dict[str, TailParts]
    population: tuple[float, float]
    normal: tuple[dict[str, float], float, float]
    weights: WeightParts | None  # of evidence without feedback; earlier models have none
    feedback_weights: WeightParts | None  # of evidence with feedback; None as with `weights`, or without that tier
    supervised: SupervisedParts | None

    @classmethod
    def of(cls, artifact: Mapping[str, Any], supervised: bool) -> Self:
        """Reads the artifact; `supervised`: that tier, too."""
        return cls(
            ForestParts.of(artifact["forest"]),
            list(artifact["forest_features"]),
            artifact["forest_tail"],
            dict(artifact["tails"]),
            artifact["population"],
            artifact["normal"],
            artifact.get("weights"),
            artifact.get("feedback_weights"),
            _supervised(artifact) if supervised else None,
        )


class TierAnswers(NamedTuple):
    """What scikit-learn says of rows that lie at the splits of its trees: what is compiled must say the same."""

    forest: ForestAnswers
    supervised: tuple[Rows, Floats] | None  # rows with all columns of the model; probabilities

    @classmethod
    def of(cls, artifact: Mapping[str, Any], features: Sequence[str], supervised: bool) -> Self:
        """Asks the models of an artifact; `features`: the columns; `supervised`: that tier, too."""
        columns = [features.index(name) for name in artifact["forest_features"]]
        forest = ForestAnswers.of(artifact["forest"], columns, len(features))
        if not supervised:
            return cls(forest, None)
        columns, boosting = [features.index(name) for name in artifact["supervised_features"]], artifact["boosting"]
        trees = [remapped(tree, np.array(columns)) for tree in boosting_trees(boosting)]
        rows = rows_at_splits(trees, len(features))
        return cls(forest, (rows, boosting.predict_proba(rows[:, columns])[:, 1]))


def _supervised(artifact: Mapping[str, Any]) -> SupervisedParts:
    names, boosting = list(artifact["supervised_features"]), artifact["boosting"]
    shares = gain_shares(boosting, len(names)).tolist()
    return SupervisedParts(
        names, boosting_trees(boosting), boosting_baseline(boosting), shares, artifact["calibration"]
    )


def boosting_trees(boosting: Any) -> list[Tree]:
    """The trees of a fitted `HistGradientBoostingClassifier` of two classes; their leaves add up to the log odds."""
    trees = []
    for (predictor,) in boosting._predictors:
        nodes = predictor.nodes
        leaf = nodes["is_leaf"].astype(np.bool_)
        trees.append(
            Tree(
                feature=np.where(leaf, 0, nodes["feature_idx"]),
                threshold=nodes["num_threshold"],
                left=np.where(leaf, -1, nodes["left"].astype(np.int64)),
                right=np.where(leaf, -1, nodes["right"].astype(np.int64)),
                nan_left=nodes["missing_go_to_left"].astype(np.bool_),
                value=nodes["value"],
            )
        )
    return trees


def boosting_baseline(boosting: Any) -> float:
    """The log odds that the leaves of a fitted `HistGradientBoostingClassifier` of two classes are added to."""
    return float(np.ravel(boosting._baseline_prediction)[0])


def gain_shares(boosting: Any, features: int) -> Floats:
    """Of all that the splits of a fitted `HistGradientBoostingClassifier` gained, the share of each feature."""
    gains = np.zeros(features)
    for (predictor,) in boosting._predictors:
        inner = predictor.nodes[predictor.nodes["is_leaf"] == 0]
        np.add.at(gains, inner["feature_idx"], inner["gain"])
    total = gains.sum()
    shares: Floats = gains / total if total > 0.0 else gains
    return shares
