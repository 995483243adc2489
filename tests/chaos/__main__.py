"""Chaos: the detection flow, killed in every way we know, against an uninterrupted run of the same transactions.

    python -m tests.chaos --seed 1 --kills 50 --broker-kills 10 --transactions 500000

On an Apache Kafka of its own and with real processes it feeds transactions of 10,000 users and labels of some, and
meanwhile kills the flow and the broker, freezes the broker, changes the rules, moves the model's operating point,
rescales, fills the disk, adds partitions, makes the input topic anew, and feeds what is too large for the outputs or
comes in Kafka transactions.
Then it compares what stands on the output topics, and in the recovery data, with a run of the same graph in this
process that nothing disturbed. It prints a table and one line of JSON, and exits with 1 unless nothing is lost,
doubled or different.

The seed fixes the transactions and the order of the disturbances; where in the flow's work they hit is up to timing.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.chaos.cluster import ROOT
from tests.chaos.comparison import Counts
from tests.chaos.disturbances import Chaos, StuckError
from tests.support.kafka_server import KafkaUnavailableError

TRAINING = ("--users", "300", "--days", "7", "--trees", "30", "--features", "amount,txn_per_hour",
            "--tiers", "isolation_forest")  # fmt: skip
"""A small model on facts of the user only: what merchants add depends on how partitions interleave."""


def train_model(path: Path) -> Path:
    """Trains it in a process of its own, as a user would."""
    # A directory that is kept may hold one of the last run.
    command = [sys.executable, "-m", "training.train", "--out", str(path), "--force", *TRAINING]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return path


def run(
    chaos: Chaos,
    *,
    transactions: int,
    kills: int,
    broker_kills: int,
    away: float,
    freezes: int,
    stops: int,
    growths: int = 1,
    anew: int = 1,
    moves: int = 1,
) -> Counts:
    """Every disturbance as often as asked for, in an order that the seed shuffles, with transactions all along.

    Raises:
        StuckError: flow or broker stood still.
    """
    both = broker_kills // 4
    actions: list[Callable[[], None]] = []
    actions += [chaos.kill_both] * both
    actions += [chaos.kill_broker] * (broker_kills - both - (1 if away else 0))
    actions += [lambda: chaos.kill_broker(away)] if away else []
    actions += [chaos.freeze_broker] * freezes
    actions += [chaos.stop] * stops
    actions += [chaos.move_threshold] * moves
    actions += [chaos.fill_disk, chaos.forbid_writing]
    actions += [chaos.feed_oversize] * 2 + [chaos.feed_in_transactions] * 3
    actions += [chaos.grow_outputs] * growths + [chaos.grow_source] * growths
    actions += [chaos.make_topic_anew] * anew
    rounds = max(kills * 2 // 3, 1)  # a round often kills both
    actions += [
        lambda number=number: chaos.kill(change_rules=number % 4 == 1, rescale=number % 4 == 3)  # type: ignore[misc]
        for number in range(rounds)
    ]
    chaos.rng.shuffle(actions)
    chunk = transactions // (len(actions) + 1)
    chaos.feeder.release(transactions - chunk * len(actions), 1.0)
    chaos.cluster.go_on(2)
    number = 0
    while actions or chaos.counts.kills < kills or chaos.counts.broker_kills < broker_kills:
        action = actions.pop(0) if actions else chaos.kill
        number += 1
        chaos.feeder.release(chunk if number <= transactions // max(chunk, 1) - 1 else 100, 2.0)
        name = getattr(action, "__name__", "").replace("<lambda>", "kill or away")
        chaos.say(f"{number}: {name}; {chaos.counts.kills} kills, {chaos.counts.broker_kills} of the broker")
        action()
    return chaos.finish()


def table(counts: Counts) -> Table:
    """The counts, to look at."""
    shown = Table(
        title=f"chaos, seed {counts.seed}: {'FAILED' if counts.failed() else 'nothing lost, doubled, different'}"
    )
    shown.add_column("what")
    shown.add_column("count", justify="right")
    for name, value in asdict(counts).items():
        if name != "seed":
            shown.add_row(
                name.replace("_", " "), ", ".join(value) or "nothing" if isinstance(value, list) else str(value)
            )
    return shown


def main() -> int:
    """One run, by its options; 0 if nothing was lost, doubled or different."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--transactions", type=int, default=500_000)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=50, help="of the flow, at least")
    parser.add_argument("--broker-kills", type=int, default=10, help="at least")
    parser.add_argument("--away", type=float, default=60.0, help="seconds that the broker once is away")
    parser.add_argument("--freezes", type=int, default=4, help="of the broker, with the flow killed meanwhile")
    parser.add_argument("--stops", type=int, default=4, help="of the flow, with SIGTERM")
    parser.add_argument("--growths", type=int, default=2, help="of the source's partitions, and of the outputs'")
    parser.add_argument("--anew", type=int, default=1, help="times that the input topic is deleted and made again")
    parser.add_argument("--moves", type=int, default=4, help="of the model's operating point")
    parser.add_argument(
        "--mutant", help="a flow that is broken on purpose, and must fail: see tests/support/mutants.py"
    )
    parser.add_argument("--keep", type=Path, help="keeps logs and recovery data in this directory")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that broker, flow and mount do not stay behind
    console = Console(stderr=True)
    began = time.monotonic()
    directory = options.keep or Path(tempfile.mkdtemp(prefix="redflag-chaos-"))
    directory.mkdir(parents=True, exist_ok=True)
    command = ("tests.support.mutants",) if options.mutant else ("dataflow.detect",)
    environ = {"REDFLAG_MUTANT": options.mutant} if options.mutant else {}
    try:
        model = train_model(directory / "model.pkl")
        with Chaos(
            directory,
            model,
            seed=options.seed,
            users=options.users,
            command=command,
            environ=environ,
            say=lambda line: console.print(f"{time.monotonic() - began:6.1f} s  {line}", markup=False, highlight=False),
        ) as chaos:
            counts = run(
                chaos,
                transactions=options.transactions,
                kills=options.kills,
                broker_kills=options.broker_kills,
                away=options.away,
                freezes=options.freezes,
                stops=options.stops,
                growths=options.growths,
                anew=options.anew,
                moves=options.moves,
            )
    except KafkaUnavailableError as error:
        print(f"redflag: chaos needs an Apache Kafka: {error}", file=sys.stderr)
        return 2
    except StuckError as error:
        print(f"chaos, seed {options.seed}: FAILED\n{error}", file=sys.stderr)
        return 1
    finally:
        if options.keep is None:
            shutil.rmtree(directory, ignore_errors=True)
    Console().print(table(counts))
    print(json.dumps(asdict(counts)))
    return int(counts.failed())


if __name__ == "__main__":
    sys.exit(main())
