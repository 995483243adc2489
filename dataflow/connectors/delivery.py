"""A producer whose first failed delivery is kept and raised at the next call."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message

from dataflow.connectors.kafka_clients import make_producer
from dataflow.connectors.topic_limits import DENIED, Limits, denied
from dataflow.errors import UserError
from dataflow.events.output_record import Header, Record
from dataflow.metrics import REFUSED
from dataflow.process.health import waits_for_broker
from dataflow.settings import Settings

TOO_LARGE = KafkaError.MSG_SIZE_TOO_LARGE
BATCH_BYTES = 1_000_000  # librdkafka's own default of batch.size


def always() -> bool:
    """For who shares what it writes with nobody, or with anybody."""
    return True


class Delivery:
    """A producer whose first failed delivery is kept and raised at the next call.

    `may_write` says whether records may be handed over now; see `await_permission`.
    """

    def __init__(self, settings: Settings, own: dict[str, Any] | None = None, may_write: Callable[[], bool] = always):
        self._settings = settings
        self._may_write = may_write
        self._failure: UserError | None = None
        self._poll_due = 0.0
        self._producer = make_producer(settings, self._failed, own)
        self.produce_at_once = self._producer.produce  # the client's own, which raises where `produce` waits

    def _failed(self, error: KafkaError, message: Message) -> None:
        REFUSED.labels(message.topic()).inc()
        if self._failure is not None:
            return
        topic, size = message.topic(), len(message.value() or b"")
        if error.code() in DENIED:
            self._failure = denied(topic, "write")
            return
        lowered = " (its max.message.bytes was lowered: start again)" if error.code() == TOO_LARGE else ""
        self._failure = UserError(
            f"a record of {size} bytes was not taken by {topic}[{message.partition()}]: {error.str()}{lowered}; "
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
                raise self._refused_at_once(topic, record.get("value"), error) from error

    def _refused_at_once(self, topic: str, value: bytes | None, error: KafkaException) -> UserError:
        return UserError(
            f"a record of {len(value or b'')} bytes was not taken for {topic}: {error.args[0].str()}; the flow stops "
            "here, and it is decided again after the restart"
        )

    def await_permission(self) -> None:
        """Returns when records may be handed over; to be called before each batch.

        Raises:
            UserError: an earlier record was refused or timed out, or the permission did not come.
        """
        while not self._may_write():
            self._producer.poll(0.02)
            self.check()

    def __len__(self) -> int:
        """How many records are not known to be acknowledged."""
        return len(self._producer)

    def poll_now(self) -> None:
        """Serves delivery reports without waiting; a failure is raised at the next call of the others."""
        self._producer.poll(0)

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
        """Raises the first failure, if there was one; is called again and again by what waits for the broker."""
        waits_for_broker()
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


class TooLarge(NamedTuple):
    """A record that was refused for its size, and has not been written."""

    record: Record
    partition: int
    headers: list[Header]
    alone: bool  # in its batch: it is the record that is too large, and not what it was sent with
    handed_over: bool  # the broker refused it, not the client


class RecordDelivery(Delivery):
    """For records from a source: one that is too large for its topic does not end the flow, it is put aside.

    The client's batches are never larger than the smallest of the topics takes. So where the limits are known, only a
    record that is too large by itself can be refused for its size, and only those that might be are watched.
    """

    def __init__(self, settings: Settings, limits: Limits, may_write: Callable[[], bool] = always):
        given = settings.kafka_config
        self._batch_bytes = min(_whole(given.get("batch.size"), BATCH_BYTES), limits.smallest)
        own: dict[str, Any] = {"batch.size": self._batch_bytes}
        if "message.max.bytes" not in given:
            own["message.max.bytes"] = max(1000, limits.largest)
        super().__init__(settings, own, may_write)
        self.sure_bytes = limits.smallest if limits.known else -1
        self.too_large: list[TooLarge] = []

    def produce_watched(self, record: Record, partition: int, headers: list[Header], *, alone: bool = False) -> bool:
        """Hands a record over; waits while the queue is full. Whether the client took it.

        One that is too large is in `too_large`: at once if the client does not take it, after a `poll` or `flush` if
        the broker does not. `alone`: nothing else is under way, and nothing will be before the next flush.

        Raises:
            UserError: an earlier record was refused or timed out, or this one is refused at once.
        """
        # What is larger than a batch may be is in one by itself.
        size = len(record.value or b"") + len(record.key or b"")
        case = TooLarge(record, partition, headers, alone or size >= self._batch_bytes, handed_over=True)
        while True:
            try:
                self._producer.produce(
                    record.topic, record.value, record.key, partition, partial(self._refused, case), headers=headers
                )
                return True
            except BufferError:
                self._producer.poll(0.05)
                self.check()
                self.await_permission()
            except KafkaException as error:
                if error.args[0].code() != TOO_LARGE:
                    raise self._refused_at_once(record.topic, record.value, error) from error
                self.too_large.append(case._replace(alone=True, handed_over=False))
                return False

    def _refused(self, case: TooLarge, error: KafkaError, message: Message) -> None:
        if error.code() == TOO_LARGE:
            self.too_large.append(case)
        else:
            self._failed(error, message)


def _whole(text: str | None, otherwise: int) -> int:
    """A setting of the client; what is no number the client itself refuses, with its own words."""
    return int(text) if text is not None and text.isdecimal() else otherwise
