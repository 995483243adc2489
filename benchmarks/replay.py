"""How fast a history goes through the profiles: rows/s of the kernels, and against the profiles of before.

`python -m benchmarks.replay --users 2000 --days 14 --label-delay-days 7`

Both ways end in the same: a float32 matrix of all features that are numbers, as training takes it. Times are of the
CPU, the best of the rounds, which alternate, so that other work on the machine meets both.
"""

import argparse
import json
import time
from collections.abc import Callable
from itertools import islice

import numpy as np

from dataflow import compiled
from dataflow.features import NUMBERS
from dataflow.profiles.warm_up import warm_up
from dataflow.scoring import Columns
from training.history import DAY, LabelTime, Past, after, read_history
from training.history import replay as replay_before
from training.replay import replay


def before(history: list[Past], label_time: LabelTime | None) -> int:
    """Rows through the profiles of before."""
    columns, rows = Columns(NUMBERS), 0
    facts = (facts for _, facts in replay_before(history, label_time=label_time))
    while batch := list(islice(facts, 4096)):
        rows += len(columns(batch))
    return rows


def now(history: list[Past], label_time: LabelTime | None) -> int:
    """Rows through the kernels."""
    with np.errstate(over="ignore"):
        return sum(len(part.features.astype(np.float32)) for part in replay(history, label_time=label_time))


def seconds(way: Callable[[list[Past], LabelTime | None], int], history: list[Past], late: LabelTime | None) -> float:
    begin = time.process_time()
    if way(history, late) != len(history):
        msg = "rows are missing"
        raise RuntimeError(msg)
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--days", type=float, default=14)
    parser.add_argument("--label-delay-days", type=float, default=7)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    history = list(read_history(None, users=options.users, days=options.days))
    warm_up()
    for labels, late in (("none", None), ("all", after(options.label_delay_days * DAY))):
        times: dict[str, list[float]] = {"before": [], "now": []}
        for _ in range(options.rounds):
            times["before"].append(seconds(before, history, late))
            times["now"].append(seconds(now, history, late))
        rates = {name: len(history) / min(each) for name, each in times.items()}
        print(json.dumps({
            "rows": len(history), "labels": labels, "before_compiled": compiled.running(),
            **{f"{name}_rows_a_cpu_second": round(rate) for name, rate in rates.items()},
            "times_as_fast": round(rates["now"] / rates["before"], 1),
        }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
