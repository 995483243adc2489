"""With the tutorial's population the decisions are, one for one, those of the tutorial's checks.

The oracle shares no code with the flow: it reads the JSON with the standard library, keeps plain lists for each user,
and asks scikit-learn's own `predict`.
"""

import io
import json
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from bytewax.testing import TestingSink, TestingSource, run_main

from dataflow.detect import build
from dataflow.rules import LiveRules
from dataflow.scoring.loading import load_model
from dataflow.settings import TUTORIAL_RULES, Settings
from dataflow.simulation.simulator import stream, to_json
from dataflow.steps import Routed, written
from tests.support.builders import message
from training.train import main as train

pytestmark = pytest.mark.slow

COUNT = 3000
START = datetime(2026, 3, 2, tzinfo=UTC)


def oracle(values: list[bytes], forest: Any, features: list[str]) -> list[tuple[bool, list[str]]]:
    """The tutorial's loop: one transaction at a time."""
    locations: dict[str, tuple[str, float]] = {}
    times: dict[str, list[float]] = {}
    checked: list[list[str]] = []
    rows = []
    for value in values:
        txn = json.loads(value)
        at = datetime.fromisoformat(txn["timestamp"]).timestamp()
        reasons = []
        if txn["amount"] > 400:
            reasons.append("High amount")
        last = locations.get(txn["user"])
        if last is not None and last[0] != txn["location"] and at - last[1] <= 3600:
            reasons.append(f"Location change from {last[0]} to {txn['location']}")
        if txn["merchant"] in ("XYZ_Merchant", "UnknownShop"):
            reasons.append(f"Merchant {txn['merchant']} flagged")
        earlier = times.setdefault(txn["user"], [])
        known = {"amount": txn["amount"], "txn_per_hour": sum(at - 3600 < t <= at for t in earlier)}
        rows.append([known[name] for name in features])
        earlier.append(at)
        locations[txn["user"]] = (txn["location"], at)
        checked.append(reasons)
    outliers = forest.predict(np.array(rows, dtype=np.float32)) == -1
    for reasons, outlier in zip(checked, outliers, strict=True):
        if outlier:
            reasons.append("ML anomaly detection")
    return [(bool(reasons), reasons) for reasons in checked]


@pytest.mark.parametrize("rate", [0.5, 2.0])
def test_the_decisions_are_those_of_the_tutorials_checks(tmp_path: Path, rate: float) -> None:
    path = tmp_path / "fraud_model.pkl"
    arguments = ["--population", "tutorial", "--features", "amount,txn_per_hour", "--contamination", "0.05"]
    assert train([*arguments, "--out", str(path), "--trees", "50"]) == 0
    values = [to_json(txn) for txn in islice(stream(seed=7, rate=rate, start=START, population="tutorial"), COUNT)]

    decisions: list[Routed] = []
    settings = Settings(rules_file=TUTORIAL_RULES)
    rules = LiveRules(settings.rules_file, check_every=1.0)
    source = TestingSource([message(value, offset=n) for n, value in enumerate(values)], 100)
    run_main(build(source, TestingSink(decisions), load_model(path), rules, settings))

    forest = joblib.load(io.BytesIO(path.read_bytes()))
    expected = oracle(values, forest, json.loads(path.with_suffix(".json").read_text())["features"])
    found = {}
    for record in written(decisions):
        out = json.loads(record.value or b"")
        assert record.topic == (settings.alerts_topic if out["fraudulent"] else settings.classified_topic)
        found[record.offset] = (out["fraudulent"], out["reason"])
    assert [found[n] for n in range(COUNT)] == expected
    # The comparison says something only where each of the four checks fires, and not always.
    said = [reason.split(" ")[0] for _, reasons in expected for reason in reasons]
    for check in ("High", "Location", "Merchant", "ML"):
        assert 0 < said.count(check) < COUNT
