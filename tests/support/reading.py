"""Reading what stands on topics, from their beginning to their end."""

import time
from collections.abc import Sequence

from confluent_kafka import Message, TopicPartition

from dataflow.connectors import kafka_clients
from dataflow.settings import Settings


def read_all(settings: Settings, topics: Sequence[str], seconds: float = 30) -> list[Message]:
    """All messages of the topics, as far as these now reach."""
    consumer = kafka_clients.make_consumer(settings)
    starts, left = [], {}
    for topic in topics:
        for partition in range(kafka_clients.count_partitions(settings, topic)):
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
            if high > low:
                left[topic, partition] = high
                starts.append(TopicPartition(topic, partition, low))
    consumer.assign(starts)
    messages: list[Message] = []
    deadline = time.monotonic() + seconds
    while left:
        assert time.monotonic() < deadline, f"not read to the end: {left}"
        for message in consumer.consume(10_000, 0.1):
            assert message.error() is None, message.error()
            messages.append(message)
        # By position: the last records may be control records of a transaction, which nobody gets to see.
        for topic, partition in list(left):
            (place,) = consumer.position([TopicPartition(topic, partition)])
            if place.offset >= left[topic, partition]:
                del left[topic, partition]
    consumer.close()
    return messages
