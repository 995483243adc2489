"""Compiles the kernels, or loads them where they are compiled: `python -m dataflow.profiles.warm_up`.

The first to come compiles (40 s of a core); who comes meanwhile waits, and loads what it made.
"""

import numpy as np

from dataflow.feedback import Feedback
from dataflow.profiles.columns import FEATURES
from dataflow.profiles.compilation import FOLDER, compile_lock
from dataflow.profiles.profiles import MerchantProfiles, UserProfiles, in_order
from dataflow.transaction import Transaction


def warm_up() -> None:
    """Puts a transaction and a label through all kernels."""
    txn = Transaction(
        user="u", amount=1.0, location="US", device="d", merchant="m", txn_type="t", timestamp="", transaction_id="1"
    )
    label = Feedback("1", "u", "m", 0.0, True, 1.0)
    with compile_lock():
        users, merchants = UserProfiles(), MerchantProfiles()
        events = users.events([txn, label])
        features = np.empty((2, FEATURES))
        lessons = users.update(events, np.arange(2), features)
        items = in_order(np.arange(1), lessons["event"])
        items["row"] = merchants.table.rows_of(["m"] * len(items))
        merchants.observe(items, events, lessons, features)
        for profiles in (users, merchants):
            profiles.table.free(profiles.table.rows_of(["u", "m"]))


if __name__ == "__main__":
    warm_up()
    print(f"kernels in {FOLDER}")
