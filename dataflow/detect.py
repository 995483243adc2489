"""The detection flow: transactions in, decisions out.

`python -m bytewax.run dataflow.detect:flow` runs it with the settings of the environment; `python -m dataflow.detect`
does so with recovery on. A step's id is a recovery key: one that was released stays as it is.
"""

import os
import sys
from collections.abc import Iterable
from typing import cast

import bytewax.operators as op
from bytewax.dataflow import Dataflow, Stream
from bytewax.inputs import Source
from bytewax.outputs import Sink
from confluent_kafka import Message
from msgspec import UNSET

from dataflow import lifecycle, recovery
from dataflow.decision import Decision, Verdict, to_json
from dataflow.features import Facts, facts
from dataflow.kafka import ExactlyOnceSink, KafkaSource, Record, partition_key
from dataflow.live_rules import LiveRules
from dataflow.profile import UserProfile
from dataflow.scoring import Model, load_model
from dataflow.settings import Settings, UserError
from dataflow.transaction import Rejection, Transaction, parse

Profiled = tuple[Transaction, Facts]
Routed = tuple[str, Record]


def build(
    source: Source[Message],
    decisions_sink: Sink[Routed],
    invalid_sink: Sink[Routed],
    model: Model,
    rules: LiveRules,
    settings: Settings,
) -> Dataflow:
    """The whole graph; it receives its ends, its model and its rules, and chooses nothing."""
    flow = Dataflow("redflag_detect")
    steps = Steps(model, rules, settings)

    messages = op.input("read_transactions", flow, source)
    # Message
    parsed = op.flat_map_batch("parse_transactions", messages, steps.parse)
    # Transaction | Rejection
    checked = op.branch("split_valid_from_invalid", parsed, is_valid)
    # trues: Transaction, falses: Rejection
    by_user = op.flat_map_batch("key_by_user", cast(Stream[Transaction], checked.trues), key_by_user)
    # (user, Transaction)
    profiled = op.stateful_map("update_user_profile", by_user, update_user_profile)
    # (user, (Transaction, Facts))
    scored = op.flat_map_batch("score_transactions", profiled, steps.score)
    # (Transaction, Facts with the model's)
    decided = op.flat_map_batch("check_rules", scored, steps.check)
    # Decision
    verdicts = op.branch("split_fraudulent_from_genuine", decided, is_fraudulent)
    # trues: Decision, falses: Decision
    alerts = op.flat_map_batch("route_to_alerts", verdicts.trues, steps.to_alerts)
    classified = op.flat_map_batch("route_to_classified", verdicts.falses, steps.to_classified)
    invalid = op.flat_map_batch("route_to_invalid", cast(Stream[Rejection], checked.falses), steps.to_invalid)
    # (partition key, Record)
    # One sink for both topics: a decision that comes out otherwise after a crash cannot stand in both.
    decisions = op.merge("merge_decisions", alerts, classified)
    op.output("write_decisions", decisions, decisions_sink)
    op.output("write_invalid", invalid, invalid_sink)
    return flow


def flow() -> Dataflow:
    """The graph with the ends that the settings name."""
    lifecycle.report_mistakes()
    settings = Settings.load()
    recovery.guard(recovery.identity(settings), sys.argv[1:])
    model = load_model(settings.model_file)
    rules = LiveRules(settings.rules_file, check_every=settings.rules_check_seconds)
    lifecycle.stop_gracefully(settings.stop_timeout_seconds)
    source_topic = settings.transactions_topic
    return build(
        KafkaSource(settings, source_topic),
        ExactlyOnceSink(settings, source_topic, (settings.alerts_topic, settings.classified_topic)),
        ExactlyOnceSink(settings, source_topic, (settings.invalid_topic,)),
        model,
        rules,
        settings,
    )


def is_valid(parsed: Transaction | Rejection) -> bool:
    """Whether a message is a transaction."""
    return type(parsed) is Transaction


