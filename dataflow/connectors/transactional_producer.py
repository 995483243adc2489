"""A producer that writes in Kafka transactions: all records of one become visible together, or none does."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, KafkaError, KafkaException, Message, Producer

from dataflow.connectors.kafka_clients import EMBEDDED_CLUSTER, client_config
from dataflow.errors import UserError
from dataflow.settings import Settings

# While a transaction is open, whoever reads only what is committed waits at its first record. That of a process that
# was killed is open until the broker gives it up, after this time and up to 10 s more, or until the next one begins.
TRANSACTION_SECONDS = 10.0

_FENCED = (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH)

# What librdkafka would print (FATAL, when fenced) is said by our own errors, in one line.
_silent = logging.getLogger("redflag.transactional_producer")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False


class Outgoing(NamedTuple):
    """A record to write; without a partition its key chooses one."""

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int = -1
    headers: Sequence[tuple[str, bytes | None]] = ()


class Written(NamedTuple):
    """Where a record stands."""

    partition: int
    offset: int
    timestamp: int  # Kafka timestamp, ms since 1970


class TransactionalProducer:
    """Writes in Kafka transactions. One of a name at a time: a later one ends the transaction of an earlier one.

    The embedded broker takes the requests, but neither hides what is aborted nor fences the earlier one.
    """

    def __init__(self, settings: Settings, name: str, batch_bytes: int):
        """Makes the producer; when this returns, no transaction of an earlier one of that name is open.

        Raises:
            UserError: the broker does not answer, or does not allow transactions under that name.
        """
        self._name = name
        config = client_config(
            settings,
            {
                "transactional.id": name,
                "transaction.timeout.ms": int(TRANSACTION_SECONDS * 1000),
                "message.timeout.ms": int(TRANSACTION_SECONDS * 1000),
                "batch.size": batch_bytes,
                # The limit that counts is the topic's.
                "message.max.bytes": 1_000_000_000,
            },
        )
        try:
            self._producer = Producer(config, logger=_silent)
            self._producer.init_transactions(settings.delivery_timeout_seconds)
            cluster = self._producer.list_topics(timeout=settings.delivery_timeout_seconds).cluster_id or ""
        except KafkaException as error:
            msg = (
                f"cannot begin transactions as {name!r} on {settings.brokers} ({error.args[0].str()}): is the broker "
                "up, and may we use that transactional.id?"
            )
            raise UserError(msg) from error
        self._embedded = cluster.startswith(EMBEDDED_CLUSTER)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """What is appended within becomes visible when it ends; if it ends in an exception, nothing does.

        Raises:
            UserError: it could not be committed.
        """
        try:
            self._producer.begin_transaction()
            yield
            self._commit()
        except KafkaException as error:
            if not error.args[0].fatal():  # then nothing more can be asked of it, and the broker has aborted already
                self._abort()
            raise UserError(self._reason(error.args[0])) from error
        except BaseException:
            self._abort()
            raise

    def append(self, records: Sequence[Outgoing]) -> list[Written]:
        """Writes records within the transaction; returns, once all are acknowledged, where each stands.

        Raises:
            UserError: one was not taken.
        """
        now = time.time_ns() // 1_000_000
        written: dict[int, Written] = {}
        failed: list[str] = []

        def delivered(number: int, error: KafkaError | None, message: Message) -> None:
            if error is not None:
                failed.append(self._reason(error, records[number]))
                return
            kind, timestamp = message.timestamp()
            # The embedded broker reports a log append time that it does not keep.
            at = timestamp if kind == TIMESTAMP_LOG_APPEND_TIME and not self._embedded else now
            written[number] = Written(message.partition(), message.offset(), at)

        for number, record in enumerate(records):
            self._produce(record, now, partial(delivered, number))
        # Not flush(): when the client has a fatal error, poll() alone returns before more callbacks run, and raises it.
        deadline = time.monotonic() + TRANSACTION_SECONDS + 5
        while len(written) + len(failed) < len(records) and time.monotonic() < deadline:
            self._producer.poll(0.1)
        if failed:
            self._producer.poll(0.1)  # a fatal error, which is the cause, is raised here
            raise UserError(failed[0])
        if len(written) < len(records):
            msg = f"{len(records) - len(written)} records are not acknowledged: is the broker up?"
            raise UserError(msg)
        return [written[number] for number in range(len(records))]

    def _produce(self, record: Outgoing, now: int, delivered: Callable[[KafkaError | None, Message], None]) -> None:
        while True:
            try:
                self._producer.produce(
                    record.topic,
                    key=record.key,
                    value=record.value,
                    partition=record.partition,
                    headers=list(record.headers),
                    timestamp=now,
                    on_delivery=delivered,
                )
                return
            except BufferError:  # the queue is full
                self._producer.poll(0.05)
            except KafkaException as error:
                raise UserError(self._reason(error.args[0], record)) from error

    def _commit(self) -> None:
        deadline = time.monotonic() + TRANSACTION_SECONDS
        while True:
            try:
                self._producer.commit_transaction(TRANSACTION_SECONDS)
                return
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > deadline:
                    raise

    def _abort(self) -> None:
        # If it cannot, the broker does it, when the transaction's time is over.
        with contextlib.suppress(KafkaException):
            self._producer.abort_transaction(TRANSACTION_SECONDS)

    def _reason(self, error: KafkaError, record: Outgoing | None = None) -> str:
        if error.code() in _FENCED:
            return (
                f"another process began to send as {self._name!r}, or this one stood still for "
                f"{TRANSACTION_SECONDS:g} s: this one ends"
            )
        if record is None:
            return f"a transaction of {self._name!r} could not be committed ({error.str()}): is the broker up?"
        where = record.topic if record.partition < 0 else f"{record.topic}[{record.partition}]"
        return f"a record of {len(record.value or b'')} bytes was not taken by {where} ({error.str()})"
