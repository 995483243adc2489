"""Bytewax with its stock Kafka connectors and naive steps: a function an item, json, scoring in batches."""

import json
from typing import Any

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
from bytewax.dataflow import Dataflow

from benchmarks.jobs.checks import ALERTS, BROKERS, CLASSIFIED, SOURCE, Forest, check, decided

Checked = tuple[dict[str, Any], list[str], list[float]]


def update(state: dict[str, Any] | None, txn: dict[str, Any]) -> tuple[dict[str, Any], Checked]:
    state = {} if state is None else state
    reasons, row = check(txn, state)
    return state, (txn, reasons, row)


def serialise(decision: dict[str, Any]) -> KafkaSinkMessage[bytes, bytes]:
    return KafkaSinkMessage(decision["user"].encode(), json.dumps(decision).encode())


def flow() -> Dataflow:
    forest = Forest()

    def score(batch: list[tuple[str, Checked]]) -> list[dict[str, Any]]:
        anomalies = forest.anomalies([row for _, (_, _, row) in batch])
        return [decided(txn, reasons, bad) for (_, (txn, reasons, _)), bad in zip(batch, anomalies, strict=True)]

    graph = Dataflow("stock")
    messages = op.input("read", graph, KafkaSource([BROKERS], [SOURCE]))
    parsed = op.map("parse", messages, lambda message: json.loads(message.value))  # type: ignore[union-attr, arg-type]
    keyed = op.key_on("key", parsed, lambda txn: txn["user"])
    checked = op.stateful_map("check", keyed, update)
    decisions = op.flat_map_batch("score", checked, score)
    verdicts = op.branch("split", decisions, lambda decision: decision["fraudulent"])
    op.output("alerts", op.map("to_alerts", verdicts.trues, serialise), KafkaSink([BROKERS], ALERTS))
    op.output("classified", op.map("to_classified", verdicts.falses, serialise), KafkaSink([BROKERS], CLASSIFIED))
    return graph
