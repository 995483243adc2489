"""A model of several tiers and one score in 0 to 1: rarity, feedback, and what was learned from labels.

Tier 1, `evidence`, needs no labels: the Isolation Forest, and graded rules that say how rare a value is. Tier 2,
`feedback`, adds what confirmed frauds say of the merchant. In these two, pieces of evidence are combined by noisy-OR,
1 - product of (1 - weight x evidence), with weights that labels choose where there are any. Tier 3, `supervised`, is
the probability of gradient boosting, calibrated on labels that it did not learn from. All trees are walked by one
kernel (`trees`).

A user with fewer than `ENOUGH_HISTORY` transactions looks strange beside a past of one or two. What needs history is
therefore read as the population's normal for such a user, in all tiers: see `ColdStart`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataflow.profiles.amounts import AmountPrior
from dataflow.profiles.compilation import compiled, quiet
from dataflow.scoring.decision_tree import Bools, Floats, Rows, remapped
from dataflow.scoring.isolation_forest import IsolationScores
from dataflow.scoring.metadata import Metadata
from dataflow.scoring.operating_point import OperatingPoint
from dataflow.scoring.tier_parts import TierAnswers, TierParts
from dataflow.scoring.trees import TreeSum

EVIDENCE, FEEDBACK, SUPERVISED = "evidence", "feedback", "supervised"

GRADED = ("amount_z", "txn_per_hour", "amount", "speed")
"""The features whose rarity is evidence by itself."""
COMPROMISED, RUN_FRAUDS = "merchant_compromised", "run_frauds"
FOREST_WEIGHT, COMPROMISED_WEIGHT = 0.9, 0.97


class Weights(NamedTuple):
    """How much pieces of evidence count that mean more on some data than on other."""

    rare: Mapping[str, float]  # of the rarity of each graded feature; one that is not here counts nothing
    risk: float  # of the forest's raw risk: it orders those of whom nothing else can be said
    few_frauds: float  # a merchant's run of n frauds counts for n / (n + this)


CAREFUL = Weights({"amount_z": 0.1, "txn_per_hour": 0.1}, 0.2, 3.0)
"""Those where no labels say otherwise. On the simulation 2 to 40 % of a merchant's transactions after one fraud are
frauds, and at full weight these stood above all else: feedback made the order worse (.266 to .291 without it). With all
graded features at .3 evidence ordered worse than the forest by itself (average precision .291 to .313)."""
BOLD_EVIDENCE = Weights(dict.fromkeys(GRADED, 0.3), 0.02, 3.0)
"""On the handbook's data, where amounts tell most, evidence orders by .272 with these, by .253 with the careful."""
FEW_FRAUDS = (3.0, 1.0, 0.5, 0.25, 0.0)
"""What `few_frauds` may be: on the handbook's data, where one fraud mostly means a breach, 0 orders by .72, 3 by .6."""
RARE_FROM, RARE_TO = 1.5, 3.5
"""Powers of ten: a value is no evidence where 1 in 32 reach it in training, and full evidence where 1 in 3,000 do."""


ENOUGH_HISTORY = 5.0
"""Earlier transactions from which a user's own past counts."""
AMOUNT_FEATURES = ("amount_z", "amount_z_above", "amount_ratio")
"""Those that measure an amount by the user's own: without enough history it is measured by all users' amounts."""
NEED_HISTORY = (
    *("amount_to_largest", "unusual_day", "unusual_fortnight", "km_from_centre", "centre_ratio", "burst"),
    *("new_merchant", "new_device", "new_location"),
)
"""Those that say nothing without enough history: they are then what is normal among all."""


class Normal(NamedTuple):
    """What is normal among all, learned from the training window."""

    medians: dict[str, float]  # of each of `NEED_HISTORY`: that of the users with enough history
    amount: float  # mean of the amounts, and their standard deviation, both without the largest in a thousand
    spread: float


class ColdStart:
    """Puts the population's normal in the place of what a user's history is too short to say."""

    def __init__(self, features: Sequence[str], normal: Normal):
        columns = {name: column for column, name in enumerate(features)}
        self._history, self._amount = columns["history"], columns["amount"]
        there = [name for name in NEED_HISTORY if name in columns]
        self._columns = np.array([columns[name] for name in there], np.int64)
        self._medians = np.array([normal.medians[name] for name in there], np.float32)
        self._by_amount = np.array([columns.get(name, -1) for name in AMOUNT_FEATURES], np.int64)
        self._normal = np.float32(normal.amount), np.float32(normal.spread)

    def __call__(self, rows: Rows) -> Rows:
        """The rows, of shape (n, features), as the tiers read them; those with enough history are left as they are."""
        rows = rows.copy()
        with quiet():
            _put_normal(rows, self._history, self._columns, self._medians, self._amount, self._by_amount, *self._normal)
        return rows


