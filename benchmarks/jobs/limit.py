"""The limit: confluent-kafka consumes in batches and produces the same bytes, nothing between.

With `promises` the producer is idempotent and each record has our four headers, as the exactly-once sink writes them.
With `defaults` the consumer keeps the client's own pause between fetches.
"""

import sys

from confluent_kafka import Consumer, Producer

from benchmarks.jobs.checks import BROKERS, CLASSIFIED, GROUP, SOURCE


def main() -> None:
    promises = "promises" in sys.argv
    settings: dict[str, str | int] = {"bootstrap.servers": BROKERS, "group.id": GROUP, "auto.offset.reset": "earliest"}
    if "defaults" not in sys.argv:
        # A consumer whose queue is full (64 MB) fetches again only after this pause, 1,000 ms by default. This loop
        # empties the queue sooner and then sleeps, a second of the 1.4 that 300,000 messages took: 210,000/s with the
        # default, 600,000/s with 10 ms. A job that takes longer over a message never meets it.
        settings["fetch.queue.backoff.ms"] = 10
    consumer = Consumer(settings)
    consumer.subscribe([SOURCE])
    producer = Producer({"bootstrap.servers": BROKERS, "linger.ms": 1, "enable.idempotence": promises})
    more = {}
    while True:
        for message in consumer.consume(1000, 0.1):
            if promises:
                more["headers"] = [
                    ("source_topic", SOURCE.encode()),
                    ("source_partition", b"%d" % message.partition()),
                    ("source_offset", b"%d" % message.offset()),
                    ("source_timestamp", b"%d" % message.timestamp()[1]),
                ]
            while True:
                try:
                    producer.produce(CLASSIFIED, message.value(), key=message.key(), **more)
                    break
                except BufferError:
                    producer.poll(0.01)
        producer.poll(0)


main()
