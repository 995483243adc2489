"""The tutorial's four checks as a user of any framework would write them; imports nothing of ours.

Every peer job calls this, so that rows differ in the framework and not in the checks.
"""

import json
import os
from datetime import datetime
from typing import Any

FLAGGED = ("XYZ_Merchant", "UnknownShop")
ALERTS, CLASSIFIED = os.environ.get("ALERTS_TOPIC", ""), os.environ.get("CLASSIFIED_TOPIC", "")
SOURCE, BROKERS = os.environ.get("TRANSACTIONS_TOPIC", ""), os.environ.get("KAFKA_BROKERS", "")
GROUP = os.environ.get("BENCH_GROUP", "bench")


def check(txn: dict[str, Any], state: dict[str, Any]) -> tuple[list[str], list[float]]:
    """The reasons of the first three checks, and the model's row; then the user's state takes the transaction in."""
    at = datetime.fromisoformat(txn["timestamp"]).timestamp()
    reasons = []
    if txn["amount"] > 400:
        reasons.append("High amount")
    location, last = state.get("location"), state.get("at", 0.0)
    if location is not None and location != txn["location"] and at - last <= 3600:
        reasons.append(f"Location change from {location} to {txn['location']}")
    if txn["merchant"] in FLAGGED:
        reasons.append(f"Merchant {txn['merchant']} flagged")
    hour = [then for then in state.get("hour", ()) if then > at - 3600]
    row = [txn["amount"], float(len(hour))]
    hour.append(at)
    state.update(location=txn["location"], at=at, hour=hour)
    return reasons, row


class Forest:
    """The same two-feature Isolation Forest as one ONNX node, which the harness writes."""

    def __init__(self) -> None:
        import onnxruntime

        path = os.environ["BENCH_FOREST"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        with open(path + ".json") as file:
            known = json.load(file)
        self._average, self._threshold = known["average"], known["threshold"]

    def anomalies(self, rows: list[list[float]]) -> list[bool]:
        import numpy as np

        depths = self._session.run(["depths"], {"rows": np.array(rows, dtype=np.float32)})[0][:, 0]
        return [bool(2.0 ** (-depth / self._average) > self._threshold) for depth in depths.tolist()]


def decided(txn: dict[str, Any], reasons: list[str], anomaly: bool) -> dict[str, Any]:
    if anomaly:
        reasons.append("ML anomaly detection")
    return {**txn, "fraudulent": bool(reasons), "reason": reasons}


def topic_of(decision: dict[str, Any]) -> str:
    return ALERTS if decision["fraudulent"] else CLASSIFIED
