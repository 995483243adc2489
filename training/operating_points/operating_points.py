"""Chooses where a model raises an alert: from transactions that it has scored, and what the user can afford.

A budget (`--alerts-per-day`, `--alert-rate`) counts all that goes to fraud_alerts, the alerts of the other active rules
too. `--precision` is of the model's own alerts. `--cost-of-alert` weighs all alerts against the frauds that are missed.
"""

import argparse
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from dataflow.errors import UserError
from dataflow.events.transaction import DAY
from dataflow.features.batch import FeatureBatch
from dataflow.rules import RuleSet
from dataflow.scoring.decision_tree import Bools, Floats, Indices
from dataflow.scoring.operating_point import CurvePoint, Interval, OperatingPoint, columns_without_model
from training.cli import number

BLOCK_PRECISION = 0.9
"""Of the model's own alerts from the block threshold on, where no option says otherwise."""
FEWEST_FRAUDS = 10
"""Known frauds below which no precision and no cost is estimated."""
FEWEST_TO_CARRY_OVER = 1_000
"""Transactions by which an operating point is carried over from one fit to another, at least."""
FEWEST_ALERTS = 10
"""Alerts with labels that a precision must be seen on, to count as reached."""
POINTS = 60  # of a curve, evenly spaced on a log scale of the model's alerts
_SHORTEST = DAY / 24  # the pace of less than an hour is not told by the day
_Z = 1.959964  # of the normal distribution: 95 % lie within so many standard deviations
_WITHOUT_LABELS = "--alerts-per-day and --alert-rate work without labels"

Kind = Literal["alerts_per_day", "alert_rate", "precision", "cost_of_alert"]
KINDS: tuple[Kind, ...] = ("alerts_per_day", "alert_rate", "precision", "cost_of_alert")


class Choice(NamedTuple):
    """What an operating point is chosen by."""

    kind: Kind = "alert_rate"
    value: float = 0.0135
    """The default, one in 74: where about one in 100 is a fraud, it leaves room for the alerts of rough rules."""
    block_precision: float | None = None  # 0 to 1; None: `BLOCK_PRECISION`, where the labels allow it

    def __str__(self) -> str:
        return f"--{self.kind.replace('_', '-')} {self.value:g}"


class Scored(NamedTuple):
    """Transactions that a model has scored without having learned from their labels; arrays of shape (n,)."""

    risk: Floats
    anomaly: Bools  # the Isolation Forest's own verdict
    fraud: Bools
    labelled: Bools  # whether `fraud` is known
    amounts: Floats
    times: Floats  # event times, seconds since 1970 UTC
    by_rules: Bools  # alerts of the active rules without the model, see `rule_alerts`
    measured_on: str  # which transactions these are, for people


Note = Callable[[str], None]
"""Takes a line for people."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how an operating point is chosen."""
    group = parser.add_argument_group("operating point", "where the model raises an alert; default --alert-rate 0.0135")
    one = group.add_mutually_exclusive_group()
    one.add_argument(
        "--alerts-per-day", type=_above_zero, metavar="N", help="budget: alerts a day, those of the rules counted too"
    )
    one.add_argument(
        "--alert-rate", type=_share, metavar="R", help="budget: share of all transactions, 0.01 say, counted likewise"
    )
    one.add_argument(
        "--precision", type=_share, metavar="P", help="share of frauds among the model's alerts; needs labels"
    )
    one.add_argument(
        "--cost-of-alert",
        type=_above_zero,
        metavar="C",
        help="least cost: C for each alert, the amount for each fraud missed; needs labels",
    )
    group.add_argument(
        "--block-precision",
        type=_share,
        metavar="P",
        help=f"precision from which the model would block; default {BLOCK_PRECISION:g} where labels allow it",
    )


def option_given(given: argparse.Namespace) -> str | None:
    """Which of the four options stands on the command line, if any."""
    found = next((kind for kind in KINDS if getattr(given, kind) is not None), None)
    return None if found is None else f"--{found.replace('_', '-')}"


