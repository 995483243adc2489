"""Quix Streams: the same checks with its keyed state, with its defaults (at-least-once, changelog), a row at a time."""

import os
from typing import Any

from quixstreams import Application, State

from benchmarks.jobs.checks import ALERTS, BROKERS, CLASSIFIED, GROUP, SOURCE, Forest, check, decided


def main() -> None:
    app = Application(
        broker_address=BROKERS, consumer_group=GROUP, auto_offset_reset="earliest", loglevel="WARNING",
        state_dir=os.environ["BENCH_SCRATCH"],
    )  # fmt: skip
    forest = Forest()
    alerts, classified = app.topic(ALERTS), app.topic(CLASSIFIED)

    def decide(txn: dict[str, Any], state: State) -> dict[str, Any]:
        known = state.get("known", {})
        reasons, row = check(txn, known)
        state.set("known", known)
        return decided(txn, reasons, forest.anomalies([row])[0])

    decisions = app.dataframe(app.topic(SOURCE)).apply(decide, stateful=True)
    decisions.filter(lambda decision: decision["fraudulent"]).to_topic(alerts)
    decisions.filter(lambda decision: not decision["fraudulent"]).to_topic(classified)
    app.run()


main()
