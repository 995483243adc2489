"""The compiled model against scikit-learn's own, and the refusal of whatever is not the model that it says it is."""

import hashlib
import io
import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import joblib
import msgspec
import numpy as np
import pytest
import sklearn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.ensemble import IsolationForest

from dataflow.errors import UserError
from dataflow.features.catalogue import FIELDS
from dataflow.scoring import isolation_forest, trees
from dataflow.scoring.isolation_forest import ForestAnswers, ForestParts, Model
from dataflow.scoring.loading import load_model
from dataflow.scoring.metadata import ISOLATION_FOREST, Metadata, Window, fingerprint
from tests.support.builders import MINUTE, NOON, txn
from tests.support.profile_builders import Profiles

FEATURES = ["amount", "txn_per_hour"]


def metadata(features: list[str] = FEATURES, pickled: bytes = b"", **others: Any) -> Metadata:
    sha256 = hashlib.sha256(pickled).hexdigest()
    values: dict[str, Any] = {
        "format": 1,
        "tiers": [ISOLATION_FOREST],
        "features": features,
        "sha256": sha256,
        "fingerprint": fingerprint([ISOLATION_FOREST], features, sha256),
        "versions": {"scikit-learn": sklearn.__version__},
        "window": Window(source="test", first="", last="", rows=1),
        "hyperparameters": {},
        "seed": 1,
        "metrics": {},
        "created_at": "",
    }
    return Metadata(**values | others)


def forest(width: int = 2, rows: int = 600, seed: int = 0, trees: int = 20, **others: Any) -> Any:
    with warnings.catch_warnings():  # it warns where max_samples is more than there is, which is one of the cases
        warnings.simplefilter("ignore", UserWarning)
        return IsolationForest(n_estimators=trees, random_state=seed, **others).fit(data(width, rows, seed))


def data(width: int, rows: int, seed: int) -> Any:
    """Columns of every kind: continuous, cents, small counts, a constant, huge and tiny."""
    random = np.random.default_rng(seed)
    kinds = [
        lambda: random.normal(size=rows),
        lambda: random.uniform(1, 500, rows).round(2),
        lambda: random.poisson(2, rows),
        lambda: np.full(rows, 3.0),
        lambda: random.lognormal(20, 5, rows),
        lambda: random.integers(0, 2, rows) * 1e-30,
    ]
    return np.column_stack([kinds[(i + seed) % len(kinds)]() for i in range(width)]).astype(np.float32)


def compiled(forest: Any) -> Model:
    return Model(metadata(["amount"] * forest.n_features_in_), ForestParts.of(forest))


def rows_at_splits(forest: Any, seed: int = 0, limit: int = 600) -> Any:
    """Rows that lie at a split of the forest, one float32 below it and one above; otherwise like the training data."""
    splits = [
        (columns[tree.tree_.feature[node]] if len(columns) < forest.n_features_in_ else tree.tree_.feature[node], value)
        for tree, columns in zip(forest.estimators_, forest.estimators_features_, strict=True)
        for node, value in enumerate(tree.tree_.threshold)
        if tree.tree_.children_left[node] >= 0
    ]
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(splits))[:limit]
    base = data(forest.n_features_in_, max(len(chosen), 1), seed)[: len(chosen)]
    rows = np.concatenate([base, base, base])
    for i, split in enumerate(chosen):
        column, value = splits[split]
        at = np.float32(value)
        rows[i, column] = at
        rows[i + len(chosen), column] = np.nextafter(at, np.float32(-np.inf))
        rows[i + 2 * len(chosen), column] = np.nextafter(at, np.float32(np.inf))
    return rows


def assert_same(model: Model, forest: Any, rows: Any) -> None:
    risk, anomaly = model.score(rows)
    np.testing.assert_array_equal(risk, -forest.score_samples(rows))
    np.testing.assert_array_equal(anomaly, forest.predict(rows) == -1)


SHAPES = st.fixed_dictionaries(
    {
        "width": st.integers(1, 8),
        "rows": st.sampled_from([2, 3, 17, 300, 1500]),
        "seed": st.integers(0, 10_000),
        "trees": st.sampled_from([1, 7, 60]),
        "max_features": st.sampled_from([1.0, 0.5, 1]),
        "max_samples": st.sampled_from(["auto", 2, 5, 0.6, 1000]),
        "contamination": st.sampled_from(["auto", 0.001, 0.05, 0.5]),
        "bootstrap": st.booleans(),
    }
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SHAPES)
def test_any_forest_scores_as_scikit_learn_does(shape: dict[str, Any]) -> None:
    if shape["max_samples"] == 0.6 and shape["rows"] < 4:
        shape["max_samples"] = 2  # 0.6 of so few would be one
    tried = forest(**shape)
    model = compiled(tried)
    assert_same(model, tried, data(shape["width"], 400, shape["seed"]))
    assert_same(model, tried, data(shape["width"], 400, shape["seed"] + 6) * np.float32(1.7))
    at_splits = rows_at_splits(tried, limit=100)
    if len(at_splits):  # there are none where all training rows were alike
        assert_same(model, tried, at_splits)


