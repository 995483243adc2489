"""What reads a topic on a thread of its own, until it is closed."""

import threading
from abc import ABC, abstractmethod

from confluent_kafka import Consumer

from dataflow.process import health


class TopicThread(ABC):
    """A consumer and the thread that reads with it.

    Args:
        name: of the thread.
        consumer: is closed with it.
    """

    def __init__(self, name: str, consumer: Consumer):
        self._consumer = consumer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    def close(self) -> None:
        """Ends reading, once what was read is taken in."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._consumer.close()

    def _run(self) -> None:
        try:
            self._read()
        finally:
            health.stops_going_round()

    @abstractmethod
    def _read(self) -> None:
        """Reads until `_stop` is set, and tells `health` each time that it goes round."""
