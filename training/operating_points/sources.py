"""What an operating point is moved by: transactions replayed, or the decisions that the model has made."""

import time

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from dataflow.connectors.topic_reader import read_topic
from dataflow.errors import UserError
from dataflow.events.parsing import event_time
from dataflow.events.transaction import DAY
from dataflow.rules import RuleSet
from dataflow.scoring.decision_tree import Bools, Floats
from dataflow.scoring.metadata import Metadata, Scorer
from dataflow.scoring.tiers import SUPERVISED
from dataflow.simulation.simulator import POPULATIONS
from training.backtesting.deciders import Deciders
from training.fitting.options import LABEL_DELAY, simulated_size
from training.histories.history import History, after, find_label_column, read_history
from training.histories.labels import read_feedback
from training.histories.replay import replay
from training.histories.replayed import Keeper
from training.operating_points.operating_points import Note, Scored, need_labels, part, rule_alerts
from training.operating_points.options import Options

WARM_UP = 0.5
"""The share of a history, the first in time, that fills the profiles, so that what is measured is decided as live."""
FEWEST = 500
"""Transactions below which nothing is said of how many alerts a threshold gives."""
SIMULATION = "simulation: "  # how the source of a simulated history begins


def scored_by_replay(model: Scorer, rules: RuleSet, options: Options, console: Console) -> Scored:
    """The later part of a history or of a simulation, as the flow would have scored it.

    Raises:
        UserError: the history is wrong, has too few transactions, or is what the model has learned its labels from.
    """
    history = _history(model.metadata, options)
    delay = options.label_delay
    if delay is None:
        delay = float(model.metadata.hyperparameters.get("label_delay_days", LABEL_DELAY / DAY)) * DAY
    whole = _replayed(model, rules, history, delay, console)
    count = len(whole.risk)
    if count * (1 - WARM_UP) < FEWEST:
        msg = (
            f"{history.source} holds {count} transactions, and {int(FEWEST / (1 - WARM_UP))} are needed, the first "
            "half of them to fill the profiles: name a longer history, or name the threshold with --at"
        )
        raise UserError(msg)
    begin = max(int(count * WARM_UP), _learned(model.metadata, options, whole.times))
    if count - begin < FEWEST:
        msg = (
            f"the model has learned the labels of {history.source} up to {model.metadata.window.last}, and "
            f"{count - begin} later transactions are too few ({FEWEST} are needed): name a history that goes on "
            "beyond that, or take --topics or --at"
        )
        raise UserError(msg)
    measured_on = f"the last {count - begin:,} transactions of {history.source}"
    return part(whole, np.arange(count) >= begin)._replace(measured_on=measured_on)


