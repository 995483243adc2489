"""Partitions that are added while the flow runs are noticed, and so is a topic that was made anew."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataflow.connectors import topic_changes
from dataflow.connectors.kafka_clients import TopicIdentity
from dataflow.connectors.topic_changes import TopicChanges
from dataflow.errors import UserError
from dataflow.metrics import PARTITIONS_ADDED
from dataflow.process import lifecycle
from dataflow.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    found: list[int] = []
    monkeypatch.setattr(topic_changes.lifecycle, "end_with", lambda status, _seconds: found.append(status))
    yield found


def test_added_partitions_end_the_flow_with_a_status_of_their_own(
    ended: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    changes = TopicChanges(Settings())
    changes.counted({"transactions": 8})  # the flow has not begun
    changes.began({"transactions": 4})
    changes.counted({"transactions": 4, "fraud_alerts": 9})
    changes.counted({})  # the broker cannot tell just now
    assert ended == []
    with caplog.at_level(logging.INFO):
        changes.counted({"transactions": 8})
        changes.counted({"transactions": 8})
    assert ended == [lifecycle.TOPICS_CHANGED]
    (line,) = caplog.messages
    assert "transactions had 4 and has 8" in line
    assert "status 3" in line
    assert PARTITIONS_ADDED.labels("transactions")._value.get() == 4


def test_a_topic_made_anew_while_the_flow_runs_ends_it() -> None:
    changes = TopicChanges(Settings())
    changes.identified({"transactions": TopicIdentity("c", "one"), "fraud_alerts": TopicIdentity("c", "two")})
    changes.identified({"transactions": TopicIdentity("c", "one")})
    with pytest.raises(UserError, match=r"'fraud_alerts' was made anew while the flow ran .*--accept-gap"):
        changes.identified({"fraud_alerts": TopicIdentity("c", "three")})


@pytest.mark.parametrize("stuck", [False, True])
def test_the_process_ends_with_that_status_whether_it_stops_in_time_or_not(stuck: bool) -> None:
    code = (
        "import sys, time\nfrom dataflow.process import lifecycle\n"
        "lifecycle.end_with(3, 0.5)\nassert lifecycle.stopping()\n"
        f"time.sleep({30 if stuck else 0})\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": "."}, timeout=20, check=False)
    assert done.returncode == 3
