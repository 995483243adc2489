"""How large records may be, and what this flow's user may do with its topics: asked once, at the start."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AclOperation, AdminClient, ConfigResource, ResourceType

from dataflow.connectors.kafka_clients import EMBEDDED_CLUSTER, retry
from dataflow.errors import UserError

DEFAULT_BYTES: Final = 1_048_588  # a broker's own default of max.message.bytes
MAX_MESSAGE_BYTES: Final = "max.message.bytes"
NEEDED: Final = {"source": "Read and Describe", "output": "Read, Write and Describe"}
DENIED: Final = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
)

_log = logging.getLogger("redflag.sink")


class Limits(NamedTuple):
    """The largest batch that each topic takes, in bytes; what a topic does not tell is the broker's default."""

    by_topic: Mapping[str, int]
    known: bool = True  # all of them were told

    @property
    def largest(self) -> int:
        """Of the topic that takes most."""
        return max(self.by_topic.values(), default=DEFAULT_BYTES)

    @property
    def smallest(self) -> int:
        """Of the topic that takes least."""
        return min(self.by_topic.values(), default=DEFAULT_BYTES)


def read_limits(admin: AdminClient, topics: Sequence[str], seconds: float) -> Limits:
    """What `max.message.bytes` of each topic is, where the broker tells it; one warning where it does not.

    Raises:
        UserError: no broker answers within `seconds`.
    """
    defaults = dict.fromkeys(topics, DEFAULT_BYTES)
    if is_embedded(admin, seconds):
        return Limits(defaults)

    def ask() -> Limits:
        asked = [ConfigResource(ResourceType.TOPIC, topic) for topic in topics]
        answers = {each.name: answer for each, answer in admin.describe_configs(asked, request_timeout=5).items()}
        found, untold = {}, {}
        for topic, answer in answers.items():
            try:
                found[topic] = int(answer.result()[MAX_MESSAGE_BYTES].value)
            except KafkaException as error:
                if error.args[0].code() not in (*DENIED, KafkaError.UNSUPPORTED_VERSION):
                    raise
                untold[topic] = error.args[0].str()
        if untold:
            topic, reason = next(iter(untold.items()))
            _log.warning(
                "%s of %s is not told (%s): taken to be the broker's default, %d; every record is watched for being "
                "too large, which takes a little time: allow DescribeConfigs",
                MAX_MESSAGE_BYTES, ", ".join(untold), reason, DEFAULT_BYTES,
            )  # fmt: skip
        return Limits({**defaults, **found}, known=not untold)

    limits: Limits = retry(f"cannot ask for the settings of {', '.join(topics)}", ask, seconds)
    return limits


def warn_of_small_outputs(limits: Limits, sources: Collection[str], outputs: Collection[str]) -> None:
    """Says in one line which outputs take less than what a source can bring."""
    source = max(sources, key=lambda topic: limits.by_topic[topic])
    brings = limits.by_topic[source]
    small = [topic for topic in outputs if limits.by_topic[topic] < brings]
    if small:
        takes = ", ".join(f"{topic} takes {limits.by_topic[topic]}" for topic in small)
        _log.warning(
            "%s has records of up to %d bytes, but %s: what is too large goes to the invalid topic, its first bytes "
            "only; raise %s there",
            source, brings, takes, MAX_MESSAGE_BYTES,
        )  # fmt: skip


def check_rights(admin: AdminClient, sources: Collection[str], outputs: Collection[str], seconds: float) -> None:
    """Checks that this user may do with each topic what the flow will have to, where the broker tells.

    What is missing would otherwise show only when it is needed: to read an output after the first crash.

    Raises:
        UserError: an ACL is missing, and the line names those that are needed; no broker answers within `seconds`.
    """
    if is_embedded(admin, seconds):
        return

    def ask() -> None:
        topics = TopicCollection([*sources, *outputs])
        answers = admin.describe_topics(topics, include_authorized_operations=True, request_timeout=5)
        for topic, answer in answers.items():
            try:
                allowed = answer.result().authorized_operations
            except KafkaException as error:
                if error.args[0].code() in DENIED:
                    raise denied(topic, "describe", source=topic in sources) from error
                raise
            if not allowed:
                continue  # it does not tell
            needed = [AclOperation.READ] if topic in sources else [AclOperation.READ, AclOperation.WRITE]
            for operation in needed:
                if operation not in allowed:
                    raise denied(topic, operation.name.lower(), source=topic in sources)

    retry(f"cannot ask for the rights on {', '.join([*sources, *outputs])}", ask, seconds)


def denied(topic: str, what: str, *, source: bool = False) -> UserError:
    """The line that says which ACLs are missing; `what` was not allowed."""
    needed = NEEDED["source" if source else "output"]
    why = "" if source else " (what stands there must be read after a crash, so that nothing is written twice)"
    return UserError(
        f"not allowed to {what} topic {topic!r}: allow {needed} on it{why}; the user is the one of KAFKA_CONFIG_SASL_*"
    )


def is_embedded(admin: AdminClient, seconds: float) -> bool:
    """Whether the broker is librdkafka's embedded one, which knows neither settings nor rights.

    Raises:
        UserError: no broker answers.
    """
    metadata = retry("cannot ask for the cluster id", lambda: admin.list_topics(timeout=5), seconds)
    return (metadata.cluster_id or "").startswith(EMBEDDED_CLUSTER)
