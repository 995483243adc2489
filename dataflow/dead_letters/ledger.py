"""The record of what was sent back: a topic of its own, which nobody but this command writes.

Each message goes back in one Kafka transaction with its entry, so neither stands without the other. Nothing on the
topics that it goes back to is believed: whoever may produce there could write any header, and retention cuts them.

It is not on the dead-letter topic: an open transaction there would hide what the flow writes behind it, also from the
flow's own sink, which after a crash reads what it has written.
"""

import contextlib
from collections.abc import Sequence

import msgspec
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from dataflow.connectors.kafka_clients import (
    client_config,
    count_partitions,
    make_consumer,
    retry,
    watermarks,
)
from dataflow.connectors.topic_limits import is_embedded, read_limits
from dataflow.connectors.topic_reader import read_topic
from dataflow.connectors.transactional_producer import Outgoing, TransactionalProducer
from dataflow.errors import UserError
from dataflow.settings import Settings

REPLAYED_FROM = "replayed_from"  # a header for people: where the message first stood
BATCH = 500  # messages in one transaction: some 100 ms, in which who reads what is committed waits
BATCH_BYTES = 1_000_000  # the client's default


class Place(msgspec.Struct, frozen=True, order=True):
    """Where a message stands in the topic that it was read from; the timestamp tells a topic that was made anew."""

    partition: int
    offset: int
    timestamp: int  # its Kafka timestamp, ms since 1970

    def name(self, topic: str) -> str:
        """`<topic>-<partition>-<offset>`: what a decision's transaction_id is, where the message carries none."""
        return f"{topic}-{self.partition}-{self.offset}"


class SentBack(msgspec.Struct, frozen=True):
    """An entry: a message that was sent back to `topic`."""

    topic: str
    rejected: Place  # where it stood when it was rejected
    sent_to: Place  # where it stands now
    origin: Place  # where it first stood: `rejected`, unless that was sent back, too
    mended: bool  # it came out of a file, and may have another value


class Letter(msgspec.Struct, frozen=True):
    """A message to send back."""

    rejected: Place
    origin: Place
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()  # of its producer
    mended: bool = False


_decode = msgspec.json.Decoder(SentBack).decode


def ledger_topic(settings: Settings) -> str:
    """Its name follows from that of the dead letters' topic, so that there is nothing to set."""
    return f"{settings.invalid_topic}_sent_back"


def read_ledger(settings: Settings, topic: str) -> list[SentBack]:
    """The entries about messages sent back to `topic`; none where nothing was sent back yet.

    Raises:
        UserError: the ledger cannot be read, holds something else, or is not whole.
    """
    ledger = ledger_topic(settings)
    if not _stands(settings, ledger):
        return []
    _refuse_cut(settings, ledger)
    entries = []
    for message in read_topic(settings, ledger):
        try:
            entry = _decode(message.value() or b"")
        except msgspec.DecodeError as error:
            msg = (
                f"{ledger}[{message.partition()}] holds at offset {message.offset()} what is no entry of this command "
                f"({error}): nobody else may write that topic"
            )
            raise UserError(msg) from error
        if entry.topic == topic:
            entries.append(entry)
    return entries


