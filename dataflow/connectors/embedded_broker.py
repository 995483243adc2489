"""The embedded broker: librdkafka's own, on loopback, to try Redflag out where no Kafka is at hand."""

import argparse
import signal
import sys
import threading

from confluent_kafka import Producer

NOTICE = (
    "For trying out and tests only: it listens on 127.0.0.1, keeps 5 MB a partition in memory, and forgets everything "
    "when it ends. For anything else take a real Kafka (docker-compose.yml has Redpanda) and set KAFKA_BROKERS."
)


class EmbeddedBroker:
    """A broker inside this process, which speaks the Kafka protocol on a loopback port of its choice.

    Topics appear when first asked for, with 4 partitions.
    """

    def __init__(self) -> None:
        self._client = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "127.0.0.1:1", "log_level": 3})
        metadata = self._client.list_topics(timeout=10)
        self.address = ",".join(f"{b.host}:{b.port}" for b in metadata.brokers.values())

    def close(self) -> None:
        """Ends the broker; what it held is gone."""
        self._client.close()


def main() -> None:
    """Runs until Ctrl-C or SIGTERM; the first line on standard output is the address."""
    argparse.ArgumentParser(
        prog="python -m dataflow.connectors.embedded_broker", description=f"{__doc__} {NOTICE}"
    ).parse_args()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _signum, _frame: ended.set())
    broker = EmbeddedBroker()
    print(broker.address, flush=True)
    print(f"export KAFKA_BROKERS={broker.address}\n{NOTICE}", file=sys.stderr, flush=True)
    ended.wait()
    broker.close()


if __name__ == "__main__":
    main()
