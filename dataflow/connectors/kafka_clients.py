"""Kafka clients: how producers and consumers are made, and waiting for a broker that is away."""

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from dataflow.connectors.connection_reports import ConnectionReports
from dataflow.errors import UserError
from dataflow.process import lifecycle
from dataflow.settings import Settings, host_and_port

T = TypeVar("T")

BROKER_WAIT_SECONDS = 30.0  # how long a start waits for a broker and each partition of a topic
TOPIC_WAIT_SECONDS = 5.0  # how long for a topic that is not there: one that was just made may not have got around yet
NOTICE_SECONDS = 3.0  # of waiting for a broker, after how many it says that it waits; twice as many without a reason
_IPV4 = re.compile(r"[0-9.]+")

_log = logging.getLogger("redflag.kafka")


def client_config(settings: Settings, own: dict[str, Any]) -> dict[str, Any]:
    """The configuration of one client: our defaults, the user's `KAFKA_CONFIG_*`, then what must be as we say.

    Its clients write nothing to standard error by themselves, unless `KAFKA_CONFIG_LOG_LEVEL` or `KAFKA_CONFIG_DEBUG`
    asks for it: each of a process' clients repeats all the time that a broker is away. `BrokerWatch` says it once.
    """
    return {
        "log_level": 0,
        "broker.address.family": address_family(settings.brokers),
        "reconnect.backoff.max.ms": 1000,
        **settings.librdkafka(own),
    }


def address_family(brokers: str) -> str:
    """Which addresses of a broker's name are tried, unless the user says it.

    `localhost` and IPv4 addresses: IPv4 only, as a broker seldom listens on `::1`, which is tried first, and logged.
    """
    hosts = {host_and_port(each)[0] for each in brokers.split(",")}
    return "v4" if all(host == "localhost" or _IPV4.fullmatch(host) for host in hosts) else "any"


