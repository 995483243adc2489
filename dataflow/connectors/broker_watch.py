"""Watches the broker: says when it goes and when it is back, and hands on how its topics now stand."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from dataflow.connectors.connection_reports import ConnectionReports
from dataflow.connectors.kafka_clients import TopicIdentity, describe_topics, make_admin, make_consumer
from dataflow.metrics import BROKER_SILENT
from dataflow.process import lifecycle
from dataflow.settings import Settings

ASK_EVERY_SECONDS = 2.0
ASK_TIMEOUT_SECONDS = 2.0
AWAY_AFTER_SECONDS = 5.0  # a broker that is silent for less is nothing to report
SAY_EVERY_SECONDS = 60.0
IDENTIFY_EVERY_SECONDS = 15.0

_log = logging.getLogger("redflag.kafka")


class BrokerWatch:
    """Asks for the topics every two seconds, on a thread and clients of its own.

    One line is logged when no broker has answered for five seconds, one each minute from then on, one when it answers
    again. Before the first answer none is: a start that waits for a broker speaks for itself.

    The callbacks run on the watch's thread. A `UserError` that one raises ends the flow with its line.

    Args:
        settings: where the broker is, and how to speak with it.
        topics: whose metadata is asked for; a topic that is not there is not created by that.
        on_metadata: gets {topic: partitions} at each answer; 0 where the topic does not exist, no entry where the
            broker cannot tell just now.
        on_identities: gets {topic: identity} with the first answer and every 15 s; no entry where the topic does not
            exist or the broker cannot tell just now.
    """

    def __init__(
        self,
        settings: Settings,
        topics: Sequence[str],
        *,
        on_metadata: Callable[[dict[str, int]], None] | None = None,
        on_identities: Callable[[dict[str, TopicIdentity]], None] | None = None,
    ):
        self._settings = settings
        self._topics = tuple(topics)
        self._on_metadata = on_metadata
        self._on_identities = on_identities
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="redflag-broker-watch", daemon=True)
        self._answered = time.monotonic()
        self._ever_answered = False
        self._said: float | None = None  # when the last line said that the broker is away; None while it is not
        self._identify_due = 0.0

    def start(self) -> Self:
        """Watches from now on; the gauge is this watch's."""
        self._answered = time.monotonic()
        BROKER_SILENT.set_function(self.seconds_since_answer)
        self._thread.start()
        return self

    def close(self) -> None:
        """Ends the watch, within a few seconds; what the callbacks were given last is the last."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def seconds_since_answer(self) -> float:
        """Seconds since a broker last answered; since the start of the watch, before the first answer."""
        return time.monotonic() - self._answered

    @lifecycle.exit_on_user_error
    def _run(self) -> None:
        reports = ConnectionReports(self._settings)
        consumer, admin = make_consumer(self._settings, reports=reports), make_admin(self._settings)
        try:
            while not self._ended.is_set():
                self._look(consumer, admin, reports)
                self._ended.wait(ASK_EVERY_SECONDS)
        finally:
            consumer.close()

    def _look(self, consumer: Consumer, admin: AdminClient, reports: ConnectionReports) -> None:
        try:
            answers = {topic: consumer.list_topics(topic, timeout=ASK_TIMEOUT_SECONDS) for topic in self._topics}
        except KafkaException as error:
            consumer.poll(0)
            self._silent(reports.reason() or error.args[0].str())
            return
        consumer.poll(0)
        reports.answered()
        self._heard()
        if self._on_metadata is not None:
            self._on_metadata(
                {
                    topic: len(found.partitions)
                    for topic, answer in answers.items()
                    if (found := answer.topics[topic]).error is None
                    or found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART
                }
            )
        if self._on_identities is not None and time.monotonic() >= self._identify_due:
            cluster_id = next(iter(answers.values())).cluster_id or ""
            found = describe_topics(admin, cluster_id, self._topics, ASK_TIMEOUT_SECONDS)
            self._identify_due = time.monotonic() + IDENTIFY_EVERY_SECONDS
            self._on_identities({topic: each for topic, each in found.items() if isinstance(each, TopicIdentity)})

    def _silent(self, reason: str) -> None:
        now, seconds = time.monotonic(), self.seconds_since_answer()
        said_lately = self._said is not None and now - self._said < SAY_EVERY_SECONDS
        if self._ever_answered and seconds >= AWAY_AFTER_SECONDS and not said_lately:
            self._said = now
            line = "the broker at %s has not answered for %.0f s (%s); waiting"
            _log.warning(line, self._settings.brokers, seconds, reason)

    def _heard(self) -> None:
        if self._said is not None:
            self._said = None
            seconds = self.seconds_since_answer()
            _log.warning("the broker at %s answers again, after %.0f s", self._settings.brokers, seconds)
        self._answered = time.monotonic()
        self._ever_answered = True
