"""The limit: confluent-kafka consumes in batches and produces the same bytes, nothing between."""

from confluent_kafka import Consumer, Producer

from benchmarks.jobs.checks import BROKERS, CLASSIFIED, GROUP, SOURCE


def main() -> None:
    consumer = Consumer({"bootstrap.servers": BROKERS, "group.id": GROUP, "auto.offset.reset": "earliest"})
    consumer.subscribe([SOURCE])
    producer = Producer({"bootstrap.servers": BROKERS, "linger.ms": 1})
    while True:
        for message in consumer.consume(1000, 0.1):
            while True:
                try:
                    producer.produce(CLASSIFIED, message.value(), key=message.key())
                    break
                except BufferError:
                    producer.poll(0.01)
        producer.poll(0)


main()
