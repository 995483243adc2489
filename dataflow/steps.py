"""What the steps of the detection flow do with a batch, as Bytewax hands it over; `dataflow.detect` has the graph."""

import math
import time
from collections.abc import Callable, Iterable, Sequence

from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Message
from msgspec import UNSET
from msgspec.structs import replace

from dataflow.cooldown import SUPPRESSED, RecentAlerts, note
from dataflow.decision import Decision, Verdict, combined, to_json
from dataflow.enriched import Lesson, Payment
from dataflow.features import observe_basic, observe_merchant, observe_user
from dataflow.feedback import Feedback, parse_feedback
from dataflow.live_rules import LiveRules
from dataflow.parsing import parse
from dataflow.profile import BasicProfile, Lessons, MerchantProfile, UserProfile
from dataflow.record import Record, partition_key
from dataflow.rules import MODEL_FIELDS
from dataflow.scoring import Scorer
from dataflow.settings import Settings
from dataflow.table import Table
from dataflow.transaction import Rejection, Transaction

ANOMALY, RISK = [field.name for field in MODEL_FIELDS]

Event = Transaction | Feedback
Profiled = tuple[Transaction, str, bytes]  # with the facts: the last location, and the numbers, packed
Routed = tuple[str, list[Record]]  # by the source's partition: Bytewax takes 1 µs to route an item


def is_fraudulent(decision: Decision) -> bool:
    """Whether a decision is an alert."""
    return decision.verdict.fraudulent


def key_by_user(events: list[Event | Rejection]) -> Iterable[tuple[str, Event]]:
    """Keys each event by its user, so that one worker sees all of a user's, in their order; rejections end here."""
    return [(event.user, event) for event in events if not isinstance(event, Rejection)]


def key_by_merchant(enriched: list[tuple[str, Payment | Lessons]]) -> Iterable[tuple[str, Payment | Lesson]]:
    """Keys payments by their merchant and lessons by theirs: those that come with a payment follow it."""
    keyed: list[tuple[str, Payment | Lesson]] = []
    for _, item in enriched:
        if isinstance(item, Payment):
            keyed.append((item.transaction.merchant, item))
            lessons = item.lessons
        else:
            lessons = item
        for lesson in lessons:
            keyed.append((lesson.merchant, lesson))
    return keyed


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
    return profile, (event, *observe_basic(event, profile))


class Steps:
    """The steps that need the model, the rules or a topic's name; each takes a batch, as Bytewax hands it over."""

    def __init__(self, model: Scorer, rules: LiveRules, settings: Settings, clock: Callable[[], float] = time.time):
        """`clock`: the wall clock, seconds since 1970; what was not dated by the broker itself is held against it."""
        self._model = model
        self._rules = rules
        self._population = model.population
        self._clock = clock
        self._lead = settings.max_event_lead_seconds
        self._source_topic = settings.transactions_topic
        self._alerts_topic = settings.alerts_topic
        self._classified_topic = settings.classified_topic
        self._invalid_topic = settings.invalid_topic

    def parse(self, messages: list[Message]) -> Iterable[Transaction | Rejection]:
        """Parses messages: each becomes a transaction or a rejection."""
        topic, lead, now = self._source_topic, self._lead, self._clock()
        parsed = []
        for m in messages:
            kind, record_ms = m.timestamp()
            wall = math.inf if kind == TIMESTAMP_LOG_APPEND_TIME else now
            parsed.append(parse(m.value(), m.key(), topic, m.partition(), m.offset(), record_ms, wall, lead))
        return parsed

    def parse_labels(self, messages: list[Message]) -> Iterable[Feedback | Rejection]:
        """Parses feedback: each message becomes a label or a rejection."""
        lead, now = self._lead, self._clock()
        parsed = []
        for m in messages:
            kind, record_ms = m.timestamp()
            wall = math.inf if kind == TIMESTAMP_LOG_APPEND_TIME else now
            parsed.append(parse_feedback(m.value(), m.key(), m.partition(), m.offset(), record_ms, wall, lead))
        return parsed

    def update_user_profile(self, profile: UserProfile | None, event: Event) -> tuple[UserProfile, Payment | Lessons]:
        """Reads the facts from the profile as it was before the transaction, then takes the transaction in."""
        if profile is None:
            profile = UserProfile()
        if isinstance(event, Feedback):
            return profile, profile.learn(event)
        return profile, observe_user(event, profile, self._population)

    def update_merchant_profile(
        self, profile: MerchantProfile | None, item: Payment | Lesson
    ) -> tuple[MerchantProfile, Profiled | None]:
        """Adds what the merchant's profile knew before the transaction; feedback ends here, and None comes of it."""
        if profile is None:
            profile = MerchantProfile()
        if isinstance(item, Lesson):
            profile.learn(item)
            return profile, None
        return profile, (item.transaction, item.last_location, observe_merchant(item, profile, self._population))

    def decide(self, known: list[tuple[str, Profiled | None]]) -> Iterable[Decision]:
        """Scores, then checks the rules: one step, as handing a batch from one to the next takes 0.2 µs an item."""
        return self.check(self.score(known))

    def score(self, known: list[tuple[str, Profiled | None]]) -> Table:
        """Adds the model's verdict to the facts: whether it is an anomaly, and the risk, 0 to 1."""
        profiled = [item for _, item in known if item is not None]
        table = Table([item[0] for item in profiled], [item[1] for item in profiled], [item[2] for item in profiled])
        risks, anomalies = self._model.score(self._model.rows.of(table))
        table.take(ANOMALY, anomalies.tolist())
        table.take(RISK, risks.tolist())
        return table

    def check(self, table: Table) -> Iterable[Decision]:
        """Checks the rules and decides; a changed rules file counts from one batch to the next."""
        rules = self._rules.current()
        rules_version, model_version = rules.version, self._model.version
        decisions = []
        for txn, risk, (fraudulent, reasons, fired, shadow, doubt, cooldowns) in zip(
            table.txns, table.column(RISK), rules.evaluate(table), strict=True
        ):
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
        return _routed(
            [
                Record(
                    self._invalid_topic,
                    bad.key,
                    bad.value,
                    bad.partition,
                    bad.offset,
                    bad.record_ms,
                    [("error", bad.error.encode()), ("field", bad.field.encode())],
                )
                for bad in parsed
                if isinstance(bad, Rejection)
            ]
        )


def _records(decisions: list[Decision], topic: str) -> list[Routed]:
    records = []
    for decision in decisions:
        txn = decision.transaction
        records.append(Record(topic, txn.user.encode(), to_json(decision), txn.partition, txn.offset, txn.record_ms))
    return _routed(records)


def written(routed: Iterable[Routed]) -> list[Record]:
    """The records of what goes to a sink, one after the other."""
    return [record for _, records in routed for record in records]


def _routed(records: list[Record]) -> list[Routed]:
    """The records of each partition together, in their order."""
    by_partition: dict[int, list[Record]] = {}
    for record in records:
        partition = record.partition
        together = by_partition.get(partition)
        if together is None:
            together = by_partition[partition] = []
        together.append(record)
    return [(partition_key(partition), together) for partition, together in by_partition.items()]