def test_rows_at_the_split_values_score_as_in_scikit_learn() -> None:
    tried = forest(width=6, rows=5_000, trees=100, contamination=0.01)
    assert_same(compiled(tried), tried, rows_at_splits(tried, limit=4_000))


def test_thresholds_rounded_to_nearest_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = forest(width=3, rows=5_000, trees=50)
    answers = ForestAnswers.of(tried, range(3), 3)
    assert compiled(tried).agrees(answers)
    monkeypatch.setattr(trees, "round_down", lambda threshold: threshold.astype(np.float32))
    mutant = compiled(tried)
    with pytest.raises(AssertionError):
        assert_same(mutant, tried, rows_at_splits(tried))
    monkeypatch.undo()
    assert not mutant.agrees(answers)


@given(st.floats(allow_nan=False), st.floats(width=32, allow_nan=False))
def test_rounding_down_changes_no_comparison(threshold: float, value: float) -> None:
    rounded = trees.round_down(np.array([threshold]))[0]
    assert (np.float32(value) <= rounded) == (value <= threshold)
    with np.errstate(over="ignore"):
        near = np.array([rounded, np.nextafter(rounded, np.float32(np.inf))])
    np.testing.assert_array_equal(near <= rounded, near.astype(np.float64) <= threshold)


def test_a_threshold_that_many_rows_score_exactly_divides_them_as_predict_does() -> None:
    random = np.random.default_rng(3)
    rows = random.integers(0, 4, (4_000, 2)).astype(np.float32)
    tried = IsolationForest(n_estimators=100, contamination=0.1, random_state=0).fit(rows)
    at_threshold = tried.score_samples(rows) == tried.offset_
    assert at_threshold.sum() > 50
    assert_same(compiled(tried), tried, rows)


def test_infinite_values_and_nan_score_as_in_scikit_learn() -> None:
    tried = forest(width=4, rows=2_000, trees=50, contamination=0.05)
    rows = data(4, 900, 1)
    random = np.random.default_rng(0)
    for value in (np.nan, np.inf, -np.inf):
        rows[random.integers(0, 900, 300), random.integers(0, 4, 300)] = value
    assert_same(compiled(tried), tried, rows)


def test_a_row_scores_the_same_alone_as_in_a_batch() -> None:
    tried = forest(width=3, trees=50, contamination=0.05)
    model, rows = compiled(tried), data(3, 200, 5)
    risk, anomaly = model.score(rows)
    for i in range(len(rows)):
        alone = model.score(rows[i : i + 1])
        assert alone[0][0] == risk[i]
        assert alone[1][0] == anomaly[i]


def test_several_workers_score_at_once() -> None:
    model = compiled(forest(width=3, trees=50, contamination=0.05))
    batches = [data(3, 300 + n, n) for n in range(8)]
    expected = [model.score(rows)[0] for rows in batches]
    with ThreadPoolExecutor(4) as workers:
        for _ in range(20):
            for found, rows in zip(expected, workers.map(model.score, batches), strict=True):
                assert np.array_equal(rows[0], found)


def test_no_rows_give_no_scores() -> None:
    model = compiled(forest())
    risk, anomaly = model.score(Profiles().batch().floats(model.features))
    assert (len(risk), len(anomaly)) == (0, 0)


def test_risk_is_higher_for_the_stranger_row() -> None:
    model = compiled(forest(width=1, rows=2_000, seed=1, trees=100))
    risk, _ = model.score(np.array([[250.0], [40_000.0]], np.float32))
    assert 0 < risk[0] < risk[1] <= 1


@pytest.mark.parametrize("features", [["amount"], ["txn_per_hour", "amount"]])
def test_rows_take_the_models_features_in_the_models_order(features: list[str]) -> None:
    profiles = Profiles().read(txn(at=NOON), txn(at=NOON + MINUTE), txn(at=NOON + 2 * MINUTE, amount=12.5))
    model = Model(metadata(features), ForestParts.of(forest(width=len(features))))
    values = {"amount": 12.5, "txn_per_hour": 2.0}
    rows = profiles.batch().part([2, 2, 2]).floats(model.features)
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    assert rows.tolist() == [[values[name] for name in features]] * 3


