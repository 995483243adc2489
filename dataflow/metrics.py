"""All metrics: their names, units and meaning, in one list, from which the Prometheus objects and the docs are made.

`python -m dataflow.metrics` prints the list as the table that stands in docs/metrics.md. Where a metric is counted
says the module that imports it; all of one process are in one registry, which `dataflow.process.metrics_server` serves.
"""

import threading
from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

Kind = Literal["counter", "gauge", "histogram"]
Unit = Literal[
    "alerts", "bytes", "cases", "decisions", "events", "labels", "messages", "pages", "partitions", "profiles",
    "records", "score", "seconds", "times", "transactions",
]  # fmt: skip


PUT_BY: Final = 4096
"""Values of a histogram that are sorted into its buckets at once: that takes 10 µs, however few they are."""


class Metric(NamedTuple):
    """What there is to know of a metric."""

    name: str  # as Prometheus has it; that of a counter ends in _total
    kind: Kind
    unit: Unit
    labels: tuple[str, ...]
    meaning: str


class BatchHistogram(Collector):
    """A histogram that takes a batch at once: .05 µs a value, where `prometheus_client.Histogram` takes 1.

    Values are put by until there are many, or somebody asks: batches may be small.

    Args:
        metric: whose values they are.
        bounds: the upper bounds of the buckets, rising; a value that equals one is within it. One without end follows.
        registry: where it is to be found; None: nowhere, for tests.
    """

    def __init__(self, metric: Metric, bounds: Sequence[float], registry: CollectorRegistry | None = REGISTRY):
        self.bounds = tuple(bounds)
        self._metric = metric
        self._upper = np.array(bounds)
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0
        self._put_by: list[NDArray[np.float64]] = []
        self._put_by_values = 0
        self._lock = threading.Lock()
        if registry is not None:
            registry.register(self)

    def add(self, values: ArrayLike) -> None:
        """Takes a batch of values in, none of which is NaN."""
        batch = np.asarray(values, np.float64)
        with self._lock:  # of several workers
            self._put_by.append(batch)
            self._put_by_values += len(batch)
            if self._put_by_values >= PUT_BY or len(self._put_by) >= PUT_BY:
                self._sort_in()

    def _sort_in(self) -> None:
        if not self._put_by:
            return
        values = np.concatenate(self._put_by)
        self._put_by, self._put_by_values = [], 0
        self._counts += np.bincount(self._upper.searchsorted(values), minlength=len(self._counts))
        self._sum += float(values.sum())

    def counts(self) -> list[int]:
        """How many values each bucket has, without those of the buckets before it."""
        with self._lock:
            self._sort_in()
            return self._counts.tolist()

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """What the registry is told when this is made: the name."""
        return [HistogramMetricFamily(self._metric.name, self._metric.meaning)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """As Prometheus takes it: each bucket counts those before it, too."""
        with self._lock:
            self._sort_in()
            upto, total = self._counts.cumsum().tolist(), self._sum
        bounds = [*(f"{bound:g}" for bound in self.bounds), "+Inf"]
        found = HistogramMetricFamily(self._metric.name, self._metric.meaning)
        found.add_metric([], list(zip(bounds, upto, strict=True)), total)
        return [found]


class MetricList:
    """Makes the metrics of a registry, and lists them in the order in which they were made."""

    def __init__(self, registry: CollectorRegistry):
        self.registry = registry
        self.metrics: list[Metric] = []

    def counter(self, name: str, unit: Unit, meaning: str, *labels: str) -> Counter:
        """A counter, whose name ends in _total."""
        self.metrics.append(Metric(name, "counter", unit, labels, meaning))
        return Counter(name, meaning, labels, registry=self.registry)

    def gauge(self, name: str, unit: Unit, meaning: str, *labels: str) -> Gauge:
        """A gauge."""
        self.metrics.append(Metric(name, "gauge", unit, labels, meaning))
        return Gauge(name, meaning, labels, registry=self.registry)

    def histogram(self, name: str, unit: Unit, meaning: str, bounds: Sequence[float]) -> BatchHistogram:
        """A histogram with buckets up to each of these bounds."""
        metric = Metric(name, "histogram", unit, (), meaning)
        self.metrics.append(metric)
        return BatchHistogram(metric, bounds, self.registry)


_ours = MetricList(REGISTRY)
METRICS: Final = _ours.metrics
"""All metrics, in the order of this file."""
_counter, _gauge, _histogram = _ours.counter, _ours.gauge, _ours.histogram


# ------------------------------------------------------------------------------------------------ what was decided

DECISIONS = _counter(
    "redflag_decisions_total", "decisions",
    "Decisions, by outcome (`genuine`, `fraudulent`) and by the action asked for (`approve`, `review`, `block`)",
    "outcome", "action",
)  # fmt: skip
RULE_HITS = _counter(
    "redflag_rule_hits_total", "transactions",
    "Transactions on which a rule fired; of allow and deny lists, those on them",
    "rule", "mode",
)  # fmt: skip
SUPPRESSED = _counter(
    "redflag_alerts_suppressed_total", "alerts", "Alerts marked as repeats within their rules' cooldown"
)
UNEXPLAINED = _counter(
    "redflag_unexplained_alerts_total", "alerts",
    "Alerts that only say which rules fired, as to explain them failed",
    "error",
)  # fmt: skip
SCORES = _histogram(
    "redflag_score", "score", "Scores of all decisions, 0 to 1: higher is riskier",
    (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0),
)  # fmt: skip
LATENCY = _histogram(
    "redflag_end_to_end_latency_seconds", "seconds",
    "From the timestamp of a message's record to the broker's acknowledgement of what became of it: a decision, or a "
    "dead letter",
    (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
)  # fmt: skip

# ------------------------------------------------------------------------------------------------ what came in

INVALID = _counter(
    "redflag_invalid_total", "messages",
    "Messages that went to the dead letters, by the topic that they came on and the kind of error",
    "topic", "error",
)  # fmt: skip
FAILED = _counter(
    "redflag_failed_transactions_total", "events",
    "Transactions and labels that made a step raise: they go to the dead letters",
    "step", "error",
)  # fmt: skip
AHEAD = _counter(
    "redflag_events_ahead_of_time_total", "events",
    "Events dated further ahead than MAX_EVENT_LEAD_SECONDS: they count at their record's time",
    "kind",
)  # fmt: skip
FEEDBACK = _counter(
    "redflag_feedback_total", "labels", "Labels that came, by what they say: `fraud`, `genuine`", "label"
)
LABELS = _counter(
    "redflag_labels_total", "labels",
    "Labels by what became of them beyond being applied: `waiting` (the transaction has not come yet), `expired` and "
    "`evicted` (applied without it), `repeated`, `corrected`",
    "outcome",
)  # fmt: skip
LABELLED_ALERTS = _counter(
    "redflag_labelled_alerts_total", "alerts",
    "Alerts of this process since its start, by the first label that came for them: `fraud`, `genuine`",
    "label",
)  # fmt: skip

# ------------------------------------------------------------------------------------------------ what became of it

WRITTEN = _counter("redflag_records_written_total", "records", "Records handed to the producer", "topic")
SKIPPED = _counter(
    "redflag_records_skipped_total", "records", "Records that stood in the output already, after a restart", "topic"
)
TOO_LARGE = _counter(
    "redflag_records_too_large_total", "records",
    "Records too large for their topic: the first bytes went to the invalid",
    "topic",
)  # fmt: skip
REFUSED = _counter(
    "redflag_records_refused_total", "records", "Records that the broker refused or that timed out", "topic"
)

# ------------------------------------------------------------------------------------------------ whether it can go on

LAG = _gauge(
    "redflag_consumer_lag_messages", "messages",
    "Messages behind the end of the partition; NaN while no broker answers",
    "topic", "partition",
)  # fmt: skip
BROKER_SILENT = _gauge(
    "redflag_seconds_since_broker_answered", "seconds", "Seconds since a broker last answered this process"
)
LEASE_AGE = _gauge(
    "redflag_lease_age_seconds", "seconds", "Seconds since this process last knew that the outputs are its flow's"
)
PARTITIONS_ADDED = _gauge(
    "redflag_partitions_not_read", "partitions", "Partitions that were added while the flow runs", "topic"
)
SNAPSHOT_AGE = _gauge(
    "redflag_snapshot_age_seconds", "seconds",
    "Seconds since the last snapshot was committed, or since the flow began to read; 0 without recovery",
)  # fmt: skip
SNAPSHOT_PAUSE = _histogram(
    "redflag_snapshot_pause_seconds", "seconds",
    "How long a snapshot kept a worker from the next message: until all workers' state was written and committed",
    (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)  # fmt: skip
UNSAVED = _gauge(
    "redflag_records_waiting_for_snapshot", "records",
    "Records read since the last snapshot: they are read again after a crash",
    "topic", "partition",
)  # fmt: skip

# ------------------------------------------------------------------------------------------------ state

PROFILES = _gauge(
    "redflag_profiles", "profiles",
    "Users (step `update_user_profile`) and merchants (`update_merchant_profile`) with a profile in this process; "
    "users with an alert of a rule with a cooldown (`suppress_repeats`)",
    "step",
)  # fmt: skip
PROFILE_BYTES = _gauge(
    "redflag_profile_bytes", "bytes", "Bytes of all rows that these profiles use, without the keys' texts", "step"
)
EVICTED = _counter(
    "redflag_evicted_profiles_total", "profiles",
    "Profiles that were forgotten: idle for longer than the age limit, or the oldest of too many",
    "step", "why",
)  # fmt: skip

# ------------------------------------------------------------------------------------------------ rules and model

RULES_RELOADS = _counter("redflag_rules_reloads_total", "times", "Changed rules files that were taken")
RULES_RELOAD_ERRORS = _counter(
    "redflag_rules_reload_errors_total", "times", "Changed rules files that were refused: the old rules stay"
)
MODEL_RELOADS = _counter("redflag_model_reloads_total", "times", "Moved operating points that were taken")
MODEL_RELOAD_ERRORS = _counter(
    "redflag_model_reload_errors_total", "times",
    "Changed JSON files of the model that were refused: the old point stays",
)  # fmt: skip
ALERT_THRESHOLD = _gauge("redflag_model_alert_threshold", "score", "Risk from which the model raises an alert, 0 to 1")
BLOCK_THRESHOLD = _gauge(
    "redflag_model_block_threshold", "score", "Risk from which the model blocks; infinite where it never does"
)


def markdown(metrics: Sequence[Metric] = METRICS) -> str:
    """Metrics as a table of docs/metrics.md."""
    lines = ["| metric | kind | unit | |", "| --- | --- | --- | --- |"]
    for metric in metrics:
        labels = f"{{{','.join(metric.labels)}}}" if metric.labels else ""
        lines.append(f"| `{metric.name}{labels}` | {metric.kind} | {metric.unit} | {metric.meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
