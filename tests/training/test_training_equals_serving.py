"""The live flow and training see the same features: from the messages' own bytes, with feedback in between."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from bytewax.testing import TestingSink, TestingSource, run_main

from dataflow.detect import build
from dataflow.events.parsing import parse
from dataflow.events.transaction import DAY, Transaction
from dataflow.features.batch import FeatureBatch
from dataflow.features.catalogue import FIELDS
from dataflow.rules import LiveRules, RuleResult, RuleSet, load_rules
from dataflow.scoring.loading import load_model
from dataflow.settings import Settings
from dataflow.simulation.simulator import history, to_json
from dataflow.steps import Routed, written
from tests.support.builders import message
from training.histories.history import Past, after
from training.histories.replay import replay
from training.train import main as train


@pytest.mark.slow
def test_the_live_flow_sees_the_very_features_that_training_replays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training = serving, number by number; the model makes what amounts are like among all known to both."""
    trained = ["--tiers", "feedback", "--users", "60", "--days", "7", "--out", str(tmp_path / "model.pkl")]
    assert train(trained) == 0
    model = load_model(tmp_path / "model.pkl")
    assert model.amount_prior.amount > 0
    simulated = list(history(4, 60, 12, datetime(2026, 3, 1, tzinfo=UTC)))
    delay = 2 * DAY
    values = [to_json(each) for each in simulated]
    parsed = [parse(value, None, "transactions", 0, n, 0) for n, value in enumerate(values)]
    past = [
        Past(txn, each.fraud, "") for txn, each in zip(parsed, simulated, strict=True) if isinstance(txn, Transaction)
    ]
    ((_, expected),) = replay(past, model.amount_prior, after(delay), batch=len(past))

    # One source for both kinds of event, in the order of their times, so that the interleaving is that of the replay.
    labels = [
        (each.at + delay, -1, json.dumps({
            "transaction_id": each.transaction_id, "user": each.user, "merchant": each.merchant,
            "timestamp": each.timestamp, "fraud": each.fraud,
            "labelled_at": datetime.fromtimestamp(each.at + delay, UTC).isoformat(),
        }).encode())
        for each in simulated
    ]  # fmt: skip
    events = sorted([*((each.at, n, values[n]) for n, each in enumerate(simulated)), *labels], key=lambda e: e[:2])
    settings = Settings()
    decisions: list[Routed] = []
    topics = settings.transactions_topic, settings.feedback_topic
    feed = [message(value, topic=topics[number < 0]) for _, number, value in events]
    rules = LiveRules(settings.rules_file, check_every=1.0)
    seen: list[FeatureBatch] = []
    evaluate = RuleSet.evaluate

    def recorded(self: RuleSet, batch: FeatureBatch) -> list[RuleResult]:
        seen.append(batch)
        return evaluate(self, batch)

    monkeypatch.setattr(RuleSet, "evaluate", recorded)
    run_main(build(TestingSource(feed, 1), TestingSink(decisions), model, rules, settings))
    assert sum(map(len, seen)) == len(expected)
    for field in FIELDS:
        live = np.concatenate([np.asarray(batch.column(field.name)) for batch in seen])
        assert live.tolist() == np.asarray(expected.column(field.name)).tolist(), field.name
    assert any(expected.column("merchant_frauds_week"))
    assert len(written(decisions)) == len(expected)
    assert load_rules(settings.rules_file).version == rules.current().version
