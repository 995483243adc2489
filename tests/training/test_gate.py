"""The gate: on a fixed slice of the project's own simulation, detection may not become worse without anyone noticing.

The floors lie a little below what was measured when they were set; who makes detection better may raise them.
"""

import csv
import json
from itertools import pairwise
from typing import Any

import pytest

from dataflow.simulation.simulator import history
from training.evaluate import main as evaluate

pytestmark = pytest.mark.slow

# Measured: average precision .31, .27 and .62; ROC AUC .85, .90 and .95; recall .46, .34 and .67 (two weeks, seed 1).
FLOORS: dict[str, dict[str, float]] = {
    "evidence": {"average_precision": 0.27, "roc_auc": 0.82, "recall_at_0.01": 0.40},
    "feedback": {"average_precision": 0.23, "roc_auc": 0.87, "recall_at_0.01": 0.29},
    "supervised": {"average_precision": 0.55, "roc_auc": 0.92, "recall_at_0.01": 0.60},
}
ALERTS_A_DAY = 55  # measured: 45
SCENARIO_RECALL = {
    "account_takeover": 0.5,  # measured: .67
    "card_testing": 0.85,  # .98
    "compromised_merchant": 0.1,  # .21
    "impossible_travel": 0.7,  # .90
    "spending_burst": 0.5,  # .70
    "stolen_card": 0.4,  # .49
}
ALERTS_AS_PROMISED = 0.25
DAYS_TO_DETECT = 0.5  # measured: .12 at most


@pytest.fixture(scope="module", autouse=True)
def plotted() -> None:
    """Here the pictures of the report are drawn."""


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("gate")
    with (folder / "history.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        names = ("transaction_id", "timestamp", "user", "merchant", "amount", "location", "device", "txn_type")
        names = (*names, "latitude", "longitude", "category")
        writer.writerow((*names, "fraud", "scenario"))
        for each in history(2026, 1000, 42):
            values = [getattr(each, name) for name in names]
            writer.writerow((*values, int(each.fraud), each.scenario if each.fraud else ""))
    arguments = ["--history", str(folder / "history.csv"), "--label-delay", "7d", "--seeds", "1", "--weeks", "2"]
    times = ["--train-from", "2026-01-05", "--test-from", "2026-02-02", "--test-until", "2026-02-16"]
    assert evaluate([*arguments, *times, "--out", str(folder / "out")]) == 0
    page = (folder / "out" / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert [len(picture) > 10_000 for picture in page.split("data:image/png;base64,iVBORw0KGgo")[1:]] == [True] * 3
    with (folder / "out" / "scores.csv").open(newline="") as file:
        scores = list(csv.DictReader(file))
    assert len(scores) > 10_000
    assert len({row["transaction_id"] for row in scores}) == len(scores)
    assert all(0.0 <= float(row["score"]) <= 1.0 for row in scores)
    assert all(bool(row["reason"]) == (row["fraudulent"] == "1") for row in scores)
    return json.loads((folder / "out" / "metrics.json").read_text())


@pytest.mark.parametrize("tier", FLOORS)
def test_no_tier_ranks_worse_than_it_did(metrics: dict[str, Any], tier: str) -> None:
    figures = metrics["tiers"][tier]
    for name, floor in FLOORS[tier].items():
        assert figures[name]["mean"] >= floor, (tier, name, figures[name]["mean"])


def test_each_week_brings_about_as_many_alerts_as_its_operating_point_promised(metrics: dict[str, Any]) -> None:
    weeks = metrics["decisions"]["weeks"]
    assert len(weeks) == 2
    for week in weeks:
        promised, came = week["promised"]["alerts_a_day"]["value"], week["came"]["alerts_a_day"]
        assert came == pytest.approx(promised, rel=ALERTS_AS_PROMISED), week


def test_the_alerts_a_day_at_one_percent_of_false_positives_stay_few(metrics: dict[str, Any]) -> None:
    assert metrics["tiers"]["supervised"]["alerts_a_day"]["mean"] <= ALERTS_A_DAY


def test_each_kind_of_fraud_is_still_found_and_soon(metrics: dict[str, Any]) -> None:
    found = metrics["by_scenario"]["supervised"]
    for kind, floor in SCENARIO_RECALL.items():
        assert found[kind]["recall"] >= floor, (kind, found[kind])
        assert found[kind]["days_to_detect"] <= DAYS_TO_DETECT, (kind, found[kind])


TIERS = ("isolation_forest", "evidence", "feedback", "supervised")
ORDERED_AS_WELL = 0.98
"""Of the average precision of the tier below: two weeks with 600 frauds tell no finer."""
RISING = {"evidence": 0.03, "feedback": 0.04, "supervised": 0.02}


@pytest.mark.parametrize(("below", "tier"), list(pairwise(TIERS)))
def test_each_tier_orders_at_least_as_well_as_the_one_below_it(metrics: dict[str, Any], below: str, tier: str) -> None:
    order = {name: figures["average_precision"]["mean"] for name, figures in metrics["tiers"].items()}
    assert order[tier] >= ORDERED_AS_WELL * order[below], order


@pytest.mark.parametrize("tier", RISING)
def test_precision_rises_with_the_score(metrics: dict[str, Any], tier: str) -> None:
    deviation = metrics["tiers"][tier]["isotonic_deviation"]["mean"]
    assert deviation <= RISING[tier], deviation


def test_a_score_of_the_last_tier_is_a_probability(metrics: dict[str, Any]) -> None:
    assert metrics["decisions"]["calibration"]["calibration_error"] <= 0.01
