"""Trains on what was known at a moment, chooses the operating point by it, and scores what came after."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from dataflow.errors import UserError
from dataflow.events.transaction import DAY
from dataflow.features.batch import FeatureBatch
from dataflow.profiles.amounts import AmountPrior
from dataflow.rules import RuleSet
from dataflow.scoring.decision_tree import Bools, Floats, Indices, Rows
from dataflow.scoring.metadata import Metadata, Window
from dataflow.scoring.operating_point import OperatingPoint
from dataflow.scoring.tier_parts import TierParts
from dataflow.scoring.tiers import SUPERVISED, TieredModel, needed
from training.evaluation.measures import Measures, measure
from training.evaluation.options import Options
from training.fitting.infinities import CannotFitError, bounded
from training.fitting.tiers import FOREST_FEATURES, SUPERVISED_FEATURES, TooFewLabelsError, all_tiers, fit
from training.histories.history import History, LabelTime, Past
from training.histories.replay import replay
from training.histories.replayed import Keeper
from training.operating_points.operating_points import (
    FEWEST_TO_CARRY_OVER,
    Note,
    Scored,
    carried_over,
    choose,
    rule_alerts,
)

BATCH = 4096
CARDS_DAYS = 7
"""The handbook's training window: cards defrauded in it, as far as known, are not tested, however long we train."""
CHOSEN_SHARE, CHOSEN_DAYS = 0.25, 7
"""The operating point is chosen on the last quarter of a training window, or more: so many days should have labels."""
FEATURES = needed(all_tiers(SUPERVISED), FOREST_FEATURES, SUPERVISED_FEATURES)


class Replayed(NamedTuple):
    """The history as the models see it, one row a transaction, and what is known of each and from when on."""

    users: NDArray[np.int32]  # numbered in the order in which they first came
    at: Floats
    amounts: Floats
    rows: Rows  # (n, len(FEATURES))
    fraud: Bools
    labelled: Bools
    label_at: Floats  # infinite where no label ever comes
    scenario: list[str]
    by_rules: Bools  # alerts of the rules without the model, from the start of the training on
    tested: list[tuple[int, FeatureBatch]]
    """The transactions from the start of the test on, for the rules: in their order, each batch with its first row."""


class Result(NamedTuple):
    """One model on one test window."""

    week: str
    seed: int
    measures: dict[str, Measures]  # of each tier, on transactions whose truth is known, but not of known cards
    window: Indices  # its rows, all of them
    model: TieredModel  # with its operating point, where that was chosen
    notes: list[str]  # on the choice of that point, lines for people


def collect(
    history: History, options: Options, prior: AmountPrior, label_time: LabelTime, rules: RuleSet, progress: Progress
) -> Replayed:
    """Replays the history up to the end of the test, and keeps the models' columns."""
    task = progress.add_task("replay the history", total=1.0)
    numbers: dict[str, int] = {}
    kept = Keeper(FEATURES)
    users: list[NDArray[np.int32]] = []
    label_at: list[Floats] = []
    scenario: list[str] = []
    tested: list[tuple[int, FeatureBatch]] = []

    def until() -> Iterator[Past]:
        for past in history:
            if past.transaction.at >= options.test_until:
                return
            yield past

    for past, batch in replay(until(), prior, label_time):
        begin = kept.count
        trained = past[-1].transaction.at >= options.train_from
        kept.keep(past, batch, rule_alerts(rules, batch) if trained else np.zeros(len(batch), np.bool_))
        first = int(np.searchsorted(batch.column("timestamp"), options.test_from))
        if first < len(batch):
            tested.append((begin + first, batch if first == 0 else batch.part(range(first, len(batch)))))
        # `len` is read before `setdefault` puts the user there: so users are numbered from 0.
        users.append(np.array([numbers.setdefault(user, len(numbers)) for user in batch.column("user")], np.int32))
        label_at.append(np.array([label_time(each) for each in past], np.float64))  # float64 makes NaN of None
        scenario += [each.scenario for each in past]
        progress.update(task, completed=history.progress)
    progress.update(task, completed=1.0)
    if not kept.count:
        msg = f"{options.history} has no transaction before {day(options.test_until)}"
        raise UserError(msg)
    rows, fraud, labelled, at, amounts, by_rules = kept.replayed()
    comes = np.concatenate(label_at)
    return Replayed(
        users=np.concatenate(users),
        at=at,
        amounts=amounts,
        rows=rows,
        fraud=fraud,
        labelled=labelled,
        label_at=np.where(np.isnan(comes), np.inf, comes),
        scenario=scenario,
        by_rules=by_rules,
        tested=tested,
    )


