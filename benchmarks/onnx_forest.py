"""Trees as an ONNX graph: for the peers, whose jobs import nothing of ours, and to hold our kernel against."""

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from dataflow.scoring.decision_tree import Tree, round_down
from dataflow.scoring.isolation_forest import ForestParts, IsolationScores


def write_forest(pickle: Path, onnx: Path) -> None:
    """The two-feature forest as ONNX, for jobs that do not import ours."""
    forest = joblib.load(io.BytesIO(pickle.read_bytes()))
    parts = ForestParts.of(forest)
    onnx.write_bytes(as_onnx({"depths": parts.trees}, 2))
    scores = IsolationScores(parts)
    known = {"average": scores._average, "threshold": scores.threshold}
    Path(f"{onnx}.json").write_text(json.dumps(known))


def as_onnx(ensembles: Mapping[str, Sequence[Tree]], width: int) -> bytes:
    """An ONNX model that reads `rows` (n, width), and gives the sum of each ensemble's leaves (n, 1), by its name."""
    from onnx import TensorProto, helper

    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        [tree_ensemble(trees, "rows", name) for name, trees in ensembles.items()], "forest",
        [tensor("rows", TensorProto.FLOAT, [None, width])],
        [tensor(name, TensorProto.FLOAT, [None, 1]) for name in ensembles],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return model


def session_of(ensembles: Mapping[str, Sequence[Tree]], width: int) -> Any:
    """An ONNX Runtime session of `as_onnx` on one thread."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # it reports its use, unless it was told not to before it is imported
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(as_onnx(ensembles, width), options, providers=["CPUExecutionProvider"])


def tree_ensemble(trees: Sequence[Tree], rows: str, total: str) -> Any:
    """Trees as one ONNX node that reads the tensor `rows` (n, k) and writes the sum of their leaves, `total` (n, 1)."""
    from onnx import helper

    attributes: dict[str, list[Any]] = {name: [] for name in _NODE_ATTRIBUTES}
    for number, tree in enumerate(trees):
        nodes = range(len(tree.left))
        leaf = tree.left < 0
        leaves = np.flatnonzero(leaf).tolist()
        attributes["nodes_treeids"] += [number] * len(nodes)
        attributes["nodes_nodeids"] += nodes
        attributes["nodes_modes"] += np.where(leaf, "LEAF", "BRANCH_LEQ").tolist()
        attributes["nodes_featureids"] += np.where(leaf, 0, tree.feature).tolist()
        attributes["nodes_values"] += np.where(leaf, 0, round_down(tree.threshold)).tolist()
        attributes["nodes_truenodeids"] += np.where(leaf, 0, tree.left).tolist()
        attributes["nodes_falsenodeids"] += np.where(leaf, 0, tree.right).tolist()
        attributes["nodes_missing_value_tracks_true"] += np.where(leaf, False, tree.nan_left).astype(int).tolist()
        attributes["target_treeids"] += [number] * len(leaves)
        attributes["target_nodeids"] += leaves
        attributes["target_ids"] += [0] * len(leaves)
        attributes["target_weights"] += tree.value[leaves].tolist()
    return helper.make_node(
        "TreeEnsembleRegressor",
        [rows],
        [total],
        domain="ai.onnx.ml",
        n_targets=1,
        aggregate_function="SUM",
        post_transform="NONE",
        **attributes,
    )


_NODE_ATTRIBUTES = (
    "nodes_treeids",
    "nodes_nodeids",
    "nodes_modes",
    "nodes_featureids",
    "nodes_values",
    "nodes_truenodeids",
    "nodes_falsenodeids",
    "nodes_missing_value_tracks_true",
    "target_treeids",
    "target_nodeids",
    "target_ids",
    "target_weights",
)
