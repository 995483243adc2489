"""Kafka clients: how producers and consumers are made, and waiting for a broker that is away."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from dataflow import lifecycle
from dataflow.settings import Settings, UserError

T = TypeVar("T")

BROKER_WAIT_SECONDS = 30.0  # how long a start waits for a broker, a topic and each of its partitions


def client_config(settings: Settings, own: dict[str, Any]) -> dict[str, Any]:
    """The configuration of one client: our defaults, the user's `KAFKA_CONFIG_*`, then what must be as we say."""
    return {
        "log_level": 3,
        "broker.address.family": "v4",
        "reconnect.backoff.max.ms": 1000,
        **settings.librdkafka(own),
    }


def make_producer(settings: Settings, on_delivery: Callable[[Any, Any], None]) -> Producer:
    """An idempotent producer whose `on_delivery` hears of failures only.

    Raises:
        UserError: librdkafka does not take a setting.
    """
    config = client_config(
        settings,
        {
            "enable.idempotence": True,
            "acks": "all",
            "message.timeout.ms": int(settings.delivery_timeout_seconds * 1000),
            # A callback a message costs 1 µs of Python; whether all went well, flush() and the absence of errors say.
            "delivery.report.only.error": True,
        },
    )
    # 1 ms: under load batches fill anyway (measured: 5 ms brings no throughput), a lone decision is not kept waiting.
    config.setdefault("linger.ms", 1)
    try:
        return Producer({**config, "on_delivery": on_delivery})
    except KafkaException as error:
        raise UserError(_wrong_config(error)) from error


def make_consumer(settings: Settings, more: Mapping[str, Any] | None = None) -> Consumer:
    """A consumer that is assigned partitions and commits nothing: offsets live in the snapshots; `more` replaces ours.

    Raises:
        UserError: librdkafka does not take a setting.
    """
    own = {
        "group.id": "redflag",  # required by the client; with `assign` no group is ever joined
        "enable.auto.commit": False,
        "auto.offset.reset": "error",
        **(more or {}),
    }
    config = client_config(settings, own)
    config.setdefault("fetch.wait.max.ms", 100)
    try:
        return Consumer(config)
    except KafkaException as error:
        raise UserError(_wrong_config(error)) from error


def _wrong_config(error: KafkaException) -> str:
    return f"Kafka client: {error.args[0].str()}; see KAFKA_BROKERS and KAFKA_CONFIG_* in the environment or .env"


def count_partitions(settings: Settings, topic: str) -> int:
    """How many partitions a topic has, once each of them has a leader.

    Asks through a producer, since a consumer's request would not create the topic where the broker does that.

    Raises:
        UserError: no broker answers, or the topic does not exist, within `BROKER_WAIT_SECONDS`.
    """
    with contextlib.closing(make_producer(settings, lambda _error, _message: None)) as producer:
        return _wait_for_partitions(settings, topic, producer)


def _wait_for_partitions(settings: Settings, topic: str, producer: Producer) -> int:
    deadline = time.monotonic() + BROKER_WAIT_SECONDS
    problem = ""
    while time.monotonic() < deadline and not lifecycle.stopping():
        try:
            found = producer.list_topics(topic, timeout=5).topics[topic]
        except KafkaException as error:
            problem = (
                f"no broker answers at {settings.brokers} ({error.args[0].str()}): is it up, is KAFKA_BROKERS right?"
            )
            continue
        if found.error is not None:
            problem = (
                f"topic {topic!r} cannot be used on {settings.brokers} ({found.error.str()}): "
                "create it, or name another in the settings"
            )
            if found.error.code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.TOPIC_EXCEPTION):
                break
        elif found.partitions and all(p.leader >= 0 for p in found.partitions.values()):
            return len(found.partitions)
        else:
            problem = f"topic {topic!r} on {settings.brokers} has partitions without a leader"
        time.sleep(0.1)
    raise UserError(problem or "stopped while waiting for the broker")


class TopicIdentity(NamedTuple):
    """What tells a topic from another of the same name: one that was made anew, or stands on another cluster."""

    cluster_id: str
    topic_id: str  # "" where the broker has no topic ids (the embedded one, older brokers)


NO_TOPIC_ID = "AAAAAAAAAAAAAAAAAAAAAA"  # sixteen zero bytes: how a broker says that it has no topic ids
EMBEDDED_CLUSTER = "mockCluster"  # how the cluster id of librdkafka's embedded broker begins


def identify_topics(settings: Settings, topics: Sequence[str]) -> dict[str, TopicIdentity]:
    """The identity of each topic; waits for a broker that is away.

    Raises:
        UserError: the broker did not answer within the delivery timeout, or a topic cannot be described.
    """
    admin = AdminClient(client_config(settings, {}))
    seconds = settings.delivery_timeout_seconds
    cluster_id = retry("cannot ask for the cluster id", lambda: admin.list_topics(timeout=5), seconds).cluster_id or ""
    if cluster_id.startswith(EMBEDDED_CLUSTER):
        return {topic: TopicIdentity(cluster_id, "") for topic in topics}
    found = {}
    for topic, future in admin.describe_topics(TopicCollection(list(topics)), request_timeout=seconds).items():
        try:
            topic_id = str(future.result().topic_id)
        except KafkaException as error:
            if error.args[0].code() != KafkaError._UNSUPPORTED_FEATURE:
                msg = f"topic {topic!r} cannot be described on {settings.brokers} ({error.args[0].str()})"
                raise UserError(msg) from error
            topic_id = ""
        found[topic] = TopicIdentity(cluster_id, "" if topic_id == NO_TOPIC_ID else topic_id)
    return found


def retry(what: str, call: Callable[[], Any], seconds: float) -> Any:
    """Calls until the broker answers: a broker that restarts is no reason to stop.

    Raises:
        UserError: it did not answer within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except KafkaException as error:
            if time.monotonic() > deadline:
                msg = f"{what}: {error.args[0].str()} (for {seconds:g} s); is the broker up?"
                raise UserError(msg) from error
            time.sleep(0.1)


def watermarks(consumer: Consumer, topic: str, partition: int, seconds: float) -> tuple[int, int]:
    """Where a partition begins and ends; waits for a broker that is away.

    Raises:
        UserError: it did not answer within `seconds`.
    """
    return retry(  # type: ignore[no-any-return]
        f"cannot ask for the offsets of {topic}[{partition}]",
        lambda: consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=5),
        seconds,
    )


class PerWorker(Generic[T]):
    """One object for each worker thread: the parts of a worker share it, other workers never touch it."""

    def __init__(self, make: Callable[[], T]):
        self._make = make
        self._local = threading.local()

    def get(self) -> T:
        """This thread's own."""
        if not hasattr(self._local, "it"):
            self._local.it = self._make()
        return self._local.it  # type: ignore[no-any-return]
