"""One bounded read of a topic: everything that is committed, from its beginning to where it ends now."""

import contextlib
import time
from collections.abc import Iterator, Mapping

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from dataflow.connectors.kafka_clients import EMBEDDED_CLUSTER, count_partitions, make_consumer
from dataflow.errors import UserError
from dataflow.settings import Settings

READ_SECONDS = 60.0  # without a message, until reading is given up


def read_topic(settings: Settings, topic: str, since: float | None = None) -> Iterator[Message]:
    """All messages of a topic from its beginning to where it ends now; what was aborted is not among them.

    `since`: only those whose Kafka timestamp is not before it, s since 1970.

    Raises:
        UserError: the topic cannot be read, or nothing of it came for `READ_SECONDS`.
    """
    partitions = count_partitions(settings, topic)
    # Whatever the user's own settings say: what was aborted must not be believed.
    committed = {**settings.kafka_config, "isolation.level": "read_committed"}
    with contextlib.closing(make_consumer(msgspec.structs.replace(settings, kafka_config=committed))) as consumer:
        try:
            limits = {
                number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)
                for number in range(partitions)
            }
            first_offsets = {number: low for number, (low, _) in limits.items()}
            if since is not None:
                first_offsets = offsets_since(consumer, topic, limits, since, 10)
            # Of a partition that is read from its end nothing would come, and no position.
            ends = {number: high for number, (_, high) in limits.items() if first_offsets[number] < high}
            consumer.assign([TopicPartition(topic, number, first_offsets[number]) for number in ends])
        except KafkaException as error:
            msg = f"cannot read {topic!r} on {settings.brokers} ({error.args[0].str()}): is the broker up?"
            raise UserError(msg) from error
        deadline = time.monotonic() + READ_SECONDS
        while ends:
            # consume() alone would wait until it has all it may take: one is awaited, the rest is what is there.
            first = consumer.poll(0.2)
            for message in [] if first is None else [first, *consumer.consume(10_000, 0)]:
                if message.error() is not None:
                    continue
                deadline = time.monotonic() + READ_SECONDS
                old = since is not None and message.timestamp()[1] < since * 1000
                if message.offset() < ends.get(message.partition(), 0) and not old:
                    yield message
            for number in [n for n in ends if _position(consumer, topic, n) >= ends[n]]:
                del ends[number]  # asked for, as the last records may be control records, which nobody gets to see
            if time.monotonic() > deadline:
                msg = f"{topic!r} could not be read to its end for {READ_SECONDS:g} s: is the broker up?"
                raise UserError(msg)


def _position(consumer: Consumer, topic: str, partition: int) -> int:
    return int(consumer.position([TopicPartition(topic, partition)])[0].offset)


def offsets_since(
    consumer: Consumer, topic: str, limits: Mapping[int, tuple[int, int]], since: float, seconds: float
) -> dict[int, int]:
    """By partition, the offset of the first message whose Kafka timestamp is not before a time; its end without one.

    Args:
        consumer: which may have other partitions assigned afterwards.
        topic: whose partitions.
        limits: by partition, where it begins and ends.
        since: the time, s since 1970.
        seconds: how long a broker may take to answer.

    Raises:
        KafkaException: it does not answer, or not for a partition.
    """
    moment = int(since * 1000)
    if (consumer.list_topics(topic, timeout=seconds).cluster_id or "").startswith(EMBEDDED_CLUSTER):
        # It answers no such question: look by ourselves.
        return {number: _look_for(consumer, topic, number, limits[number], moment, seconds) for number in limits}
    asked = [TopicPartition(topic, number, moment) for number in limits]
    found: dict[int, int] = {}
    for each in consumer.offsets_for_times(asked, timeout=seconds):
        if each.error is not None:
            raise KafkaException(each.error)
        found[each.partition] = each.offset if each.offset >= 0 else limits[each.partition][1]
    return found


def _look_for(
    consumer: Consumer, topic: str, partition: int, limits: tuple[int, int], moment: int, seconds: float
) -> int:
    """The same of one partition, message by message; `moment`: ms since 1970."""
    at, end = limits
    consumer.assign([TopicPartition(topic, partition, at)])
    while at < end:
        message = consumer.poll(seconds)
        if message is None or ((error := message.error()) and error.code() == KafkaError._PARTITION_EOF):
            break
        if message.error() is None:
            if message.timestamp()[1] >= moment:
                return int(message.offset() or 0)
            at = (message.offset() or 0) + 1
    return end
