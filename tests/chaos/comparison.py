"""What stands on the outputs and in the recovery data, against a run of the same messages that nothing disturbed."""

import contextlib
import heapq
import json
import pickle
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, TestingSource, run_main
from confluent_kafka import Message

from dataflow.alert_steps import RecentAlerts
from dataflow.detect import build
from dataflow.errors import UserError
from dataflow.events import output_record as record
from dataflow.profiles import windows
from dataflow.profiles.profiles import MerchantProfiles, UserProfiles
from dataflow.rules import LiveRules
from dataflow.scoring.loading import load_model
from dataflow.scoring.operating_point import OperatingPoint
from dataflow.state.committed import resume_epoch
from dataflow.state.parquet import LaneFiles, read_lanes
from dataflow.state.store import Store
from dataflow.steps import Routed, written
from tests.chaos.input import SETTINGS
from tests.support.profile_builders import merchant_state, user_state

OUTPUT_LIMIT = 1_048_588  # bytes that the outputs take
POINTER_BYTES = 1_000  # of what is too large for them
USERS, MERCHANTS, ALERTED = "update_user_profile", "update_merchant_profile", "suppress_repeats"
"""The steps whose states are rows of tables, in lanes; those of all others are pickles among Bytewax's rows."""
MOST_USERS = 1_000_000

# Only what the user's own history says, or what a merchant of one user's says, so that every byte of a decision is
# determined by the input. The shadow rules are there to show the state: a decision tells on which side of each of them
# its user stands. What changes meanwhile, a limit and a threshold, never joins in an alert of the rule with a cooldown:
# of which alert that one is a repeat must not depend on them.
RULES = """\
[[rule]]
id = "high_amount"
when = "amount > {limit}"
reason = "High amount"
weight = 0.05
mode = "active"

[[rule]]
id = "location_change"
when = "location_changed and seconds_since_last <= 86400"
reason = "Location change from {{last_location}} to {{location}}"
weight = 0.3
mode = "active"

[[rule]]
id = "flagged_merchant"
when = "merchant in ('XYZ_Merchant', 'UnknownShop')"
reason = "Merchant {{merchant}} flagged"
weight = 0.5
mode = "active"

[[rule]]
id = "ml_anomaly"
when = "model_alert and device != 'pos'"
reason = "ML anomaly detection"
weight = 0.0
mode = "active"

[[rule]]
id = "terminal"
when = "device == 'pos' and amount > 100 and amount < 150"
reason = "At a terminal"
weight = 0.2
mode = "active"
cooldown = "1d"

[[rule]]
id = "often"
when = "txn_per_day > 12"
reason = "Often"
mode = "shadow"

[[rule]]
id = "much"
when = "amount_per_day > 900"
reason = "Much"
mode = "shadow"

[[rule]]
id = "more_than_usual"
when = "amount > 3 * usual_amount"
reason = "More than usual"
mode = "shadow"

[[rule]]
id = "new_merchant"
when = "new_merchant"
reason = "New merchant"
mode = "shadow"

[[rule]]
id = "reused_id"
when = "reused_id"
reason = "Reused id"
mode = "shadow"

[[rule]]
id = "card_fraud"
when = "card_frauds > 0"
reason = "Card fraud"
mode = "shadow"

[[rule]]
id = "two_frauds"
when = "confirmed_frauds > 1"
reason = "Two frauds"
mode = "shadow"

[[rule]]
id = "merchant_labels"
when = "device == 'pos' and merchant_labels_month > 0"
reason = "Labels at the merchant"
mode = "shadow"
"""
LIMITS = (400, 160)  # of the rules that take turns
THRESHOLDS = (0.73, 0.77)  # of the model's operating points that take turns

Place = tuple[int, int, int]  # partition, offset and Kafka timestamp of a transaction: the topic may be made anew
By = tuple[str, float]
"""What a decision says that it was made by: the version of the rules, and the threshold of the model."""
Output = tuple[str, bytes | None, bytes | None, bytes | None]  # topic, key, value; for a rejection its error


