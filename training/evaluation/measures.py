"""How well scores rank fraud: the figures of the evaluation."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dataflow.events.transaction import DAY
from dataflow.scoring.decision_tree import Bools, Floats

FALSE_POSITIVE_RATES = (0.001, 0.005, 0.01, 0.05)
ALERT_RATE = 0.01  # false positive rate at which alerts a day and time to detect are told
TOP = 100
FIRST = 100  # alerts of which each is a point of the curves
POINTS = 300  # of a curve beyond them, evenly spaced on a log scale of alerts


class Bin(NamedTuple):
    """Transactions of like scores."""

    mean_score: float
    fraud_share: float
    size: int  # of transactions


class Measures(NamedTuple):
    """Of one model on one window."""

    figures: dict[str, float]
    by_scenario: dict[str, dict[str, float]]  # recall at `ALERT_RATE`, share of users caught, days to detect
    precision_recall: list[tuple[float, float]]  # (recall, precision), see `curves`
    roc: list[tuple[float, float]]  # (false positive rate, recall), at the same thresholds
    calibration: list[Bin]  # of each tenth of the scale


def measure(risk: Floats, fraud: Bools, at: Floats, users: "np.ndarray[Any, Any]", scenario: Sequence[str]) -> Measures:
    """All figures of one model on one window; arrays of shape (n,), both kinds among `fraud`."""
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    rate, recall, thresholds = roc_curve(fraud, risk)
    figures = {
        "average_precision": float(average_precision_score(fraud, risk)),
        "roc_auc": float(roc_auc_score(fraud, risk)),
        "card_precision_100": card_precision(risk, fraud, at, users, TOP),
        "fraud_share": float(fraud.mean()),
        "transactions": float(len(fraud)),
        **calibration_errors(risk, fraud),
        "isotonic_deviation": isotonic_deviation(risk, fraud),
    }
    for wanted in FALSE_POSITIVE_RATES:
        figures[f"recall_at_{wanted:g}"] = float(np.interp(wanted, rate, recall))
    cut = thresholds[np.searchsorted(rate, ALERT_RATE, side="right") - 1]
    alerted = risk >= cut
    days = max((at.max() - at.min()) / DAY, 1.0)
    figures["alerts_a_day"] = float(alerted.sum() / days)
    caught, waited = time_to_detect(alerted, fraud, at, users)
    figures["users_caught"] = caught
    figures["days_to_detect"] = waited
    kinds = np.array(scenario, object)
    by_scenario = {}
    for kind in sorted({name for name, bad in zip(scenario, fraud, strict=True) if bad and name}):
        mine = fraud & (kinds == kind)
        share, wait = time_to_detect(alerted, mine, at, users)
        by_scenario[kind] = {
            "frauds": float(mine.sum()),
            "recall": float(alerted[mine].mean()),
            "users_caught": share,
            "days_to_detect": wait,
        }
    return Measures(figures, by_scenario, *curves(risk, fraud), reliability(risk, fraud, equal_counts=False))


def isotonic_deviation(risk: Floats, fraud: Bools, bins: int = 12) -> float:
    """How far precision is from rising with the score, 0 to 1; risk and fraud of shape (n,).

    The transactions in the order of their scores in `bins` groups, evenly spaced on a log scale from the riskiest 50
    down: the mean distance of the groups' shares of frauds from their isotonic regression. 0 where each group holds a
    larger share than all below it.
    """
    from sklearn.isotonic import IsotonicRegression

    order = np.argsort(-risk, kind="stable")
    ends = np.unique(np.geomspace(min(50, len(risk)), len(risk), bins).astype(np.int64))
    sizes = np.diff(ends, prepend=0)
    shares = np.add.reduceat(fraud[order].astype(np.float64), ends - sizes) / sizes
    falling = IsotonicRegression(increasing=False).fit_transform(np.arange(len(ends)), shares, sample_weight=sizes)
    return float(np.abs(shares - falling).mean())


def card_precision(risk: Floats, fraud: Bools, at: Floats, users: "np.ndarray[Any, Any]", top: int) -> float:
    """The handbook's card precision top-k: share of frauds among the k riskiest users of a day, mean over the days.

    A user counts by their riskiest transaction of the day, and no more once they were found.
    """
    day = (at // DAY).astype(np.int64)
    found: set[int] = set()
    shares = []
    for each in np.unique(day):
        here = np.flatnonzero(day == each)
        riskiest: dict[int, float] = {}
        bad: set[int] = set()
        for row in here:
            user = int(users[row])
            if user in found:
                continue
            riskiest[user] = max(riskiest.get(user, -1.0), float(risk[row]))
            if fraud[row]:
                bad.add(user)
        ranked = sorted(riskiest, key=lambda user: -riskiest[user])[:top]
        hits = [user for user in ranked if user in bad]
        found.update(hits)
        shares.append(len(hits) / top)
    return float(np.mean(shares))


def time_to_detect(alerted: Bools, fraud: Bools, at: Floats, users: "np.ndarray[Any, Any]") -> tuple[float, float]:
    """Share of the defrauded users of whom a fraud was alerted, and the mean days from the first fraud to that."""
    first: dict[int, float] = {}
    caught: dict[int, float] = {}
    for row in np.flatnonzero(fraud):
        user = int(users[row])
        first.setdefault(user, float(at[row]))
        if alerted[row]:
            caught.setdefault(user, float(at[row]))
    if not caught:
        return 0.0, float("nan")
    return len(caught) / len(first), float(np.mean([(caught[user] - first[user]) / DAY for user in caught]))


def reliability(risk: Floats, fraud: Bools, *, equal_counts: bool, bins: int = 10) -> list[Bin]:
    """Mean score, share of fraud and count of each tenth: of the scale from 0 to 1, or of the transactions by score."""
    if equal_counts:
        order = np.argsort(risk, kind="stable")
        parts = [part for part in np.array_split(order, bins) if len(part)]
    else:
        place = np.clip((risk * bins).astype(int), 0, bins - 1)
        parts = [np.flatnonzero(place == number) for number in range(bins) if (place == number).any()]
    return [Bin(float(risk[part].mean()), float(fraud[part].mean()), len(part)) for part in parts]


def calibration_errors(risk: Floats, fraud: Bools) -> dict[str, float]:
    """The expected calibration error: mean distance of score and share of fraud, of ten bins weighted by their counts.

    Of bins of equal width (Naeini, Cooper and Hauskrecht, 2015) and of equal counts (Nguyen and O'Connor, 2015): frauds
    are few, so that of ten equal widths the first holds nearly all.
    """
    found = {}
    for name, equal in (("calibration_error", False), ("calibration_error_equal_counts", True)):
        parts = reliability(risk, fraud, equal_counts=equal)
        found[name] = sum(each.size * abs(each.mean_score - each.fraud_share) for each in parts) / max(len(risk), 1)
    return found


def curves(risk: Floats, fraud: Bools) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Precision against recall, and recall against the false positive rate: (recall, precision), (rate, recall).

    A point is a threshold, from the highest down; transactions of one score cross it together. Each of the first
    `FIRST` alerts has its point, and beyond them the points are thinned on a log scale of alerts: what a team can look
    at in a day is a thousandth of all, and thinned evenly it would be a line between two points.
    """
    order = np.argsort(-risk, kind="stable")
    hits = np.cumsum(fraud[order])
    last = np.flatnonzero(np.append(np.diff(risk[order]) != 0, True))  # of each score
    alerts = last + 1
    wanted = np.append(np.arange(1, FIRST), np.geomspace(FIRST, max(len(risk), FIRST), POINTS))
    chosen = np.unique(np.minimum(np.searchsorted(alerts, wanted), len(alerts) - 1))
    alerts, hits = alerts[chosen], hits[last][chosen]
    frauds = int(fraud.sum())
    reached = (hits / frauds).tolist()
    precision = list(zip(reached, (hits / alerts).tolist(), strict=True))
    roc = list(zip(((alerts - hits) / (len(fraud) - frauds)).tolist(), reached, strict=True))
    return precision, [(0.0, 0.0), *roc]
