"""The command that runs the console: python -m console."""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from typing import Final

from console import health, metrics
from console.access.proxy import Proxy
from console.cases import Rules
from console.database import DatabaseError
from console.feedback_sender import FeedbackSender
from console.flow_metrics import FlowMetrics
from console.pages.frame import Desk
from console.reader import Reader
from console.recent_payments import RecentPayments
from console.rules.rules_file import RulesFile
from console.server import application, listen, serve, shown_address
from console.service import Service
from console.store import Limits, Store
from console.users import Users
from dataflow.connectors.broker_watch import BrokerWatch
from dataflow.errors import UserError
from dataflow.process import lifecycle, metrics_server
from dataflow.settings import Settings

SERVED: Final = "the console is at"
"""How the line begins that says where; `make run` reads it."""
METRICS_SERVED: Final = "metrics, /ready and /live are on"
FORGET_SECONDS: Final = 5.0
NICE: Final = 5
"""How much the console stands back where a flow on the same machine wants the processor, too: its decisions come first.
Where that is idle, or runs elsewhere, this changes nothing."""

_log = logging.getLogger("redflag.console")


def main() -> None:
    """Runs the console until SIGTERM or Ctrl-C; exits with 2 on a user's mistake."""
    lifecycle.report_mistakes()
    os.nice(NICE)  # before there are other threads: those that are there keep what they have
    settings = Settings.load()
    lifecycle.warn_of_unknown(settings)
    users = Users.load(settings.console_users_file) if settings.console_users_file is not None else None
    proxy = _proxy(settings, users)
    taken = listen(settings.console_address, users)
    with contextlib.ExitStack() as closing:
        store = Store(
            settings.console_database,
            Limits(settings.console_max_alerts, settings.console_age_days),
            Rules(settings.console_quiet_minutes * 60),
        )
        closing.callback(store.close)
        reader = Reader(settings, store)
        closing.callback(reader.close)
        payments = RecentPayments(settings, store)
        closing.callback(payments.close)
        sender = FeedbackSender(settings, store, reader)
        closing.callback(sender.close)
        rules = RulesFile(settings.rules_file, store.database, settings.rules_check_seconds, store.clock)
        closing.callback(rules.stop)
        rules.begin()
        watch = BrokerWatch(settings, [settings.alerts_topic])
        closing.callback(watch.close)
        for each in (reader, payments, sender, watch):
            each.start()
        closing.enter_context(_forgetting(store))
        health.watch_gauges(store, watch)
        served = metrics_server.serve(
            settings.console_metrics_address,
            0,
            health.checked(store, watch),
            metrics.REGISTRY,
            "CONSOLE_METRICS_ADDRESS",
        )
        if served is not None:
            _log.info("%s %s", METRICS_SERVED, served)
        service = Service(FlowMetrics(settings.console_flow_metrics), settings.model_file, lambda: reader.behind)
        analysts = users.analysts() if users is not None else None
        desk = Desk(store, payments, service, analysts, settings, rules, logs_out=proxy is None)
        _log.info("%s %s", SERVED, shown_address(taken))
        serve(application(desk, users, proxy), taken)


def _proxy(settings: Settings, users: Users | None) -> Proxy | None:
    """The reverse proxy that says who users are, where there is one.

    Raises:
        UserError: the settings name one, but not the users' roles, or what is no address.
    """
    if settings.console_proxy_addresses is None:
        return None
    if users is None:
        msg = (
            "CONSOLE_PROXY_ADDRESSES names a proxy, but nothing says what its users may do: add them to a "
            "CONSOLE_USERS_FILE with `python -m console.users --no-password`"
        )
        raise UserError(msg)
    return Proxy(settings.console_proxy_addresses, settings.console_proxy_header, users)


@contextlib.contextmanager
def _forgetting(store: Store) -> Iterator[None]:
    """Deletes what is beyond the limits, on a thread of its own, a piece at a time."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(FORGET_SECONDS):
            try:
                while not stop.is_set() and store.forget():
                    pass
            except DatabaseError as error:
                _log.warning("old alerts are not forgotten for now: %s", error)

    thread = threading.Thread(target=run, name="console-forgetting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


if __name__ == "__main__":
    main()
