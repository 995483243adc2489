"""The detection flow's own graph: killed, rescaled, moved, and with profiles that are forgotten, it decides as if not.

Without Kafka; with it, and with all that can happen to a broker, `tests/chaos/test_chaos.py` does so.
"""

import functools
import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from bytewax.recovery import RecoveryConfig
from bytewax.testing import TestingSink, TestingSource, run_main
from confluent_kafka import Message

from dataflow import detect
from dataflow.rules import LiveRules
from dataflow.scoring.loading import load_model
from dataflow.settings import Settings
from dataflow.state import recovery
from dataflow.state.__main__ import main
from dataflow.state.crash_points import Point
from dataflow.state.lane import LanePace
from dataflow.state.lanes import stateful_map
from dataflow.state.parquet import read_lanes
from dataflow.state.store import Store
from dataflow.steps import Routed, written
from tests.chaos.comparison import LIMITS, MERCHANTS, RULES, USERS, Counts, compare_states, cooldowns, profiles
from tests.state import executions
from tests.state.executions import NO_CRASH, Crash
from tests.state.killed_detection import Job, expected, messages, points_passed, prepare, run
from tests.support.builders import DAY, HOUR, NOON, iso, message, raw

pytestmark = pytest.mark.slow

MAYBE = {Point.CLEANING}
"""Points that an execution may not come to: there is not always a file to clean."""


@pytest.fixture
def job(tmp_path: Path, model_file: Path) -> Job:
    made = Job(tmp_path, model_file, transactions=1500, users=120, seed=1)
    prepare(made)
    return made


def execute(
    job: Job, execution: int, crash: Crash = NO_CRASH, processes: int = 1, workers: int = 1
) -> list[int | None]:
    return executions.execute(run, job, execution, crash, processes, workers)


def check(job: Job) -> None:
    """The states, and every decision however often it was made, are those of an uninterrupted run."""
    outputs = expected(job)
    counts, told = Counts(job.seed), list[str]()
    compare_states(job.recovery, job.folder / "reference", counts, told.append)
    assert told == []
    assert not counts.failed(), counts
    # What is compared says something only where there is something to compare.
    assert min(counts.states, counts.merchants, counts.cooldowns) >= 10
    decided = set()
    for path in job.folder.glob("out.*"):
        for line in path.read_text().splitlines():
            partition, offset, topic, value = line.split(" ")
            place = int(partition), int(offset)
            expected_topic, _, expected_value, _ = outputs[place]
            assert (topic, bytes.fromhex(value)) == (expected_topic, expected_value or b""), f"{path.name}: {place}"
            decided.add(place)
    assert decided == set(outputs)


def finish(job: Job, execution: int, processes: int = 1) -> None:
    assert execute(job, execution, NO_CRASH, processes) == [0] * processes, executions.logs(job.folder)
    check(job)


@pytest.mark.parametrize("point", list(Point), ids=[point.name for point in Point])
def test_a_flow_that_is_killed_at_a_point_decides_as_if_it_had_not_been(job: Job, point: Point) -> None:
    killed = 0
    for execution, times in enumerate((2, 6)):  # how often it is reached
        (code,) = execute(job, execution, Crash(point, times, waits=True))
        assert code in (0, -signal.SIGKILL), executions.logs(job.folder)
        killed += code == -signal.SIGKILL
    assert killed or point in MAYBE
    finish(job, 9)


def test_one_two_and_three_processes_in_turn_decide_as_one_that_is_not_interrupted(job: Job) -> None:
    """The lanes stay eight, and more than one image is made of some."""
    for execution, (processes, times) in enumerate([(1, 60), (3, 40), (2, 60)]):
        codes = execute(job, execution, Crash(Point.TOKEN_PICKLED, times), processes)
        assert -signal.SIGKILL in codes, executions.logs(job.folder)
    finish(job, 9, 2)
    assert points_passed(job, Point.COMPACTION_KNOWN) > 1
    assert {lane for _, lane, _ in read_lanes(job.recovery)} == set(range(8))