@dataclass
class Counts:
    """What one run did and what it found; this is the JSON line."""

    seed: int
    kills: int = 0  # SIGKILLs of a flow's process
    kills_during_start: int = 0
    broker_kills: int = 0
    both_at_once: int = 0
    broker_freezes: int = 0
    broker_away_seconds: float = 0.0
    rescales: int = 0
    rule_changes: int = 0
    threshold_changes: int = 0
    graceful_stops: int = 0
    oversize: int = 0  # messages larger than the outputs take, transactions and garbage
    kafka_transactions: int = 0  # of a transactional producer upstream, some of them aborted
    source_growths: int = 0
    output_growths: int = 0
    topics_made_anew: int = 0
    full_disks: int = 0
    read_only_disks: int = 0
    skipped: list[str] = field(default_factory=list)  # what this machine does not let us do
    unexpected_stops: int = 0
    stuck: int = 0
    slowest_stop_seconds: float = 0.0
    transactions: int = 0
    labels: int = 0
    users: int = 0
    by_threshold: dict[str, int] = field(default_factory=dict)  # decisions
    alerts: int = 0
    suppressed: int = 0
    invalid: int = 0
    lost: int = 0
    doubled: int = 0
    different: int = 0
    states: int = 0
    states_different: int = 0
    merchants: int = 0
    merchants_different: int = 0
    merchant_totals_different: int = 0
    cooldowns: int = 0
    cooldowns_different: int = 0
    out_of_order: int = 0  # for information: behind a later transaction of the same user, in the same topic
    seconds: float = 0.0

    def failed(self) -> bool:
        return any(
            (
                self.lost,
                self.doubled,
                self.different,
                self.states_different,
                self.merchants_different,
                self.merchant_totals_different,
                self.cooldowns_different,
                self.unexpected_stops,
                self.stuck,
                self.slowest_stop_seconds > 10,
            )
        )


def place_of(message: Message) -> Place:
    return message.partition(), message.offset(), message.timestamp()[1]


def source_of(headers: Mapping[str, bytes]) -> Place:
    """Which transaction an output is about."""
    return (
        int(headers[record.SOURCE_PARTITION]),
        int(headers[record.SOURCE_OFFSET]),
        int(headers[record.SOURCE_TIMESTAMP]),
    )


def in_step(payments: Iterable[Message], labels: Iterable[Message]) -> list[Message]:
    """Messages of both topics, partition by partition, in the order of their time, a payment before a label."""
    by_partition: dict[int, tuple[list[Message], list[Message]]] = {}
    for kind, messages in enumerate((payments, labels)):
        for message in messages:
            by_partition.setdefault(message.partition(), ([], []))[kind].append(message)
    merged: list[Message] = []
    for _, both in sorted(by_partition.items()):
        for messages in both:
            messages.sort(key=lambda m: m.offset())
        merged += heapq.merge(*both, key=lambda m: (m.timestamp()[1], m.topic() != SETTINGS.transactions_topic))
    return merged


def decide(
    given: Sequence[Message],
    model_file: Path,
    rules_file: Path,
    threshold: float,
    store: Path | None,
    batch_size: int = 1000,
) -> tuple[By, dict[Place, Output]]:
    """What an uninterrupted run of the graph decides, and by what; its state goes to `store`, a new directory."""
    rules = LiveRules(rules_file, check_every=1e9)
    model = load_model(model_file)
    model.operating_point = OperatingPoint(alert=threshold)
    out: list[Routed] = []
    recovery = None
    if store is not None:
        store.mkdir()
        init_db_dir(store, 1)
        recovery = RecoveryConfig(store)
    lanes = Store.open(store)
    flow = build(TestingSource(list(given), batch_size), TestingSink(out), model, rules, SETTINGS, lanes)
    run_main(flow, epoch_interval=timedelta(seconds=1000), recovery_config=recovery)
    lanes.close()
    outputs: dict[Place, Output] = {}
    for each in written(out):
        if each.source_topic != SETTINGS.transactions_topic:
            continue
        place = each.partition, each.offset, each.record_ms
        outputs[place] = each.topic, each.key, each.value, dict(each.headers or ()).get("error")
        if len(each.value or b"") > OUTPUT_LIMIT:
            outputs[place] = SETTINGS.invalid_topic, each.key, (each.value or b"")[:POINTER_BYTES], None
    return (rules.current().version, threshold), outputs