def test_an_amount_beyond_float32_is_taken_for_a_very_large_one() -> None:
    tried = forest(width=1, seed=1)
    model = Model(metadata(["amount"]), ForestParts.of(tried))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paid = [txn(user, amount=amount) for user, amount in (("ann", 1e300), ("bob", 3e38))]
        rows = Profiles().read(*paid).batch().floats(model.features)
    risk, _ = model.score(rows)
    assert risk[0] == risk[1]


def saved(folder: Path, tried: Any = None, **others: Any) -> Path:
    buffer = io.BytesIO()
    joblib.dump(tried if tried is not None else forest(), buffer)
    path = folder / "fraud_model.pkl"
    path.write_bytes(buffer.getvalue())
    write_metadata(path, metadata(pickled=buffer.getvalue(), **others))
    return path


def write_metadata(path: Path, what: Metadata | dict[str, Any]) -> None:
    path.with_suffix(".json").write_bytes(msgspec.json.encode(what))


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as refused:
        load_model(path)
    text = str(refused.value)
    assert "\n" not in text
    return text


class Bomb:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> Any:
        return self.target.write_text, ("loaded",)


def test_a_saved_model_loads_and_scores_as_it_was_trained(tmp_path: Path) -> None:
    tried = forest(contamination=0.02)
    model = load_model(saved(tmp_path, tried))
    assert model.features == ("amount", "txn_per_hour")
    assert len(model.version) == 12
    assert_same(model, tried, data(2, 500, 9))


def test_a_missing_model_says_how_to_train_one(tmp_path: Path) -> None:
    assert "make train" in refusal(tmp_path / "fraud_model.pkl")


def test_a_tampered_pickle_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    path = saved(tmp_path)
    joblib.dump(Bomb(tmp_path / "boom"), path)
    text = refusal(path)
    assert "SHA-256" in text
    assert "make train TRAIN=--force" in text  # without it, what is there would not be replaced
    assert not (tmp_path / "boom").exists()
    joblib.load(path)  # it is a real one
    assert (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    "features",
    [["txn_per_hour", "amount"], ["amount", "timestamp"], ["amount"], ["amount", "user"], ["amount", "nonsense"], []],
)
def test_changed_feature_names_are_refused_before_the_pickle_is_opened(tmp_path: Path, features: list[str]) -> None:
    path = tmp_path / "fraud_model.pkl"
    joblib.dump(Bomb(tmp_path / "boom"), path)
    honest = metadata(pickled=path.read_bytes())
    write_metadata(path, msgspec.structs.replace(honest, features=features))
    assert "feature" in refusal(path)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("feature", [field.name for field in FIELDS if field.kind == "text"])
def test_a_feature_that_is_no_number_is_refused_even_with_a_right_fingerprint(tmp_path: Path, feature: str) -> None:
    assert feature in refusal(saved(tmp_path, features=["amount", feature]))


def test_another_version_of_scikit_learn_is_refused_before_the_pickle_is_opened(tmp_path: Path) -> None:
    text = refusal(saved(tmp_path, Bomb(tmp_path / "boom"), versions={"scikit-learn": "0.24.2"}))
    assert "0.24.2" in text
    assert sklearn.__version__ in text
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "missing"),
        (b"", "not the metadata"),
        (b"\xff\xfe", "not the metadata"),
        (b'{"features": 3}', "not the metadata"),
    ],
)
def test_metadata_that_is_missing_or_none_is_refused(tmp_path: Path, content: bytes | None, word: str) -> None:
    path = saved(tmp_path)
    beside = path.with_suffix(".json")
    beside.unlink()
    if content is not None:
        beside.write_bytes(content)
    assert word in refusal(path)


@pytest.mark.parametrize("change", [{"format": 2}, {"tiers": ["isolation_forest", "supervised"]}])
def test_a_model_of_a_kind_not_known_yet_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    assert "another kind" in refusal(saved(tmp_path, **change))


@pytest.mark.parametrize("what", [{"not": "a model"}, forest(width=3), forest(max_samples=1), 42])
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, what: Any) -> None:
    assert "holds no Isolation Forest of 2 features" in refusal(saved(tmp_path, what))


def test_a_path_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fraud_model.pkl").mkdir()
    (tmp_path / "fraud_model.json").write_text(json.dumps(msgspec.to_builtins(metadata())))
    assert "cannot read" in refusal(tmp_path / "fraud_model.pkl")


def test_any_model_that_the_flow_can_load_has_passed_the_comparison_with_scikit_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path)
    monkeypatch.setattr(isolation_forest, "average_path_length", lambda samples: np.ones(len(samples)))
    assert "otherwise" in refusal(path)
