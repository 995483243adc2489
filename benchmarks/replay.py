"""How fast a history goes through the profiles: rows a second of CPU time.

`python -m benchmarks.replay --users 2000 --days 14 --label-delay-days 7`

It ends in a float32 matrix of all features that are numbers, as training takes it. Times are the best of the rounds.
"""

import argparse
import json
import time

from dataflow.events.transaction import DAY
from dataflow.features.catalogue import NUMBERS
from dataflow.kernels import warm_up
from training.histories.history import LabelTime, Past, after, read_history
from training.histories.replay import replay


def seconds(history: list[Past], label_time: LabelTime | None) -> float:
    """CPU time of one replay."""
    begin = time.process_time()
    rows = sum(len(batch.floats(NUMBERS)) for _, batch in replay(history, label_time=label_time))
    spent = time.process_time() - begin
    if rows != len(history):
        msg = "rows are missing"
        raise RuntimeError(msg)
    return spent


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
        spent = min(seconds(history, late) for _ in range(options.rounds))
        said = {"rows": len(history), "labels": labels, "rows_a_cpu_second": round(len(history) / spent)}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
