"""The model at serving: a pickle, refused unless its digest is right, whose trees a compiled kernel walks.

scikit-learn's own `predict` takes 5,000 µs for one row; the kernel takes 10 (`dataflow.scoring.trees`), and what comes out is
the same: see `Model.score`.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from dataflow.features.catalogue import FIELDS
from dataflow.profiles.amounts import AmountPrior
from dataflow.scoring.common_values import CommonValues
from dataflow.scoring.operating_point import OperatingPoint
from dataflow.scoring.trees import Bools, Floats, Rows, Tree, TreeSum, round_down
from dataflow.settings import UserError

FORMAT = 1
"""Of the metadata; another number is refused."""

ISOLATION_FOREST = "isolation_forest"
TIERS = [
    [ISOLATION_FOREST],
    [ISOLATION_FOREST, "evidence"],
    [ISOLATION_FOREST, "evidence", "feedback"],
    [ISOLATION_FOREST, "evidence", "feedback", "supervised"],
]
"""What a model may be made of: see `dataflow.scoring.tiers`. The first is scikit-learn's forest and nothing else."""
_TRAIN = "train one with `make train` (python -m training.train)"
_AGAIN = "train again with `make train TRAIN=--force` (python -m training.train --force)"


class Window(msgspec.Struct, frozen=True):
    """The history that a model was trained on; event times in ISO 8601, UTC."""

    source: str
    first: str
    last: str
    rows: int


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON beside the pickle.

    Serving goes by the fields that the fingerprint binds and by the version of scikit-learn; the rest is for people.
    """

    format: int
    tiers: list[str]
    features: list[str]  # names out of `features.catalogue.FIELDS`, in the order of the model's columns
    sha256: str  # of the pickle's bytes
    fingerprint: str  # of all the above, see `fingerprint`; its first 12 digits are the model's version
    versions: dict[str, str]  # of Python and of the libraries
    window: Window
    hyperparameters: dict[str, Any]
    seed: int
    metrics: dict[str, Any]
    created_at: str
    operating_point: OperatingPoint | None = None  # not bound by the fingerprint: it is moved without training
    common_values: CommonValues | None = None  # for explanations; of models trained before there is none

    @property
    def identity(self) -> tuple[str, str]:
        """What tells two models apart, whatever their operating points."""
        return self.fingerprint, self.sha256


class Model:
    """A model ready to score. It cannot be pickled: every worker's process loads its own.

    `forest` is a fitted `IsolationForest`; a ValueError says that its trees saw too little to tell anything.
    """

    def __init__(self, metadata: Metadata, forest: Any):
        if forest.max_samples_ < 2:
            msg = "its trees saw one transaction each"
            raise ValueError(msg)
        trees = isolation_trees(forest)
        self.metadata = metadata
        self.features = tuple(metadata.features)
        self.version = metadata.fingerprint[:12]
        self.amount_prior = AmountPrior()
        self._isolation = IsolationScores(forest, trees)
        self.threshold = self._isolation.threshold  # a risk above it is an anomaly
        self.operating_point = metadata.operating_point or OperatingPoint.of_the_forest(self.threshold)

    def score(self, rows: Rows) -> tuple[Floats, Bools]:
        """Scores rows of shape (n, len(features)), float32, n >= 0; gives (risk, anomaly), each of shape (n,).

        risk: exactly `-score_samples` of the Isolation Forest, in (0, 1], higher is riskier.
        anomaly: exactly `predict(rows) == -1`.
        Infinite values lie beyond every split; NaN goes at each split where scikit-learn sends it. No value raises.
        """
        return self._isolation(rows)


class IsolationScores:
    """An Isolation Forest's verdicts, bit for bit as scikit-learn computes them."""

    def __init__(self, forest: Any, trees: Sequence[Tree]):
        """`trees`: the forest's, as of `isolation_trees`; their columns may be others than the forest's own."""
        self.threshold = -float(forest.offset_)
        self._depths = TreeSum(trees)
        # What a row's depths would sum to if every tree isolated it after the average number of splits.
        self._average = len(trees) * float(average_path_length(np.array([forest.max_samples_]))[0])

    def __call__(self, rows: Rows) -> tuple[Floats, Bools]:
        """Risk and anomaly of each of the rows, of shape (n, k)."""
        risk: Floats = 2 ** (-np.divide(self._depths(rows), self._average))
        # The threshold is a quantile of training scores, so it is quite common to score exactly that.
        return risk, risk - self.threshold > 0


class Scorer(Protocol):
    """What the flow asks of a model, whatever its tiers."""

    metadata: Metadata
    version: str
    features: tuple[str, ...]
    amount_prior: AmountPrior
    threshold: float  # of the Isolation Forest alone: a risk of its own above it is an anomaly
    operating_point: OperatingPoint  # replaced as a whole when it is moved; a batch reads it once

    def score(self, rows: Rows) -> tuple[Floats, Bools]:
        """Risk, 0 to 1, and whether the Isolation Forest calls it an anomaly, for each row."""
        ...


