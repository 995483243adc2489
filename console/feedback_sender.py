"""Sends the outbox to the feedback topic, each message exactly once.

Messages go out in Kafka transactions under a name of this database's own. A message is done when the reader has read it
back from the topic, which marks it in the same transaction that stores the reader's offsets. What was sent but not read
back when the process died, or when the broker did not say what became of a transaction, is decided by the topic alone:
a new producer ends what the old one left open, the reader reads up to where the topic then ends, and whatever is not
marked after that does not stand there.
"""

import logging
import threading
from collections.abc import Callable
from typing import Final

from console import labels
from console.database import DatabaseError
from console.feedback_messages import headers_of
from console.reader import Reader, ends_of
from console.store import Store
from dataflow.connectors.transactional_producer import Outgoing, TransactionalProducer
from dataflow.errors import UserError
from dataflow.settings import Settings

AT_ONCE: Final = 500
BATCH_BYTES: Final = 1_000_000
LOOK_SECONDS: Final = 1.0
AGAIN_SECONDS: Final = 2.0
"""After a failure, until it is tried again."""
CATCH_UP_SECONDS: Final = 60.0

_log = logging.getLogger("redflag.console")


class FeedbackSender:
    """Sends on a thread of its own, as soon as something waits."""

    def __init__(
        self, settings: Settings, store: Store, reader: Reader, crash_point: Callable[[str], None] = lambda _: None
    ):
        """`crash_point` is told where it is, for tests that kill it there."""
        self._settings = settings
        self._store = store
        self._reader = reader
        self._crash_point = crash_point
        self._id = store.database.id
        self._producer: TransactionalProducer | None = None
        self._sent = 0  # up to which number this producer has sent
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._end_listening = store.listen(self._wake.set)
        self._thread = threading.Thread(target=self._run, name="console-sender", daemon=True)

    def start(self) -> None:
        """Begins to send."""
        self._thread.start()

    def close(self) -> None:
        """Ends sending; what waits is sent after the next start."""
        self._end_listening()
        self._stop.set()
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            try:
                more = self._send()
            except (UserError, *DatabaseError) as error:
                _log.warning("feedback waits, and is sent later: %s", error)
                self._producer = None
                self._stop.wait(AGAIN_SECONDS)
                continue
            if not more:
                self._wake.wait(LOOK_SECONDS)

    def _send(self) -> bool:
        """Sends some of what waits; returns whether there may be more."""
        connection = self._store.database.read()
        if not labels.unconfirmed(connection, self._sent if self._producer else 0, 1):
            return False
        if self._producer is None:
            self._producer = self._recover()
        waiting = labels.unconfirmed(connection, self._sent, AT_ONCE)
        if not waiting:
            return False
        topic = self._settings.feedback_topic
        self._crash_point("before sending")
        with self._producer.transaction():
            self._producer.append(
                [
                    Outgoing(topic, row["key"], row["value"], headers=headers_of(self._id, row["number"]))
                    for row in waiting
                ]
            )
            self._crash_point("before the commit")
        self._crash_point("after the commit")
        self._sent = waiting[-1]["number"]
        return True

    def _recover(self) -> TransactionalProducer:
        """A producer that begins where the topic says.

        Raises:
            UserError: the broker does not answer, or the topic could not be read to its end.
        """
        producer = TransactionalProducer(self._settings, f"redflag-console-{self._id}", BATCH_BYTES)
        ends = ends_of(self._settings, self._settings.feedback_topic)
        if not self._reader.wait_until_stored(ends, CATCH_UP_SECONDS):
            msg = f"{self._settings.feedback_topic} was not read to its end within {CATCH_UP_SECONDS:g} s"
            raise UserError(msg)
        self._sent = 0
        return producer
