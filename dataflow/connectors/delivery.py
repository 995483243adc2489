"""A producer whose first failed delivery is kept and raised at the next call."""

import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message
from prometheus_client import Counter

from dataflow.connectors.kafka_clients import make_producer
from dataflow.settings import Settings, UserError

REFUSED = Counter("redflag_records_refused_total", "Records that the broker refused or that timed out", ["topic"])


def always() -> bool:
    """For who shares what it writes with nobody, or with anybody."""
    return True


class Delivery:
    """A producer whose first failed delivery is kept and raised at the next call.

    `may_write` says whether records may be handed over now; see `await_permission`.
    """

    def __init__(self, settings: Settings, may_write: Callable[[], bool] = always):
        self._settings = settings
        self._may_write = may_write
        self._failure: UserError | None = None
        self._poll_due = 0.0
        self._producer = make_producer(settings, self._failed)
        self.produce_at_once = self._producer.produce  # the client's own, which raises where `produce` waits

    def _failed(self, error: KafkaError, message: Message) -> None:
        REFUSED.labels(message.topic()).inc()
        if self._failure is None:
            size = len(message.value() or b"")
            self._failure = UserError(
                f"a record of {size} bytes was not taken by {message.topic()}[{message.partition()}]: {error.str()}; "
                "the flow stops here, and what is not acknowledged is decided again after the restart"
            )

    def produce(self, topic: str, **record: Any) -> None:
        """Hands a record over; waits while the queue is full (back-pressure), never drops.

        Raises:
            UserError: an earlier record was refused or timed out, or this one is refused at once.
        """
        while True:
            try:
                self._producer.produce(topic, **record)
                return
            except BufferError:
                self._producer.poll(0.05)
                self.check()
                self.await_permission()
            except KafkaException as error:
                key = record.get("key")
                msg = (
                    f"a record of {len(record.get('value') or b'')} bytes (key {key!r}) was not taken for {topic}: "
                    f"{error.args[0].str()}; the flow stops here, and it is decided again after the restart"
                )
                raise UserError(msg) from error

    def await_permission(self) -> None:
        """Returns when records may be handed over; to be called before each batch.

        Raises:
            UserError: an earlier record was refused or timed out, or the permission did not come.
        """
        while not self._may_write():
            self._producer.poll(0.02)
            self.check()

    def poll(self) -> None:
        """Serves delivery reports without waiting, at most every 50 ms; raises the first failure.

        Every batch of a partition ends in this, and a look at the empty queue takes 0.3 µs for each of its records.
        """
        now = time.monotonic()
        if now >= self._poll_due:
            self._poll_due = now + 0.05
            self._producer.poll(0)
        self.check()

    def check(self) -> None:
        """Raises the first failure, if there was one."""
        if self._failure is not None:
            raise self._failure

    def flush(self) -> None:
        """Returns when everything handed over is acknowledged.

        Raises:
            UserError: a record was refused, or the broker did not answer within the delivery timeout.
        """
        deadline = time.monotonic() + self._settings.delivery_timeout_seconds + 10
        while self._producer.flush(0.5) > 0:
            self.check()
            if time.monotonic() > deadline:
                msg = (
                    f"{len(self._producer)} records are not acknowledged by {self._settings.brokers}: is the broker up?"
                )
                raise UserError(msg)
        self.check()
