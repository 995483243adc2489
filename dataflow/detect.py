"""The detection flow: transactions in, decisions out.

`python -m bytewax.run dataflow.detect:flow` runs it with the settings of the environment; `python -m dataflow.detect`
does so with recovery on. A step's id is a recovery key: one that was released stays as it is.
"""

if __name__ == "__main__":
    # Before all that follows: to import that takes .8 s of CPU, and `bytewax.run`, which this process becomes, does it.
    from dataflow.launch import main

    main()

import os
import sys
from itertools import chain
from typing import Any, cast

import bytewax.operators as op
from bytewax.dataflow import Dataflow, Stream
from bytewax.inputs import Source
from bytewax.outputs import Sink
from confluent_kafka import Message

from dataflow.alert_steps import LAYOUT as ALERTS_LAYOUT
from dataflow.alert_steps import VERSION as ALERTS_VERSION
from dataflow.alert_steps import AlertSteps
from dataflow.connectors.broker_watch import BrokerWatch
from dataflow.connectors.exactly_once_sink import ExactlyOnceSink
from dataflow.connectors.kafka_source import KafkaSource
from dataflow.connectors.ownership import own_outputs
from dataflow.connectors.readiness import ready_checks
from dataflow.connectors.topic_changes import TopicChanges
from dataflow.events.decision import Decision
from dataflow.kernels import warm_up
from dataflow.launch import ACCEPT_GAP
from dataflow.process import lifecycle, metrics_server
from dataflow.process.execution import Execution
from dataflow.process.health import HUNG_SECONDS, Health
from dataflow.profile_steps import ProfileLimits, ProfileSteps
from dataflow.profiles import VERSION as PROFILES_VERSION
from dataflow.profiles.compilation import FOLDER
from dataflow.profiles.profiles import MERCHANT_LAYOUT, USER_LAYOUT
from dataflow.rules import LiveRules
from dataflow.scoring.live_model import LiveModel
from dataflow.scoring.loading import load_model
from dataflow.scoring.metadata import Scorer
from dataflow.settings import Settings
from dataflow.start_report import StartReport
from dataflow.state import recovery
from dataflow.state.committed import committed_states
from dataflow.state.epochs import epoch_pace
from dataflow.state.lanes import stateful_map
from dataflow.state.snapshot_times import SnapshotTimes
from dataflow.state.store import Store
from dataflow.steps import Routed, Steps, dead_letter, is_fraudulent

FLOW = "redflag_detect"
WRITE_OUTPUTS = "write_outputs"


