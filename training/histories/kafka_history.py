"""Transactions of the past on a Kafka topic."""

import heapq
from collections.abc import Iterator
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from msgspec.structs import replace

from dataflow.connectors.kafka_clients import make_consumer
from dataflow.connectors.topic_reader import offsets_since
from dataflow.errors import UserError
from dataflow.events.parsing import event_time
from dataflow.settings import Settings

PREFIX = "kafka:"
_SECONDS = 30.0
"""How long a broker may take to answer."""


class Part(NamedTuple):
    """What of a partition is read: offsets from `start` up to, and without, `end`."""

    number: int
    start: int
    end: int


class KafkaHistory:
    """The messages of a topic as far as it reached when this was made, in the order of their Kafka timestamps.

    `where` is `TOPIC`, `TOPIC@OFFSET` (of each partition) or `TOPIC@TIME` (ISO 8601, by Kafka timestamp).
    """

    def __init__(self, where: str, settings: Settings):
        """Asks the broker where the partitions begin and end.

        Raises:
            UserError: there is no such topic, no broker answers, or what is behind the @ is neither offset nor time.
        """
        self.topic, _, begin = where.partition("@")
        self.source = f"{PREFIX}{where} on {settings.brokers}"
        config = {"enable.partition.eof": "true", "queued.max.messages.kbytes": "8192", **settings.kafka_config}
        self._settings = replace(settings, kafka_config=config)
        self._done = 0
        consumer = make_consumer(self._settings)
        try:
            self._parts = _parts(consumer, self.topic, begin, settings.brokers)
        except KafkaException as error:
            msg = f"{self.source}: {error.args[0].str()}: is the broker up, is KAFKA_BROKERS right?"
            raise UserError(msg) from None
        finally:
            consumer.close()

    def __len__(self) -> int:
        return sum(part.end - part.start for part in self._parts)

    @property
    def progress(self) -> float:
        """How much of the iteration under way is done, 0 to 1."""
        return self._done / max(len(self), 1)

    def __iter__(self) -> Iterator[Message]:
        self._done = 0
        streams = [self._read(part) for part in self._parts]
        for message in heapq.merge(*streams, key=lambda m: m.timestamp()[1]):
            self._done += 1
            yield message

    def _read(self, part: Part) -> Iterator[Message]:
        consumer = make_consumer(self._settings)
        try:
            consumer.assign([TopicPartition(self.topic, part.number, part.start)])
            next_offset = part.start
            while next_offset < part.end:
                # consume() alone would wait until it has all it may take.
                first = consumer.poll(_SECONDS)
                messages = [first, *consumer.consume(1000, 0)] if first is not None else []
                if not messages:
                    msg = f"{self.source}: partition {part.number} sends nothing for {_SECONDS:g} s: is the broker up?"
                    raise UserError(msg)
                for message in messages:
                    error = message.error()
                    if error is None:
                        next_offset = message.offset() + 1
                        if next_offset <= part.end:
                            yield message
                    elif error.code() == KafkaError._PARTITION_EOF:
                        next_offset = part.end
                    elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.UNKNOWN_TOPIC_OR_PART):
                        msg = f"{self.source}: partition {part.number}: {error.str()}: begin at a later offset"
                        raise UserError(msg)
        finally:
            consumer.close()


def _parts(consumer: Consumer, topic: str, begin: str, brokers: str) -> list[Part]:
    topics = consumer.list_topics(timeout=_SECONDS).topics
    if topic not in topics:
        known = ", ".join(sorted(name for name in topics if not name.startswith("__"))) or "none"
        msg = f"there is no topic {topic!r} on {brokers} (there are: {known})"
        raise UserError(msg)
    partitions = sorted(topics[topic].partitions)
    limits = {p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=_SECONDS) for p in partitions}
    if begin.isdecimal():
        starts = dict.fromkeys(partitions, int(begin))
    elif begin:
        try:
            since = event_time(begin)
        except (ValueError, OverflowError):
            msg = f"{PREFIX}{topic}@{begin}: behind the @ stands an offset or an ISO 8601 time"
            raise UserError(msg) from None
        starts = offsets_since(consumer, topic, limits, since, _SECONDS)
    else:
        starts = dict.fromkeys(partitions, 0)
    return [Part(p, min(max(starts[p], low), high), high) for p, (low, high) in limits.items()]