def is_fraudulent(decision: Decision) -> bool:
    """Whether a decision is an alert."""
    return decision.verdict.fraudulent


def key_by_user(transactions: list[Transaction]) -> Iterable[tuple[str, Transaction]]:
    """Keys each transaction by its user, so that one worker sees all of a user's, in their order."""
    return [(txn.user, txn) for txn in transactions]


def update_user_profile(profile: UserProfile | None, txn: Transaction) -> tuple[UserProfile, Profiled]:
    """Reads the facts from the profile as it was before the transaction, then takes the transaction in."""
    if profile is None:
        profile = UserProfile()
    known = facts(txn, profile)
    profile.update(txn)
    return profile, (txn, known)


class Steps:
    """The steps that need the model, the rules or a topic's name; each takes a batch, as Bytewax hands it over."""

    def __init__(self, model: Model, rules: LiveRules, settings: Settings):
        self._model = model
        self._rules = rules
        self._source_topic = settings.transactions_topic
        self._alerts_topic = settings.alerts_topic
        self._classified_topic = settings.classified_topic
        self._invalid_topic = settings.invalid_topic

    def parse(self, messages: list[Message]) -> Iterable[Transaction | Rejection]:
        """Parses messages: each becomes a transaction or a rejection."""
        topic = self._source_topic
        return [parse(m.value(), m.key(), topic, m.partition(), m.offset(), m.timestamp()[1]) for m in messages]

    def score(self, profiled: list[tuple[str, Profiled]]) -> Iterable[Profiled]:
        """Adds the model's verdict to the facts: whether it is an anomaly, and the risk, 0 to 1."""
        known = [item[1][1] for item in profiled]
        risks, anomalies = self._model.score(self._model.rows(known))
        return [
            (item[1][0], (*row, anomaly, risk))
            for item, row, anomaly, risk in zip(profiled, known, anomalies.tolist(), risks.tolist(), strict=True)
        ]

    def check(self, scored: list[Profiled]) -> Iterable[Decision]:
        """Checks the rules and decides; a changed rules file counts from one batch to the next."""
        rules = self._rules.current()
        rows = [row for _, row in scored]
        decisions = []
        for (txn, row), outcome in zip(scored, rules.evaluate(rows), strict=True):
            risk = cast(float, row[-1])
            verdict = Verdict(
                outcome.fraudulent,
                outcome.reasons,
                # Noisy-OR: each rule that fired, and the model, is a reason of its own to doubt it.
                round(1.0 - outcome.doubt * (1.0 - risk), 6),
                outcome.rules,
                outcome.shadow_rules,
                rules.version,
                self._model.version,
                cast(str, txn.transaction_id) if txn.id_is_ours else UNSET,
            )
            decisions.append(Decision(txn, verdict))
        return decisions

    def to_alerts(self, decisions: list[Decision]) -> Iterable[Routed]:
        """Records for the alerts' topic."""
        return [_record(decision, self._alerts_topic) for decision in decisions]

    def to_classified(self, decisions: list[Decision]) -> Iterable[Routed]:
        """Records for the topic of what is genuine."""
        return [_record(decision, self._classified_topic) for decision in decisions]

    def to_invalid(self, rejections: list[Rejection]) -> Iterable[Routed]:
        """Records for the topic of what cannot be parsed: the message as it was, the error beside it."""
        return [
            (
                partition_key(bad.partition),
                Record(
                    self._invalid_topic,
                    bad.key,
                    bad.value,
                    bad.partition,
                    bad.offset,
                    bad.record_ms,
                    [("error", bad.error.encode()), ("field", bad.field.encode())],
                ),
            )
            for bad in rejections
        ]


def _record(decision: Decision, topic: str) -> Routed:
    txn = decision.transaction
    record = Record(topic, txn.user.encode(), to_json(decision), txn.partition, txn.offset, txn.record_ms)
    return partition_key(txn.partition), record


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
