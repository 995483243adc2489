"""The detection flow's own graph: killed, rescaled, moved, and with profiles that are forgotten, it decides as if not.

Without Kafka; with it, and with all that can happen to a broker, `tests/test_chaos.py` does so.
"""

import random
import signal
from pathlib import Path

import pytest

from dataflow.state.crash_points import Point
from tests.chaos.comparison import Counts, compare_states
from tests.state import executions
from tests.state.executions import NO_CRASH, Crash
from tests.state.killed_detection import Job, expected, points_passed, prepare, run

MAYBE = {Point.CLEANING}
"""Points that an execution may not come to: there is not always a file to clean."""
QUICK = {Point.AFTER_APPEND, Point.TOKEN_PICKLED, Point.OLD_IMAGE_REMOVED}
"""Points at which a flow is killed in the quick tests, too."""


@pytest.fixture
def job(tmp_path: Path, model_file: Path) -> Job:
    made = Job(tmp_path, model_file, transactions=2500, users=150, seed=1)
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


def marked(point: Point) -> object:
    return pytest.param(point, marks=() if point in QUICK else pytest.mark.slow, id=point.name)


@pytest.mark.parametrize("point", [marked(point) for point in Point])
def test_a_flow_that_is_killed_at_a_point_decides_as_if_it_had_not_been(job: Job, point: Point) -> None:
    killed = 0
    for execution, times in enumerate((2, 6)):
        (code,) = execute(job, execution, Crash(point, times))
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
    assert points_passed(job, Point.COMPACTION_KNOWN) > 16  # two steps with eight lanes
    images = [path.name.rsplit(".", 2)[0] for path in (job.recovery / "state").glob("*.image")]
    assert len(images) == len(set(images)) == 16


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_flows_of_one_to_three_processes_survive_kills_anywhere(job: Job, seed: int) -> None:
    chance = random.Random(seed)
    job = job._replace(seed=seed)
    for execution in range(7):
        processes, workers = chance.choice([(1, 1), (1, 2), (2, 1), (3, 1), (2, 2)])
        crash = Crash(chance.choice(list(Point)), chance.choice([1, 2, 5, 12, 30]))
        codes = execute(job, execution, crash, processes, workers)
        assert set(codes) <= {0, -signal.SIGKILL, 1, None} or any(code and code < 0 for code in codes), executions.logs(
            job.folder
        )
    finish(job, 99, chance.choice([1, 2, 3]))
