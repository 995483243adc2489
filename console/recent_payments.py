"""The last payments of users, in memory and bounded: what a case shows beside its alerts.

They are context, not records: a start reads the end of the topic again, and where more comes than is read, the rest is
not even fetched. It would be all decisions that the flow makes: at 50,000 a second the console took a fifth of a core
for them, and the broker as much to send them.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from typing import Final

import msgspec
from confluent_kafka import KafkaException, Message, TopicPartition

from console.database import DatabaseError
from console.reader import POLL_SECONDS, ends_of
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
"""Records that are read at most of those that come; where more come, the older of a second are left unread."""
LITTLE_AHEAD: Final = {"queued.max.messages.kbytes": 256, "max.partition.fetch.bytes": 131_072}
"""Of a partition that is fetched ahead: what is then left unread was sent for nothing."""
ANSWER_SECONDS: Final = 2.0
"""That a broker has to say where a partition ends; without an answer reading goes on where it is."""

Fired = tuple[list[str], list[str]]
"""Rules, and rules in shadow, that fired on a transaction."""

_log = logging.getLogger("redflag.console")


class _Came:
    """What came in a second."""

    def __init__(self) -> None:
        self.transactions = 0
        self.fired: list[Fired] = []  # of those that were read


class RecentPayments(TopicThread):
    """Reads the topic of decisions that are no alerts on a thread of its own."""

    def __init__(self, settings: Settings, store: Store):
        """Looks where the topic ends.

        Raises:
            UserError: it is missing, or no broker answers.
        """
        consumer = kafka_clients.make_consumer(settings, {"auto.offset.reset": "latest", **LITTLE_AHEAD})
        super().__init__("console-payments", consumer)
        self._topic = settings.classified_topic
        self._store = store
        self._by_user: OrderedDict[str, deque[Payment]] = OrderedDict()
        self._lock = threading.Lock()
        self._ends = {partition: end for (_, partition), end in ends_of(settings, self._topic).items()}
        self._next = {partition: self._start(settings, partition, end) for partition, end in self._ends.items()}
        self._consumer.assign([TopicPartition(self._topic, *where) for where in self._next.items()])

    def _start(self, settings: Settings, partition: int, end: int) -> int:
        seconds = settings.delivery_timeout_seconds
        low, _ = kafka_clients.watermarks(self._consumer, self._topic, partition, seconds)
        return max(low, end - TAIL)

    def of_user(self, user: str) -> list[Payment]:
        """A user's last payments that were no alerts, the newest last."""
        with self._lock:
            return list(self._by_user.get(user, ()))

    def _read(self) -> None:
        while not self._stop.is_set():
            came = _Came()
            try:
                self._read_a_second(came)
            except KafkaException as error:
                _log.warning("users' last payments are not read for now: %s", error)
                self._stop.wait(1.0)
            if came.transactions:
                self._count(came)

    def _read_a_second(self, came: _Came) -> None:
        """Reads for a second; where more came than is read in one, goes on near the end of the topic."""
        ends = time.monotonic() + 1.0
        while not self._stop.is_set() and (left := ends - time.monotonic()) > 0:
            health.goes_round()
            if came.transactions >= A_SECOND:
                if not self._stop.wait(left):
                    self._leave_unread(came)
                return
            first = self._consumer.poll(min(POLL_SECONDS, left))
            if first is None:
                continue
            for message in [first, *self._consumer.consume(A_SECOND - 1, 0)]:
                if message.error() is None:
                    self._take_in(message, came)

    def _leave_unread(self, came: _Came) -> None:
        """Goes on so near the end that as much as a second takes is left; what is left unread is counted.

        The flow writes no marks of transactions: each offset is a decision.
        """
        each = max(A_SECOND // len(self._next), 1)
        for partition, next_offset in self._next.items():
            place = TopicPartition(self._topic, partition)
            found = self._consumer.get_watermark_offsets(place, timeout=ANSWER_SECONDS)
            if found is not None and (begin := found[1] - each) > next_offset:
                self._consumer.seek(TopicPartition(self._topic, partition, begin))
                self._next[partition] = begin
                came.transactions += self._new(partition, next_offset, begin)

    def _new(self, partition: int, begin: int, end: int) -> int:
        """How many of these offsets were not there at the start: the others were counted by whoever saw them come."""
        return max(end - max(begin, self._ends[partition]), 0)

    def _count(self, came: _Came) -> None:
        try:
            self._store.ingest(Batch(transactions=came.transactions, fired=came.fired))
        except DatabaseError as error:  # the reader waits, or ends the process, if it cannot write either
            _log.warning("%d transactions are not counted: %s", came.transactions, error)

    def _take_in(self, message: Message, came: _Came) -> None:
        """Keeps a payment, and counts it and the rules that fired on it."""
        partition, offset = message.partition() or 0, message.offset() or 0
        self._next[partition] = offset + 1
        new = self._new(partition, offset, offset + 1)
        came.transactions += new
        try:
            decision = decode_decision(message.value() or b"")
            payment = payment_of(decision, event_time(decision.timestamp))
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError, OverflowError, RecursionError):
            return  # somebody else wrote it
        with self._lock:
            self._by_user.setdefault(decision.user, deque(maxlen=OF_A_USER)).append(payment)
            self._by_user.move_to_end(decision.user)
            if len(self._by_user) > USERS:
                self._by_user.popitem(last=False)
        if new and (decision.rules or decision.shadow_rules):
            came.fired.append((decision.rules, decision.shadow_rules))