@compiled
def _put_normal(
    rows: Any, history: int, columns: Any, medians: Any, amount: int, by_amount: Any, usual: Any, spread: Any
) -> None:
    """`by_amount`: the columns of `AMOUNT_FEATURES`, -1 for one that no tier reads; all numbers are of 32 bits."""
    nought, one = np.float32(0.0), np.float32(1.0)
    for row in rows:
        if not row[history] < ENOUGH_HISTORY:
            continue
        for k in range(len(columns)):
            row[columns[k]] = medians[k]
        z = (row[amount] - usual) / spread if spread > nought else nought * row[amount]
        ratio = row[amount] / usual if usual > nought else one + nought * row[amount]
        above = z if z > nought or np.isnan(z) else nought
        for column, measured in zip(by_amount, (z, above, ratio)):  # noqa: B905 (Numba)
            if column >= 0:
                row[column] = measured


class Calibration(NamedTuple):
    """A piecewise linear map from raw scores to probabilities, rising throughout, so that it changes no ranking."""

    scores: Floats  # (k,), ascending, from 0 to 1
    probabilities: Floats  # (k,), ascending

    def __call__(self, raw: Floats) -> Floats:
        """Probabilities of raw scores, each of shape (n,)."""
        calibrated: Floats = np.interp(raw, self.scores, self.probabilities)
        return calibrated


class Tail:
    """How rare a value is, by the largest values of the training window: nothing in it is in the data's own units."""

    def __init__(self, largest: NDArray[Any], count: int):
        """`largest`: ascending, at least all those that one in 32 reach; `count`: of the training window."""
        self.largest = np.asarray(largest, np.float64)
        self.count = count

    @classmethod
    def of(cls, values: NDArray[Any]) -> "Tail":
        """The tail of a training window's values."""
        ordered = np.sort(np.asarray(values, np.float64))
        keep = int(len(ordered) * 10.0**-RARE_FROM) + 1
        return cls(ordered[-keep:], len(ordered))

    def evidence(self, values: NDArray[Any]) -> Floats:
        """0 to 1 for each value: -log10 of the share that reaches it, from `RARE_FROM` to `RARE_TO`."""
        reach = len(self.largest) - np.searchsorted(self.largest, values, side="left")
        rarity = -np.log10((reach + 1.0) / (self.count + 1.0))
        rarity = np.where(values < self.largest[0], 0.0, rarity)  # what lies before the tail is common
        graded: Floats = np.clip((rarity - RARE_FROM) / (RARE_TO - RARE_FROM), 0.0, 1.0)
        return graded


class Evidence:
    """What speaks for fraud without a model of frauds: how rare a transaction is, and what labels say of its merchant.

    Args:
        features: the columns of the rows.
        forest: the tail of the forest's risk in the training window.
        tails: that of each graded feature.
    """

    def __init__(self, features: Sequence[str], forest: Tail, tails: Mapping[str, Tail]):
        columns = {name: column for column, name in enumerate(features)}
        self._forest = forest
        self._tails = [(name, columns[name], tail) for name, tail in tails.items()]
        self._compromised, self._run_frauds = columns.get(COMPROMISED, -1), columns.get(RUN_FRAUDS, -1)

    def __call__(self, isolation: Floats, rows: Rows, weights: Weights) -> Floats:
        """Noisy-OR of the rarity of rows, shape (n, features): 0 to 1 each; `isolation`: the forest's risk of them."""
        left = (1.0 - FOREST_WEIGHT * self._forest.evidence(isolation)) * (1.0 - weights.risk * isolation)
        for name, column, tail in self._tails:
            if name in weights.rare:
                left *= 1.0 - weights.rare[name] * tail.evidence(rows[:, column])
        found: Floats = 1.0 - left
        return found

    def of_frauds(self, rows: Rows, weights: Weights) -> Floats:
        """What the frauds that are confirmed at the merchant say, 0 to 1 for each row."""
        frauds = rows[:, self._run_frauds].astype(np.float64)
        share = np.divide(frauds, frauds + weights.few_frauds, out=np.zeros_like(frauds), where=frauds > 0.0)
        found: Floats = COMPROMISED_WEIGHT * rows[:, self._compromised].astype(np.float64) * share
        return found


