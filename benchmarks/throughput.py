"""`make bench`: transactions a second and CPU of ours, of peers, of the tutorial's loop and of the limit, in one run.

Each run has topics of its own; see `run_through` for what is timed. Rounds alternate between the rows; the first is a
warm-up.
"""

import argparse
import json
import statistics
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.kafka_streams import build as kafka_streams
from benchmarks.kafka_streams import forest
from benchmarks.onnx_forest import write_forest
from benchmarks.stage import (
    PEERS,
    RESULTS,
    TWO_FEATURES,
    Job,
    add_model_option,
    default_model,
    machine,
    run_through,
    train,
    transactions,
)
from dataflow.settings import TUTORIAL_RULES, Settings
from tests.support.kafka_server import KafkaServer, KafkaUnavailableError, free_ports

TUTORIAL_SHARE = 200  # the tutorial's loop gets one transaction in so many
SLOW_SHARE = 10  # of peers that score a row at a time
JVM_WARM_UP = 1_000_000  # transactions until the JVM has compiled what it will
# Rows whose transactions a second, and whose CPU, the others' are divided by.
BASES = ("tutorial", "stock_bytewax", "quix", "kafka_streams_two", "limit_defaults", "limit")
CPU_BASES = ("stock_bytewax", "kafka_streams_two")


class Row(NamedTuple):
    name: str
    title: str
    share: int  # one in so many of the transactions
    start: Callable[[Job], None]
    model: str = "two"
    warm_up: int = 0  # transactions before the clock starts; 0: a short prelude
    prepare: Callable[[], object] | None = None  # once, before all rounds; raises KafkaUnavailableError


def _module(name: str, *options: str, python: str = sys.executable) -> Callable[[Job], None]:
    return lambda job: job.start(python, "-m", f"benchmarks.jobs.{name}", *options)


def _detect(job: Job) -> None:
    job.start(sys.executable, "-m", "dataflow.detect")


def _detect_twice(job: Job) -> None:
    addresses = ";".join(f"127.0.0.1:{port}" for port in free_ports(2))
    for number in "01":
        job.start(sys.executable, "-m", "dataflow.detect", "-i", number, "-a", addresses)


def _stock(job: Job) -> None:
    job.start(sys.executable, "-m", "bytewax.run", "benchmarks.jobs.stock_bytewax:flow")


def _faust(job: Job) -> None:
    job.start(str(PEERS), "-m", "benchmarks.jobs.faust_app", "worker", "--loglevel", "warn", "--without-web")


def _kafka_streams(threads: int) -> Callable[[Job], None]:
    return lambda job: kafka_streams.start(job, threads)


RULES = {"two": TUTORIAL_RULES, "default": Settings().rules_file}
"""By model: like for like are the tutorial's four checks, which are what the others do."""

ON_JVM: dict[str, Any] = {"warm_up": JVM_WARM_UP, "prepare": kafka_streams.build}

ROWS = (
    Row("tutorial", "tutorial's loop: a message, a DataFrame, a predict", TUTORIAL_SHARE, _module("tutorial")),
    Row("stock_bytewax", "Bytewax, stock connectors, naive steps", 1, _stock),
    Row("quix", "Quix Streams", 1, _module("quix", python=str(PEERS))),
    Row("faust", "Faust (faust-streaming)", SLOW_SHARE, _faust),
    Row("kafka_streams_one", "Kafka Streams, exactly once, one thread", 1, _kafka_streams(1), **ON_JVM),
    Row("kafka_streams_two", "Kafka Streams, exactly once, two threads", 1, _kafka_streams(2), **ON_JVM),
    Row("ours_like_for_like", "ours, like for like: the tutorial's checks", 1, _detect),
    Row("ours_everything", "ours, everything on", 1, _detect, "default"),
    Row("ours_two_processes", "ours, everything on, two processes", 1, _detect_twice, "default"),
    Row("limit_promises", "consume → produce, idempotent and with our headers", 1, _module("limit", "promises")),
    Row("limit_defaults", "consume → produce, the client's default pauses", 1, _module("limit", "defaults")),
    Row("limit", "consume → produce, nothing between (the limit)", 1, _module("limit")),
)


