"""The detection flow: transactions in, decisions out.

`python -m bytewax.run dataflow.detect:flow` runs it with the settings of the environment; `python -m dataflow.detect`
does so with recovery on. A step's id is a recovery key: one that was released stays as it is.
"""

import os
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import cast

import bytewax.operators as op
from bytewax.dataflow import Dataflow, Stream
from bytewax.inputs import Source
from bytewax.operators import KeyedStream
from bytewax.outputs import Sink
from confluent_kafka import Message
from prometheus_client import Gauge

from dataflow import compiled, lifecycle, recovery
from dataflow.connectors.exactly_once_sink import ExactlyOnceSink
from dataflow.connectors.kafka_source import KafkaSource
from dataflow.connectors.ownership import own_outputs
from dataflow.features import BASIC
from dataflow.keyed import stateful_map
from dataflow.live_rules import LiveRules
from dataflow.rules import MODEL_FIELDS
from dataflow.scoring import Scorer, load_model
from dataflow.settings import Settings, UserError
from dataflow.steps import (
    Event,
    Routed,
    Steps,
    is_fraudulent,
    key_alerts_by_user,
    key_by_merchant,
    key_by_user,
    parse_labels,
    suppress_repeats,
    update_basic_profile,
)
from dataflow.transaction import Rejection, Transaction

COMPILED = Gauge("redflag_profiles_compiled", "1 where the profiles run compiled, 0 where interpreted")


def build(
    source: Source[Message],
    feedback_source: Source[Message],
    decisions_sink: Sink[Routed],
    invalid_sink: Sink[Routed],
    invalid_feedback_sink: Sink[Routed],
    model: Scorer,
    rules: LiveRules,
    settings: Settings,
) -> Dataflow:
    """The whole graph; it receives its ends, its model and its rules, and chooses nothing.

    With basic profiles there is no lane of the merchant, and feedback is not read.
    """
    flow = Dataflow("redflag_detect")
    steps = Steps(model, rules, settings)
    full = settings.profiles == "full"

    messages = op.input("read_transactions", flow, source)
    # Message
    parsed = op.flat_map_batch("parse_transactions", messages, steps.parse)
    # Transaction | Rejection
    # What reads it takes what is its own: `op.branch` would ask of each item by itself, which takes 0.1 µs.
    events = cast(Stream[Event | Rejection], parsed)
    if full:
        labels = op.input("read_feedback", flow, feedback_source)
        # Message
        learned = op.flat_map_batch("parse_feedback", labels, parse_labels)
        # Feedback | Rejection
        events = op.merge("merge_feedback", events, cast(Stream[Event | Rejection], learned))
        # Transaction | Feedback | Rejection
    by_user = op.flat_map_batch("key_by_user", events, key_by_user)
    # (user, Transaction | Feedback)
    if full:
        profiled = stateful_map("update_user_profile", by_user, steps.update_user_profile)
        # (user, Payment | Lesson)
        by_merchant = op.flat_map_batch("key_by_merchant", profiled, key_by_merchant)
        # (merchant, Payment | Lesson)
        known = stateful_map("update_merchant_profile", by_merchant, steps.update_merchant_profile)
        # (merchant, Profiled | None)
    else:
        only_transactions = cast(KeyedStream[Transaction], by_user)
        known = stateful_map("update_basic_profile", only_transactions, update_basic_profile)
        # (user, Profiled)
    decided = op.flat_map_batch("score_and_check_rules", known, steps.decide)
    # Decision
    verdicts = op.branch("split_fraudulent_from_genuine", decided, is_fraudulent)
    # trues: Decision, falses: Decision
    alerts_by_user = op.flat_map_batch("key_alerts_by_user", verdicts.trues, key_alerts_by_user)
    # (user, Decision)
    alerted = stateful_map("suppress_repeats", alerts_by_user, suppress_repeats)
    # (user, Decision)
    alerts = op.flat_map_batch("route_to_alerts", alerted, steps.to_alerts)
    classified = op.flat_map_batch("route_to_classified", verdicts.falses, steps.to_classified)
    invalid = op.flat_map_batch("route_to_invalid", parsed, steps.to_invalid)
    # (partition key, list[Record])
    # One sink for both topics: a decision that comes out otherwise after a crash cannot stand in both.
    decisions = op.merge("merge_decisions", alerts, classified)
    op.output("write_decisions", decisions, decisions_sink)
    op.output("write_invalid", invalid, invalid_sink)
    if full:
        invalid_feedback = op.flat_map_batch("route_to_invalid_feedback", learned, steps.to_invalid)
        op.output("write_invalid_feedback", invalid_feedback, invalid_feedback_sink)
    return flow


def flow() -> Dataflow:
    """The graph with the ends that the settings name."""
    lifecycle.report_mistakes()
    settings = Settings.load()
    this_flow = recovery.guard(recovery.identity(settings), sys.argv[1:])
    model = load_model(settings.model_file)
    check = partial(check_fields, settings)
    check(settings.model_file, model.features)
    rules = LiveRules(
        settings.rules_file,
        check_every=settings.rules_check_seconds,
        check=lambda rules: check(settings.rules_file, rules.fields),
    )
    lifecycle.stop_gracefully(settings.stop_timeout_seconds)
    lifecycle.calm_collector()
    COMPILED.set(compiled.running())
    source_topic = settings.transactions_topic
    may_write = own_outputs(settings, this_flow)
    return build(
        KafkaSource(settings, source_topic),
        KafkaSource(settings, settings.feedback_topic, idle_seconds=0.1),  # labels are days late anyway
        ExactlyOnceSink(settings, source_topic, (settings.alerts_topic, settings.classified_topic), may_write),
        ExactlyOnceSink(settings, source_topic, (settings.invalid_topic,), may_write),
        ExactlyOnceSink(settings, settings.feedback_topic, (settings.invalid_topic,), may_write),
        model,
        rules,
        settings,
    )


def check_fields(settings: Settings, reader: Path, fields: Iterable[str]) -> None:
    """Checks that the profiles give all that a model or ruleset reads.

    Raises:
        UserError: they do not.
    """
    lacking = (
        sorted(set(fields) - BASIC - {field.name for field in MODEL_FIELDS}) if settings.profiles != "full" else []
    )
    if lacking:
        msg = (
            f"{reader} reads {', '.join(lacking)}, which PROFILES=basic does not keep: set PROFILES=full, with a "
            "recovery directory of its own, or use a model and rules without it"
        )
        raise UserError(msg)


def main() -> None:
    """Runs the flow with recovery on; further options are those of `bytewax.run`, such as -w, -i and -a."""
    try:
        settings = Settings.load()
        recovery.prepare(settings.recovery_dir, settings.recovery_partitions)
    except UserError as error:
        lifecycle.fail(error)
    # The same process goes on as bytewax.run, so that signals and exit status are the flow's own.
    options = ["-r", str(settings.recovery_dir), "-s", str(settings.recovery_interval), "-b", "0", *sys.argv[1:]]
    os.execv(sys.executable, [sys.executable, "-m", "bytewax.run", "dataflow.detect:flow", *options])  # noqa: S606


if __name__ == "__main__":
    main()
