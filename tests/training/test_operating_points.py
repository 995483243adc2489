"""Choosing an operating point: what each option asks for, what it promises, and what it says where it cannot be had."""

import argparse
from typing import NoReturn

import numpy as np
import pytest

from dataflow.errors import UserError
from dataflow.features.catalogue import FIELDS
from dataflow.rules import load_rules
from dataflow.scoring.operating_point import OperatingPoint
from dataflow.settings import Settings
from tests.rules.builders import batch, row
from tests.support.builders import DAY, NOON
from training.operating_points.operating_points import (
    BLOCK_PRECISION,
    POINTS,
    Choice,
    Scored,
    add_arguments,
    carried_over,
    choose,
    garwood,
    need_labels,
    option_given,
    read_choice,
    reads_model,
    rule_alerts,
    wilson,
)
from training.operating_points.report import table, told

COUNT, DAYS = 40_000, 10.0


def scored(seed: int = 1, **changed: object) -> Scored:
    """Ten days in which the risk is the true chance of fraud; 1 in 500 is an alert of the rules."""
    random = np.random.default_rng(seed)
    risk = random.beta(0.15, 8, COUNT)
    found = Scored(
        risk=risk,
        anomaly=random.random(COUNT) < 0.01,
        fraud=random.random(COUNT) < risk,
        labelled=np.ones(COUNT, np.bool_),
        amounts=random.lognormal(3, 1, COUNT),
        times=NOON + np.sort(random.uniform(0, DAYS * DAY, COUNT)),
        by_rules=random.random(COUNT) < 0.002,
        measured_on="ten days",
    )
    return found._replace(**changed)  # type: ignore[arg-type]


def unlabelled() -> Scored:
    return scored(labelled=np.zeros(COUNT, np.bool_))


def alerts(point: OperatingPoint, of: Scored) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    return point.alerts(of.risk, lambda: of.anomaly) | of.by_rules


# -------------------------------------------------------------------------------------------------------- each option


@pytest.mark.parametrize("labelled", [True, False])
def test_a_budget_of_alerts_a_day_counts_those_of_the_rules_and_is_used_up(labelled: bool) -> None:
    past = scored() if labelled else unlabelled()
    point = choose(past, Choice("alerts_per_day", 50))
    assert 0 <= 50 * DAYS - alerts(point, past).sum() <= 2
    later = scored(seed=2)
    assert alerts(point, later).sum() / DAYS == pytest.approx(50, rel=0.2)
    assert point.expected is not None
    assert point.expected.alerts_a_day.value == pytest.approx(50, rel=0.01)
    assert (point.expected.precision is not None) == labelled


def test_an_alert_rate_is_a_share_of_all_transactions() -> None:
    past = unlabelled()
    point = choose(past, Choice("alert_rate", 0.02))
    assert 0 <= 0.02 * COUNT - alerts(point, past).sum() <= 1


def test_a_precision_is_that_of_the_models_own_alerts_at_the_smallest_threshold_that_has_it() -> None:
    past, later = scored(), scored(seed=2)
    point = choose(past, Choice("precision", 0.4))
    own = later.risk >= point.alert
    assert later.fraud[own].mean() == pytest.approx(0.4, abs=0.07)
    assert point.expected is not None
    assert point.expected.model_precision is not None
    assert point.expected.model_precision.value == pytest.approx(0.4, abs=0.02)
    lower = past.risk >= point.alert * 0.9
    assert past.fraud[lower].mean() < 0.4


def test_a_cost_of_alert_costs_least_among_all_thresholds() -> None:
    past = scored()

    def cost(threshold: float) -> float:
        alerted = (past.risk >= threshold) | past.by_rules
        return float(7 * alerted.sum() + past.amounts[past.fraud & ~alerted].sum())

    point = choose(past, Choice("cost_of_alert", 7))
    assert all(cost(point.alert) <= cost(each) for each in np.unique(past.risk)[::50])
    assert choose(past, Choice("cost_of_alert", 70)).alert > point.alert