def tally(
    given: Sequence[Message],
    found: Sequence[Message],
    references: Mapping[By, Mapping[Place, Output]],
    counts: Counts,
    partition_counts: Mapping[str, set[int]],
    tell: Callable[[str], None] = lambda _line: None,
) -> None:
    """Counts what is lost, doubled and different, and tells of each.

    `partition_counts`: how many partitions each output has had; a decision stands in its source's, by modulo.
    """
    times: Counter[Place] = Counter()
    sources = {place_of(m): m for m in given}
    newest: dict[tuple[str, bytes | None], int] = {}
    anyone = next(iter(references.values()))
    for message in found:
        headers = dict(message.headers() or ())
        place = source_of(headers)
        times[place] += 1
        invalid = message.topic() == SETTINGS.invalid_topic
        verdict = {} if invalid else json.loads(message.value())
        by = verdict.get("ruleset_version"), verdict.get("alert_threshold")
        outputs = anyone if invalid else references.get(by, {})
        if not invalid:
            counts.by_threshold[str(by[1])] = counts.by_threshold.get(str(by[1]), 0) + 1
        counts.alerts += message.topic() == SETTINGS.alerts_topic
        counts.suppressed += verdict.get("suppressed", False)
        counts.invalid += invalid
        expected = outputs.get(place)
        topic, key, value, error = expected or ("", None, None, None)
        partitions = {place[0] % count for count in partition_counts[message.topic()]}
        if (
            place not in sources
            or (message.topic(), message.key(), message.value()) != (topic, key, value)
            or (error is not None and headers.get("error") != error)
            or message.partition() not in partitions
            or headers[record.SOURCE_TOPIC] != SETTINGS.transactions_topic.encode()
        ):
            counts.different += 1
            tell(
                f"different {place} {by} "
                f"{message.topic()}[{message.partition()}]@{message.offset()} at {message.timestamp()[1]}: "
                f"{(message.value() or b'')[:1000]!r} {headers.get('error')!r} instead of {str(expected)[:1000]}"
            )
        where = message.topic(), message.key()
        counts.out_of_order += place[1] < newest.get(where, -1)
        newest[where] = max(place[1], newest.get(where, -1))
    for message in found:
        place = source_of(dict(message.headers() or ()))
        if times[place] > 1:
            where = f"{message.topic()}[{message.partition()}]@{message.offset()}"
            tell(f"doubled {place} {where} at {message.timestamp()[1]}")
    for place in sources.keys() - times.keys():
        tell(f"lost {place}")
    counts.lost = sum(place not in times for place in sources)
    counts.doubled = sum(times.values()) - len(times)


def states(store: Path, of: str) -> dict[str, Any]:
    """Of the step whose name contains `of`, the states with which the flow would begin again, by key."""
    newest: dict[str, tuple[int, bytes | None]] = {}
    ends = resume_epoch(store)
    for part in store.glob("part-*.sqlite3"):
        with contextlib.closing(sqlite3.connect(part)) as db:
            for step, key, epoch, state in db.execute(
                "SELECT step_id, state_key, snap_epoch, ser_change FROM snaps WHERE snap_epoch < ?", (ends,)
            ):
                if of in step and epoch >= newest.get(key, (-1, None))[0]:
                    newest[key] = epoch, state
    return {key: pickle.loads(state) for key, (_, state) in newest.items() if state is not None}


class Profiles(NamedTuple):
    """What lanes hold, by key: numbers of rows and of names are replaced by what they name."""

    users: dict[str, Any]
    merchants: dict[str, Any]
    totals: Counter[str]
    """How many transactions each merchant's profile has counted in 30 days: these do not depend on their order."""