def measure(count: int, rounds: int, rows: list[Row], given: Path | None, scratch: Path) -> list[dict[str, Any]]:
    console = Console(stderr=True)
    models = {"two": train(scratch / "two.pkl", *TWO_FEATURES)}
    if any(row.model == "default" for row in rows):
        models["default"] = default_model(given, scratch)
    write_forest(models["two"], scratch / "forest.onnx")
    forest.write(models["two"], scratch / "forest.json")
    found: dict[str, list[tuple[float, float]]] = {row.name: [] for row in rows}
    failed = _prepare(rows)
    run = [row for row in rows if row.name not in failed]
    for name, why in failed.items():
        console.print(f"{name}: skipped: {why}", markup=False)
    # All rows are timed on the same transactions: those that follow the longest warm-up.
    before = max((row.warm_up for row in run), default=0)
    messages = transactions(before + count)
    earlier, messages = messages[:before], messages[before:]
    with KafkaServer(lasting=True) as kafka:
        for number in range(rounds + 1):
            for row in run:
                name = f"{row.name}-{uuid.uuid4().hex[:6]}"
                environment = {
                    "MODEL_FILE": str(models[row.model]), "BENCH_FOREST": str(scratch / "forest.onnx"),
                    "BENCH_FOREST_JSON": str(scratch / "forest.json"),
                    "BENCH_GROUP": name, "RECOVERY_INTERVAL": "10",
                    "RULES_FILE": str(RULES[row.model]),
                }  # fmt: skip
                job = Job(kafka.bootstrap, name, scratch, environment)
                try:
                    row.start(job)
                    warm_up = earlier[before - row.warm_up :]
                    part = messages[: len(messages) // row.share]
                    pace, cpu = run_through(job, part, 180 + row.warm_up / 2500, warm_up)
                except RuntimeError as error:
                    failed[row.name] = str(error)
                    console.print(f"{row.name}: {error}", markup=False)
                    continue
                finally:
                    job.stop()
                console.print(f"round {number}: {row.name} {1 / pace:,.0f}/s, {cpu * 1e6:.1f} CPU-s a million")
                if number:
                    found[row.name].append((1 / pace, cpu * 1e6))
    return [
        _summary(row, len(messages) // row.share, found[row.name], None if found[row.name] else failed.get(row.name))
        for row in rows
    ]


def _prepare(rows: list[Row]) -> dict[str, str]:
    """Builds what rows need, and says of each that cannot be run here why."""
    missing = {}
    for row in rows:
        try:
            if row.prepare:
                row.prepare()
        except KafkaUnavailableError as error:
            missing[row.name] = str(error)
    return missing


def _summary(row: Row, count: int, runs: list[tuple[float, float]], failed: str | None) -> dict[str, Any]:
    result: dict[str, Any] = {"row": row.name, "title": row.title, "transactions": count, "rounds": len(runs)}
    if runs:
        rates, cpus = [rate for rate, _ in runs], [cpu for _, cpu in runs]
        result |= {
            "per_second": statistics.median(rates), "per_second_min": min(rates), "per_second_max": max(rates),
            "cpu_seconds_per_million": statistics.median(cpus), "cpu_min": min(cpus), "cpu_max": max(cpus),
        }  # fmt: skip
    return result | ({"failed": failed} if failed else {})


def add_ratios(results: list[dict[str, Any]]) -> None:
    rates = {result["row"]: result.get("per_second") for result in results}
    cpus = {result["row"]: result.get("cpu_seconds_per_million") for result in results}
    for result in results:
        for base in CPU_BASES:
            if result.get("cpu_seconds_per_million") and cpus.get(base):
                result[f"cpu_to_{base}"] = result["cpu_seconds_per_million"] / cpus[base]
        for base in BASES:
            if result.get("per_second") and rates.get(base):
                result[f"to_{base}"] = result["per_second"] / rates[base]


def show(results: list[dict[str, Any]]) -> None:
    table = Table(
        "row",
        "transactions/s",
        "min to max",
        "CPU-s a million",
        *(f"÷ {base}" for base in BASES),
        *(f"CPU ÷ {base}" for base in CPU_BASES),
    )
    for each in results:
        if "per_second" not in each:
            table.add_row(each["title"], "not run")
            continue
        spread = f"{each['per_second_min']:,.0f} to {each['per_second_max']:,.0f}"
        columns = [*(f"to_{base}" for base in BASES), *(f"cpu_to_{base}" for base in CPU_BASES)]
        ratios = [f"{each[name]:.3g}" if name in each else "" for name in columns]
        cpu = f"{each['cpu_seconds_per_million']:.1f}"
        table.add_row(each["title"], f"{each['per_second']:,.0f}", spread, cpu, *ratios)
    Console(width=220).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300_000, help="transactions (default 300,000)")
    parser.add_argument("--rounds", type=int, default=5, help="after a warm-up (default 5)")
    parser.add_argument("--rows", default="", help="names with commas between; default all")
    parser.add_argument("--out", type=Path, default=RESULTS / "throughput.jsonl")
    add_model_option(parser)
    arguments = parser.parse_args()
    rows = [row for row in ROWS if not arguments.rows or row.name in arguments.rows.split(",")]
    where = machine()
    with tempfile.TemporaryDirectory(prefix="redflag-bench-") as scratch:
        results = measure(arguments.count, arguments.rounds, rows, arguments.model, Path(scratch))
    add_ratios(results)
    show(results)
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text("".join(json.dumps(line) + "\n" for line in [{"machine": where}, *results]))


if __name__ == "__main__":
    main()