def test_missed_frauds_without_labels_are_reckoned_by_those_that_have_them() -> None:
    """Each transaction twice, of which one has its label: the cost doubles, and the least lies where it lay."""
    past = scored()
    columns = {name: np.repeat(getattr(past, name), 2) for name in Scored._fields[:-1]}
    twice = Scored(**columns, measured_on="twice")._replace(labelled=np.arange(2 * COUNT) % 2 == 0)
    assert choose(twice, Choice("cost_of_alert", 7)).alert == choose(past, Choice("cost_of_alert", 7)).alert


def test_blocking_takes_a_precision_of_its_own_and_never_begins_below_the_alerts() -> None:
    past = scored()
    point = choose(past, Choice("alert_rate", 0.03, block_precision=0.45))
    assert point.block is not None
    assert point.block > point.alert
    assert past.fraud[past.risk >= point.block].mean() == pytest.approx(0.45, abs=0.03)
    low = choose(past, Choice("precision", 0.45, block_precision=0.2))
    assert low.block == low.alert


def test_without_being_asked_for_blocking_takes_its_default_or_is_left_out() -> None:
    sure = scored()
    sure = sure._replace(fraud=sure.risk > 0.2)
    point = choose(sure, Choice())
    assert point.block is not None
    assert sure.fraud[sure.risk >= point.block].mean() >= BLOCK_PRECISION
    assert choose(unlabelled(), Choice()).block is None
    assert choose(scored(fraud=np.zeros(COUNT, np.bool_)), Choice()).block is None


def test_the_forests_own_verdict_stays_the_alert_and_has_a_curve_as_well() -> None:
    past = scored()
    point = choose(past, Choice(), of_forest=0.55)
    assert (point.of_forest, point.alert, point.block) == (True, 0.55, None)
    assert point.expected is not None
    assert point.expected.alerts_a_day.value * DAYS == pytest.approx((past.anomaly | past.by_rules).sum(), rel=0.01)
    assert len(point.curve) > 20


# ----------------------------------------------------------------------------------------------------------- the curve


def test_each_point_of_the_curve_says_what_its_threshold_gives() -> None:
    past = scored()
    curve = choose(past, Choice()).curve
    assert 30 < len(curve) <= POINTS
    thresholds = [each.threshold for each in curve]
    assert thresholds == sorted(thresholds, reverse=True)
    days = (past.times[-1] - past.times[0]) / DAY
    for each in curve[::7]:
        alerted = (past.risk >= each.threshold) | past.by_rules
        hits = alerted & past.fraud
        assert each.alerts_a_day.value == pytest.approx(alerted.sum() / days)
        assert each.precision is not None and each.recall is not None and each.money_caught is not None
        assert each.precision.value == pytest.approx(hits.sum() / alerted.sum())
        assert each.recall.value == pytest.approx(hits.sum() / past.fraud.sum())
        assert each.money_caught.value == pytest.approx(past.amounts[hits].sum() / past.amounts[past.fraud].sum())
        for interval in (each.alerts_a_day, each.precision, each.recall, each.money_caught):
            assert interval.low <= interval.value <= interval.high


def test_only_labelled_transactions_count_for_precision_and_recall() -> None:
    half = np.arange(COUNT) % 2 == 0
    past = scored(labelled=half)
    turned = past._replace(fraud=past.fraud ^ ~half)
    for choice in (Choice(), Choice("precision", 0.4), Choice("cost_of_alert", 7)):
        assert choose(past, choice) == choose(turned, choice)


def test_the_intervals_are_those_of_the_textbooks() -> None:
    found = wilson(8, 10)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Newcombe (1998)
    assert wilson(0, 0) is None
    assert garwood(10) == pytest.approx((4.795, 18.390), abs=1e-3)  # Garwood (1936)
    assert garwood(0) == pytest.approx((0.0, 3.689), abs=1e-3)


