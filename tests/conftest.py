"""The broker that the tests talk to, and topics on it.

It is the one that KAFKA_BROKERS names; else an Apache Kafka started for the run; else, where that cannot be had,
librdkafka's embedded one, on which tests marked `real_kafka` are skipped. With REQUIRE_KAFKA=1, as in CI, whatever
needs Apache Kafka fails where it cannot be had, and nothing is skipped.
"""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from hypothesis import HealthCheck
from hypothesis import settings as property_settings

from dataflow.process import event_log
from tests.support.kafka_server import (
    KafkaServer,
    KafkaUnavailableError,
    await_topics,
    check_available,
    create_topics,
    fetch_jars,
    kafka_version,
)
from tests.support.shared_broker import SharedBroker, ask_for_broker

if TYPE_CHECKING:
    from dataflow.scoring.isolation_forest import Model

EMBEDDED_PARTITIONS = 4
KAFKA_FIXTURES = frozenset(("broker", "topics", "apache_kafka", "kafka_server"))
"""Whatever asks for one of these gets the mark `kafka`."""

# How long an example takes says nothing of what is tested where others use the machine, too: hypothesis would have each
# done in 200 ms.
property_settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
property_settings.load_profile("any machine")

# Files whose tests take longest, from the longest on. They are begun first: one that is begun last would run alone at
# the end, while the other workers have nothing left to do.
LONGEST = (
    "test_chaos",
    "test_killed_flow",
    "test_console_pages",
    "test_console_rules_page",
    "test_ownership",
    "test_train",
    "test_flow_state",
    "test_gate",
    "test_ready",
    "test_compose",
    "test_evaluate",
    "test_broker_watch",
    "test_tiers",
    "test_explanation",
    "test_end_to_end",
    "test_threshold",
    "test_lifecycle",
    "test_simulation",
    "test_reloading",
    "test_backtest",
    "test_transaction",
    "test_ruleset",
    "test_secured_broker",
    "test_epochs",
    "test_kafka_streams",
    "test_console_postgres_page",
    "test_console_kafka",
    "test_console_health",
    "test_generate",
    "test_kafka_server",
    "test_dead_letters",
    "test_live_model",
    "test_compilation",
    "test_command",
    "test_console_case_views",
    "test_lane_recovery",
)


@dataclass(frozen=True)
class Broker:
    """A broker the tests share: nobody stops it or changes its settings."""

    bootstrap: str
    name: str
    embedded: bool = False


MakeTopic = Callable[..., str]
TrainOnce = Callable[[str, Callable[[Path], object]], Path]
"""`trained_once("name", train)`: the model that `train` writes to the path that it is given."""
_broker_used = pytest.StashKey[str]()
_shared_broker = pytest.StashKey[SharedBroker]()


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None):  # of the process that has workers, not of these
        config.stash[_shared_broker] = shared = SharedBroker()
        config.add_cleanup(shared.close)
    os.environ.setdefault("METRICS_ADDRESS", "off")  # the tests' flows run side by side, and beside a `make detect`
    event_log.set_up()  # as a program does: what is logged stands on standard error


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Of pytest-xdist: what a new worker is told."""
    node.workerinput["broker_socket"] = node.config.stash[_shared_broker].socket


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # Not by hand: a test that begins to use a broker cannot be forgotten.
        if KAFKA_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("kafka")
        if "postgres_server" in getattr(item, "fixturenames", ()):  # a worker's own takes as long as dozens of tests
            item.add_marker("slow")
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_report_header() -> str:
    if given := os.environ.get("KAFKA_BROKERS"):
        return f"broker: KAFKA_BROKERS={given}"
    try:
        fetched = check_available()
    except KafkaUnavailableError as err:
        if _required():
            return f"broker: none, tests that need one fail (REQUIRE_KAFKA is set): {err}"
        return f"broker: librdkafka's embedded one, tests marked real_kafka are skipped: {err}"
    return f"broker: Apache Kafka {kafka_version()} (KRaft){'' if fetched else ', to be fetched with Maven once'}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if used := config.stash.get(_broker_used, None):
        terminalreporter.write_line(f"broker used: {used}")


@pytest.fixture(scope="session")
def broker(pytestconfig: pytest.Config) -> Iterator[Broker]:
    """The shared broker; `broker.bootstrap` is its address."""
    with contextlib.ExitStack() as closing:
        found = _given() or _apache(closing, getattr(pytestconfig, "workerinput", {}).get("broker_socket"))
        pytestconfig.stash[_broker_used] = f"{found.name} at {found.bootstrap}"
        yield found


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> TrainOnce:
    """Trains what several files of tests, or several workers of a run, want to have: the first who asks does it."""
    from tests.support.pictures import pictures_not_drawn

    shared = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        shared = shared.parent  # of all workers

    def once(name: str, train: Callable[[Path], object]) -> Path:
        trained, part = shared / name, shared / f"{name}.part"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not trained.exists():
                shutil.rmtree(part, ignore_errors=True)  # of a training that failed
                part.mkdir()
                with pictures_not_drawn():
                    train(part / "model.pkl")
                part.rename(trained)
        return trained / "model.pkl"

    return once


@pytest.fixture(scope="session")
def model_file(trained_once: TrainOnce) -> Path:
    """A small model on features of the user only, where any will do."""
    from tests.chaos.__main__ import TRAINING
    from training.train import main

    def train(path: Path) -> None:
        assert main(["--out", str(path), *TRAINING]) == 0

    return trained_once("small-model", train)


@pytest.fixture(scope="session")
def forest(trained_once: TrainOnce) -> "Model":
    """A small Isolation Forest on the features that it has by default, as a flow loads it."""
    from dataflow.scoring.loading import load_model
    from training.train import main

    def train(path: Path) -> None:
        assert main(["--out", str(path), "--users", "300", "--days", "7", "--trees", "30"]) == 0

    return load_model(trained_once("small-forest", train))


@pytest.fixture(scope="session")
def forest_file(trained_once: TrainOnce) -> Path:
    """A small forest of what the user's own profile knows, where batches that interleave must change no score.

    A test that changes it takes a copy.
    """
    from training.train import main

    features = ["--features", "amount,txn_per_hour", "--tiers", "isolation_forest"]

    def train(path: Path) -> None:
        assert main(["--out", str(path), "--users", "100", "--days", "7", "--trees", "10", *features]) == 0

    return trained_once("user-forest", train)


@pytest.fixture(scope="session")
def supervised_file(trained_once: TrainOnce) -> Path:
    """A model of all tiers, learned from four weeks. A test that changes it takes a copy."""
    from training.train import main

    life = ["--tiers", "supervised", "--label-delay", "3d", "--users", "400", "--days", "28"]

    def train(path: Path) -> None:
        assert main(["--out", str(path), *life]) == 0

    return trained_once("supervised", train)


@pytest.fixture
def topics(broker: Broker) -> Iterator[MakeTopic]:
    """Makes a topic of this test's own: `topics("transactions", partitions=4)` → "transactions-1b9d6bcd"."""
    made: list[str] = []

    def make(name: str = "topic", *, partitions: int = 4, config: Mapping[str, object] | None = None) -> str:
        topic = f"{name}-{uuid.uuid4().hex[:8]}"
        if broker.embedded:
            if partitions != EMBEDDED_PARTITIONS or config:
                pytest.skip("the embedded broker makes topics of 4 partitions, without settings, and no others")
            # A producer's question makes the topic; a consumer's does not.
            asking = Producer({"bootstrap.servers": broker.bootstrap, "log_level": 0})
            await_topics(lambda asked: asking.list_topics(asked, timeout=5), {topic: partitions})
        else:
            create_topics(broker.bootstrap, {topic: partitions}, config)
        made.append(topic)
        return topic

    yield make
    if made and not broker.embedded:
        admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})
        for future in admin.delete_topics(made).values():
            with contextlib.suppress(KafkaException):
                future.result(timeout=30)