def train_and_test(
    replayed: Replayed,
    options: Options,
    prior: AmountPrior,
    begin: float,
    end: float,
    seed: int,
    *,
    choosing: bool,
) -> Result:
    """Trains on what was known at `begin`, and scores what lies between `begin` and `end`.

    With `choosing` the operating point is chosen, too, which takes a second fit.

    Raises:
        UserError: the window holds too little to train on, to choose by or to test.
    """
    at = replayed.at
    start = options.train_from + begin - options.test_from  # each week has a window of the same length before it
    try:
        model = fitted(replayed, options, prior, start, begin, seed)
    except TooFewLabelsError as error:
        advice = "take an earlier --train-from, or --tiers feedback"
        msg = f"cannot train for the window from {day(begin)}: {error}: {advice}"
        raise UserError(msg) from None
    except CannotFitError as error:
        msg = f"cannot train for the window from {day(begin)}: {error}: take an earlier --train-from"
        raise UserError(msg) from None
    except ValueError as error:
        msg = f"cannot train for the window from {day(begin)}: {error}"
        raise UserError(msg) from error
    notes: list[str] = []
    if choosing:
        model.operating_point = choose_point(replayed, options, prior, start, begin, model, notes.append)
    # Cards known as compromised by then are not tested: they would be blocked. The handbook removes those that the
    # training knew, and day by day those that became known since.
    test = (at >= begin) & (at < end)
    window = np.flatnonzero(test)
    test &= replayed.labelled
    if not options.keep_known_cards:
        test &= ~known_cards(replayed, begin - options.delay - CARDS_DAYS * DAY, begin, end)
    chosen = np.flatnonzero(test)
    if not replayed.fraud[chosen].any() or replayed.fraud[chosen].all():
        msg = f"the test window from {day(begin)} needs both fraud and genuine transactions"
        raise UserError(msg)
    risk: dict[str, list[Floats]] = {}
    for first in range(0, len(chosen), BATCH):
        part = np.ascontiguousarray(replayed.rows[chosen[first : first + BATCH]])
        for tier, values in model.tiers(part).items():
            risk.setdefault(tier, []).append(values)
    scenario = [replayed.scenario[n] for n in chosen]
    measures = {
        tier: measure(np.concatenate(values), replayed.fraud[chosen], at[chosen], replayed.users[chosen], scenario)
        for tier, values in risk.items()
    }
    return Result(day(begin), seed, measures, window, model, notes)


def fitted(
    replayed: Replayed, options: Options, prior: AmountPrior, start: float, moment: float, seed: int
) -> TieredModel:
    """A model of what lies between `start` and a moment, by the labels that had come by that moment.

    Raises:
        TooFewLabelsError: a tier that learns from labels has too few.
        CannotFitError: a feature has no finite value.
        ValueError: there is nothing to learn from.
    """
    past = (replayed.at >= start) & (replayed.at < moment)
    in_time = replayed.labelled & (replayed.label_at <= moment)
    rows = bounded(np.ascontiguousarray(replayed.rows[past]), FEATURES, options.tiers)
    artifact = fit(options.tiers, rows, FEATURES, replayed.fraud[past], in_time[past], prior, seed, 0.01)
    parts = TierParts.of(artifact, supervised=SUPERVISED in options.tiers)
    return TieredModel(_metadata(options, seed, moment), parts)


