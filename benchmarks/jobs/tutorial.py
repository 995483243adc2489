"""The tutorial's loop: one message, one pandas DataFrame, one `predict`."""

import io
import json
import os
from pathlib import Path

import joblib
import pandas as pd
from confluent_kafka import Consumer, Producer

from benchmarks.jobs.checks import BROKERS, GROUP, SOURCE, check, decided, topic_of


def main() -> None:
    forest = joblib.load(io.BytesIO(Path(os.environ["MODEL_FILE"]).read_bytes()))
    consumer = Consumer({"bootstrap.servers": BROKERS, "group.id": GROUP, "auto.offset.reset": "earliest"})
    consumer.subscribe([SOURCE])
    producer = Producer({"bootstrap.servers": BROKERS})
    states: dict[str, dict[str, object]] = {}
    while True:
        message = consumer.poll(1.0)
        if message is None or message.error() is not None:
            continue
        txn = json.loads(message.value())
        reasons, row = check(txn, states.setdefault(txn["user"], {}))
        frame = pd.DataFrame([row], columns=["amount", "txn_per_hour"])
        decision = decided(txn, reasons, forest.predict(frame.to_numpy(dtype="float32"))[0] == -1)
        producer.produce(topic_of(decision), json.dumps(decision).encode(), key=txn["user"])
        producer.poll(0)


main()
