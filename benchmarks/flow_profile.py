"""`make profile`: where a transaction's microseconds go, step by step, in one process without Kafka.

Each step of `dataflow.detect` is timed over whole batches of `MAX_BATCH`, CPU time of its thread (half of the rows are
scored on another), the median over all batches. Then the whole graph runs in Bytewax, from memory to nowhere: CPU time
of the process, the median of several runs. What the client and the recovery store take is the rest of that of `make
bench`.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from bytewax.testing import run_main
from confluent_kafka import Message
from rich.console import Console
from rich.table import Table

from benchmarks.stage import PARTITIONS, TWO_FEATURES, train, transactions
from dataflow.detect import build
from dataflow.events.output_record import Record, partition_key, source_key
from dataflow.events.transaction import Transaction
from dataflow.kernels import warm_up
from dataflow.process.lifecycle import tune_gc
from dataflow.profile_steps import ProfileLimits, ProfileSteps
from dataflow.profiles.profiles import MERCHANT_LAYOUT, USER_LAYOUT
from dataflow.rules import LiveRules
from dataflow.scoring.loading import load_model
from dataflow.settings import TUTORIAL_RULES, Settings
from dataflow.state.lane import LaneState
from dataflow.state.store import Store
from dataflow.steps import Steps, dead_letter, is_fraudulent
from dataflow.tables.table import Layout, Tables, new_tables
from tests.support.builders import message

BATCH = Settings().max_batch
RUNS = 5  # of the whole graph, after a warm-up
SMALL_BATCHES = 1000  # of each partition at most, where the size of batches is compared: small ones take ms each


def in_lanes(make_lane: Callable[[Tables], LaneState], layout: Layout, lanes: int) -> Callable[[Any], Any]:
    """A step with lanes over a batch's parts."""
    states = [make_lane(new_tables(layout)) for _ in range(lanes)]
    return lambda parts: [(name, states[part.lane].take(part)) for name, part in parts]


class Part(StatefulSourcePartition[Message, int]):
    """Hands out so many messages of each partition at once, as `KafkaSource` does with what has come for a worker."""

    def __init__(self, partitions: Sequence[Sequence[Message]], batch: int):
        self._partitions = partitions
        self._batch = batch
        self._next = 0

    def next_batch(self) -> Sequence[Message]:
        batch = [m for part in self._partitions for m in part[self._next : self._next + self._batch]]
        if not batch:
            raise StopIteration
        self._next += self._batch
        return batch

    def snapshot(self) -> int:
        return self._next


class Memory(FixedPartitionedSource[Message, int]):
    def __init__(self, partitions: Sequence[Sequence[Message]], batch: int):
        self._batch = batch
        self._partitions = partitions
        self.begun = 0.0

    def list_parts(self) -> list[str]:
        return [partition_key(0)]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> Part:
        self.begun = time.process_time()
        return Part(self._partitions, self._batch)


class NowherePart(StatefulSinkPartition[list[Record], int]):
    def __init__(self, sink: "Nowhere"):
        self._sink = sink

    def write_batch(self, values: list[list[Record]]) -> None:
        self._sink.written += sum(map(len, values))

    def snapshot(self) -> int:
        return 0


class Nowhere(FixedPartitionedSink[list[Record], int]):
    def __init__(self) -> None:
        self.written = 0

    def list_parts(self) -> list[str]:
        return [source_key(Settings().transactions_topic, number) for number in range(PARTITIONS)]

    def part_fn(self, item_key: str) -> int:
        return int(item_key.rpartition("-")[2])

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> NowherePart:
        return NowherePart(self)


def in_bytewax(
    sent: Sequence[tuple[bytes, bytes]], model: Path, rules_file: Path, batch: int = BATCH, runs: int = RUNS
) -> float:
    """µs of CPU time a transaction that the whole graph takes, without Kafka and without recovery.

    `batch`: of each of the partitions at a time, at most; `runs`: after a warm-up, of which the median counts.
    """
    settings = Settings(rules_file=rules_file)
    scorer, rules = load_model(model), LiveRules(rules_file, check_every=1.0)
    now = int(time.time() * 1000)
    partitions: list[list[Message]] = [[] for _ in range(PARTITIONS)]
    for key, value in sent:
        number = sum(key) % PARTITIONS
        offset = len(partitions[number])
        partitions[number].append(
            Message(topic="t", partition=number, offset=offset, key=key, value=value, timestamp=(1, now))
        )
    taken = []
    for _ in range(runs + 1):
        source, sink = Memory(partitions, batch), Nowhere()
        run_main(build(source, sink, scorer, rules, settings))
        taken.append((time.process_time() - source.begun) / len(sent) * 1e6)
        if sink.written != len(sent):
            msg = f"{sink.written} of {len(sent)} were decided"
            raise RuntimeError(msg)
    return statistics.median(taken[1:])