def need_labels(choice: Choice, source: str) -> None:
    """Says at once, before minutes of work, that the choice cannot be made on a history without labels.

    Raises:
        UserError: it is one that needs them.
    """
    asked = str(choice) if choice.kind in ("precision", "cost_of_alert") else None
    if asked is None and choice.block_precision is not None:
        asked = f"--block-precision {choice.block_precision:g}"
    if asked is not None:
        msg = f"{asked}: needs labels, and {source} has none: name their column with --label-column; {_WITHOUT_LABELS}"
        raise UserError(msg)


def read_choice(given: argparse.Namespace) -> Choice:
    """What the options of `add_arguments` say."""
    for kind in KINDS:
        value = getattr(given, kind)
        if value is not None:
            return Choice(kind, value, given.block_precision)
    return Choice(block_precision=given.block_precision)


def _above_zero(text: str) -> float:
    value = number(text)
    if not 0 < value < math.inf:
        msg = f"{text!r} is no number above 0"
        raise argparse.ArgumentTypeError(msg)
    return value


def _share(text: str) -> float:
    value = number(text)
    if not 0 < value <= 1:
        msg = f"{text!r} is no share above 0 and up to 1"
        raise argparse.ArgumentTypeError(msg)
    return value


def rule_alerts(rules: RuleSet, batch: FeatureBatch) -> Bools:
    """On which transactions the rules alone raise an alert; shape (n,).

    The batch then has the model's columns, too, as they are where no model says anything.
    """
    batch.put(columns_without_model(len(batch)))
    return np.fromiter((result.fraudulent for result in rules.evaluate(batch)), np.bool_, len(batch))


def reads_model(rules: RuleSet) -> bool:
    """Whether an active rule reads the model's alert."""
    both = zip(rules.rules, rules.reads, strict=True)
    return any(rule.effect == "active" and "model_alert" in reads for rule, reads in both)


def part(scored: Scored, which: Bools) -> Scored:
    """Those of these places."""
    columns: dict[str, Any] = {name: getattr(scored, name)[which] for name in Scored._fields[:-1]}
    return scored._replace(**columns)


def choose(
    scored: Scored, choice: Choice, note: Note = lambda _: None, *, of_forest: float | None = None
) -> OperatingPoint:
    """The operating point that the choice asks for, with what it promises and the whole curve.

    `note` takes a line where a budget cannot be kept or is not used. `of_forest`: the forest's own threshold, where its
    verdict stays the alert whatever the choice is.

    Raises:
        UserError: the choice needs what these transactions do not have: labels, frauds, days.
    """
    steps = _Steps(scored)
    place = 0
    if of_forest is None:
        place = _place(steps, scored, choice, note)
    alert = float(steps.thresholds[place]) if of_forest is None else of_forest
    block = _block(steps, scored, choice, default=of_forest is None)
    return OperatingPoint(
        alert=alert,
        block=None if block is None else max(block, alert),
        of_forest=of_forest is not None,
        chosen_by=str(choice) if of_forest is None else "the Isolation Forest's own threshold",
        measured_on=scored.measured_on,
        expected=steps.point(place) if of_forest is None else _of_the_forest(scored, of_forest),
        curve=[steps.point(each) for each in steps.thinned()],
    )


def _of_the_forest(scored: Scored, threshold: float) -> CurvePoint:
    """What the forest's own verdict gives: as a risk of 0 and 1 it is a curve of one step."""
    verdict = _Steps(scored._replace(risk=scored.anomaly.astype(np.float64)))
    place = 1 if scored.anomaly.any() else 0
    return msgspec.structs.replace(verdict.point(place), threshold=threshold)


