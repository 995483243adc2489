"""scikit-learn's Isolation Forest, whose trees a compiled kernel walks: the same scores, bit for bit."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from dataflow.profiles.amounts import AmountPrior
from dataflow.scoring.decision_tree import Bools, Floats, Rows, Tree, remapped, round_down
from dataflow.scoring.metadata import Metadata
from dataflow.scoring.operating_point import OperatingPoint
from dataflow.scoring.trees import TreeSum


class ForestParts(NamedTuple):
    """What is read of a fitted `IsolationForest`."""

    trees: list[Tree]
    offset: float
    max_samples: int  # that each tree saw

    @classmethod
    def of(cls, forest: Any) -> Self:
        """Reads the forest; a ValueError says that its trees saw too little to tell anything."""
        if forest.max_samples_ < 2:
            msg = "its trees saw one transaction each"
            raise ValueError(msg)
        return cls(isolation_trees(forest), float(forest.offset_), int(forest.max_samples_))


class ForestAnswers(NamedTuple):
    """What scikit-learn says of rows that lie at its splits: what is compiled must say the same."""

    rows: Rows  # with all columns of the model
    risk: Floats
    anomaly: Bools

    @classmethod
    def of(cls, forest: Any, columns: Sequence[int], width: int) -> Self:
        """Asks a fitted `IsolationForest` whose features are these columns, of so many in a row."""
        trees = [remapped(tree, np.array(columns)) for tree in isolation_trees(forest)]
        rows = rows_at_splits(trees, width)
        read = rows[:, columns]
        return cls(rows, -forest.score_samples(read), forest.predict(read) == -1)


class Model:
    """A model ready to score. It cannot be pickled: every worker's process loads its own."""

    def __init__(self, metadata: Metadata, forest: ForestParts):
        self.metadata = metadata
        self.features = tuple(metadata.features)
        self.version = metadata.fingerprint[:12]
        self.amount_prior = AmountPrior()
        self._isolation = IsolationScores(forest)
        self.threshold = self._isolation.threshold  # a risk above it is an anomaly
        self.operating_point = metadata.operating_point or OperatingPoint.of_the_forest(self.threshold)

    def score(self, rows: Rows) -> tuple[Floats, Bools]:
        """Scores rows of shape (n, len(features)), float32, n >= 0; gives (risk, anomaly), each of shape (n,).

        risk: exactly `-score_samples` of the Isolation Forest, in (0, 1], higher is riskier.
        anomaly: exactly `predict(rows) == -1`.
        Infinite values lie beyond every split; NaN goes at each split where scikit-learn sends it. No value raises.
        """
        return self._isolation(rows)

    def risk_first(self, rows: Rows) -> tuple[Floats, Callable[[], Bools]]:
        """See `Scorer`: here the risk is the forest's."""
        risk, anomaly = self._isolation(rows)
        return risk, lambda: anomaly

    def agrees(self, answers: ForestAnswers) -> bool:
        """Whether it says what scikit-learn says."""
        return self._isolation.agrees(answers)


class IsolationScores:
    """An Isolation Forest's verdicts, bit for bit as scikit-learn computes them."""

    def __init__(self, forest: ForestParts):
        """The columns of the trees may be others than the forest's own."""
        self.threshold = -forest.offset
        self._depths = TreeSum(forest.trees)
        # What a row's depths would sum to if every tree isolated it after the average number of splits.
        self._average = len(forest.trees) * float(average_path_length(np.array([forest.max_samples]))[0])

    def __call__(self, rows: Rows) -> tuple[Floats, Bools]:
        """Risk and anomaly of each of the rows, of shape (n, k)."""
        risk: Floats = 2 ** (-np.divide(self._depths(rows), self._average))
        # The threshold is a quantile of training scores, so it is quite common to score exactly that.
        return risk, risk - self.threshold > 0

    def agrees(self, answers: ForestAnswers) -> bool:
        """Whether they are scikit-learn's."""
        risk, anomaly = self(answers.rows)
        return np.array_equal(risk, answers.risk) and np.array_equal(anomaly, answers.anomaly)


def isolation_trees(forest: Any) -> list[Tree]:
    """The trees of a fitted `IsolationForest`; a leaf's value is the path length that it stands for.

    That is the splits on the way to it, plus those which its samples would still take on average (Liu, Ting and Zhou,
    "Isolation Forest", 2008), as in scikit-learn's `_compute_score_samples`.
    """
    trees = []
    for estimator, drawn in zip(forest.estimators_, forest.estimators_features_, strict=True):
        tree = estimator.tree_
        # With all features, scikit-learn fits on the columns as they are, although what it "drew" is a permutation.
        columns = np.asarray(drawn) if len(drawn) < forest.n_features_in_ else np.arange(len(drawn))
        leaf = tree.children_left < 0
        trees.append(
            Tree(
                feature=columns[np.where(leaf, 0, tree.feature)],
                threshold=tree.threshold,
                left=tree.children_left,
                right=tree.children_right,
                nan_left=tree.missing_go_to_left.astype(np.bool_),
                value=tree.compute_node_depths() + average_path_length(tree.n_node_samples) - 1.0,
            )
        )
    return trees


def average_path_length(samples: NDArray[Any]) -> Floats:
    """Splits that isolate one of so many samples on average: c(n) of Liu, Ting and Zhou (2008), equation 1."""
    n = np.maximum(samples, 3).astype(np.float64)
    beyond_two = 2.0 * (np.log(n - 1.0) + np.euler_gamma) - 2.0 * (n - 1.0) / n
    return np.where(samples <= 1, 0.0, np.where(samples == 2, 1.0, beyond_two))


def rows_at_splits(trees: Sequence[Tree], width: int) -> Rows:
    """Rows that lie at split values of the trees, and one float32 above: where a wrong rounding shows."""
    random = np.random.default_rng(0)
    rows = np.zeros((64, width), np.float32)
    splits = [tree for tree in trees if len(tree.left) > 1]
    for row in rows:
        for tree in random.choice(len(splits), size=min(len(splits), 4)) if splits else ():
            node = random.choice(np.flatnonzero(splits[tree].left >= 0))
            row[splits[tree].feature[node]] = round_down(splits[tree].threshold[node])
    return np.concatenate([rows, np.nextafter(rows, np.float32(np.inf))])