class TieredModel:
    """A model of several tiers, ready to score."""

    def __init__(self, metadata: Metadata, parts: TierParts):
        self.metadata = metadata
        self.features = tuple(metadata.features)
        self.version = metadata.fingerprint[:12]
        self.amount_prior = AmountPrior(*parts.population)
        self._cold_start = ColdStart(self.features, Normal(*parts.normal))
        columns = {name: column for column, name in enumerate(self.features)}
        forest_columns = np.array([columns[name] for name in parts.forest_features])
        trees = [remapped(tree, forest_columns) for tree in parts.forest.trees]
        self._isolation = IsolationScores(parts.forest._replace(trees=trees))
        self.threshold = self._isolation.threshold
        self.operating_point = metadata.operating_point or OperatingPoint.of_the_forest(self.threshold)
        tails = {name: Tail(*tail) for name, tail in parts.tails.items()}
        self._evidence = Evidence(self.features, Tail(*parts.forest_tail), tails)
        self._weights = Weights(*parts.weights) if parts.weights is not None else CAREFUL  # of earlier models
        self._feedback_weights = self._weights  # of earlier models
        if parts.feedback_weights is not None:
            self._feedback_weights = Weights(*parts.feedback_weights)
        self._feedback = FEEDBACK in metadata.tiers
        self._supervised = parts.supervised is not None
        self.importance: dict[str, float] = {}  # of each feature to the supervised tier: its share of the splits' gain
        if parts.supervised is not None:
            names, boosting = parts.supervised.features, parts.supervised
            supervised = np.array([columns[name] for name in names])
            self._odds = TreeSum([remapped(tree, supervised) for tree in boosting.trees], boosting.baseline)
            self._calibration = Calibration(*boosting.calibration)
            self.importance = dict(zip(names, boosting.gain_shares, strict=True))

    def score(self, rows: Rows) -> tuple[Floats, Bools]:
        """Scores rows of shape (n, len(features)), float32, n >= 0; gives (risk, anomaly), each of shape (n,).

        risk: 0 to 1, of the highest tier. anomaly: exactly the Isolation Forest's `predict(rows) == -1`, on the rows
        as `ColdStart` leaves them. No value raises, and a row's score does not depend on the batch that it is in.
        """
        risk, anomaly = self.risk_first(rows)
        return risk, anomaly()

    def risk_first(self, rows: Rows) -> tuple[Floats, Callable[[], Bools]]:
        """See `Scorer`: the supervised tier does not need the forest, which takes 3 µs a row, three times as much."""
        rows = self._cold_start(rows)
        if self._supervised:
            return self._calibration(self._probability(rows)), lambda: self._isolation(rows)[1]
        isolation, anomaly = self._isolation(rows)
        return self.graded(isolation, rows, feedback=self._feedback), lambda: anomaly

    def tiers(self, rows: Rows) -> dict[str, Floats]:
        """The risk of each tier by itself, to compare them; the forest's own under `isolation_forest`."""
        rows = self._cold_start(rows)
        isolation, _ = self._isolation(rows)
        risks = {"isolation_forest": isolation, EVIDENCE: self.graded(isolation, rows, feedback=False)}
        if self._feedback:
            risks[FEEDBACK] = self.graded(isolation, rows, feedback=True)
        if self._supervised:
            risks[SUPERVISED] = self._calibration(self._probability(rows))
        return risks

    def agrees(self, answers: TierAnswers) -> bool:
        """Whether what was compiled says what scikit-learn says."""
        if not self._isolation.agrees(answers.forest) or self._supervised != (answers.supervised is not None):
            return False
        if answers.supervised is None:
            return True
        rows, probability = answers.supervised
        return bool(np.all(np.abs(self._probability(rows) - probability) <= 1e-12))

    def graded(self, isolation: Floats, rows: Rows, feedback: bool) -> Floats:
        """Noisy-OR of the evidence: of the forest, of rarity, and with `feedback` of the merchant's frauds."""
        weights = self._feedback_weights if feedback else self._weights
        found = 1.0 - self._evidence(isolation, rows, weights)
        if feedback:
            found *= 1.0 - self._evidence.of_frauds(rows, weights)
        risk: Floats = 1.0 - found
        return risk

    def _probability(self, rows: Rows) -> Floats:
        """What the boosting itself says, before it is calibrated."""
        probability: Floats = 1.0 / (1.0 + np.exp(-self._odds(rows)))
        return probability


def needed(tiers: Sequence[str], forest: Sequence[str], supervised: Sequence[str]) -> list[str]:
    """The features that a model of these tiers reads, each once, in a fixed order."""
    names = [*forest, *GRADED, "amount", "history"]
    if FEEDBACK in tiers:
        names += [COMPROMISED, RUN_FRAUDS]
    if SUPERVISED in tiers:
        names += supervised
    return list(dict.fromkeys(names))
