"""Whether Kafka Streams decides as we do: the same transactions through both, on an Apache Kafka of their own.

    python -m benchmarks.kafka_streams.compare --count 5000

Prints each transaction that is decided otherwise: another topic, verdict or reason, or a score that is off by more
than one in the sixth digit (our trees add up in float32, theirs in float64).
"""

import argparse
import json
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import stage
from benchmarks.kafka_streams import build, forest
from dataflow.settings import TUTORIAL_RULES, Settings
from tests.support.kafka_server import KafkaServer
from tests.support.reading import read_all

SCORE_DIGIT = 1e-6


class Decision(NamedTuple):
    topic: str  # "alerts" or "classified"
    fraudulent: bool
    reasons: list[str]
    score: float


class Decided(NamedTuple):
    """What a job wrote."""

    decisions: dict[str, Decision]  # by transaction_id; of those without one, where it stands in the source
    invalid: Counter[bytes | None]  # messages that are no transaction


def decide(job: stage.Job, messages: Sequence[tuple[bytes, bytes]], count: stage.Count, timeout_s: float) -> Decided:
    """Has the job, which has been started, decide the messages, and reads what it wrote."""
    stage.produce(job.bootstrap, job.source, messages)
    deadline = time.monotonic() + timeout_s
    while (done := count()) < len(messages):
        job.check()
        if time.monotonic() > deadline:
            msg = f"{done} of {len(messages)} after {timeout_s:g} s: {job.log_tail()}"
            raise RuntimeError(msg)
        time.sleep(0.1)
    settings = Settings(brokers=job.bootstrap)
    decisions: dict[str, Decision] = {}
    for topic in ("alerts", "classified"):
        for message in read_all(settings, [job.environment[f"{topic.upper()}_TOPIC"]]):
            found = json.loads(message.value())
            name = found["transaction_id"].removeprefix(job.source)
            if name in decisions:
                msg = f"{name} was decided twice"
                raise RuntimeError(msg)
            decisions[name] = Decision(topic, found["fraudulent"], found["reason"], found["score"])
    invalid = Counter(message.value() for message in read_all(settings, [job.environment["INVALID_TOPIC"]]))
    return Decided(decisions, invalid)


def both(
    bootstrap: str, model: Path, messages: Sequence[tuple[bytes, bytes]], scratch: Path, threads: int = 2
) -> tuple[Decided, Decided]:
    """What we decide on the messages, and what Kafka Streams does; `model` is of the Isolation Forest alone.

    Raises:
        KafkaUnavailableError: Kafka Streams cannot be built or run here.
        RuntimeError: one of the two ended, or did not decide all within two minutes.
    """
    forest.write(model, scratch / "forest.json")
    name = uuid.uuid4().hex[:6]
    decided = []
    for who in ("ours", "kafka-streams"):
        environment = {
            "MODEL_FILE": str(model), "RULES_FILE": str(TUTORIAL_RULES), "BENCH_GROUP": f"{who}-{name}",
            "BENCH_FOREST_JSON": str(scratch / "forest.json"),
        }  # fmt: skip
        job = stage.Job(bootstrap, f"{who}-{name}", scratch, environment)
        try:
            if who == "ours":
                job.start(sys.executable, "-m", "dataflow.detect")
                count: stage.Count = stage.Counter(bootstrap, [*job.topics, job.environment["INVALID_TOPIC"]])
            else:
                build.start(job, threads)
                count = job.count
            decided.append(decide(job, messages, count, timeout_s=120))
        finally:
            job.stop()
    return decided[0], decided[1]


def differences(ours: Decided, theirs: Decided) -> Iterable[str]:
    """A line for each transaction that is not decided the same."""
    for name in sorted(ours.decisions.keys() | theirs.decisions.keys()):
        mine, other = ours.decisions.get(name), theirs.decisions.get(name)
        if not _same(mine, other):
            yield f"{name}: ours {mine}, theirs {other}"
    for message in ours.invalid.keys() | theirs.invalid.keys():
        if ours.invalid[message] != theirs.invalid[message]:
            yield f"invalid, ours {ours.invalid[message]} times, theirs {theirs.invalid[message]} times: {message!r}"


def _same(mine: Decision | None, other: Decision | None) -> bool:
    if mine is None or other is None:
        return mine is other
    return mine[:3] == other[:3] and abs(mine.score - other.score) < 1.5 * SCORE_DIGIT


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kafka_streams.compare", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--count", type=int, default=5000, help="transactions (default 5,000)")
    parser.add_argument("--threads", type=int, default=2, help="of Kafka Streams (default 2)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="redflag-bench-") as name, KafkaServer() as kafka:
        scratch = Path(name)
        model = stage.train(scratch / "two.pkl", *stage.TWO_FEATURES)
        # Few users, so that many have several transactions within an hour.
        messages = stage.transactions(arguments.count, users=max(1, arguments.count // 100))
        ours, theirs = both(kafka.bootstrap, model, messages, scratch, arguments.threads)
    found = list(differences(ours, theirs))
    for line in found[:20]:
        print(line)
    alerts = sum(decision.fraudulent for decision in ours.decisions.values())
    reasons = Counter(reason.split()[0] for decision in ours.decisions.values() for reason in decision.reasons)
    print(f"{len(ours.decisions):,} transactions, {alerts:,} alerts ({dict(reasons)}): {len(found)} decided otherwise")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
