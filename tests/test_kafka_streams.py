"""The peer from the JVM decides as we do: on simulated transactions, and on those where the two could part."""

import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from confluent_kafka.admin import AdminClient

from benchmarks import stage
from benchmarks.kafka_streams import build, forest
from benchmarks.kafka_streams.compare import Decided, Decision, both, differences
from dataflow.scoring.decision_tree import round_down
from dataflow.scoring.isolation_forest import isolation_trees, rows_at_splits
from tests.conftest import Broker
from tests.support.builders import HOUR, MINUTE, NOON, raw
from tests.support.kafka_server import KafkaUnavailableError
from training.train import main as train

Message = tuple[bytes, Any]  # the value None is a tombstone


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "two.pkl"
    plain = ["--features", "amount,txn_per_hour", "--tiers", "isolation_forest"]
    assert train([*plain, "--users", "100", "--days", "14", "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def kafka_streams() -> None:
    """Skips the test (fails it with REQUIRE_KAFKA=1) where Kafka Streams cannot be built or run."""
    try:
        build.build()
    except KafkaUnavailableError as error:
        if os.environ.get("REQUIRE_KAFKA", "") not in {"", "0"}:
            pytest.fail(f"REQUIRE_KAFKA is set: {error}", pytrace=False)
        pytest.skip(f"needs Kafka Streams: {error}")


def of(user: str, **others: Any) -> Message:
    return user.encode(), raw(user, **others)


def at_splits(fitted: Any, count: int) -> Iterator[Message]:
    """Amounts at splits of the forest, one float32 beyond, and so little beyond that float32 does not tell them apart.

    Each after none to three others within the hour, as the forest splits on their number, too.
    """
    trees = isolation_trees(fitted)
    splits = np.unique(np.concatenate([tree.threshold[(tree.left >= 0) & (tree.feature == 0)] for tree in trees]))
    chosen = np.random.default_rng(1).choice(round_down(splits), count, replace=False)
    for number, split in enumerate(chosen):
        beyond = np.nextafter(split, np.float32(np.inf))
        for place, amount in enumerate((float(split), float(beyond), float(split) * (1 + 1e-12))):
            user = f"split-{number}-{place}"
            for before in range(number % 4):
                yield of(user, at=NOON + before, amount=1.0)
            yield of(user, at=NOON + 10, amount=amount)


def edges() -> Iterator[Message]:
    """Transactions where a boundary, a text or a time is written or read otherwise than usual."""
    for amount in (0, 0.0, 400, 400.0000001, 1e15, 1e300):
        yield of("amounts", amount=amount)
    for seconds in (0, HOUR, 2 * HOUR + 0.001, 2 * HOUR + 0.002, 3 * HOUR + 0.001, 3 * HOUR + 0.002):
        yield of("hours", at=NOON + seconds, location=f"place at {seconds}")
    for minutes in (0, 100, 70, 40, 39, 101, -30, 130, 99, 100, 161, 100, 400, 279, 281, 340):  # out of order
        yield of("late", at=NOON + minutes * MINUTE, amount=5.0, location=f"place at {minutes}")
    for number in range(40):
        yield of("busy", at=NOON + number)
    for location in (
        "US",
        "unknown",
        "US",
        "IN",
        "unknown",
        "FR",
        "us",
        'S\u00e3o "Paulo" \\ \n\u0001 \U0001f3db',
        "US",
    ):
        yield of("places", location=location)
    for merchant in ("XYZ_Merchant", "UnknownShop", " UnknownShop ", "xyz_merchant", "Unknown Shop"):
        yield of("merchants", merchant=merchant)
    for stamp in (
        "2026-03-02T12:00:00Z", "2026-03-02T12:30:00", "2026-03-02T18:29:59.999+05:30", "2026-03-02T14:00:00.000001Z",
        "2026-03-02T15:00:00.000001+00:00", "2026-03-02T15:59:59.123456789Z",
    ):  # fmt: skip
        yield of("stamps", timestamp=stamp, location=stamp)
    yield of("others", transaction_id=None, ip=None, category=None, latitude=None, longitude=None)
    yield of("others", latitude=1, longitude=-180.0, category="food", ip="::1", more={"fraudulent": [1, {"a": "}"}]})
    yield of("others", location="x" * 256, amount=500, fraudulent=False, reason=["none"], score=0.5)
    yield b"others", raw("others", transaction_id="spaced", amount=500).replace(b",", b" ,\n ") + b" \n"


def invalid() -> Iterator[Message]:
    whole = json.loads(raw("bad"))

    def changed(**others: Any) -> Message:
        return b"bad", json.dumps({**whole, **others}).encode()

    for value in (None, b"", b"{", b"[]", b"7", raw("bad") + b"{}", raw("bad")[:-1]):
        yield b"bad", value
    for field in ("user", "amount", "location", "device", "merchant", "txn_type", "timestamp"):
        yield b"bad", json.dumps({name: value for name, value in whole.items() if name != field}).encode()
        for wrong in (None, [1], ""):
            yield changed(**{field: wrong})
    for amount in (-0.01, "12", True):
        yield changed(amount=amount)
    yield b"bad", raw("bad").replace(b"25.0", b"1e999")
    for stamp in ("noon", "2026-02-30T12:00:00Z", "2999-01-01T00:00:00Z", 7):
        yield changed(timestamp=stamp)
    yield changed(latitude=1)
    yield changed(latitude=91, longitude=0)
    yield changed(device="x" * 257)


@pytest.mark.real_kafka
def test_kafka_streams_decides_as_we_do(kafka_streams: None, broker: Broker, model_file: Path, tmp_path: Path) -> None:
    fitted = joblib.load(io.BytesIO(model_file.read_bytes()))
    simulated = stage.transactions(1500, users=15)
    bad = list(invalid())
    messages = [*simulated, *at_splits(fitted, 40), *edges(), *bad]
    ours, theirs = both(broker.bootstrap, model_file, messages, tmp_path)
    assert list(differences(ours, theirs)) == []
    assert (len(ours.decisions), ours.invalid.total()) == (len(messages) - len(bad), len(bad))
    reasons = {reason.split()[0] for decision in ours.decisions.values() for reason in decision.reasons}
    assert reasons == {"High", "Location", "Merchant", "ML"}
    left = AdminClient({"bootstrap.servers": broker.bootstrap}).list_topics(timeout=10).topics
    assert [topic for topic in left if topic.startswith("kafka-streams-") and topic.endswith("-changelog")] == []


@pytest.mark.slow
def test_the_written_forest_says_what_scikit_learn_says(model_file: Path, tmp_path: Path) -> None:
    forest.write(model_file, tmp_path / "forest.json")
    written = json.loads((tmp_path / "forest.json").read_text())
    assert written["features"] == ["amount", "txn_per_hour"]
    fitted = joblib.load(io.BytesIO(model_file.read_bytes()))
    amounts = np.geomspace(0.5, 3000, 200, dtype=np.float32)
    grid = np.array([(amount, count) for amount in amounts for count in range(6)], np.float32)
    rows = np.concatenate([rows_at_splits(isolation_trees(fitted), 2), grid])
    depths = np.array([depth(written, row) for row in rows])
    assert (depths <= written["anomalyDepth"]).tolist() == (fitted.predict(rows) == -1).tolist()
    assert 0 < np.count_nonzero(depths <= written["anomalyDepth"]) < len(rows)
    np.testing.assert_allclose(2 ** (-depths / written["average"]), -fitted.score_samples(rows), rtol=1e-12)


def depth(written: dict[str, Any], row: np.ndarray[Any, Any]) -> float:
    """As `Forest.java` walks the trees: float32 on both sides of a comparison."""
    total = 0.0
    for tree in written["trees"]:
        node = 0
        while tree["left"][node] >= 0:
            goes_left = row[tree["feature"][node]] <= np.float32(tree["threshold"][node])
            node = tree["left" if goes_left else "right"][node]
        total += tree["value"][node]
    return total


@pytest.mark.parametrize("average", [3.7, 1024.3])
@pytest.mark.parametrize("depth_at", [0.4, 0.5, 0.8])
def test_a_risk_that_equals_the_threshold_is_no_anomaly(average: float, depth_at: float) -> None:
    threshold = float(2 ** -np.array([depth_at * average / average])[0])
    found = forest.anomaly_depth(average, threshold)
    risks = 2 ** (-np.divide(np.array([found, np.nextafter(found, np.inf)]), average))
    assert risks[0] > threshold >= risks[1]


def test_what_is_decided_otherwise_is_told() -> None:
    same = Decision("alerts", True, ["High amount"], 0.5)
    ours = Decided(dict.fromkeys("abcdef", same), Counter([b"bad"]))
    others = {
        "a": same._replace(score=0.500001), "b": same._replace(score=0.500002), "c": same._replace(topic="classified"),
        "d": same._replace(reasons=[]), "e": same._replace(fraudulent=False), "g": same,
    }  # fmt: skip
    told = [line.split(",")[0].split(":")[0] for line in differences(ours, Decided(others, Counter()))]
    assert told == ["b", "c", "d", "e", "f", "g", "invalid"]


def test_a_machine_without_maven_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda name, path=None: None if name == "mvn" else f"/usr/bin/{name}")
    monkeypatch.setattr(build, "java", lambda: "/usr/bin/java")
    assert build.missing() == f"Kafka Streams {build.version()} is built with Maven, and there is no mvn on PATH"
    with pytest.raises(KafkaUnavailableError, match="no mvn on PATH"):
        build.build()