def test_the_intervals_hold_what_comes_19_times_in_20() -> None:
    random = np.random.default_rng(3)
    shares = [wilson(hits, 200) for hits in random.binomial(200, 0.1, 1_000)]
    inside = [found.low <= 0.1 <= found.high for found in shares if found is not None]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.025)
    counts = [garwood(count) for count in random.poisson(30, 1_000)]
    assert np.mean([low <= 30 <= high for low, high in counts]) > 0.935


def test_its_table_has_about_ten_lines_of_80_columns_with_the_chosen_point_among_them() -> None:
    for past in (scored(), unlabelled()):
        point = choose(past, Choice("alerts_per_day", 50))
        lines = table(point)
        assert point.expected is not None
        assert 9 <= len(lines) <= 11
        assert max(map(len, lines)) <= 80
        assert ("recall" in lines[0]) == bool(past.labelled.any())
        (chosen,) = [line for line in lines if ">" in line]
        assert f"{point.alert:.4f}" in chosen
        assert f"{point.expected.alerts_a_day.value:.1f} (" in chosen
    assert "--alerts-per-day 50" in told(point)


# ----------------------------------------------------------------------------------------- from one model to another


def test_carried_over_as_many_transactions_reach_each_threshold() -> None:
    past = scored()
    point = choose(past, Choice("alerts_per_day", 50, block_precision=0.4))
    after = past.risk**2 * 0.5  # the same order on another scale
    moved = carried_over(point, past.risk, after)
    assert ((after >= moved.alert) == (past.risk >= point.alert)).all()
    assert moved.block is not None and point.block is not None
    assert ((after >= moved.block) == (past.risk >= point.block)).all()
    for old, new in zip(point.curve, moved.curve, strict=True):
        assert (after >= new.threshold).sum() == (past.risk >= old.threshold).sum()
    assert moved.expected is not None
    assert moved.expected.threshold == moved.alert


def test_carried_over_to_risks_that_many_share_there_are_rather_fewer_alerts_than_promised() -> None:
    past = scored()
    point = choose(past, Choice("alert_rate", 0.01))
    after = np.round(past.risk, 1)
    moved = carried_over(point, past.risk, after)
    assert 0 < (after >= moved.alert).sum() <= (past.risk >= point.alert).sum()


def test_a_threshold_above_all_risks_stays_above_all() -> None:
    past = scored()
    point = OperatingPoint(alert=float(past.risk.max()) + 1e-9)
    moved = carried_over(point, past.risk, past.risk / 2)
    assert moved.alert > past.risk.max() / 2


# ----------------------------------------------------------------------------------------------------------- bad input


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parse(*arguments: str) -> argparse.Namespace:
    parser = _Parser()
    add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("arguments", "choice"),
    [
        ((), Choice("alert_rate", 0.0135)),
        (("--alerts-per-day", "85"), Choice("alerts_per_day", 85)),
        (("--alert-rate", "0.002", "--block-precision", "0.95"), Choice("alert_rate", 0.002, 0.95)),
        (("--precision", ".8"), Choice("precision", 0.8)),
        (("--cost-of-alert", "12.5"), Choice("cost_of_alert", 12.5)),
    ],
)
def test_the_options_say_what_to_choose_by(arguments: tuple[str, ...], choice: Choice) -> None:
    given = parse(*arguments)
    assert read_choice(given) == choice
    assert option_given(given) == (arguments[0] if arguments else None)
    if arguments:
        assert str(choice).startswith(arguments[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--alerts-per-day", "0"), "no number above 0"),
        (("--alerts-per-day", "inf"), "no number above 0"),
        (("--alerts-per-day", "many"), "no number above 0"),
        (("--cost-of-alert", "-3"), "no number above 0"),
        (("--alert-rate", "0"), "no share above 0"),
        (("--alert-rate", "nan"), "no share above 0"),
        (("--precision", "1.2"), "no share above 0"),
        (("--block-precision", "90"), "no share above 0"),
        (("--precision", ".5", "--alerts-per-day", "3"), "not allowed with argument --precision"),
    ],
)
def test_a_wrong_option_is_refused_by_its_name(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError) as told:
        parse(*arguments)
    assert words in str(told.value)
    assert arguments[0 if len(arguments) == 2 else 2] in str(told.value)


