import math
from itertools import permutations

import pytest

from dataflow.demo import figures as module
from dataflow.demo.figures import Figures

# transaction, amount, whether it is an alert, whether it is fraud, scenario
CASES = (
    ("a", 100.0, True, True, "stolen_card"),
    ("b", 30.0, False, True, "stolen_card"),
    ("c", 7.0, False, True, "card_testing"),
    ("d", 500.0, True, False, "none"),
    ("e", 12.0, True, False, "none"),
    ("f", 9.0, False, False, "none"),
)


def test_frauds_are_caught_or_missed_and_alerts_on_genuine_ones_are_false_alarms() -> None:
    figures = Figures()
    for name, amount, alert, fraud, scenario in CASES:
        figures.decided(name, amount, alert)
        figures.truth(name, fraud, scenario)
    assert (figures.frauds.number, figures.frauds.money) == (3, 137.0)
    assert (figures.caught.number, figures.caught.money) == (1, 100.0)
    assert (figures.missed.number, figures.missed.money) == (2, 37.0)
    assert (figures.false_alarms.number, figures.false_alarms.money) == (2, 512.0)
    assert figures.precision == pytest.approx(1 / 3)
    assert figures.recall == pytest.approx(1 / 3)
    assert figures.judged == len(CASES)
    stolen = figures.by_scenario["stolen_card"]
    assert (stolen.frauds.number, stolen.caught.number, stolen.caught.money) == (2, 1, 100.0)
    assert figures.by_scenario["card_testing"].caught.number == 0
    assert set(figures.by_scenario) == {"stolen_card", "card_testing"}


def test_it_does_not_matter_whether_the_decision_or_the_truth_comes_first() -> None:
    events = [("decided", "a"), ("truth", "a"), ("decided", "d"), ("truth", "d")]
    for order in permutations(events):
        figures = Figures()
        for kind, name in order:
            _, amount, alert, fraud, scenario = next(case for case in CASES if case[0] == name)
            if kind == "decided":
                figures.decided(name, amount, alert)
            else:
                figures.truth(name, fraud, scenario)
        assert (figures.caught.number, figures.false_alarms.number, figures.judged) == (1, 1, 2)


def test_a_decision_without_a_truth_counts_nowhere() -> None:
    figures = Figures()
    figures.decided("a", 100.0, True)
    figures.truth("b", True, "stolen_card")
    assert figures.judged == figures.frauds.number == figures.false_alarms.number == 0


def test_without_alerts_there_is_no_precision_and_without_frauds_no_recall() -> None:
    assert math.isnan(Figures().precision)
    assert math.isnan(Figures().recall)


def test_what_waits_for_its_other_half_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    figures = Figures()
    for name in "abc":
        figures.decided(name, 1.0, True)
    for name in "abc":
        figures.truth(name, True, "stolen_card")
    assert figures.caught.number == 2
