"""Fits the tiers of a model to what was known at a moment: see `dataflow.tiers` for what each is."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflow.profile import Population
from dataflow.scoring import ISOLATION_FOREST, Bools, Rows
from dataflow.tiers import GRADED, SUPERVISED, Tail
from training.history import Past

TREES, MAX_SAMPLES = 200, 1024
"""At 10 trees the seed decides the result; from 200 on it hardly does."""
FOREST_FEATURES = (
    "amount_z_above",
    "amount_to_largest",
    "amount",
    "unusual_day",
    "centre_ratio",
    "txn_per_hour",
    "speed",
    "new_device",
    "new_location",
)
"""Few, and one-sided: all that streaming can compute halves the forest's average precision."""
SUPERVISED_FEATURES = (
    *("amount", "amount_z", "amount_ratio", "amount_to_largest", "txn_per_hour", "txn_per_day", "burst"),
    *("seconds_since_last", "unusual_day", "unusual_fortnight", "km_from_centre", "centre_ratio", "speed"),
    *("new_merchant", "new_device", "new_location", "card_frauds", "days_since_card_fraud", "merchant_unusual"),
    *("merchant_labels_week", "merchant_labels_month", "merchant_frauds_week", "merchant_frauds_month"),
    *("merchant_compromised", "run_days", "run_frauds", "run_genuine", "genuine_since"),
    *("days_since_merchant_fraud", "days_since_merchant_genuine"),
)
GENUINE_KEPT = 60_000
"""Genuine transactions that the supervised models learn from; they are weighted for those left out."""
FEWEST_FRAUDS = 50
"""Known frauds below which no supervised model is fitted."""


class TooFewLabelsError(Exception):
    """There are not enough labels to learn from."""


def population(past: Iterable[Past], fewest: int = 10) -> Population:
    """What amounts are like among all: the median user's mean, and his spread in means.

    Of the users with at least `fewest` transactions in the window; without any such, `Population` says not known.
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for each in past:
        amount = each.transaction.amount
        of_user = sums[each.transaction.user]
        of_user[0] += 1.0
        of_user[1] += amount
        of_user[2] += amount * amount
    known = np.array([values for values in sums.values() if values[0] >= fewest])
    if not len(known):
        return Population()
    count, total, squares = known.T
    mean = total / count
    spread = np.sqrt(np.maximum(squares / count - mean * mean, 0.0) * count / (count - 1.0))
    paid = mean > 0
    if not paid.any():
        return Population()
    return Population(float(np.median(mean[paid])), float(np.median(spread[paid] / mean[paid])))


def fit(
    tiers: Sequence[str],
    rows: Rows,
    names: Sequence[str],
    fraud: Bools,
    labelled: Bools,
    population: Population,
    seed: int,
    contamination: float | str,
    jobs: int = 1,
) -> dict[str, Any]:
    """The artifact of a model: its forest, the tails of the graded facts, and the supervised models where named.

    rows: (n, len(names)), finite; fraud and labelled: (n,), what was known of each when the model is trained.

    Raises:
        TooFewLabelsError: the supervised tier is named, but too few frauds, or nothing else, are known.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, IsolationForest, RandomForestClassifier

    column = {name: number for number, name in enumerate(names)}

    def picked(wanted: Sequence[str], where: NDArray[Any] | slice = slice(None)) -> Rows:
        return rows[where][:, [column[name] for name in wanted]]

    forest = IsolationForest(
        n_estimators=TREES, max_samples=min(MAX_SAMPLES, len(rows)), contamination=contamination, random_state=seed
    ).fit(picked(FOREST_FEATURES))
    own = Tail.of(-forest.score_samples(picked(FOREST_FEATURES)))
    tails = {name: Tail.of(rows[:, column[name]]) for name in GRADED}
    artifact: dict[str, Any] = {
        "forest": forest,
        "forest_features": list(FOREST_FEATURES),
        "forest_tail": (own.largest, own.count),
        "tails": {name: (tail.largest, tail.count) for name, tail in tails.items()},
        "population": tuple(population),
    }
    if SUPERVISED not in tiers:
        return artifact
    frauds, genuine = np.flatnonzero(fraud & labelled), np.flatnonzero(~fraud & labelled)
    if len(frauds) < FEWEST_FRAUDS or not len(genuine):
        msg = f"{len(frauds)} frauds among {int(labelled.sum())} labels known in time, {FEWEST_FRAUDS} are needed"
        raise TooFewLabelsError(msg)
    random = np.random.default_rng(seed)
    kept = genuine if len(genuine) <= GENUINE_KEPT else random.choice(genuine, GENUINE_KEPT, replace=False)
    chosen = np.sort(np.concatenate([frauds, kept]))
    weights = np.where(fraud[chosen], 1.0, len(genuine) / len(kept))
    learn, truth = picked(SUPERVISED_FEATURES, chosen), fraud[chosen].astype(np.int64)
    artifact["supervised_features"] = list(SUPERVISED_FEATURES)
    artifact["random_forest"] = RandomForestClassifier(
        80, min_samples_leaf=4, max_features=0.35, random_state=seed, n_jobs=jobs
    ).fit(learn, truth, sample_weight=weights)
    artifact["random_forest"].n_jobs = 1
    artifact["boosting"] = HistGradientBoostingClassifier(
        max_iter=150,
        learning_rate=0.05,
        max_leaf_nodes=12,
        min_samples_leaf=30,
        l2_regularization=5,
        max_features=0.5,
        early_stopping=False,
        random_state=seed,
    ).fit(learn, truth, sample_weight=weights)
    return artifact


def all_tiers(last: str) -> list[str]:
    """The tiers up to the one named."""
    order = [ISOLATION_FOREST, "evidence", "feedback", SUPERVISED]
    return order[: order.index(last) + 1]
