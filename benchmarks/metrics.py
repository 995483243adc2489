"""What the metrics cost a transaction: what the flow does for them with each batch, timed by itself.

`python -m benchmarks.metrics` prints µs of CPU time a transaction, the best of several runs each, in full and in
small batches.
"""

import time
from collections.abc import Callable, Sized

from dataflow.connectors.acknowledgements import Acknowledgements
from dataflow.events.decision import Decision, Verdict
from dataflow.events.labelled_alerts import LabelledAlerts
from dataflow.events.output_record import Record
from dataflow.events.transaction import Transaction
from dataflow.metrics import SCORES
from dataflow.process.health import goes_round
from dataflow.state.snapshot_times import SnapshotTimes

RUNS, TRANSACTIONS = 7, 200_000
ALERT_EVERY = 100  # transactions


class _Idle(Sized):
    """A producer all of whose records are acknowledged."""

    def __len__(self) -> int:
        return 0


def decisions(count: int) -> list[Decision]:
    """One of them in a hundred is an alert."""
    made = []
    for number in range(count):
        txn = Transaction(
            user=f"u{number}", amount=1.0, location="US", device="d", merchant="m", txn_type="t", timestamp="",
            transaction_id=f"t{number}",
        )  # fmt: skip
        verdict = Verdict(number % ALERT_EVERY == 0, [], number % 97 / 97, [], [], "r", "m")
        made.append(Decision(txn, verdict))
    return made


def best(work: Callable[[], None], size: int) -> float:
    """CPU time in µs a transaction of work on a batch of that size, the best of several runs."""
    taken = []
    for _ in range(RUNS):
        began = time.process_time()
        for _ in range(TRANSACTIONS // size):
            work()
        taken.append(time.process_time() - began)
    return min(taken) / TRANSACTIONS * 1e6


def costs(size: int) -> dict[str, float]:
    """µs a transaction of each part, in batches of that size."""
    batch = decisions(size)
    records = [Record("out", b"k", b"v", "in", 0, number, 1_700_000_000_000 + number) for number in range(size)]
    labelled, acknowledged = LabelledAlerts(), Acknowledgements(_Idle())
    snapshots = SnapshotTimes(recovery=True)

    def latency() -> None:
        acknowledged.handed_over(records)
        acknowledged.look()

    def worker() -> None:
        goes_round()
        snapshots.activated()

    return {
        "scores": best(lambda: SCORES.add([each.verdict.score for each in batch]), size),
        "alerts remembered for their labels": best(lambda: labelled.decided(batch), size),
        "end-to-end latency": best(latency, size),
        "turns of the worker": best(worker, size),
    }


def main() -> None:
    """Prints the table."""
    for size in (500, 50):
        found = costs(size)
        print(f"batches of {size}: {sum(found.values()):.2f} µs a transaction")
        for name, cost in found.items():
            print(f"  {cost:.3f}  {name}")


if __name__ == "__main__":
    main()
