"""Whether the console works, as `/ready` and `/live` say it, and the gauges that are looked at when somebody asks."""

import math
from collections.abc import Callable
from concurrent.futures import TimeoutError as TookTooLongError
from typing import Final

from nicegui import Client

from console import labels, metrics
from console.database import AwayError, DatabaseError
from console.store import Store
from dataflow.connectors.broker_watch import BrokerWatch
from dataflow.process.health import Health

BROKER_SECONDS: Final = 10.0
FEEDBACK_SECONDS: Final = 60.0
"""Until a message that was not read back yet keeps the console from being ready."""
WRITE_SECONDS: Final = 3.0


def checked(store: Store, watch: BrokerWatch) -> Health:
    """What the console's readiness takes: it reads, a broker answers, its database can be written, feedback goes out.

    Whether its threads go round they tell `dataflow.process.health` themselves.
    """

    def broker() -> str | None:
        silent = watch.seconds_since_answer()
        return f"no broker has answered for {silent:.0f} s" if silent > BROKER_SECONDS else None

    def database() -> str | None:
        try:
            store.check_that_it_writes(WRITE_SECONDS)
        except DatabaseError as error:
            return f"its database cannot be written ({error})"
        except TookTooLongError:
            return f"its database has not written for {WRITE_SECONDS:g} s"
        return None

    def feedback() -> str | None:
        try:
            waited = feedback_waited(store)
        except AwayError:  # which is told already
            return None
        return f"feedback has waited for {waited:.0f} s" if waited > FEEDBACK_SECONDS else None

    health = Health()
    for each in (broker, database, feedback):
        health.requires(each)
    return health


def feedback_waited(store: Store) -> float:
    """Seconds for which the oldest message of the outbox has waited; 0 without one."""
    oldest = labels.oldest_unconfirmed(store.database.read())
    return max(store.clock() - oldest, 0.0) if oldest is not None else 0.0


def watch_gauges(store: Store, watch: BrokerWatch) -> None:
    """Has the gauges ask when they are read."""
    metrics.BROKER_SILENT.set_function(watch.seconds_since_answer)

    def kept(number: Callable[[], float]) -> Callable[[], float]:
        """What the database says; NaN while its server is away, so that all other metrics are told."""

        def asked() -> float:
            try:
                return number()
            except AwayError:
                return math.nan

        return asked

    metrics.FEEDBACK_WAITING.set_function(kept(lambda: labels.count_unconfirmed(store.database.read())))
    metrics.FEEDBACK_WAITING_SECONDS.set_function(kept(lambda: feedback_waited(store)))
    metrics.CASES_WAITING.set_function(kept(store.count_live_cases))
    metrics.CLIENTS.set_function(
        lambda: sum(client.has_socket_connection for client in list(Client.instances.values()))
    )