class _Steps:
    """What each threshold gives: one element a distinct risk, from the highest down, after one above them all."""

    def __init__(self, scored: Scored):
        risk = scored.risk
        if not len(risk):
            msg = f"an operating point needs transactions, and there are none ({scored.measured_on})"
            raise UserError(msg)
        self.count = len(risk)
        self.days = max(float(scored.times.max() - scored.times.min()), _SHORTEST) / DAY
        order = np.argsort(-risk, kind="stable")
        ordered = risk[order]
        last = np.flatnonzero(np.append(np.diff(ordered) != 0, True))  # of each risk
        # Towards 1 and not beyond it: a threshold above 1 would be refused.
        self.thresholds: Floats = np.append(np.nextafter(ordered[0], 1.0), ordered[last])

        def above(values: Any) -> Floats:
            """Sums of values over the transactions from each threshold on."""
            return np.append(0.0, np.cumsum(values[order].astype(np.float64))[last])

        labelled, rules, one = scored.labelled, scored.by_rules, np.ones(len(risk))
        fraud = scored.fraud & labelled
        money = np.where(fraud, scored.amounts, 0.0)
        self.own = above(one)  # the model's alerts
        self.all = self.own + rules.sum() - above(rules)
        self.own_labelled, self.own_frauds = above(labelled), above(fraud)
        self.all_labelled = self.own_labelled + (rules & labelled).sum() - above(rules & labelled)
        self.all_frauds = self.own_frauds + (rules & fraud).sum() - above(rules & fraud)
        self.caught = above(money) + money[rules].sum() - above(np.where(rules, money, 0.0))
        self.labelled, self.frauds, self.money = int(labelled.sum()), int(fraud.sum()), float(money.sum())
        self.in_effect = self.money**2 / float((money**2).sum()) if self.money > 0 else 0.0

    @property
    def both_kinds(self) -> bool:
        """Whether frauds and genuine transactions are known."""
        return 0 < self.frauds < self.labelled

    def point(self, place: int) -> CurvePoint:
        """The figures of one threshold."""
        alerts = self.all[place]
        low, high = garwood(alerts)
        point = CurvePoint(
            threshold=float(self.thresholds[place]),
            alerts_a_day=Interval(float(alerts / self.days), low / self.days, high / self.days),
        )
        if not self.both_kinds:
            return point
        hits = self.all_frauds[place]
        return msgspec.structs.replace(
            point,
            precision=wilson(hits, self.all_labelled[place]),
            model_precision=wilson(self.own_frauds[place], self.own_labelled[place]),
            recall=wilson(hits, self.frauds),
            # Kish (1965): so many frauds of equal amounts would tell as much as these of unequal ones.
            money_caught=wilson(self.caught[place] / self.money * self.in_effect, self.in_effect)
            if self.money > 0
            else None,
        )

    def thinned(self) -> Indices:
        """Places of some `POINTS` thresholds, from one alert of the model to half of all transactions."""
        wanted = np.geomspace(1, max(self.count / 2, 2), POINTS)
        places = np.minimum(np.searchsorted(self.own, wanted), len(self.own) - 1)
        found: Indices = np.unique(places)
        return found


def _place(steps: _Steps, scored: Scored, choice: Choice, note: Note) -> int:
    """Which threshold the choice asks for."""
    if choice.kind == "precision":
        _need_labels(steps, scored, str(choice))
        return _at_precision(steps, scored, choice.value, str(choice))
    if choice.kind == "cost_of_alert":
        _need_labels(steps, scored, str(choice))
        # Of a transaction without a label nothing is known: frauds are taken to be as many among them as among the
        # others, so what was missed is scaled up by the share that has labels.
        missed = (steps.money - steps.caught) * steps.count / steps.labelled
        return int(np.argmin(choice.value * steps.all + missed))
    if choice.kind == "alerts_per_day":
        if steps.days < 1:
            msg = (
                f"{choice}: it is measured on a day at least, and there are {steps.days * 24:.1f} hours "
                f"({scored.measured_on}): take a longer history, or --alert-rate"
            )
            raise UserError(msg)
        budget = choice.value * steps.days
    else:
        budget = choice.value * steps.count
    counted = steps.all
    if counted[0] > budget:
        note(
            f"{choice}: the rules alone raise {counted[0] / steps.days:,.1f} alerts a day, more than the budget "
            f"({budget / steps.days:,.1f}), so it holds for the model's own alerts"
        )
        counted = steps.own
    place = int(np.searchsorted(counted, budget + 1e-9, side="right")) - 1
    if place == 0:
        note(f"{choice}: leaves the model no alert among {steps.count:,} transactions ({scored.measured_on})")
    return place


def _need_labels(steps: _Steps, scored: Scored, option: str) -> None:
    genuine = steps.labelled - steps.frauds
    if steps.frauds >= FEWEST_FRAUDS and genuine:
        return
    msg = (
        f"{option}: needs {FEWEST_FRAUDS} known frauds, and known genuine transactions beside them; there are "
        f"{steps.frauds:,} and {genuine:,} ({scored.measured_on}): take a longer history, or one with labels; "
        f"{_WITHOUT_LABELS}"
    )
    raise UserError(msg)