class Sender:
    """Sends dead letters back. One at a time: when another begins, this one's next transaction is refused."""

    def __init__(self, settings: Settings, topic: str):
        """Makes the ledger where it is missing, and ends every other sender: what is read after this is all there is.

        Raises:
            UserError: the ledger cannot be made, or would not be kept, or transactions are not allowed.
        """
        self._topic = topic
        self._ledger = ledger_topic(settings)
        admin = AdminClient(client_config(settings, {}))
        _make_ledger(settings, admin, self._ledger)
        # The topics' limits are for batches, and the client does not split one that is too large.
        limits = read_limits(admin, (topic, self._ledger), settings.delivery_timeout_seconds)
        self._producer = TransactionalProducer(settings, self._ledger, min(BATCH_BYTES, limits.smallest))

    def send(self, letters: Sequence[Letter]) -> None:
        """Sends the messages back to the partition where each stood; returns when all are committed.

        Raises:
            UserError: some could not be sent, and how many were.
        """
        for start in range(0, len(letters), BATCH):
            try:
                self._send(letters[start : start + BATCH])
            except UserError as error:
                msg = f"{error}; {start} of {len(letters)} messages were sent back, the others are still to be sent"
                raise UserError(msg) from error

    def _send(self, letters: Sequence[Letter]) -> None:
        with self._producer.transaction():
            written = self._producer.append(
                [
                    Outgoing(
                        self._topic,
                        letter.key,
                        letter.value,
                        letter.origin.partition,
                        [*letter.headers, (REPLAYED_FROM, letter.origin.name(self._topic).encode())],
                    )
                    for letter in letters
                ]
            )
            entries = []
            for letter, place in zip(letters, written, strict=True):
                entry = SentBack(self._topic, letter.rejected, Place(*place), letter.origin, letter.mended)
                key = f"{letter.rejected.name(self._topic)}-{letter.rejected.timestamp}"
                entries.append(Outgoing(self._ledger, key.encode(), msgspec.json.encode(entry)))
            self._producer.append(entries)


def _stands(settings: Settings, ledger: str) -> bool:
    """Whether the ledger is there; a consumer's question, unlike a producer's, does not create it."""
    with contextlib.closing(make_consumer(settings)) as consumer:
        found = retry(
            f"cannot ask for topic {ledger!r}",
            lambda: consumer.list_topics(ledger, timeout=5),
            settings.delivery_timeout_seconds,
        ).topics[ledger]
    if found.error is None or found.error.code() == KafkaError.LEADER_NOT_AVAILABLE:
        return True
    if found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
        return False
    msg = f"topic {ledger!r}, which keeps what was sent back, cannot be read ({found.error.str()}): see its ACLs"
    raise UserError(msg)


def _refuse_cut(settings: Settings, ledger: str) -> None:
    """Raises a UserError if the ledger has lost its beginning: what it said would be sent once more."""
    partitions = count_partitions(settings, ledger)
    with contextlib.closing(make_consumer(settings)) as consumer:
        for number in range(partitions):
            low = watermarks(consumer, ledger, number, settings.delivery_timeout_seconds)[0]
            if low > 0:
                msg = (
                    f"{ledger}[{number}] begins at offset {low}: some of what was sent back is no longer recorded and "
                    "would be sent again; delete that topic to do that all the same"
                )
                raise UserError(msg)


def _make_ledger(settings: Settings, admin: AdminClient, ledger: str) -> None:
    """Makes the ledger where it is missing, to be kept for ever; refuses one that the broker would cut."""
    if is_embedded(admin, settings.delivery_timeout_seconds):
        # There a producer's question makes a topic, and nothing is ever cut.
        count_partitions(settings, ledger)
        return
    if not _stands(settings, ledger):
        # Compacted: each entry has a key of its own, so all of them stay.
        made = admin.create_topics([NewTopic(ledger, 1, config={"cleanup.policy": "compact"})], request_timeout=30)
        try:
            made[ledger].result(40)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                msg = (
                    f"topic {ledger!r}, which keeps what was sent back, cannot be created ({error.args[0].str()}): "
                    "create it with cleanup.policy=compact; one partition will do"
                )
                raise UserError(msg) from error
        count_partitions(settings, ledger)
    asked = ConfigResource(ResourceType.TOPIC, ledger)
    try:
        config = admin.describe_configs([asked], request_timeout=30)[asked].result(40)
    except KafkaException as error:
        msg = f"cannot see whether topic {ledger!r} keeps everything ({error.args[0].str()}): allow DescribeConfigs"
        raise UserError(msg) from error
    policy, *limits = (config[name].value for name in ("cleanup.policy", "retention.ms", "retention.bytes"))
    if policy != "compact" and not (policy == "delete" and limits == ["-1", "-1"]):
        msg = (
            f"topic {ledger!r} has cleanup.policy={policy}, and once cut, what was sent back would be sent again: "
            "set it to compact"
        )
        raise UserError(msg)