def load_model(path: Path) -> Scorer:
    """Loads and compiles the model at `path`; its metadata is the JSON beside it.

    Unpickling runs code, so nothing is unpickled before the pickle's digest, the feature names and the version of
    scikit-learn are known to be right, and what is unpickled are the very bytes that were digested. This catches
    damage and mix-ups; who can write both files can still forge a model.

    Raises:
        UserError: there is no such model, or it does not fit its metadata, this program, or this scikit-learn.
    """
    metadata = read_metadata(path)
    pickled = _read(path)
    if hashlib.sha256(pickled).hexdigest() != metadata.sha256:
        described = beside(path)
        msg = (
            f"{path} is not the model that {described} describes (its SHA-256 differs), so it was not opened: {_AGAIN}"
        )
        raise UserError(msg)

    import joblib
    import sklearn

    trained, here = metadata.versions.get("scikit-learn", "unknown"), sklearn.__version__
    if trained.split(".")[:2] != here.split(".")[:2]:
        msg = f"{path} was trained with scikit-learn {trained}, here is {here}: install that version, or {_AGAIN}"
        raise UserError(msg)
    try:
        artifact = joblib.load(io.BytesIO(pickled))
        if metadata.tiers != [ISOLATION_FOREST]:
            return _tiered(path, metadata, artifact)
        forest = artifact
        if forest.n_features_in_ != len(metadata.features):
            msg = f"it has {forest.n_features_in_}"
            raise ValueError(msg)
        model = Model(metadata, forest)
        same = agrees(model, forest)
    except UserError:
        raise
    except Exception as error:
        msg = f"{path} holds no Isolation Forest of {len(metadata.features)} features ({_line(error)}): {_AGAIN}"
        raise UserError(msg) from error
    if not same:
        msg = f"{path}: compiled, it scores otherwise than in scikit-learn {here}, so it is of no use: {_AGAIN}"
        raise UserError(msg)
    return model


def _tiered(path: Path, metadata: Metadata, artifact: Any) -> Scorer:
    from dataflow.scoring.tiers import TieredModel

    if "normal" not in artifact:  # what is read for users without history
        msg = f"{path} holds tiers of an earlier release, which read newcomers in another way: {_AGAIN}"
        raise UserError(msg)
    model = TieredModel(metadata, artifact)
    if not model.agrees(artifact):
        msg = f"{path}: compiled, it scores otherwise than in scikit-learn, so it is of no use: {_AGAIN}"
        raise UserError(msg)
    return model


def fingerprint(tiers: Sequence[str], features: Sequence[str], sha256: str) -> str:
    """SHA-256 that binds the feature names and their order to a pickle's bytes: neither can change unnoticed."""
    return hashlib.sha256(msgspec.json.encode([FORMAT, tiers, features, sha256])).hexdigest()


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


def agrees(model: Model, forest: Any) -> bool:
    """Whether the compiled model is the forest."""
    rows = rows_at_splits(isolation_trees(forest), len(model.features))
    risk, anomaly = model.score(rows)
    return np.array_equal(risk, -forest.score_samples(rows)) and np.array_equal(anomaly, forest.predict(rows) == -1)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        msg = f"there is no model at {path}: {_TRAIN}, or name another in MODEL_FILE"
        raise UserError(msg) from None
    except OSError as error:
        msg = f"cannot read the model at {path} ({error.strerror}): mend that, or name another in MODEL_FILE"
        raise UserError(msg) from None


def beside(path: Path) -> Path:
    """Where the metadata of the model at `path` lies."""
    return path.with_suffix(".json")


def read_metadata(path: Path) -> Metadata:
    """What the JSON beside the model at `path` says, checked; the model itself is not opened.

    Raises:
        UserError: there is no such model, or its JSON does not describe a model that this program knows.
    """
    where = beside(path)
    if not path.exists():
        _read(path)  # raises and says so
    if not where.exists():
        msg = f"{path} has no metadata beside it ({where} is missing), so it was not opened: {_AGAIN}"
        raise UserError(msg)
    try:
        metadata = msgspec.json.decode(_read(where), type=Metadata)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"{where} is not the metadata of a model ({_line(error)}): {_AGAIN}"
        raise UserError(msg) from None
    if metadata.format != FORMAT or metadata.tiers not in TIERS:
        kind = f"format {metadata.format}, tiers {metadata.tiers}"
        msg = f"{where} describes a model of another kind ({kind}) than this program knows: {_AGAIN}"
        raise UserError(msg)
    numbers = {field.name for field in FIELDS if field.kind != "text"}
    strange = [name for name in metadata.features if name not in numbers]
    if strange or not metadata.features:
        named = f"the feature {strange[0]!r}, which is no number" if strange else "no feature"
        msg = f"{where} names {named} that this program computes: {_AGAIN}"
        raise UserError(msg)
    if fingerprint(metadata.tiers, metadata.features, metadata.sha256) != metadata.fingerprint:
        msg = f"{where} was changed: its features are not those that {path} was trained on; {_AGAIN}"
        raise UserError(msg)
    mistake = None if metadata.operating_point is None else metadata.operating_point.mistake()
    if mistake is not None:
        msg = f"{where}: operating_point.{mistake}: move it with `python -m training.threshold --at`, or {_AGAIN}"
        raise UserError(msg)
    return metadata


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
