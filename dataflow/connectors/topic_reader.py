"""One bounded read of a topic: everything that is committed, from its beginning to where it ends now."""

import contextlib
import time
from collections.abc import Iterator

import msgspec
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from dataflow.connectors.kafka_clients import count_partitions, make_consumer
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
            starts, ends = [], {}
            for number in range(partitions):
                low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)
                if low < high:
                    starts.append(TopicPartition(topic, number, low))
                    ends[number] = high
            if since is not None and starts:
                starts = _since(consumer, starts, since)
            consumer.assign(starts)
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


def _since(consumer: Consumer, starts: list[TopicPartition], since: float) -> list[TopicPartition]:
    """Where the messages of a time begin; where the broker does not say (it has none, or is embedded), all are read."""
    asked = [TopicPartition(each.topic, each.partition, int(since * 1000)) for each in starts]
    found = {each.partition: each.offset for each in consumer.offsets_for_times(asked, timeout=10)}
    return [
        TopicPartition(each.topic, each.partition, max(found.get(each.partition, 0), each.offset)) for each in starts
    ]
