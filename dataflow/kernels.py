"""Compiles the kernels, or loads them where they are compiled: `python -m dataflow.kernels`.

The first to come compiles (40 s of a core); who comes meanwhile waits, and loads what it made.
"""

import logging

import numpy as np

from dataflow.events.feedback import Feedback
from dataflow.events.transaction import Transaction
from dataflow.profiles.columns import FEATURES
from dataflow.profiles.compilation import FOLDER, compile_lock, is_compiled
from dataflow.profiles.profiles import MerchantProfiles, UserProfiles, in_order
from dataflow.scoring.decision_tree import Tree
from dataflow.scoring.leaf_masks import MOST_LEAVES
from dataflow.scoring.tiers import ColdStart, Normal
from dataflow.scoring.trees import TOGETHER, TreeSum

log = logging.getLogger("redflag.kernels")


def warm_up() -> None:
    """Puts a transaction and a label through all kernels."""
    with compile_lock():
        if not is_compiled():
            log.warning("compiling the kernels of profiles and trees, once: that takes about 40 s")
        _profiles()
        _trees()
        ColdStart(["history", "amount"], Normal({}, 1.0, 1.0))(np.zeros((1, 2), np.float32))


def _profiles() -> None:
    txn = Transaction(
        user="u", amount=1.0, location="US", device="d", merchant="m", txn_type="t", timestamp="", transaction_id="1"
    )
    label = Feedback("1", "u", "m", 0.0, True, 1.0)
    users, merchants = UserProfiles(), MerchantProfiles()
    events = users.events([txn, label])
    features = np.empty((2, FEATURES))
    lessons = users.update(events, np.arange(2), features)
    items = in_order(np.arange(1), lessons["event"])
    items["row"] = merchants.table.rows_of(["m"] * len(items))
    merchants.observe(items, events, lessons, features)
    for profiles in (users, merchants):
        profiles.table.free(profiles.table.rows_of(["u", "m"]))


def _trees() -> None:
    for leaves in (1, MOST_LEAVES + 1):  # small trees have kernels of their own
        add = TreeSum([_tree(leaves)])
        for count, value in ((1, 0.0), (2 * TOGETHER, 0.0), (1, np.nan)):
            add(np.full((count, 1), value, np.float32))


def _tree(leaves: int) -> Tree:
    """A tree at each node of which the left one is a leaf."""
    nodes = np.arange(2 * leaves - 1)
    inner = (nodes % 2 == 0) & (nodes < len(nodes) - 1)
    left, right = np.where(inner, nodes + 1, -1), np.where(inner, nodes + 2, -1)
    return Tree(np.zeros_like(nodes), nodes.astype(np.float64), left, right, inner, np.ones(len(nodes)))


if __name__ == "__main__":
    warm_up()
    print(f"kernels in {FOLDER}")