def make_producer(
    settings: Settings, on_delivery: Callable[[Any, Any], None], own: Mapping[str, Any] | None = None
) -> Producer:
    """An idempotent producer whose `on_delivery` hears of failures only; `own`: what it has besides.

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
            **(own or {}),
        },
    )
    # 1 ms: under load batches fill anyway (measured: 5 ms brings no throughput), a lone decision is not kept waiting.
    config.setdefault("linger.ms", 1)
    return _make(Producer, {**config, "on_delivery": on_delivery})


def make_consumer(
    settings: Settings, own: Mapping[str, Any] | None = None, reports: ConnectionReports | None = None
) -> Consumer:
    """A consumer that is assigned partitions and commits nothing: offsets live in the snapshots; `own`: see above.

    With `reports`, these hear of its connections, whenever it is polled.

    Raises:
        UserError: librdkafka does not take a setting.
    """
    config = client_config(
        settings,
        {
            "group.id": "redflag",  # required by the client; with `assign` no group is ever joined
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            **(own or {}),
        },
    )
    config.setdefault("fetch.wait.max.ms", 100)
    return _make(Consumer, {**config, **(reports.options if reports is not None else {})})


def _make(kind: Callable[[dict[str, Any]], T], config: dict[str, Any]) -> T:
    try:
        return kind(config)
    except KafkaException as error:
        said = error.args[0].str()
        if "mechanism GSSAPI" in said and not {"sasl.mechanism", "sasl.mechanisms"} & config.keys():
            msg = f"KAFKA_CONFIG_SECURITY_PROTOCOL={config['security.protocol']} needs KAFKA_CONFIG_SASL_MECHANISM too"
            raise UserError(msg) from error
        named = [
            word for word in re.findall(r"[a-z]+(?:[._][a-z]+)+", said) if word in config or word.startswith("sasl.")
        ]
        names = " and ".join("KAFKA_CONFIG_" + word.upper().replace(".", "_") for word in named)
        msg = f"Kafka client: {said}; see {names or 'KAFKA_BROKERS and KAFKA_CONFIG_*'} in the environment or .env"
        raise UserError(msg) from error


def count_partitions(settings: Settings, topic: str) -> int:
    """How many partitions a topic has: see `partition_counts`."""
    return partition_counts(settings, [topic])[topic]


def partition_counts(settings: Settings, topics: Sequence[str]) -> dict[str, int]:
    """How many partitions each topic has, once each of them has a leader.

    Through one client, as each that is made takes 50 ms until it has found its way to the broker. It is a consumer, as
    that does not make a broker create the topic: a misspelt name would become one. Only the embedded broker is made to,
    which knows no other way.

    Raises:
        UserError: a topic does not exist, or no broker answers, within `BROKER_WAIT_SECONDS`; or, much sooner, what a
            broker answers shows that a setting is wrong.
    """
    reports = ConnectionReports(settings)
    with contextlib.closing(make_consumer(settings, reports=reports)) as consumer:
        return {topic: _wait_for_partitions(settings, topic, consumer, reports) for topic in topics}


def _wait_for_partitions(settings: Settings, topic: str, consumer: Consumer, reports: ConnectionReports) -> int:
    began = time.monotonic()
    problem = ""
    while (waited := time.monotonic() - began) < BROKER_WAIT_SECONDS and not lifecycle.stopping():
        try:
            # Short at first: what was reported meanwhile is looked at only then.
            timeout = min(1.0 if waited < 2 * NOTICE_SECONDS else 5.0, BROKER_WAIT_SECONDS - waited)
            metadata = consumer.list_topics(topic, timeout=timeout)
        except KafkaException as error:
            consumer.poll(0)
            if mistake := reports.lasting_mistake():
                raise UserError(mistake) from error
            reason = reports.reason()
            problem = (
                f"no broker answers at {settings.brokers} ({reason or error.args[0].str()}): is it up, is "
                "KAFKA_BROKERS right?"
            )
            # What looks like a mistake is soon known for one, or over: waiting is announced only for what it may mend.
            notice_after = NOTICE_SECONDS if reason else 2 * NOTICE_SECONDS
            if waited >= notice_after and not reports.suspects_a_mistake():
                _tell_that_it_waits(settings, problem)
            time.sleep(0.1)
            continue
        found = metadata.topics[topic]
        if found.error is not None and found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            problem = _missing(settings, topic)
            if (metadata.cluster_id or "").startswith(EMBEDDED_CLUSTER):
                _create_by_asking(settings, topic)
            elif waited > TOPIC_WAIT_SECONDS:
                break
        elif found.error is not None:
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


def _missing(settings: Settings, topic: str) -> str:
    setting = settings.named_by(topic)
    return (
        f"there is no topic {topic!r}{f' ({setting})' if setting else ''} on {settings.brokers}: create it, as with "
        f"`kafka-topics.sh --bootstrap-server {settings.brokers} --create --topic {topic} --partitions 4`"
        f"{f', or name another in {setting}' if setting else ''}"
    )


def _create_by_asking(settings: Settings, topic: str) -> None:
    producer = make_producer(settings, lambda _error, _message: None)
    with contextlib.closing(producer), contextlib.suppress(KafkaException):  # it is asked again
        producer.list_topics(topic, timeout=5)


_waits_told: set[str] = set()  # brokers of which this process has said that it waits for them
_telling = threading.Lock()


def _tell_that_it_waits(settings: Settings, problem: str) -> None:
    """Says it once: every worker and every topic waits for the same brokers."""
    with _telling:
        if settings.brokers in _waits_told:
            return
        _waits_told.add(settings.brokers)
    _log.warning("%s Waiting for up to %g s", problem, BROKER_WAIT_SECONDS)


class TopicIdentity(NamedTuple):
    """What tells a topic from another of the same name: one that was made anew, or stands on another cluster."""

    cluster_id: str
    topic_id: str  # "" where the broker has no topic ids (the embedded one, older brokers)


NO_TOPIC_ID = "AAAAAAAAAAAAAAAAAAAAAA"  # sixteen zero bytes: how a broker says that it has no topic ids
EMBEDDED_CLUSTER = "mockCluster"  # how the cluster id of librdkafka's embedded broker begins


def identify_topics(
    settings: Settings, topics: Sequence[str], admin: AdminClient | None = None
) -> dict[str, TopicIdentity]:
    """The identity of each topic; waits for a broker that is away. `admin`: who asks, where there is one already.

    Raises:
        UserError: the broker did not answer within the delivery timeout, or a topic cannot be described.
    """
    admin = admin or make_admin(settings)
    seconds = settings.delivery_timeout_seconds
    cluster_id = retry("cannot ask for the cluster id", lambda: admin.list_topics(timeout=5), seconds).cluster_id or ""
    found = {}
    for topic, described in describe_topics(admin, cluster_id, topics, seconds).items():
        if isinstance(described, KafkaError):
            msg = f"topic {topic!r} cannot be described on {settings.brokers} ({described.str()})"
            raise UserError(msg)
        found[topic] = described
    return found


def make_admin(settings: Settings) -> AdminClient:
    """A client for questions about topics.

    Raises:
        UserError: librdkafka does not take a setting.
    """
    return _make(AdminClient, client_config(settings, {}))


def describe_topics(
    admin: AdminClient, cluster_id: str, topics: Sequence[str], seconds: float
) -> dict[str, TopicIdentity | KafkaError]:
    """Asks once: the identity of each topic, or why it cannot be told; answers within `seconds`."""
    if cluster_id.startswith(EMBEDDED_CLUSTER):
        return {topic: TopicIdentity(cluster_id, "") for topic in topics}
    found: dict[str, TopicIdentity | KafkaError] = {}
    for topic, future in admin.describe_topics(TopicCollection(list(topics)), request_timeout=seconds).items():
        try:
            topic_id = str(future.result().topic_id)
        except KafkaException as error:
            if error.args[0].code() != KafkaError._UNSUPPORTED_FEATURE:
                found[topic] = error.args[0]
                continue
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

    def made(self) -> T | None:
        """This thread's own, None if it never asked for one."""
        return getattr(self._local, "it", None)