def _at_precision(steps: _Steps, scored: Scored, wanted: float, option: str) -> int:
    """The smallest threshold from which on the share of frauds among the model's alerts is as wanted.

    The share of frauds at each risk is smoothed so that it rises with the risk (isotonic regression by pool adjacent
    violators: Ayer et al., 1955), or a run of luck would pass for precision.
    """
    from sklearn.isotonic import IsotonicRegression

    known = scored.labelled
    smooth = IsotonicRegression().fit(scored.risk[known], scored.fraud[known].astype(np.float64))
    order = np.argsort(-scored.risk, kind="stable")
    share = np.where(known[order], smooth.predict(scored.risk[order]), 0.0)
    last = steps.own.astype(np.int64)[1:] - 1
    seen = steps.own_labelled[1:]
    precision = np.cumsum(share)[last] / np.maximum(seen, 1.0)
    supported = seen >= FEWEST_ALERTS
    reached = np.flatnonzero(supported & (precision >= wanted - 1e-9))
    if not len(reached):
        best = f"{precision[supported].max():.3f}" if supported.any() else "none"
        msg = (
            f"{option}: the model's alerts reach {best} at most, on {FEWEST_ALERTS} alerts or more "
            f"({scored.measured_on}): ask for less, or take --alerts-per-day"
        )
        raise UserError(msg)
    return int(reached[-1]) + 1


def _block(steps: _Steps, scored: Scored, choice: Choice, *, default: bool) -> float | None:
    """The threshold of the block precision; None where it was not asked for and cannot be had, or has no default."""
    asked = choice.block_precision
    if asked is None and not default:
        return None
    wanted = BLOCK_PRECISION if asked is None else asked
    option = f"--block-precision {wanted:g}"
    try:
        _need_labels(steps, scored, option)
        return float(steps.thresholds[_at_precision(steps, scored, wanted, option)])
    except UserError:
        if asked is not None:
            raise
        return None


def carried_over(point: OperatingPoint, before: Floats, after: Floats) -> OperatingPoint:
    """The operating point for another model of the same kind: thresholds that as many transactions reach.

    `before`, `after`: the risks of the same transactions, shape (n,), by the model on which the point was measured and
    by the one that takes it over; neither has learned from their labels.
    """
    lower, upper = np.sort(before), np.sort(after)

    def moved(threshold: float) -> float:
        below = int(np.searchsorted(lower, threshold, side="left"))
        if below == len(lower):  # beyond all: as far on the way to 1
            way = (threshold - lower[-1]) / (1.0 - lower[-1]) if lower[-1] < 1 else 1.0
            return float(max(upper[-1] + way * (1.0 - upper[-1]), np.nextafter(upper[-1], 1.0)))
        if below and upper[below - 1] == upper[below]:  # of one risk: those that do not fit in are left out
            above = int(np.searchsorted(upper, upper[below], side="right"))
            return float(upper[above] if above < len(upper) else np.nextafter(upper[-1], 1.0))
        return float(upper[below])

    def of(each: CurvePoint) -> CurvePoint:
        return msgspec.structs.replace(each, threshold=moved(each.threshold))

    if point.of_forest:
        return point
    return msgspec.structs.replace(
        point,
        alert=moved(point.alert),
        block=None if point.block is None else moved(point.block),
        expected=None if point.expected is None else of(point.expected),
        curve=[of(each) for each in point.curve],
    )


def wilson(hits: float, count: float) -> Interval | None:
    """A share with its 95 % score interval (Wilson, 1927); None of nothing."""
    if count <= 0:
        return None
    share, z2 = min(hits / count, 1.0), _Z * _Z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return Interval(float(share), float(max(middle - half, 0.0)), float(min(middle + half, 1.0)))


def garwood(count: float) -> tuple[float, float]:
    """The exact 95 % interval of a Poisson count (Garwood, 1936)."""
    from scipy.stats import chi2

    low = float(chi2.ppf(0.025, 2 * count)) / 2 if count else 0.0
    return low, float(chi2.ppf(0.975, 2 * count + 2)) / 2
