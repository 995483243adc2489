"""The kernel that walks a model's trees against ONNX Runtime: µs of CPU a row, in one process and in turns.

    python -m benchmarks.trees [--model fraud_model.pkl] [--rows 20000] [--rounds 5]

Both score the same rows with the same trees, of which ONNX Runtime adds up the leaves in float32.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.onnx_forest import session_of
from dataflow.errors import UserError
from dataflow.scoring.decision_tree import Rows, Tree, remapped
from dataflow.scoring.isolation_forest import isolation_trees
from dataflow.scoring.loading import load_model
from dataflow.scoring.tier_parts import boosting_trees
from dataflow.scoring.trees import TreeSum
from training.histories.history import read_history
from training.histories.replay import replay

BATCHES = (1, 10, 500)


def trees_of(path: Path) -> tuple[tuple[str, ...], list[list[Tree]], Any]:
    """The features of a supervised model, its isolation and its boosted trees, and what amounts are like among all.

    Raises:
        UserError: it is no model, or none that learned from labels.
    """
    import joblib

    model, artifact = load_model(path), joblib.load(path)  # load_model has checked the digest
    if "boosting" not in artifact:
        msg = f"{path} has no supervised tier: give one that learned from labels, as `make train` makes it"
        raise UserError(msg)
    columns = {name: place for place, name in enumerate(model.features)}
    parts = [
        (isolation_trees(artifact["forest"]), artifact["forest_features"]),
        (boosting_trees(artifact["boosting"]), artifact["supervised_features"]),
    ]
    trees = [[remapped(tree, np.array([columns[name] for name in names])) for tree in part] for part, names in parts]
    return model.features, trees, model.amount_prior


def spent(score: Callable[[Rows], Any], rows: Rows, batch: int) -> float:
    """µs of CPU time a row, in batches of that size."""
    begun = time.process_time()
    for first in range(0, len(rows), batch):
        score(rows[first : first + batch])
    return (time.process_time() - begun) / len(rows) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trees", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", type=Path, default=Path("fraud_model.pkl"), help="a supervised one")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    try:
        features, trees, prior = trees_of(given.model)
    except UserError as error:
        parser.error(str(error))
    blocks: list[Rows] = []
    for replayed in replay(read_history(None, seed=9, users=800, days=14), prior):
        blocks.append(replayed.batch.floats(features))
        if sum(map(len, blocks)) >= given.rows:
            break
    rows = np.concatenate(blocks)[: given.rows]
    ours = [TreeSum(part) for part in trees]
    theirs = session_of({"depths": trees[0], "odds": trees[1]}, len(features))
    scorers: dict[str, Callable[[Rows], Any]] = {
        "kernel": lambda some: [score(some) for score in ours],
        "ONNX Runtime": lambda some: theirs.run(None, {"rows": some}),
    }
    counts = ", ".join(f"{len(part)} of {np.mean([len(tree.left) for tree in part]):.0f} nodes" for part in trees)
    table = Table("rows at once", *scorers, "÷", title=f"µs of CPU a row, {given.rounds} rounds\n{counts}")
    for batch in BATCHES:
        some = rows[: min(len(rows), 2_000 * batch)]
        rounds = [[spent(score, some, batch) for score in scorers.values()] for _ in range(given.rounds + 1)][1:]
        ratios = [kernel / runtime for kernel, runtime in rounds]
        middle = [f"{statistics.median(values):.1f}" for values in zip(*rounds, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        table.add_row(f"{batch}", *middle, spread)
    Console().print(table)


if __name__ == "__main__":
    main()