def choose_point(
    replayed: Replayed,
    options: Options,
    prior: AmountPrior,
    start: float,
    begin: float,
    model: TieredModel,
    note: Note,
) -> OperatingPoint:
    """The operating point of a model that was fitted to the window from `start` to `begin`, by that window alone.

    It is chosen as in training (`training.train`): on the last part of the window, by a model of the part before, with
    the labels that had come by `begin`; and carried over by transactions whose labels neither model has seen.

    Raises:
        UserError: the choice needs what the window does not have.
    """
    length = begin - start
    moment = begin - max(CHOSEN_SHARE * length, min(options.delay + CHOSEN_DAYS * DAY, length / 2))
    known = replayed.labelled & (replayed.label_at <= begin)
    unseen = ~known if options.tiers[-1] == SUPERVISED else np.ones(len(known), np.bool_)
    try:
        earlier = fitted(replayed, options, prior, start, moment, model.metadata.seed)
    except (TooFewLabelsError, CannotFitError, ValueError) as error:
        rows = np.flatnonzero((replayed.at >= start) & (replayed.at < begin) & unseen)
        told = f"{len(rows):,} transactions before {day(begin)} whose labels had not come ({error})"
        return choose(scored(replayed, rows, known, model, told), options.choice, note)
    rows = np.flatnonzero((replayed.at >= moment) & (replayed.at < begin))
    told = f"{len(rows):,} transactions from {day(moment)} to {day(begin)}, by a model of those from {day(start)} on"
    seen = scored(replayed, rows, known, earlier, told)
    point = choose(seen, options.choice, note)
    shared = unseen[rows]
    if shared.sum() < FEWEST_TO_CARRY_OVER:
        return point
    return carried_over(point, seen.risk[shared], scored(replayed, rows[shared], known, model, "").risk)


def scored(replayed: Replayed, rows: Indices, known: Bools, model: TieredModel, measured_on: str) -> Scored:
    """What an operating point is chosen on: some rows, scored, with the labels that are `known`."""
    found = [
        model.score(np.ascontiguousarray(replayed.rows[rows[first : first + BATCH]]))
        for first in range(0, max(len(rows), 1), BATCH)
    ]
    risk, anomaly = (np.concatenate(part) for part in zip(*found, strict=True))
    return Scored(
        risk,
        anomaly,
        replayed.fraud[rows],
        known[rows],
        replayed.amounts[rows],
        replayed.at[rows],
        replayed.by_rules[rows],
        measured_on,
    )


def known_cards(replayed: Replayed, since: float, begin: float, end: float) -> Bools:
    """Transactions of users of whom a fraud since `since` was known at the start of the transaction's day."""
    first_known = np.full(int(replayed.users.max()) + 1, np.inf)
    frauds = replayed.fraud & (replayed.at >= since) & (replayed.at < end) & np.isfinite(replayed.label_at)
    np.minimum.at(first_known, replayed.users[frauds], replayed.label_at[frauds])
    midnight = begin + (replayed.at - begin) // DAY * DAY
    known: Bools = first_known[replayed.users] <= midnight
    return known


def _metadata(options: Options, seed: int, begin: float) -> Metadata:
    window = Window(source=options.history.name, first=day(options.train_from), last=day(begin), rows=0)
    return Metadata(
        format=1,
        tiers=options.tiers,
        features=FEATURES,
        sha256="",
        fingerprint="evaluation",
        versions={},
        window=window,
        hyperparameters={},
        seed=seed,
        metrics={},
        created_at="",
    )


def day(at: float) -> str:
    """A time as its date, UTC."""
    return datetime.fromtimestamp(at, UTC).date().isoformat()
