"""Writes a model's Isolation Forest as the JSON that `Forest.java` reads.

    python -m benchmarks.kafka_streams.forest MODEL.pkl FOREST.json

The model is one of `python -m training.train --tiers isolation_forest --features amount,txn_per_hour`.
"""

import argparse
import io
import json
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from dataflow.scoring.decision_tree import round_down
from dataflow.scoring.isolation_forest import average_path_length, isolation_trees
from dataflow.scoring.metadata import read_metadata


def as_json(forest: Any, features: list[str]) -> dict[str, Any]:
    """The trees of a fitted `IsolationForest`, and what their depths are held against."""
    trees = isolation_trees(forest)
    average = len(trees) * float(average_path_length(np.array([forest.max_samples_]))[0])
    return {
        "features": features,
        "average": average,
        "anomalyDepth": anomaly_depth(average, -float(forest.offset_)),
        "trees": [
            {
                "feature": np.where(tree.left < 0, 0, tree.feature).tolist(),
                # Rounded down to float32, which Java compares: see `dataflow.scoring.loading.round_down`.
                "threshold": np.where(tree.left < 0, 0, round_down(tree.threshold)).tolist(),
                "left": tree.left.tolist(),
                "right": tree.right.tolist(),
                "value": tree.value.tolist(),
            }
            for tree in trees
        ],
    }


def anomaly_depth(average: float, threshold: float) -> float:
    """The largest sum of depths whose risk still exceeds the threshold, by bisection over the floats.

    Risks that equal the threshold are common, as it is a quantile of the training scores, and `2 ** x` may differ in
    the last bit between Java and NumPy. The sums do not: both add the same numbers in the same order.
    """

    def is_anomaly(depth: float) -> bool:
        # As scikit-learn computes it: see `dataflow.scoring.loading.IsolationScores`.
        risk = 2 ** (-np.divide(np.array([depth]), average))
        return bool(risk[0] - threshold > 0)

    below, above = 0.0, 64.0 * average  # a risk of 1, and one of 2^-64
    while (middle := (below + above) / 2) not in (below, above):
        if is_anomaly(middle):
            below = middle
        else:
            above = middle
    return below


def write(pickle: Path, out: Path) -> None:
    """Reads the model at `pickle`, which is trusted, and writes its forest to `out`."""
    forest = joblib.load(io.BytesIO(pickle.read_bytes()))
    out.write_text(json.dumps(as_json(forest, read_metadata(pickle).features)))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kafka_streams.forest", description=__doc__.splitlines()[0]
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    write(arguments.model, arguments.out)


if __name__ == "__main__":
    main()
