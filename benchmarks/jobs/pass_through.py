"""Nothing is decided: each transaction goes on as it came, by the flow's own clients. What Kafka itself takes of a
latency, and the sender and the reader beside it.
"""

from confluent_kafka import TopicPartition

from dataflow.connectors.kafka_clients import count_partitions, make_consumer, make_producer
from dataflow.settings import Settings


def main() -> None:
    settings = Settings.load()
    consumer = make_consumer(settings, {"auto.offset.reset": "earliest"})
    producer = make_producer(settings, lambda _error, _message: None)
    topic = settings.transactions_topic
    consumer.assign([TopicPartition(topic, number, 0) for number in range(count_partitions(settings, topic))])
    while True:
        first = consumer.poll(0.02)
        if first is not None:
            for message in [first, *consumer.consume(settings.max_batch, 0)]:
                producer.produce(settings.classified_topic, message.value(), message.key(), message.partition())
        producer.poll(0)


if __name__ == "__main__":
    main()
