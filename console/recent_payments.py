"""The last payments of users, in memory and bounded: what a case shows beside its alerts.

They are context, not records: a start reads the end of the topic again, and where more comes than is read in time, some
is skipped.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from typing import Final

import msgspec
from confluent_kafka import KafkaException, Message, TopicPartition

from console.database import DatabaseError
from console.reader import CONSUMER, POLL_SECONDS, ends_of
from console.records import Payment, decode_decision, payment_of
from console.store import Batch, Store
from console.topic_thread import TopicThread
from dataflow.connectors import kafka_clients
from dataflow.events.parsing import event_time
from dataflow.process import health
from dataflow.settings import Settings

OF_A_USER: Final = 12
USERS: Final = 10_000
"""With their last payments; beyond it those that paid longest ago are forgotten. 120,000 payments take 60 MB."""
TAIL: Final = 20_000
"""Records of each partition that a start reads again."""
A_SECOND: Final = 2_000
"""Records that are decoded at most; of more than that the rest is skipped."""

Fired = tuple[list[str], list[str]]
"""Rules, and rules in shadow, that fired on a transaction."""

_log = logging.getLogger("redflag.console")


class RecentPayments(TopicThread):
    """Reads the topic of decisions that are no alerts on a thread of its own."""

    def __init__(self, settings: Settings, store: Store):
        """Looks where the topic ends.

        Raises:
            UserError: it is missing, or no broker answers.
        """
        consumer = kafka_clients.make_consumer(settings, {**CONSUMER, "auto.offset.reset": "latest"})
        super().__init__("console-payments", consumer)
        self._topic = settings.classified_topic
        self._store = store
        self._by_user: OrderedDict[str, deque[Payment]] = OrderedDict()
        self._lock = threading.Lock()
        self._ends = {partition: end for (_, partition), end in ends_of(settings, self._topic).items()}
        self._consumer.assign(
            [
                TopicPartition(
                    self._topic,
                    partition,
                    max(
                        kafka_clients.watermarks(
                            self._consumer, self._topic, partition, settings.delivery_timeout_seconds
                        )[0],
                        end - TAIL,
                    ),
                )
                for partition, end in self._ends.items()
            ]
        )

    def of_user(self, user: str) -> list[Payment]:
        """A user's last payments that were no alerts, the newest last."""
        with self._lock:
            return list(self._by_user.get(user, ()))

    def _read(self) -> None:
        second, decoded, counted = time.monotonic(), 0, 0
        fired: list[Fired] = []
        while not self._stop.is_set():
            health.goes_round()
            try:
                first = self._consumer.poll(POLL_SECONDS)
                messages = [] if first is None else [first, *self._consumer.consume(A_SECOND, 0)]
            except KafkaException as error:
                _log.warning("users' last payments are not read for now: %s", error)
                self._stop.wait(1.0)
                continue
            for message in messages:
                if message.error() is not None:
                    continue
                partition, offset = message.partition() or 0, message.offset() or 0
                new = offset >= self._ends.get(partition, 0)  # those before were counted by whoever saw them come
                counted += new
                if decoded < A_SECOND:
                    decoded += 1
                    rules = self._take_in(message)
                    if new and rules is not None:
                        fired.append(rules)
            if time.monotonic() - second >= 1.0:
                second, decoded = time.monotonic(), 0
                if counted:
                    self._count(counted, fired)
                    counted, fired = 0, []

    def _count(self, transactions: int, fired: list[Fired]) -> None:
        try:
            self._store.ingest(Batch(transactions=transactions, fired=fired))
        except DatabaseError as error:  # the reader waits, or ends the process, if it cannot write either
            _log.warning("%d transactions are not counted: %s", transactions, error)

    def _take_in(self, message: Message) -> Fired | None:
        """Keeps a payment; returns the rules that fired on it, where one did."""
        try:
            decision = decode_decision(message.value() or b"")
            payment = payment_of(decision, event_time(decision.timestamp))
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError, OverflowError, RecursionError):
            return None  # somebody else wrote it
        with self._lock:
            self._by_user.setdefault(decision.user, deque(maxlen=OF_A_USER)).append(payment)
            self._by_user.move_to_end(decision.user)
            if len(self._by_user) > USERS:
                self._by_user.popitem(last=False)
        return (decision.rules, decision.shadow_rules) if decision.rules or decision.shadow_rules else None
