"""Fits the tiers of a model to what was known at a moment: see `dataflow.scoring.tiers` for what each is."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np

from dataflow.profiles.amounts import AmountPrior
from dataflow.scoring.decision_tree import Bools, Floats, Rows
from dataflow.scoring.isolation_forest import ForestParts, IsolationScores
from dataflow.scoring.metadata import ISOLATION_FOREST
from dataflow.scoring.tiers import (
    BOLD_EVIDENCE,
    CAREFUL,
    ENOUGH_HISTORY,
    FEEDBACK,
    FEW_FRAUDS,
    GRADED,
    NEED_HISTORY,
    SUPERVISED,
    Calibration,
    ColdStart,
    Evidence,
    Normal,
    Tail,
    Weights,
)
from training.fitting.boosting import fit_boosting, log_odds
from training.histories.history import Past

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
    *("amount", "amount_z", "amount_ratio", "amount_to_largest", "usual_amount"),
    *("txn_per_hour", "amount_per_hour", "mean_amount_hour", "txn_per_day", "amount_per_day", "burst"),
    *("seconds_since_last", "unusual_day", "unusual_fortnight"),
    *("km_from_centre", "centre_ratio", "speed"),
    *("new_merchant", "new_device", "new_location", "card_frauds", "days_since_card_fraud"),
    *("merchant_per_day", "merchant_amount_ratio", "merchant_unusual"),
    *("merchant_labels_week", "merchant_labels_month", "merchant_frauds_week", "merchant_frauds_month"),
    *("merchant_risk_week", "merchant_risk_month", "merchant_compromised", "run_days", "run_frauds", "run_genuine"),
    *("genuine_since", "days_since_merchant_fraud", "days_since_merchant_genuine"),
)
"""Not the merchant's mean amount: it tells merchants from one another, and so which were breached in training."""
TAIL_ROWS = 50_000
"""Rows, evenly spaced, by which the rarity of the forest's scores is told: the tail's last step is 1 in 3,000."""
FEWEST_FRAUDS = 50
"""Known frauds below which no supervised model is fitted, and no weights of evidence are."""
WEIGHED_ON = 300_000
"""Labelled transactions, the newest, by which weights of evidence are chosen."""
CLEARLY_BETTER = 1.05
"""Times the average precision of the careful weights that the bold ones must reach to be taken: they are compared by
labels of the window that the forest was fitted on."""
CLOSES_THE_GAP = 0.02
"""The part of what average precision lacks to 1 that bold rarity must bring beside confirmed frauds to be taken: it is
3 to 4 % on synccfd, where it orders the next week better, and .6 % on the simulation, where it orders that worse."""
AS_GOOD = 0.99
"""Of the best average precision: what orders as well is taken where it trusts confirmed frauds more, as in service
labels come that the end of the training window lacks."""
CALIBRATED_ON = 0.25
"""The share of the known labels, the last in time, that a model is calibrated on which learned from the others."""
ENOUGH_FOR_ISOTONIC, ENOUGH_FOR_PLATT = 100, 10
"""Frauds among these from which a curve of any rising shape is fitted, and one of two parameters."""

BLOCK = 4_096
"""Transactions of which amounts are summed up at a time."""

