"""One Apache Kafka for all workers of a run: each would else start its own, and pay for two more that idle.

The run's first process has it, as it outlives its workers, and starts it when the first of them asks.
"""

import threading
from multiprocessing.connection import Client, Listener

from tests.support.kafka_server import KafkaServer, KafkaServerError, KafkaUnavailableError

SETTINGS = {"broker.heartbeat.interval.ms": 2000, "broker.session.timeout.ms": 9000}
"""Kafka's own: nobody kills this broker, so its controller may ask more rarely whether it is there."""


class SharedBroker:
    """The broker, and the socket at which its address is told."""

    def __init__(self) -> None:
        self._server = KafkaServer(SETTINGS)
        self._listener = Listener(family="AF_UNIX")
        # A daemon, since nothing wakes it from `accept`.
        threading.Thread(target=self._answer, name="shared-broker", daemon=True).start()

    @property
    def socket(self) -> str:
        """What a worker gives to `ask_for_broker`."""
        return str(self._listener.address)

    def _answer(self) -> None:
        while True:
            try:
                asking = self._listener.accept()
            except OSError:  # it was closed
                return
            with asking:
                try:
                    asking.send((self._server.start().bootstrap, ""))
                except (KafkaServerError, KafkaUnavailableError) as err:
                    asking.send(("", str(err)))

    def close(self) -> None:
        """Ends the broker; no worker is left that could ask."""
        self._server.close()
        self._listener.close()


def ask_for_broker(socket: str) -> str:
    """The address of the run's broker, which is started for the first who asks.

    Raises:
        KafkaServerError: it did not start.
    """
    with Client(socket, family="AF_UNIX") as connection:
        bootstrap, why = connection.recv()
    if why:
        raise KafkaServerError(why)
    return str(bootstrap)
