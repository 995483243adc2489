"""All metrics of the console: names, units and meaning, in one list that the Prometheus objects and docs are made from.

`python -m console.metrics` prints them as the table of docs/metrics.md. They are in a registry of their own: what the
console imports of the flow must not serve the flow's metrics, all at zero.
"""

from typing import Final

from prometheus_client import CollectorRegistry

from dataflow.metrics import MetricList, markdown

_ours = MetricList(CollectorRegistry())
REGISTRY: Final = _ours.registry
METRICS: Final = _ours.metrics
"""All metrics, in the order of this file."""
_counter, _gauge, _histogram = _ours.counter, _ours.gauge, _ours.histogram

ALERTS_READ = _counter("redflag_console_alerts_read_total", "alerts", "Alerts that were stored")
STORED_AFTER = _histogram(
    "redflag_console_stored_after_seconds", "seconds",
    "From the timestamp of an alert's record to its commit in the console's database",
    (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60),
)  # fmt: skip
LABELS_READ = _counter("redflag_console_labels_read_total", "labels", "Labels of others that came over the topic")
FEEDBACK_SENT = _counter(
    "redflag_console_feedback_sent_total", "messages",
    "Messages of this console's analysts that were read back from the feedback topic",
)  # fmt: skip
FEEDBACK_WAITING = _gauge(
    "redflag_console_feedback_waiting", "messages", "Messages that were not read back from the feedback topic yet"
)
FEEDBACK_WAITING_SECONDS = _gauge(
    "redflag_console_feedback_waiting_seconds", "seconds", "How long the oldest of them has waited; 0 without one"
)
LAG = _gauge(
    "redflag_console_lag_messages", "messages",
    "Messages between what is stored and the end of the partition, as the broker last said it",
    "topic", "partition",
)  # fmt: skip
BROKER_SILENT = _gauge(
    "redflag_console_seconds_since_broker_answered", "seconds", "Seconds since a broker last answered the console"
)
CASES_WAITING = _gauge("redflag_console_cases_waiting", "cases", "Cases that are open or taken")
CLIENTS = _gauge("redflag_console_clients", "pages", "Pages that are open in browsers")
LOGINS_FAILED = _counter("redflag_console_logins_failed_total", "times", "Log-ins with a wrong name or password")
REFUSED = _counter(
    "redflag_console_requests_refused_total", "times",
    "Requests from another page, for another host or from another address than the proxy's",
)  # fmt: skip


if __name__ == "__main__":
    print(markdown(METRICS), end="")
