"""The list of metrics, and that each of them moves as it says, told by running the flow."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from bytewax.testing import TestingSink, TestingSource, run_main
from confluent_kafka import Message
from prometheus_client import REGISTRY, CollectorRegistry, Histogram, generate_latest

from console import metrics as console_metrics
from dataflow.detect import build
from dataflow.metrics import METRICS, BatchHistogram, Metric
from dataflow.profiles.user import DTYPE
from dataflow.rules import LiveRules
from dataflow.scoring.loading import load_model
from dataflow.settings import Settings
from dataflow.steps import Routed, written
from tests.support.builders import NOON, fields, iso, message, raw

ROOT = Path(__file__).parent.parent
SETTINGS = Settings()
DASHBOARD = json.loads((ROOT / "observability" / "grafana" / "dashboards" / "redflag.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
BY_NAME = {metric.name: metric for metric in METRICS}


# ---- the list


def test_each_name_says_what_its_metric_is() -> None:
    assert len(BY_NAME) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"redflag_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric
        if metric.unit in ("seconds", "bytes"):
            assert metric.unit in metric.name, metric
        assert metric.meaning[0].isupper()
        assert not metric.meaning.endswith(".")


def test_every_metric_that_is_served_is_in_the_list_with_its_kind_and_meaning() -> None:
    served = {each.name: each for each in REGISTRY.collect() if each.name.startswith("redflag_")}
    assert set(served) == {metric.name.removesuffix("_total") for metric in METRICS}
    for metric in METRICS:
        found = served[metric.name.removesuffix("_total")]
        assert (found.type, found.documentation) == (metric.kind, metric.meaning)


def test_metrics_are_made_nowhere_else() -> None:
    for path in ROOT.glob("dataflow/**/*.py"):
        if path != ROOT / "dataflow" / "metrics.py":
            assert not re.search(r"\b(Counter|Gauge|Histogram|Summary|Info|Enum)\(\s*[\"']redflag", path.read_text()), (
                path
            )


def test_the_dashboard_names_metrics_and_labels_that_are_in_the_list() -> None:
    expressions = [target["expr"] for panel in PANELS for target in panel["targets"]]
    by_name = BY_NAME | {metric.name: metric for metric in console_metrics.METRICS}
    named: set[str] = set()
    for expression in expressions:
        labels: set[str] = set()
        for name in re.findall(r"redflag_\w+", expression):
            metric = by_name.get(name) or by_name[re.sub(r"_(bucket|sum|count)$", "", name)]
            assert (metric.name != name) == (metric.kind == "histogram"), expression
            assert ("rate(" in expression or "increase(" in expression) or metric.kind != "histogram", expression
            labels |= {*metric.labels, *(["le"] if metric.kind == "histogram" else [])}
            named.add(metric.name)
        used = re.findall(r"by \(([^)]*)\)", expression) + re.findall(r"(\w+)=", expression)
        assert {each.strip() for part in used for each in part.split(",")} <= labels, expression
    left_out = by_name.keys() - named
    assert left_out == {
        "redflag_alerts_suppressed_total", "redflag_unexplained_alerts_total", "redflag_events_ahead_of_time_total",
        "redflag_records_refused_total", "redflag_partitions_not_read", "redflag_records_waiting_for_snapshot",
        "redflag_evicted_profiles_total", "redflag_model_block_threshold",
    }  # fmt: skip


def test_the_dashboard_reads_the_data_source_that_is_provisioned() -> None:
    provisioned = (ROOT / "observability" / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text()
    (uid,) = re.findall(r"^ +uid: (\w+)$", provisioned, re.MULTILINE)
    for panel in PANELS:
        assert panel["datasource"]["uid"] == uid
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {uid}


def test_the_dashboard_shows_the_consoles_metrics_in_a_row_of_their_own_below_the_flows() -> None:
    (row,) = (panel for panel in DASHBOARD["panels"] if panel["type"] == "row")
    for panel in PANELS:
        of_console = "redflag_console_" in str(panel["targets"])
        assert of_console == (panel["gridPos"]["y"] > row["gridPos"]["y"]), panel["title"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in PANELS}
    assert len(places) == len(PANELS)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


# ---- histograms that take batches


def test_a_batch_is_counted_as_prometheus_own_histogram_counts_each_value() -> None:
    bounds = (0.001, 0.5, 1.0, 20.0)
    rng = np.random.default_rng(1)
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    metric = Metric("redflag_x", "histogram", "score", (), "X")
    batches, single = BatchHistogram(metric, bounds, ours), Histogram("redflag_x", "X", buckets=bounds, registry=theirs)
    for size in (0, 1, 7, 500):
        values = [*rng.lognormal(-1, 3, size).tolist(), *bounds, 0.0, 1e9]
        batches.add(values)
        for value in values:
            single.observe(value)

    def samples(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
        found = [s for family in registry.collect() for s in family.samples if not s.name.endswith("_created")]
        return {(s.name, f"{float(s.labels['le']):g}" if "le" in s.labels else ""): s.value for s in found}

    assert samples(ours) == pytest.approx(samples(theirs))
    assert b'redflag_x_bucket{le="+Inf"}' in generate_latest(ours)


# ---- what the flow counts


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def told(name: str, *, fraud: bool, at: float = NOON, user: str = "ann") -> Message:
    body = {
        "transaction_id": name, "user": user, "merchant": "Amazon", "timestamp": iso(at), "fraud": fraud,
        "labelled_at": iso(at + 3600),
    }  # fmt: skip
    return message(msgspec.json.encode(body), topic=SETTINGS.feedback_topic)


@pytest.fixture(scope="module")
def run(model_file: Path) -> Callable[..., list[dict[str, Any]]]:
    model = load_model(model_file)

    def run(*messages: Message, batch: int = 10) -> list[dict[str, Any]]:
        """The decisions, each with its topic."""
        out: list[Routed] = []
        rules = LiveRules(SETTINGS.rules_file, check_every=1.0)
        run_main(build(TestingSource(list(messages), batch), TestingSink(out), model, rules, SETTINGS))
        decisions = [record for record in written(out) if record.topic != SETTINGS.invalid_topic]
        return [json.loads(record.value or b"") | {"topic": record.topic} for record in decisions]

    return run


Run = Callable[..., list[dict[str, Any]]]


class Moves:
    """By how much a metric moves."""

    def __init__(self, name: str, **labels: str):
        self._name, self._labels = name, labels
        self._before = value(name, **labels)

    def by(self) -> float:
        return value(self._name, **self._labels) - self._before


def alerting(number: int, user: str = "ann") -> Message:
    """A payment on which a shipped rule fires."""
    return message(raw(user, amount=4_000.0, transaction_id=f"t{number}", at=NOON + number))


def test_decisions_are_counted_by_outcome_and_action_and_scores_in_the_bucket_of_each(run: Run) -> None:
    moves = {
        (outcome, action): Moves("redflag_decisions_total", outcome=outcome, action=action)
        for outcome, action in (("genuine", "approve"), ("fraudulent", "review"), ("fraudulent", "block"))
    }
    upto = {le: Moves("redflag_score_bucket", le=le) for le in ("0.1", "0.5", "0.9", "+Inf")}
    count, total = Moves("redflag_score_count"), Moves("redflag_score_sum")
    decisions = run(
        *(message(raw(n=n, at=NOON + 60 * n)) for n in range(20)), *(alerting(10_000 + n) for n in range(3))
    )
    assert len(decisions) == 23
    assert sum(decision["fraudulent"] for decision in decisions) >= 3
    for (outcome, action), moved in moves.items():
        expected = [d for d in decisions if (d["fraudulent"], d["action"]) == (outcome == "fraudulent", action)]
        assert moved.by() == len(expected)
    scores = [decision["score"] for decision in decisions]
    for le, moved in upto.items():
        assert moved.by() == sum(score <= float(le) for score in scores)
    assert count.by() == 23
    assert total.by() == pytest.approx(sum(scores))


def test_invalid_messages_are_counted_by_topic_and_kind_and_never_by_their_text(run: Run) -> None:
    secret = "4111111111111111"
    bad = [
        (b"{" + secret.encode(), "not JSON"),
        (b"[1, 2", "wrong type or range"),
        (b"", "no value"),
        (None, "no value"),
        (b"\xff", "not JSON"),
        (raw(amount=secret), "wrong type or range"),
        (raw(amount=-1), "wrong type or range"),
        (raw(user=""), "wrong type or range"),
        (msgspec.json.encode({k: v for k, v in fields().items() if k != "merchant"}), "missing field"),
        (raw(latitude=1.0), "missing field"),
        (msgspec.json.encode({**fields(), "timestamp": secret}), "not a time"),
        (raw(x=[[[]]])[:-1] + b',"y":' + b"[" * 300 + b"]" * 300 + b"}", "nested too deeply"),
    ]
    topic = SETTINGS.transactions_topic
    moves = {kind: Moves("redflag_invalid_total", topic=topic, error=kind) for _, kind in bad}
    of_feedback = Moves("redflag_invalid_total", topic=SETTINGS.feedback_topic, error="missing field")
    assert run(*(message(each) for each, _ in bad), message(b"{}", topic=SETTINGS.feedback_topic)) == []
    assert {kind: moved.by() for kind, moved in moves.items()} == {
        kind: sum(other == kind for _, other in bad) for _, kind in bad
    }
    assert of_feedback.by() == 1
    assert secret.encode() not in generate_latest(REGISTRY)


def test_precision_is_the_quotient_of_labelled_alerts_and_all_labels_are_counted_by_what_they_say(run: Run) -> None:
    came = {label: Moves("redflag_feedback_total", label=label) for label in ("fraud", "genuine")}
    of_alerts = {label: Moves("redflag_labelled_alerts_total", label=label) for label in ("fraud", "genuine")}
    payments = [alerting(n, f"u{n}") for n in range(5)] + [message(raw("eve", transaction_id="calm", at=NOON))]
    labels = [
        told("t0", user="u0", fraud=True),
        told("t1", user="u1", fraud=True),
        told("t2", user="u2", fraud=False),
        told("t2", user="u2", fraud=True),  # corrected: the first counts
        told("t3", user="someone else", fraud=True),
        told("calm", user="eve", fraud=False),
        told("unknown", user="eve", fraud=True),
    ]
    decisions = run(*payments, *labels)
    assert [decision["fraudulent"] for decision in decisions].count(True) == 5
    assert {label: moved.by() for label, moved in came.items()} == {"fraud": 5, "genuine": 2}
    assert {label: moved.by() for label, moved in of_alerts.items()} == {"fraud": 2, "genuine": 1}


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_a_label_that_comes_in_one_batch_with_its_alert_is_counted_too(run: Run, batch: int) -> None:
    moved = Moves("redflag_labelled_alerts_total", label="fraud")
    run(alerting(70_000), told("t70000", fraud=True, at=NOON + 70_000), batch=batch)
    assert moved.by() == 1


def test_profiles_and_their_bytes_are_those_of_the_flow_that_runs(run: Run) -> None:
    run(*(message(raw(f"u{n % 30}", merchant=f"m{n % 7}", n=n, at=NOON + n)) for n in range(100)))
    assert value("redflag_profiles", step="update_user_profile") == 30
    assert value("redflag_profiles", step="update_merchant_profile") == 7
    few = value("redflag_profile_bytes", step="update_user_profile")
    run(*(message(raw(f"u{n}", n=n, at=NOON + n)) for n in range(300)))
    assert value("redflag_profiles", step="update_user_profile") == 300
    more = value("redflag_profile_bytes", step="update_user_profile") - few
    assert 270 * DTYPE.itemsize <= more < 1.1 * 270 * DTYPE.itemsize