@pytest.fixture(scope="session")
def apache_kafka() -> None:
    """Skips the test (fails it with REQUIRE_KAFKA=1) where a `KafkaServer` cannot be run."""
    if missing := _missing():
        _cannot(missing)


@pytest.fixture
def kafka_server(apache_kafka: None) -> Iterator[KafkaServer]:
    """An Apache Kafka of this test's own, started: to kill, restart and misconfigure."""
    with KafkaServer() as server:
        yield server


@pytest.fixture(autouse=True)
def _real_kafka(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("real_kafka"):
        shared: Broker = request.getfixturevalue("broker")
        if shared.embedded:
            pytest.skip(f"needs Apache Kafka: {shared.name}")


def _required() -> bool:
    return os.environ.get("REQUIRE_KAFKA", "") not in {"", "0"}


def _cannot(missing: str) -> NoReturn:
    if _required():
        pytest.fail(f"REQUIRE_KAFKA is set: {missing}", pytrace=False)
    pytest.skip(f"needs Apache Kafka: {missing}")


def _given() -> Broker | None:
    given = os.environ.get("KAFKA_BROKERS")
    if not given:
        return None
    asking = Consumer({"bootstrap.servers": given, "group.id": "redflag-tests", "log_level": 0})
    try:
        metadata: Any = asking.list_topics(timeout=15)
    except KafkaException as err:
        pytest.fail(f"KAFKA_BROKERS={given} does not answer: {err.args[0].str()}", pytrace=False)
    finally:
        asking.close()
    # The cluster id tells librdkafka's embedded broker, that of `dataflow.connectors.embedded_broker`, from a real one.
    embedded = str(metadata.cluster_id).startswith("mockCluster")
    return Broker(given, "KAFKA_BROKERS" + (" (librdkafka's embedded one)" if embedded else ""), embedded=embedded)


def _apache(closing: contextlib.ExitStack, shared: str | None) -> Broker:
    if missing := _missing():
        if _required():
            _cannot(missing)
        return _embedded(closing, missing)
    bootstrap = ask_for_broker(shared) if shared else closing.enter_context(KafkaServer()).bootstrap
    return Broker(bootstrap, f"Apache Kafka {kafka_version()} (KRaft)")


def _missing() -> str | None:
    """What keeps Apache Kafka from running here; None when nothing does, and its jars are there."""
    try:
        fetch_jars()
    except KafkaUnavailableError as err:
        return str(err)
    return None


def _embedded(closing: contextlib.ExitStack, missing: str) -> Broker:
    from dataflow.connectors.embedded_broker import EmbeddedBroker

    embedded = EmbeddedBroker()
    closing.callback(embedded.close)
    return Broker(embedded.address, f"librdkafka's embedded one ({missing})", embedded=True)
