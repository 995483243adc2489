"""The detection flow: transactions in, decisions out.

`python -m bytewax.run dataflow.detect:flow` runs it with the settings of the environment; `python -m dataflow.detect`
does so with recovery on. A step's id is a recovery key: one that was released stays as it is.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import bytewax.operators as op
from bytewax.dataflow import Dataflow, Stream
from bytewax.inputs import Source
from bytewax.operators import KeyedStream
from bytewax.outputs import Sink
from confluent_kafka import Message
from msgspec import UNSET
from msgspec.structs import replace
from prometheus_client import Gauge

from dataflow import compiled, lifecycle, recovery
from dataflow.cooldown import SUPPRESSED, RecentAlerts, note
from dataflow.decision import Decision, Verdict, combined, to_json
from dataflow.features import BASIC, Facts, observe_basic, observe_merchant, observe_user
from dataflow.feedback import Feedback, parse_feedback
from dataflow.kafka import ExactlyOnceSink, KafkaSource, Record, partition_key
from dataflow.live_rules import LiveRules
from dataflow.profile import BasicProfile, MerchantProfile, UserProfile
from dataflow.rules import MODEL_FIELDS
from dataflow.scoring import Scorer, load_model
from dataflow.settings import Settings, UserError
from dataflow.transaction import Rejection, Transaction, parse

Event = Transaction | Feedback
Payment = tuple[Transaction, Facts, bool]  # with what the user's profile knew; whether it counts, or is a repeat
Lesson = tuple[Feedback, bool | None]  # whether the amount explains the fraud; None for a repeat
Profiled = tuple[Transaction, Facts]
Routed = tuple[str, Record]

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
        profiled = op.stateful_map("update_user_profile", by_user, steps.update_user_profile)
        # (user, Payment | Lesson)
        by_merchant = op.flat_map_batch("key_by_merchant", profiled, key_by_merchant)
        # (merchant, Payment | Lesson)
        known = op.stateful_map("update_merchant_profile", by_merchant, steps.update_merchant_profile)
        # (merchant, (Transaction, Facts) | None)
    else:
        only_transactions = cast(KeyedStream[Transaction], by_user)
        known = op.stateful_map("update_basic_profile", only_transactions, update_basic_profile)
        # (user, (Transaction, Facts))
    decided = op.flat_map_batch("score_and_check_rules", known, steps.decide)
    # Decision
    verdicts = op.branch("split_fraudulent_from_genuine", decided, is_fraudulent)
    # trues: Decision, falses: Decision
    alerts_by_user = op.flat_map_batch("key_alerts_by_user", verdicts.trues, key_alerts_by_user)
    # (user, Decision)
    alerted = op.stateful_map("suppress_repeats", alerts_by_user, suppress_repeats)
    # (user, Decision)
    alerts = op.flat_map_batch("route_to_alerts", alerted, steps.to_alerts)
    classified = op.flat_map_batch("route_to_classified", verdicts.falses, steps.to_classified)
    invalid = op.flat_map_batch("route_to_invalid", parsed, steps.to_invalid)
    # (partition key, Record)
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
    recovery.guard(recovery.identity(settings), sys.argv[1:])
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
    return build(
        KafkaSource(settings, source_topic),
        KafkaSource(settings, settings.feedback_topic, idle_seconds=0.1),  # labels are days late anyway
        ExactlyOnceSink(settings, source_topic, (settings.alerts_topic, settings.classified_topic)),
        ExactlyOnceSink(settings, source_topic, (settings.invalid_topic,)),
        ExactlyOnceSink(settings, settings.feedback_topic, (settings.invalid_topic,)),
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


def is_fraudulent(decision: Decision) -> bool:
    """Whether a decision is an alert."""
    return decision.verdict.fraudulent


def parse_labels(messages: list[Message]) -> Iterable[Feedback | Rejection]:
    """Parses feedback: each message becomes a label or a rejection."""
    return [parse_feedback(m.value(), m.key(), m.partition(), m.offset(), m.timestamp()[1]) for m in messages]


def key_by_user(events: list[Event | Rejection]) -> Iterable[tuple[str, Event]]:
    """Keys each event by its user, so that one worker sees all of a user's, in their order; rejections end here."""
    return [(event.user, event) for event in events if not isinstance(event, Rejection)]


def key_by_merchant(profiled: list[tuple[str, Payment | Lesson]]) -> Iterable[tuple[str, Payment | Lesson]]:
    """Keys what the user's lane made of each event by its merchant."""
    return [(item[0].merchant, item) for _, item in profiled]


def key_alerts_by_user(decisions: list[Decision]) -> Iterable[tuple[str, Decision]]:
    """Keys each alert by its user again, in the order of the source: the merchant's lane, which lies between, lost it.

    A user's transactions are in one partition. With several workers, two that are decided at the same moment on
    different ones may still change places; then the other of the two is marked as the repeat.
    """
    in_order = sorted(decisions, key=lambda decision: decision.transaction.offset)
    return [(decision.transaction.user, decision) for decision in in_order]


