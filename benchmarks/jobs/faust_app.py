"""Faust (faust-streaming): the same checks in an agent, state in a dict of the process, ONNX a row at a time."""

from typing import Any

import faust

from benchmarks.jobs.checks import ALERTS, BROKERS, CLASSIFIED, GROUP, SOURCE, Forest, check, decided

app = faust.App(
    GROUP, broker=f"kafka://{BROKERS}", value_serializer="json", topic_disable_leader=True, web_enabled=False
)
source, alerts, classified = app.topic(SOURCE), app.topic(ALERTS), app.topic(CLASSIFIED)
forest = Forest()
states: dict[str, dict[str, Any]] = {}


@app.agent(source)
async def decide(stream: Any) -> None:
    async for txn in stream:
        reasons, row = check(txn, states.setdefault(txn["user"], {}))
        decision = decided(txn, reasons, forest.anomalies([row])[0])
        await (alerts if decision["fraudulent"] else classified).send(key=txn["user"], value=decision)


if __name__ == "__main__":
    app.main()