def build(
    source: Source[Message],
    sink: Sink[Routed],
    model: Scorer,
    rules: LiveRules,
    settings: Settings,
    store: Store | None = None,
    workers: int = 1,
) -> Dataflow:
    """The whole graph; it receives its ends, its model and its rules, and chooses nothing.

    The source brings the messages of the transactions topic, and of the feedback topic in step with them. `store`:
    where the profiles are kept; None to keep nothing. `workers`: how many will run it, in all processes.
    """
    flow = Dataflow(FLOW)
    store = store or Store.open(None)
    limits = ProfileLimits(settings.profile_age_days, max(1, settings.max_profiles // store.lanes))
    profiles = ProfileSteps(store.names, model.amount_prior, limits, dead_letter, alone=workers == 1)
    repeats = AlertSteps(store.names, limits.cap, dead_letter)
    steps = Steps(model, rules, settings, profiles)

    messages = op.input("read_messages", flow, source)
    # Message
    parsed = op.flat_map_batch("parse_messages", messages, steps.parse)
    # Transaction | Feedback | Rejection
    by_user = op.flat_map_batch("key_by_user", parsed, profiles.key_by_user)
    # (lane of users, UserPart)
    profiled = stateful_map("update_user_profile", by_user, profiles.users, USER_LAYOUT, store)
    # (lane, UserPart)
    by_merchant = op.flat_map_batch("key_by_merchant", profiled, profiles.key_by_merchant)
    # (lane of merchants, MerchantPart)
    known = stateful_map("update_merchant_profile", by_merchant, profiles.merchants, MERCHANT_LAYOUT, store)
    # (lane, MerchantPart)
    decided = op.flat_map_batch("score_and_check_rules", known, steps.decide)
    # Decision | Rejection
    verdicts = op.branch("split_fraudulent_from_genuine", decided, is_fraudulent)
    # trues: Decision, falses: Decision | Rejection
    only_alerts = cast(Stream[Decision], verdicts.trues)
    alerts_by_user = op.flat_map_batch("key_alerts_by_user", only_alerts, repeats.key_by_user)
    # (lane of users, AlertPart)
    alerted = stateful_map("suppress_repeats", alerts_by_user, repeats.lane, ALERTS_LAYOUT, store)
    # (lane, AlertPart)
    alerts = op.flat_map_batch("route_to_alerts", alerted, steps.to_alerts)
    classified = op.flat_map_batch("route_to_classified", verdicts.falses, steps.to_classified)
    invalid = op.flat_map_batch("route_to_invalid", parsed, steps.to_invalid)
    # (source topic and partition, list[Record])
    # One sink for all topics: a decision that comes out otherwise after a crash cannot stand in two of them.
    routed = op.merge("merge_outputs", alerts, classified, invalid)
    op.output(WRITE_OUTPUTS, routed, sink)
    return flow


def flow() -> Dataflow:
    """The graph with the ends that the settings name."""
    lifecycle.report_mistakes()
    settings = Settings.load()
    lifecycle.warn_of_unknown(settings)
    metrics_server.leave_bytewax_api_off()
    this_flow = recovery.lock_and_verify(recovery_identity(settings), sys.argv[1:])
    execution = Execution.read()
    # Before Bytewax opens the rows: a process must not read them beside it.
    committed = committed_states(execution.directory, f"{FLOW}.{WRITE_OUTPUTS}") if execution.directory else {}
    store = Store.open(execution.directory)
    store.epoch_seconds = execution.epoch_seconds
    model = load_model(settings.model_file, keep_in=FOLDER)
    rules = LiveRules(settings.rules_file, check_every=settings.rules_check_seconds)
    warm_up()
    health = Health(hung_seconds=max(HUNG_SECONDS, 2 * execution.epoch_seconds))
    metrics = metrics_server.serve(settings.metrics_address, execution.process, health)
    lifecycle.stop_gracefully(settings.stop_timeout_seconds, alone=execution.processes == 1)
    lifecycle.tune_gc()
    rules.watch()
    LiveModel(model, settings.model_file, settings.rules_check_seconds).watch()
    report = StartReport(settings, execution, rules.current, model, this_flow.held, metrics)
    outputs: dict[str, tuple[str, ...]] = {}
    outputs[settings.transactions_topic] = (settings.alerts_topic, settings.classified_topic, settings.invalid_topic)
    outputs[settings.feedback_topic] = (settings.invalid_topic,)
    changes = TopicChanges(settings)
    topics = dict.fromkeys([*outputs, *chain.from_iterable(outputs.values())])
    watch = BrokerWatch(settings, list(topics), on_metadata=changes.counted, on_identities=changes.identified).start()
    ownership = own_outputs(settings, this_flow)
    sink = ExactlyOnceSink(settings, outputs, report.topics, ownership.held, committed)
    snapshots = SnapshotTimes(recovery=execution.directory is not None)
    for check in ready_checks(watch, ownership, sink, snapshots, execution.epoch_seconds):
        health.requires(check)
    source = KafkaSource(
        settings,
        list(outputs),
        pace=epoch_pace(execution),
        accept_gap=os.environ.get(ACCEPT_GAP) == "1",
        started=report.partition,
        ready=report.say,
        began=changes.began,
        broker_silent=watch.seconds_since_answer,
        snapshots=snapshots,
        look=sink.look,
    )
    return build(source, sink, model, rules, settings, store, execution.processes * execution.workers)


def recovery_identity(settings: Settings) -> dict[str, Any]:
    """What recovery data belongs to: the flow, the version of its state, its topics."""
    return {
        "flow": "detect",
        "state_version": [PROFILES_VERSION, ALERTS_VERSION],
        "source": settings.transactions_topic,
        "outputs": [settings.alerts_topic, settings.classified_topic, settings.invalid_topic],
    }
