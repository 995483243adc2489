"""What the steps of the detection flow do with a batch, as Bytewax hands it over; `dataflow.detect` has the graph."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Message
from msgspec import UNSET
from msgspec.structs import replace

from dataflow.alert_steps import AlertPart
from dataflow.events.decision import Decision, Explanation, Verdict, combined, to_json
from dataflow.events.error_kinds import error_kind
from dataflow.events.feedback import Feedback, parse_feedback
from dataflow.events.labelled_alerts import LabelledAlerts
from dataflow.events.output_record import ERROR, FIELD, STEP, Header, Record, producer_headers, source_key
from dataflow.events.parsing import parse
from dataflow.events.transaction import Rejection, Transaction
from dataflow.explanations.explainer import Explainer
from dataflow.features.batch import FeatureBatch
from dataflow.metrics import INVALID, SCORES
from dataflow.process.faults import Guard
from dataflow.profile_steps import Event, MerchantPart, ProfileSteps
from dataflow.rules import LiveRules
from dataflow.scoring.metadata import Scorer
from dataflow.settings import Settings

RISK, THRESHOLD = "model_score", "alert_threshold"

Routed = tuple[str, list[Record]]  # by the source's topic and partition: Bytewax takes 1 µs to route an item


def is_fraudulent(decided: Decision | Rejection) -> bool:
    """Whether a decision is an alert."""
    return isinstance(decided, Decision) and decided.verdict.fraudulent


def dead_letter(value: Any, error: str, step: str) -> Rejection | None:
    """The dead letter of whatever a step takes: the message that it came from as it was, which error, in which step.

    None for what a label teaches a merchant, of which the step has the merchant's name: the label itself was taken in.
    """
    if isinstance(value, str):
        return None
    if isinstance(value, Feedback):
        return replace(value.message, error=error, step=step) if value.message is not None else None
    txn: Transaction = value.transaction if isinstance(value, Decision) else value
    return Rejection(
        error, "", txn.partition, txn.offset, txn.record_ms, txn.key, txn.value, txn.topic, txn.headers, step
    )


class Steps:
    """The steps that need the model, the rules or a topic's name; each takes a batch, as Bytewax hands it over.

    Whatever a step raises on goes to the dead letters: see `dataflow.process.faults`.
    """

    def __init__(
        self,
        model: Scorer,
        rules: LiveRules,
        settings: Settings,
        profiles: ProfileSteps,
        clock: Callable[[], float] = time.time,
    ):
        """`profiles`: the steps before these.

        `clock`: the wall clock, seconds since 1970; what was not dated by the broker itself is held against it.
        """
        self._model = model
        self._profiles = profiles
        self._rules = rules
        self._explainer = Explainer(model)
        self._clock = clock
        self._lead = settings.max_event_lead_seconds
        self._source_topic = settings.transactions_topic
        self._feedback_topic = settings.feedback_topic
        self._alerts_topic = settings.alerts_topic
        self._classified_topic = settings.classified_topic
        self._invalid_topic = settings.invalid_topic
        self._labelled = LabelledAlerts()
        self._parsing = Guard("parse_messages", lambda value, error, step: replace(value, error=error, step=step))
        self._deciding = Guard("score_and_check_rules", lambda value, *why: dead_letter(value[1], *why))
        self._routing = Guard("route_decisions", dead_letter)

    def parse(self, messages: list[Message]) -> Iterable[Event | Rejection]:
        """Parses messages of both topics: each becomes a transaction, a label or a rejection."""
        parsed: list[Event | Rejection] = []
        told: list[Feedback] = []
        topic, feedback_topic, lead, now = self._source_topic, self._feedback_topic, self._lead, self._clock()
        for m in messages:
            value, key, partition, offset = m.value(), m.key(), m.partition(), m.offset()
            kind, record_ms = m.timestamp()
            wall = math.inf if kind == TIMESTAMP_LOG_APPEND_TIME else now
            labels = m.topic() == feedback_topic
            source = feedback_topic if labels else topic
            try:
                event: Event | Rejection = (
                    parse_feedback(value, key, partition, offset, record_ms, wall, lead)
                    if labels
                    else parse(value, key, topic, partition, offset, record_ms, wall, lead)
                )
                self._parsing.in_a_row = 0
            except Exception as error:
                event = Rejection("", "", partition, offset, record_ms, key, value, source)
                event = self._parsing.failed(event, error) or event
            if isinstance(event, Transaction):
                event.topic = topic
                event.key = key
                event.value = value
                event.headers = m.headers()
            elif isinstance(event, Rejection):
                event = replace(event, topic=source, headers=m.headers())
            else:
                message = Rejection("", "", partition, offset, record_ms, key, value, source, m.headers())
                event = replace(event, message=message)
                told.append(event)
            parsed.append(event)
        if told:
            self._labelled.told(told)
        return parsed

    def decide(self, known: list[tuple[str, MerchantPart]]) -> Iterable[Decision | Rejection]:
        """Scores, then checks the rules: one step, as handing a batch from one to the next takes 0.2 µs an item."""
        batch, failed = self._profiles.learned(known)
        try:
            decisions = self.check(self.score(batch))
            self._deciding.in_a_row = 0
        except Exception:
            by_place = list(enumerate(batch.transactions))
            decisions, more = self._deciding.each(by_place, lambda some: self._decide_part(batch, some))
            failed = [*failed, *more]
        if decisions:
            SCORES.add([decision.verdict.score for decision in decisions])
            self._labelled.decided(decisions)
        return [*decisions, *failed] if failed else decisions

    def _decide_part(self, batch: FeatureBatch, some: list[tuple[int, Transaction]]) -> list[Decision]:
        return self.check(self.score(batch.part([place for place, _ in some])))

    def score(self, batch: FeatureBatch) -> FeatureBatch:
        """Adds the model's verdict to the features: the risk, 0 to 1, and once a rule reads it, the forest's."""
        risks, anomalies = self._model.risk_first(batch.floats(self._model.features))
        batch.put(self._model.operating_point.columns(risks, anomalies))
        return batch

    def check(self, batch: FeatureBatch) -> list[Decision]:
        """Checks the rules and decides; a changed rules file counts from one batch to the next."""
        rules = self._rules.current()
        rules_version, model_version = rules.version, self._model.version
        results = rules.evaluate(batch)
        alerts = [place for place, result in enumerate(results) if result.fraudulent]
        why: dict[int, list[Explanation]] = {}
        if alerts:
            of_alerts = [results[place] for place in alerts]
            explained = self._explainer.explain(batch.part(alerts), of_alerts, rules)
            why = dict(zip(alerts, explained, strict=True))
        risks = np.asarray(batch.column(RISK))
        model_scores = scores = combined(1.0, risks)
        if alerts:
            scores = scores.copy()
            scores[alerts] = combined(np.array([results[place].p_genuine for place in alerts]), risks[alerts])
        columns = zip(
            batch.transactions,
            results,
            scores.tolist(),
            model_scores.tolist(),
            np.asarray(batch.column(THRESHOLD)).tolist(),
            strict=True,
        )
        return [
            Decision(
                txn,
                Verdict(
                    result.fraudulent,
                    result.reasons,
                    score,
                    result.rules,
                    result.shadow_rules,
                    rules_version,
                    model_version,
                    result.action,
                    model_score,
                    threshold,
                    why[place] if result.fraudulent else UNSET,
                    txn.transaction_id if txn.id_is_ours else UNSET,  # type: ignore[arg-type]
                ),
                result.cooldowns,
            )
            for place, (txn, result, score, model_score, threshold) in enumerate(columns)
        ]

    def to_alerts(self, parts: list[tuple[str, AlertPart]]) -> Iterable[Routed]:
        """Records for the alerts' topic, in the order of the source: the users' lanes, in between, lost it."""
        in_order = sorted([alert for _, part in parts for alert in part.alerts], key=_offset)
        return self._route(in_order, self._alerts_topic)

    def to_classified(self, decided: list[Decision | Rejection]) -> Iterable[Routed]:
        """Records for the topic of what is genuine, and for that of the dead letters."""
        return self._route(decided, self._classified_topic)

    def to_invalid(self, parsed: Sequence[Event | Rejection]) -> Iterable[Routed]:
        """Records for the dead letters: the message as it was, the error beside it."""
        return _routed([self._dead_record(bad) for bad in parsed if isinstance(bad, Rejection)])

    def _route(self, decided: list[Decision | Rejection], topic: str) -> list[Routed]:
        def record(decisions: list[Decision]) -> list[Record]:
            made = []
            for decision in decisions:
                txn = decision.transaction
                headers = producer_headers(txn.headers) if txn.headers else None
                made.append(
                    Record(
                        topic,
                        txn.key,
                        to_json(decision),
                        txn.topic,
                        txn.partition,
                        txn.offset,
                        txn.record_ms,
                        headers,
                    )
                )
            return made

        decisions = [each for each in decided if isinstance(each, Decision)]
        records, failed = self._routing.each(decisions, record)
        if failed or len(decisions) < len(decided):
            failed += [each for each in decided if isinstance(each, Rejection)]
            records = records + [self._dead_record(bad) for bad in failed]
        return _routed(records)

    def _dead_record(self, bad: Rejection) -> Record:
        INVALID.labels(bad.topic, error_kind(bad)).inc()
        about: list[Header] = [(ERROR, bad.error.encode()), (FIELD, bad.field.encode())]
        if bad.step:
            about.append((STEP, bad.step.encode()))
        return Record(
            self._invalid_topic,
            bad.key,
            bad.value,
            bad.topic,
            bad.partition,
            bad.offset,
            bad.record_ms,
            [*(producer_headers(bad.headers) or ()), *about],
        )


def _offset(decided: Decision | Rejection) -> int:
    return decided.transaction.offset if isinstance(decided, Decision) else decided.offset


def written(routed: Iterable[Routed]) -> list[Record]:
    """The records of what goes to a sink, one after the other."""
    return [record for _, records in routed for record in records]


def _routed(records: list[Record]) -> list[Routed]:
    """The records of each partition of a source topic together, in their order."""
    by_source: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        source = record.source_topic, record.partition
        together = by_source.get(source)
        if together is None:
            together = by_source[source] = []
        together.append(record)
    return [(source_key(topic, partition), together) for (topic, partition), together in by_source.items()]