def suppress_repeats(recent: RecentAlerts | None, decision: Decision) -> tuple[RecentAlerts | None, Decision]:
    """Marks an alert that repeats one within its rules' cooldown; without a cooldown nothing is kept."""
    recent, repeats = note(recent, decision.cooldowns, decision.transaction.at)
    if repeats:
        SUPPRESSED.inc()
        decision = replace(decision, verdict=replace(decision.verdict, suppressed=True))
    return recent, decision


def update_basic_profile(profile: BasicProfile | None, event: Transaction) -> tuple[BasicProfile, Profiled]:
    """As `Steps.update_user_profile`, for basic profiles; there is no feedback then."""
    if profile is None:
        profile = BasicProfile()
    return profile, (event, observe_basic(event, profile))


class Steps:
    """The steps that need the model, the rules or a topic's name; each takes a batch, as Bytewax hands it over."""

    def __init__(self, model: Scorer, rules: LiveRules, settings: Settings):
        self._model = model
        self._rules = rules
        self._population = model.population
        self._source_topic = settings.transactions_topic
        self._alerts_topic = settings.alerts_topic
        self._classified_topic = settings.classified_topic
        self._invalid_topic = settings.invalid_topic

    def parse(self, messages: list[Message]) -> Iterable[Transaction | Rejection]:
        """Parses messages: each becomes a transaction or a rejection."""
        topic = self._source_topic
        return [parse(m.value(), m.key(), topic, m.partition(), m.offset(), m.timestamp()[1]) for m in messages]

    def update_user_profile(self, profile: UserProfile | None, event: Event) -> tuple[UserProfile, Payment | Lesson]:
        """Reads the facts from the profile as it was before the transaction, then takes the transaction in."""
        if profile is None:
            profile = UserProfile()
        if isinstance(event, Feedback):
            return profile, (event, profile.learn(event.transaction_id, event.at, event.fraud))
        return profile, (event, *observe_user(event, profile, self._population))

    def update_merchant_profile(
        self, profile: MerchantProfile | None, item: Payment | Lesson
    ) -> tuple[MerchantProfile, Profiled | None]:
        """Adds what the merchant's profile knew before the transaction; feedback ends here, and None comes of it."""
        if profile is None:
            profile = MerchantProfile()
        if len(item) == 2:
            label, explained = item
            if explained is not None:
                profile.learn(label.at, label.labelled_at, label.fraud, explained)
            return profile, None
        txn, known, counts = item
        return profile, (txn, observe_merchant(txn, profile, known, counts, self._population))

    def decide(self, known: list[tuple[str, Profiled | None]]) -> Iterable[Decision]:
        """Scores, then checks the rules: one step, as handing a batch from one to the next takes 0.2 µs an item."""
        return self.check(self.score(known))

    def score(self, known: list[tuple[str, Profiled | None]]) -> list[Profiled]:
        """Adds the model's verdict to the facts: whether it is an anomaly, and the risk, 0 to 1."""
        profiled = [item for _, item in known if item is not None]
        rows = [facts for _, facts in profiled]
        risks, anomalies = self._model.score(self._model.rows(rows))
        verdicts = zip(anomalies.tolist(), risks.tolist(), strict=True)
        return [(txn, facts + verdict) for (txn, facts), verdict in zip(profiled, verdicts, strict=True)]

    def check(self, scored: list[Profiled]) -> Iterable[Decision]:
        """Checks the rules and decides; a changed rules file counts from one batch to the next."""
        rules = self._rules.current()
        rows = [row for _, row in scored]
        rules_version, model_version = rules.version, self._model.version
        decisions = []
        for (txn, row), (fraudulent, reasons, fired, shadow, doubt, cooldowns) in zip(
            scored, rules.evaluate(rows), strict=True
        ):
            risk: float = row[-1]  # type: ignore[assignment]
            verdict = Verdict(
                fraudulent,
                reasons,
                combined(doubt, risk),
                fired,
                shadow,
                rules_version,
                model_version,
                txn.transaction_id if txn.id_is_ours else UNSET,  # type: ignore[arg-type]
            )
            decisions.append(Decision(txn, verdict, cooldowns))
        return decisions

    def to_alerts(self, alerts: list[tuple[str, Decision]]) -> Iterable[Routed]:
        """Records for the alerts' topic."""
        return _records([decision for _, decision in alerts], self._alerts_topic)

    def to_classified(self, decisions: list[Decision]) -> Iterable[Routed]:
        """Records for the topic of what is genuine."""
        return _records(decisions, self._classified_topic)

    def to_invalid(self, parsed: Sequence[Event | Rejection]) -> Iterable[Routed]:
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
            for bad in parsed
            if isinstance(bad, Rejection)
        ]


def _records(decisions: list[Decision], topic: str) -> list[Routed]:
    records = []
    for decision in decisions:
        txn = decision.transaction
        partition = txn.partition
        record = Record(topic, txn.user.encode(), to_json(decision), partition, txn.offset, txn.record_ms)
        records.append((partition_key(partition), record))
    return records


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