def profiles_of(lanes: Iterable[LaneFiles]) -> Profiles:
    """The profiles of these lanes."""
    found = Profiles({}, {}, Counter())
    end = int(datetime(2026, 3, 26, tzinfo=UTC).timestamp() // windows.BUCKET)
    for step, _, tables in lanes:
        if step == USERS:
            users = UserProfiles(tables=tables)
            for name in users.table.row_of:
                found.users[name] = _readable(lambda users=users, name=name: user_state(users, name))  # type: ignore[misc]
        elif step == MERCHANTS:
            merchants = MerchantProfiles(tables=tables)
            for name, row in merchants.table.row_of.items():
                found.merchants[name] = _readable(
                    lambda merchants=merchants, name=name: merchant_state(merchants, name)  # type: ignore[misc]
                )
                found.totals[name] = int(windows.totals(merchants.table.rows[row], end)[4])
    return found


def _readable(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A state; of one that names a row or a name that is not there, that it does."""
    try:
        return read()
    except IndexError as error:
        return {"names what is not there": str(error)}


def profiles(store: Path) -> Profiles:
    """The profiles with which the flow would begin again.

    Raises:
        UserError: something of them is missing or damaged.
    """
    return profiles_of(read_lanes(store, (USERS, MERCHANTS)))


def cooldowns(store: Path) -> dict[str, Any]:
    """What is remembered of each user's alerts; without those whose cooldown may have ended, and who may be given up.

    When a lane gives them up goes by the wall clock.
    """
    found: dict[str, Any] = {}
    for _, _, tables in read_lanes(store, (ALERTED,)):
        table, recent = tables["recent_alerts"], RecentAlerts(tables, cap=MOST_USERS)
        newest = table.rows["alerted_at"].max()
        found |= {user: recent.times(user) for user, row in table.row_of.items() if table.rows["ends_at"][row] > newest}
    return found


def different(mine: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
    """The keys whose states are not the same."""
    return sorted(
        key
        for key in mine.keys() | reference.keys()
        if key not in mine or key not in reference or mine[key] != reference[key]
    )


def own(merchants: Mapping[str, Any], is_own: bool) -> dict[str, Any]:
    """The merchants of one user only; or the others."""
    return {name: state for name, state in merchants.items() if name.startswith("own-") is is_own}


def compare_states(
    mine: Path, reference: Path, counts: Counts, tell: Callable[[str], None] = lambda _line: None
) -> None:
    """Counts the states that are not those of the undisturbed run.

    Of a merchant of many users, whose profile depends on how their transactions interleave, only the total.
    """
    expected = profiles(reference)
    found, alerted = Profiles({}, {}, Counter()), dict[str, Any]()
    try:
        found, alerted = profiles(mine), cooldowns(mine)
    except UserError as error:  # a flow would not start on it
        tell(f"the profiles cannot be read: {error}")
    compare_profiles(found, expected, counts, tell)
    _compare("cooldowns", alerted, cooldowns(reference), counts, tell)


def compare_profiles(
    found: Profiles, expected: Profiles, counts: Counts, tell: Callable[[str], None] = lambda _line: None
) -> None:
    """As `compare_states`, of profiles that were read."""
    _compare("states", found.users, expected.users, counts, tell)
    _compare("merchants", own(found.merchants, True), own(expected.merchants, True), counts, tell)
    counts.merchant_totals_different = len(different(own(found.totals, False), own(expected.totals, False)))


def _compare(
    name: str, found: Mapping[str, Any], expected: Mapping[str, Any], counts: Counts, tell: Callable[[str], None]
) -> None:
    wrong = different(found, expected)
    setattr(counts, name, len(expected))
    setattr(counts, f"{name}_different", len(wrong))
    for key in wrong:
        tell(f"{name}: {key}: {found.get(key)} instead of {expected.get(key)}")