@pytest.mark.parametrize("seed", range(4))
def test_flows_of_one_to_four_processes_survive_kills_anywhere(job: Job, seed: int) -> None:
    chance = random.Random(seed)
    job = job._replace(seed=seed)
    for execution in range(7):
        processes, workers = chance.choice([(1, 1), (1, 2), (2, 1), (3, 1), (2, 2), (4, 1)])
        # Before the input ends, wherever that point is.
        crash = Crash(chance.choice(list(Point)), chance.choice([1, 2, 5, 12, 30]), most=chance.randint(100, 400))
        codes = execute(job, execution, crash, processes, workers)
        assert set(codes) <= {0, -signal.SIGKILL, 1, None} or any(code and code < 0 for code in codes), executions.logs(
            job.folder
        )
    finish(job, 99, chance.choice([1, 2, 3]))


# ------------------------------------------------------------------------------------ in this process, on one worker

EACH_BATCH = LanePace(flush_seconds=0)
"""Profiles are tidied, and written, at each batch."""
BATCH = 20


def decide(directory: Path, given: Sequence[Message], model_file: Path, settings: Settings) -> dict[int, Any]:
    """What the flow decides of messages by their offsets; it goes on behind those that it read before."""
    recovery.prepare(directory, 1)
    store = Store.open(directory)
    out: list[Routed] = []
    rules = LiveRules(settings.rules_file, check_every=1e9)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(detect, "stateful_map", functools.partial(stateful_map, pace=EACH_BATCH))
        source = TestingSource(list(given), BATCH)
        flow = detect.build(source, TestingSink(out), load_model(model_file), rules, settings, store)
    run_main(flow, epoch_interval=timedelta(0), recovery_config=RecoveryConfig(str(directory)))
    store.close()
    return {each.offset: (each.topic, each.value) for each in written(out)}


def rows_of_users(directory: Path) -> dict[str, Any]:
    """The rows of all users in a recovery directory."""
    found = {}
    for _, _, tables in read_lanes(directory, (USERS,)):
        table = tables["profiles"]
        found.update({name: table.rows[row] for name, row in table.row_of.items()})
    return found


def numbered(*values: bytes) -> list[Message]:
    return [message(value, offset=offset) for offset, value in enumerate(values)]


def check_goes_on(
    folder: Path, given: list[Message], model_file: Path, settings: Settings, stops: Iterable[int]
) -> None:
    """A flow that stops at these places decides, and remembers, what one that is not interrupted does."""
    uninterrupted = decide(folder / "uninterrupted", given, model_file, settings)
    decided: dict[int, Any] = {}
    for stop in (*stops, len(given)):
        more = decide(folder / "stopped", given[:stop], model_file, settings)
        assert more
        assert not decided.keys() & more.keys()
        decided |= more
    assert decided == uninterrupted
    assert profiles(folder / "stopped") == profiles(folder / "uninterrupted")


@pytest.mark.parametrize("stop", [40, 80, 100])
def test_a_profile_that_was_idle_for_too_long_begins_anew_however_often_the_flow_stopped(
    tmp_path: Path, model_file: Path, stop: int
) -> None:
    settings = Settings(profile_age_days=31.0)
    idle = [raw(f"idle-{n}", at=NOON + n) for n in range(40)]
    others = [raw(f"other-{n}", at=NOON + 40 * DAY + n) for n in range(40)]  # some in each lane
    back = [raw(f"idle-{n}", at=NOON + 41 * DAY + n) for n in range(40)]
    given = numbered(*idle, *others, *back)
    check_goes_on(tmp_path, given, model_file, settings, [stop])
    assert {row["seen"] for row in rows_of_users(tmp_path / "stopped").values()} == {1.0}
    decide(tmp_path / "before", given[:80], model_file, settings)
    assert not [name for name in rows_of_users(tmp_path / "before") if name.startswith("idle")]
    decide(tmp_path / "control", given, model_file, Settings())
    assert rows_of_users(tmp_path / "control")["idle-3"]["seen"] == 2.0


def test_the_cap_meets_the_same_profiles_however_often_the_flow_stopped(tmp_path: Path, model_file: Path) -> None:
    settings = Settings(max_profiles=80)  # ten in each of eight lanes
    values = []
    for n in range(300):
        values.append(raw(f"user-{n}", at=NOON + n * HOUR))
        values.append(raw("regular", at=NOON + n * HOUR, amount=20.0 + n % 7))
    check_goes_on(tmp_path, numbered(*values), model_file, settings, [200, 220, 440])
    found = rows_of_users(tmp_path / "stopped")
    assert 60 < len(found) <= 80 + BATCH
    assert "user-0" not in found
    assert "user-299" in found
    assert found["regular"]["seen"] == 300.0