def _replayed(model: Scorer, rules: RuleSet, history: History, delay: float, console: Console) -> Scored:
    """The whole history, each transaction with the profiles as they were before it and the labels that had come."""
    kept = Keeper(())  # what is scored need not be kept
    risks, anomalies = [np.empty(0)], [np.empty(0, np.bool_)]
    columns = (TextColumn("{task.description:28}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("replay the history", total=1.0)
        for past, batch in replay(history, model.amount_prior, after(delay)):
            risk, anomaly = model.score(batch.floats(model.features))
            risks.append(risk)
            anomalies.append(anomaly)
            kept.keep(past, batch, rule_alerts(rules, batch))
            progress.update(task, completed=history.progress)
        progress.update(task, completed=1.0)
    _, fraud, labelled, times, amounts, by_rules = kept.replayed()
    risk, anomaly = np.concatenate(risks), np.concatenate(anomalies)
    return Scored(risk, anomaly, fraud, labelled, amounts, times, by_rules, history.source)


def _history(metadata: Metadata, options: Options) -> History:
    if options.history is not None:
        column = find_label_column(options.history, options.label_column)
        if column is None and options.choice is not None:
            need_labels(options.choice, str(options.history))
        return read_history(options.history, label_column=column)
    population = options.population
    if population is None:
        tutorial = metadata.window.source.startswith(f"{SIMULATION}tutorial")
        population = "tutorial" if tutorial else POPULATIONS[0]
    users, days = simulated_size(metadata.tiers[-1], tutorial=population == "tutorial")
    history = read_history(
        None,
        seed=(metadata.seed + 1) % 2**32 if options.seed is None else options.seed,
        users=options.users or users,
        days=options.days or days,
        population=population,
    )
    if SUPERVISED in metadata.tiers and options.seed == metadata.seed:
        msg = f"--seed {options.seed}: the model has learned the labels of that simulation: take another seed"
        raise UserError(msg)
    return history


def _learned(metadata: Metadata, options: Options, times: Floats) -> int:
    """How many of a file's transactions, from the first on, a supervised model may have learned the labels of."""
    simulated = metadata.window.source.startswith(SIMULATION)
    if SUPERVISED not in metadata.tiers or options.history is None or simulated:
        return 0
    return int(np.searchsorted(times, event_time(metadata.window.last) + 1, side="left"))


class _Decision(msgspec.Struct, gc=False):
    """What a decision's message says, as far as an operating point needs it."""

    transaction_id: str
    timestamp: str
    amount: float
    model_version: str
    model_score: float
    rules: list[str]


def scored_on_topics(model: Scorer, rules: RuleSet, options: Options, note: Note) -> Scored:
    """The decisions of this very model that stand on the topics, with the feedback that has come.

    Raises:
        UserError: a topic cannot be read, or the model has made too few decisions.
    """
    settings = options.settings
    labels = read_feedback(settings)
    deciders = Deciders(rules, model.operating_point)
    risk: list[float] = []
    amounts: list[float] = []
    times: list[float] = []
    fraud: list[bool | None] = []
    by_rules: list[bool] = []
    of_others = strange = 0
    decode = msgspec.json.Decoder(_Decision).decode
    since = None if options.last is None else time.time() - options.last
    for topic in (settings.alerts_topic, settings.classified_topic):
        for message in read_topic(settings, topic, since):
            try:
                decision = decode(message.value() or b"")
                at = event_time(decision.timestamp)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError):
                strange += 1  # also decisions from before they carried the model's score
                continue
            if decision.model_version != model.version:
                of_others += 1
                continue
            risk.append(decision.model_score)
            amounts.append(decision.amount)
            times.append(at)
            fraud.append(labels.get(decision.transaction_id))
            by_rules.append(deciders.rules(decision.rules))
    where = f"{settings.alerts_topic} and {settings.classified_topic}"
    if options.last is not None:
        where += f" in the last {options.last / DAY:g} days"
    if len(risk) < FEWEST:
        others = f", and {of_others:,} of other models" if of_others else ""
        msg = (
            f"{where} on {settings.brokers} hold {len(risk):,} decisions of model {model.version}{others}, and "
            f"{FEWEST} are needed: wait for more, or take --history or --at"
        )
        raise UserError(msg)
    if strange:
        note(f"{strange:,} messages on {where} are not decisions with a model_score, and were left out")
    measured_on = f"{len(risk):,} decisions of this model on {where}"
    scored = Scored(
        np.array(risk),
        np.zeros(len(risk), np.bool_),
        fraud=np.array([each is True for each in fraud], np.bool_),
        labelled=np.array([each is not None for each in fraud], np.bool_),
        amounts=np.array(amounts),
        times=np.array(times),
        by_rules=np.array(by_rules, np.bool_),
        measured_on=measured_on,
    )
    if scored.labelled.any():
        alerted = scored.by_rules | (scored.risk >= model.operating_point.alert)
        note(
            f"feedback is known of {_share(scored.labelled[alerted])} of the alerts and "
            f"{_share(scored.labelled[~alerted])} of the others: precision is of these, recall of the frauds that "
            "became known"
        )
    return scored


def _share(which: Bools) -> str:
    return f"{which.mean():.1%}" if len(which) else "none"