UNCALIBRATED = Calibration(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
"""Scores as they are."""


class TooFewLabelsError(Exception):
    """There are not enough labels to learn from."""


def amount_prior(past: Iterable[Past], fewest: int = 10) -> AmountPrior:
    """What amounts are like among all: the median user's mean, and the spread of their amounts in means.

    Of the users with at least `fewest` transactions in the window; without any such, it says not known.
    """
    numbers: dict[str, int] = {}
    totals = np.zeros((3, 0))  # of each user: transactions, the sum of their amounts, that of the squares
    rows = iter(past)
    while block := [each.transaction for each in islice(rows, BLOCK)]:
        # `len` is read before `setdefault` puts the user there: so users are numbered from 0.
        users = np.fromiter((numbers.setdefault(txn.user, len(numbers)) for txn in block), np.intp, len(block))
        amounts = np.fromiter((txn.amount for txn in block), np.float64, len(block))
        totals = np.pad(totals, ((0, 0), (0, len(numbers) - totals.shape[1])))
        for total, values in zip(totals, (np.ones(len(block)), amounts, amounts * amounts), strict=True):
            np.add.at(total, users, values)
    count, total, squares = totals[:, totals[0] >= fewest]
    if not len(count):
        return AmountPrior()
    mean = total / count
    spread = np.sqrt(np.maximum(squares / count - mean * mean, 0.0) * count / (count - 1.0))
    paid = mean > 0
    if not paid.any():
        return AmountPrior()
    return AmountPrior(float(np.median(mean[paid])), float(np.median(spread[paid] / mean[paid])))


def fit(
    tiers: Sequence[str],
    rows: Rows,
    names: Sequence[str],
    fraud: Bools,
    labelled: Bools,
    prior: AmountPrior,
    seed: int,
    contamination: float | str,
) -> dict[str, Any]:
    """The artifact of a model: its forest, the tails of the graded features, and the supervised tier where named.

    rows: (n, len(names)), finite, in the order of time; fraud and labelled: (n,), what was known of each when the model
    is trained.

    Raises:
        TooFewLabelsError: the supervised tier is named, but too few frauds, or nothing else, are known.
    """
    if not len(rows):
        msg = "there is no transaction to learn from"
        raise ValueError(msg)
    column = {name: number for number, name in enumerate(names)}
    normal = normal_features(rows, names)
    rows = ColdStart(names, normal)(rows)
    learned = rows[:, [column[name] for name in FOREST_FEATURES]]
    forest, isolation = fit_forest(learned, seed, contamination)
    own = Tail.of(isolation[:: max(len(learned) // TAIL_ROWS, 1)])
    tails = {name: Tail.of(rows[:, column[name]]) for name in GRADED}
    evidence = Evidence(names, own, tails)
    newest = np.flatnonzero(labelled)[-WEIGHED_ON:]
    seen = isolation[newest], rows[newest], fraud[newest]
    artifact: dict[str, Any] = {
        "forest": forest,
        "forest_features": list(FOREST_FEATURES),
        "forest_tail": (own.largest, own.count),
        "tails": {name: (tail.largest, tail.count) for name, tail in tails.items()},
        "population": tuple(prior),
        "normal": tuple(normal),
        "weights": tuple(fit_weights(evidence, *seen)),
    }
    if FEEDBACK in tiers:
        artifact["feedback_weights"] = tuple(fit_feedback_weights(evidence, *seen))
    if SUPERVISED not in tiers:
        return artifact
    known = np.flatnonzero(labelled)
    frauds = int(fraud[known].sum())
    if frauds < FEWEST_FRAUDS or frauds == len(known):
        msg = f"{frauds} frauds among {len(known)} labels known in time, {FEWEST_FRAUDS} are needed"
        raise TooFewLabelsError(msg)
    supervised = rows[:, [column[name] for name in SUPERVISED_FEATURES]]
    artifact["supervised_features"] = list(SUPERVISED_FEATURES)
    earlier, later = np.split(known, [int(len(known) * (1 - CALIBRATED_ON))])
    # Side by side: scikit-learn lets go of the interpreter's lock, so that on two cores both take as long as one.
    with ThreadPoolExecutor(1) as beside:
        boosting = beside.submit(fit_boosting, supervised[known], fraud[known], seed)
        if 0 < fraud[earlier].sum() < len(earlier):
            odds = log_odds(fit_boosting(supervised[earlier], fraud[earlier], seed), supervised[later])
            artifact["calibration"] = tuple(calibrate(1.0 / (1.0 + np.exp(-odds)), fraud[later]))
        else:
            artifact["calibration"] = tuple(UNCALIBRATED)
        artifact["boosting"] = boosting.result()
    return artifact


def fit_forest(rows: Rows, seed: int, contamination: float | str) -> tuple[Any, Floats]:
    """A fitted `IsolationForest`, and its risk of each of the rows, which are of shape (n, features of the forest)."""
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(n_estimators=TREES, max_samples=min(MAX_SAMPLES, len(rows)), random_state=seed).fit(rows)
    risk, _ = IsolationScores(ForestParts.of(forest))(rows)
    if contamination != "auto":
        # As scikit-learn would, which takes several times as long to score the rows for it.
        forest.set_params(contamination=contamination)
        forest.offset_ = np.percentile(-risk, 100.0 * float(contamination))
    return forest, risk


def fit_weights(evidence: Evidence, isolation: Floats, rows: Rows, fraud: Bools) -> Weights:
    """The weights that rarity has by itself, by how it orders labelled rows; without enough labels the careful ones.

    The order is measured by average precision.

    isolation: (n,), the forest's risk; rows: (n, features of the model), as the tiers read them; fraud: (n,).
    """
    if _too_few(fraud):
        return CAREFUL
    careful, bold = (_order(fraud, evidence(isolation, rows, weights)) for weights in (CAREFUL, BOLD_EVIDENCE))
    return BOLD_EVIDENCE if bold >= CLEARLY_BETTER * careful else CAREFUL


def fit_feedback_weights(evidence: Evidence, isolation: Floats, rows: Rows, fraud: Bools) -> Weights:
    """The weights of rarity together with what labels say of merchants, chosen likewise.

    Chosen by themselves: beside confirmed frauds, rarity is to tell apart what these say nothing of. On synccfd bold
    rarity orders worse than careful by itself and better beside them (average precision .751, and .737 with the weights
    that rarity has by itself).
    """
    if _too_few(fraud):
        return CAREFUL
    orders: dict[bool, dict[float, float]] = {}  # by whether bold: by `few_frauds`
    for bold, base in ((False, CAREFUL), (True, BOLD_EVIDENCE)):
        rarity = evidence(isolation, rows, base)
        told = {few: evidence.of_frauds(rows, base._replace(few_frauds=few)) for few in FEW_FRAUDS}
        orders[bold] = {few: _order(fraud, 1.0 - (1.0 - rarity) * (1.0 - of)) for few, of in told.items()}
    careful_best, bold_best = (max(found.values()) for found in orders.values())
    bold = bold_best - careful_best >= CLOSES_THE_GAP * (1.0 - careful_best)
    as_good = [few for few, found in orders[bold].items() if found >= AS_GOOD * max(orders[bold].values())]
    return (BOLD_EVIDENCE if bold else CAREFUL)._replace(few_frauds=min(as_good))


def _too_few(fraud: Bools) -> bool:
    return bool(fraud.sum() < FEWEST_FRAUDS or fraud.all())


def _order(fraud: Bools, risk: Floats) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(fraud, risk))


def normal_features(rows: Rows, names: Sequence[str]) -> Normal:
    """What is normal among all, of rows of shape (n, len(names)): medians of the users with enough history."""
    column = {name: number for number, name in enumerate(names)}
    warm = rows[rows[:, column["history"]] >= ENOUGH_HISTORY]
    of = warm if len(warm) else rows
    medians = {name: float(np.median(of[:, column[name]])) for name in NEED_HISTORY if name in column}
    amounts = rows[:, column["amount"]].astype(np.float64)
    amounts = amounts[amounts <= np.quantile(amounts, 0.999)]
    return Normal(medians, float(amounts.mean()), float(amounts.std()))


def calibrate(raw: Floats, fraud: Bools) -> Calibration:
    """The map from raw scores, 0 to 1, to probabilities that fits labels best; both of shape (n,).

    With enough frauds centred isotonic regression (Oron and Flournoy, "Centered Isotonic Regression", 2017): isotonic
    regression's steps become points in the middle of each step's scores, with lines between them, so that scores which
    differ stay different. With fewer, Platt's logistic regression on the log odds of the score ("Probabilistic Outputs
    for Support Vector Machines", 1999); with hardly any, the scores as they are.
    """
    frauds = int(fraud.sum())
    if min(frauds, len(fraud) - frauds) < ENOUGH_FOR_PLATT:
        return UNCALIBRATED
    if frauds < ENOUGH_FOR_ISOTONIC:
        return _platt(raw, fraud)
    from sklearn.isotonic import IsotonicRegression

    order = np.argsort(raw, kind="stable")
    score, truth = raw[order].astype(np.float64), fraud[order].astype(np.float64)
    steps = IsotonicRegression(y_min=0.0, y_max=1.0).fit(score, truth).predict(score)
    begins = np.flatnonzero(np.append(True, np.diff(steps) > 0))
    count = np.diff(np.append(begins, len(steps)))
    centre = np.add.reduceat(score, begins) / count
    # Laplace's rule keeps a step without frauds above 0, and one of nothing else below 1.
    share = (np.add.reduceat(truth, begins) + 0.5 * frauds / len(fraud)) / (count + 0.5)
    return _rising(centre, share)


def _platt(raw: Floats, fraud: Bools) -> Calibration:
    from sklearn.linear_model import LogisticRegression

    def log_odds(score: Floats) -> Floats:
        bounded = np.clip(score, 1e-6, 1 - 1e-6)
        odds: Floats = np.log(bounded / (1 - bounded))
        return odds

    model = LogisticRegression(C=1e6).fit(log_odds(raw)[:, None], fraud)
    slope = float(model.coef_[0, 0])
    if slope <= 0.0:
        return UNCALIBRATED
    # Denser where the scores of most transactions are: near 0.
    score = np.unique(np.concatenate([np.geomspace(1e-5, 0.1, 60), np.linspace(0.1, 0.999, 60)]))
    return _rising(score, 1.0 / (1.0 + np.exp(-(slope * log_odds(score) + float(model.intercept_[0])))))


def _rising(score: Floats, probability: Floats) -> Calibration:
    """The points, without those that do not rise above the one before, from (0, 0) to (1, 1)."""
    kept = [(0.0, 0.0)]
    for x, y in zip(score.tolist(), probability.tolist(), strict=True):
        if x > kept[-1][0] + 1e-9 and kept[-1][1] + 1e-9 < y and x < 1.0 - 1e-9 and y < 1.0 - 1e-9:
            kept.append((x, y))
    scores, probabilities = zip(*kept, (1.0, 1.0), strict=True)
    return Calibration(np.array(scores), np.array(probabilities))


def all_tiers(last: str) -> list[str]:
    """The tiers up to the one named."""
    order = [ISOLATION_FOREST, "evidence", "feedback", SUPERVISED]
    return order[: order.index(last) + 1]