def test_an_export_goes_on_in_another_number_of_lanes_with_the_same_decisions(
    tmp_path: Path, model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is remembered of alerts, for the cooldowns of rules, comes along; from an older export it begins empty."""
    rules_file = tmp_path / "rules.toml"
    rules_file.write_text(RULES.format(limit=LIMITS[0]))
    settings = Settings(rules_file=rules_file)
    by_partition = messages(Job(tmp_path, model_file, transactions=900, users=100, seed=3))
    given = [
        message(each.value(), key=each.key(), offset=offset, topic=each.topic())
        for offset, each in enumerate(sorted(chain(*by_partition.values()), key=lambda each: each.offset()))
    ]
    uninterrupted = decide(tmp_path / "uninterrupted", given, model_file, settings)
    half = len(given) // 2
    decided = decide(tmp_path / "old", given[:half], model_file, settings)
    old, files, new = (str(tmp_path / name) for name in ("old", "files", "new"))
    assert main(["export", old, files]) == 0
    assert main(["import", files, new, old, "--lanes", "3"]) == 0
    said = capsys.readouterr().out
    users = len(rows_of_users(tmp_path / "old"))
    assert f"{USERS}: {users} keys written" in said
    assert f"{USERS}: {users} keys read" in said
    assert "left out" not in said
    assert profiles(tmp_path / "new") == profiles(tmp_path / "old")
    assert len(cooldowns(tmp_path / "old")) >= 5
    assert cooldowns(tmp_path / "new") == cooldowns(tmp_path / "old")
    decided |= decide(tmp_path / "new", given[half:], model_file, settings)
    assert decided == uninterrupted
    assert profiles(tmp_path / "new") == profiles(tmp_path / "uninterrupted")
    assert cooldowns(tmp_path / "new") == cooldowns(tmp_path / "uninterrupted")
    assert {lane for _, lane, _ in read_lanes(tmp_path / "new")} == {0, 1, 2}

    for table in ("recent_alerts", "rules"):
        (tmp_path / "files" / f"suppress_repeats.{table}.parquet").unlink()
    assert main(["import", files, str(tmp_path / "older"), "--lanes", "3"]) == 0
    assert "suppress_repeats: there is no file of it: it begins empty" in capsys.readouterr().out
    (tmp_path / "files" / f"{USERS}.profiles.parquet").unlink()
    assert main(["import", files, str(tmp_path / "none"), "--lanes", "3"]) == 2


def test_show_and_user_say_in_words_what_is_kept(tmp_path: Path, model_file: Path) -> None:
    story_of_one = [*(raw("ann", at=NOON + n, amount=20.0 + n, transaction_id=f"{n}") for n in range(12))]
    fraud = raw("ann", at=NOON + HOUR, amount=4000.0, location="FR", merchant="XYZ_Merchant", transaction_id="big")
    given = numbered(*story_of_one, fraud)
    told = {
        "transaction_id": "big", "user": "ann", "merchant": "XYZ_Merchant", "timestamp": iso(NOON + HOUR),
        "fraud": True, "labelled_at": iso(NOON + DAY),
    }  # fmt: skip
    given.append(message(json.dumps(told).encode(), offset=len(given), topic=Settings().feedback_topic))
    decide(tmp_path / "r", given, model_file, Settings())

    def say(*arguments: str) -> str:
        command = [sys.executable, "-m", "dataflow.state", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    shown = say("show", str(tmp_path / "r"))
    of_lane = [line.split() for line in shown.splitlines() if line.startswith((USERS, MERCHANTS))]
    assert sum(int(fields[2]) for fields in of_lane) == 3  # Ann and two merchants
    ann = say("user", str(tmp_path / "r"), "ann")
    assert ann.startswith(f"{USERS}, lane ")
    for line in ("last at: 2026-03-02T13:00:00.000Z", "last location: FR", "locations: US", "seen: 13", "frauds: 1"):
        assert line in ann
    assert "labelled, in labelled:" in ann
    assert "labelled at: 2026-03-03T12:00:00.000Z" in ann
    assert "merchant: XYZ_Merchant" in ann
    merchant = say("user", str(tmp_path / "r"), "XYZ_Merchant")
    assert merchant.startswith(f"{MERCHANTS}, lane ")