@pytest.mark.parametrize("choice", [Choice("precision", 0.5), Choice("cost_of_alert", 5), Choice(block_precision=0.9)])
@pytest.mark.parametrize(
    "changed",
    [
        {"labelled": np.zeros(COUNT, np.bool_)},
        {"fraud": np.zeros(COUNT, np.bool_)},
        {"fraud": np.ones(COUNT, np.bool_)},
        {"fraud": np.arange(COUNT) < 9},
    ],
    ids=["no labels", "no frauds", "nothing genuine", "nine frauds"],
)
def test_without_labels_of_both_kinds_it_says_what_is_needed_and_what_works_without(
    choice: Choice, changed: dict[str, object]
) -> None:
    with pytest.raises(UserError) as told:
        choose(scored(**changed), choice)
    said = str(told.value)
    assert "\n" not in said
    assert "needs 10 known frauds" in said
    assert "--alerts-per-day and --alert-rate work without labels" in said
    assert (str(choice) if choice.block_precision is None else "--block-precision 0.9") in said
    with pytest.raises(UserError, match="--label-column"):
        need_labels(choice, "past.csv")


def test_a_budget_needs_no_labels() -> None:
    need_labels(Choice("alerts_per_day", 5), "past.csv")


def test_a_precision_out_of_reach_is_told_with_what_is_within_it() -> None:
    past = scored()
    with pytest.raises(UserError) as told:
        choose(past, Choice("precision", 0.999))
    said = str(told.value)
    assert "--precision 0.999" in said
    reachable = float(said.partition("reach ")[2].split()[0])
    assert 0.4 < reachable < 0.999
    assert choose(past, Choice("precision", reachable - 0.001)).alert > 0
    with pytest.raises(UserError, match=r"--block-precision 0\.999"):
        choose(past, Choice(block_precision=0.999))


def test_alerts_a_day_need_a_day() -> None:
    past = scored(times=NOON + np.linspace(0, 5 * 3600, COUNT))
    with pytest.raises(UserError, match=r"5\.0 hours.*--alert-rate"):
        choose(past, Choice("alerts_per_day", 50))
    assert choose(past, Choice("alert_rate", 0.01)).expected is not None


def test_no_transactions_are_told() -> None:
    none = np.zeros(0)
    empty = Scored(none, none > 0, none > 0, none > 0, none, none, none > 0, "an empty day")
    with pytest.raises(UserError, match="an empty day"):
        choose(empty, Choice())


def test_rules_that_use_up_the_budget_leave_it_to_the_model_and_say_so() -> None:
    past, notes = scored(by_rules=np.arange(COUNT) % 20 == 0), list[str]()
    point = choose(past, Choice("alerts_per_day", 50), notes.append)
    assert (past.risk >= point.alert).sum() == pytest.approx(50 * DAYS, abs=2)
    (note,) = notes
    assert "the rules alone raise 200.0 alerts a day, more than the budget" in note


def test_a_budget_that_leaves_no_alert_is_told() -> None:
    notes: list[str] = []
    point = choose(scored(by_rules=np.zeros(COUNT, np.bool_)), Choice("alert_rate", 1e-6), notes.append)
    assert point.alert > scored().risk.max()
    assert "no alert among 40,000 transactions" in notes[0]


# ------------------------------------------------------------------------------------------------------ of the rules


@pytest.mark.slow
def test_the_rules_are_counted_as_if_the_model_never_raised_an_alert() -> None:
    rules = load_rules(Settings().rules_file)
    assert reads_model(rules)

    blank = {field.name: {"number": 0.0, "text": "", "flag": False}[field.kind] for field in FIELDS}
    calm, high = row(**blank | {"amount": 10.0}), row(**blank | {"amount": 4000.0})
    found = rule_alerts(rules, batch([calm, high, calm]))
    assert found.tolist() == [False, True, False]