def by_batch(sizes: Sequence[int], count: int, model: Path) -> None:
    """Shows what the whole graph, everything on, takes by how large its batches are: the median of runs in turns."""
    warm_up()
    tune_gc()
    sent, rules_file = transactions(count), Settings().rules_file
    taken: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(RUNS):
        for size, found in taken.items():
            found.append(in_bytewax(sent[: size * SMALL_BATCHES * PARTITIONS], model, rules_file, size, runs=1))
    table = Table("of each partition", "µs a transaction", "lowest to highest", "ms for one batch of each")
    for size, found in taken.items():
        median = statistics.median(found)
        spread = f"{min(found):.1f} to {max(found):.1f}"
        table.add_row(f"{size:,}", f"{median:.1f}", spread, f"{median * size * PARTITIONS / 1000:.2f}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flow_profile", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--model", type=Path, default=Path("fraud_model.pkl"))
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        metavar="N",
        help="instead: the whole graph by so many of each partition at once",
    )
    arguments = parser.parse_args()
    if arguments.batches:
        by_batch(arguments.batches, arguments.count, arguments.model)
        return
    settings = Settings()
    rules = LiveRules(settings.rules_file, check_every=1.0)
    model, store = load_model(arguments.model), Store.open(None)
    limits = ProfileLimits(settings.profile_age_days, settings.max_profiles)
    profiles = ProfileSteps(store.names, model.amount_prior, limits, dead_letter)
    steps = Steps(model, rules, settings, profiles)
    sent = transactions(arguments.count)
    messages = [message(value, offset=n) for n, (_, value) in enumerate(sent)]
    stages: list[tuple[str, Callable[[Any], Any]]] = [
        ("parse", lambda batch: [t for t in steps.parse(batch) if type(t) is Transaction]),
        ("key by user: columns", profiles.key_by_user),
        ("user's profile", in_lanes(profiles.users, USER_LAYOUT, store.lanes)),
        ("key by merchant", profiles.key_by_merchant),
        ("merchant's profile", in_lanes(profiles.merchants, MERCHANT_LAYOUT, store.lanes)),
        ("score", lambda parts: steps.score(profiles.learned(parts)[0])),
        ("check rules", steps.check),
        ("branch", lambda batch: [d for d in batch if is_fraudulent(d) or True]),
        ("route: splice, record", steps.to_classified),
    ]
    tune_gc()
    taken: dict[str, list[float]] = {name: [] for name, _ in stages}
    for begin in range(0, len(messages), BATCH):
        batch: Any = messages[begin : begin + BATCH]
        for name, stage in stages:
            before = time.thread_time()
            batch = stage(batch)
            taken[name].append((time.thread_time() - before) / BATCH * 1e6)
    medians = {name: statistics.median(values[len(values) // 5 :]) for name, values in taken.items()}
    total = sum(medians.values())
    table = Table("step", "µs a transaction", "share")
    for name, value in medians.items():
        table.add_row(name, f"{value:.2f}", f"{value / total:.0%}")
    table.add_row("together", f"{total:.2f}", "100%")
    with tempfile.TemporaryDirectory(prefix="redflag-profile-") as scratch:
        two = train(Path(scratch, "two.pkl"), *TWO_FEATURES)
        table.add_section()
        everything = in_bytewax(sent, arguments.model, settings.rules_file)
        table.add_row("the graph in Bytewax, everything on", f"{everything:.2f}", "")
        table.add_row("the graph in Bytewax, like for like", f"{in_bytewax(sent, two, TUTORIAL_RULES):.2f}", "")
    Console().print(table)


if __name__ == "__main__":
    main()
