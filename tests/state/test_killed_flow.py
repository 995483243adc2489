"""A flow that is killed at every point of the state, on one to three processes, decides as a plain dict does."""

import random
import signal
from pathlib import Path

import pytest

from dataflow.state.crash_points import Point
from tests.state import executions
from tests.state.executions import NO_CRASH, Crash
from tests.state.killed_flow import Job, expected, prepare, read_states, run

pytestmark = pytest.mark.slow

MAYBE = {Point.CLEANING}
"""Points that an execution may not come to: there is not always a file to clean."""
SCALES = {(1, 1): 3, (1, 2): 3, (2, 1): 3, (3, 1): 2, (2, 2): 1}
"""Processes and their workers, and how often of twelve: while one worker ends an epoch, Bytewax's others spin.

So an execution takes the more CPU, by far, the more of them there are for a core.
"""


def execute(job: Job, execution: int, crash: Crash, processes: int = 1, workers: int = 1) -> list[int | None]:
    return executions.execute(run, job, execution, crash, processes, workers)


def logs(job: Job) -> str:
    return executions.logs(job.folder)


def check(job: Job) -> None:
    """The states, and what came of each item however often it was decided, are those of a plain dict."""
    states, made = expected(job)
    assert read_states(job) == states
    written = set()
    for path in job.folder.glob("out.*"):
        for line in path.read_text().splitlines():
            partition, number, result = map(int, line.split())
            assert made[partition, number] == result, f"{path.name}: {line}"
            written.add((partition, number))
    assert written == set(made)


def finish(job: Job, execution: int, processes: int = 1) -> None:
    assert execute(job, execution, NO_CRASH, processes) == [0] * processes, logs(job)
    check(job)


@pytest.mark.parametrize("point", list(Point), ids=[point.name for point in Point])
def test_a_flow_that_is_killed_at_a_point_goes_on_as_if_it_had_not_been(tmp_path: Path, point: Point) -> None:
    job = Job(tmp_path, items=700, keys=25, lanes=5, seed=int(point))
    prepare(job)
    killed = 0
    for execution, times in enumerate((2, 6)):
        (code,) = execute(job, execution, Crash(point, times, waits=True))
        assert code in (0, -signal.SIGKILL), logs(job)
        killed += code == -signal.SIGKILL
    assert killed or point in MAYBE
    finish(job, 9)


@pytest.mark.parametrize("seed", range(12))
def test_flows_of_one_to_three_processes_in_changing_order_survive_kills_anywhere(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    job = Job(tmp_path, items=450, keys=60, lanes=8, seed=seed)
    prepare(job)
    killed = 0
    for execution in range(9):
        ((processes, workers),) = chance.choices(list(SCALES), list(SCALES.values()))
        # Before the input ends, wherever that point is: else the executions after it would have nothing left to do.
        crash = Crash(chance.choice(list(Point)), chance.choice([1, 2, 5, 12, 30]), most=chance.randint(80, 300))
        codes = execute(job, execution, crash, processes, workers)
        killed += -signal.SIGKILL in codes
        assert set(codes) <= {0, -signal.SIGKILL, 1, None} or any(code and code < 0 for code in codes), logs(job)
    assert killed >= 7
    finish(job, 99, chance.choice([1, 2, 3]))


def test_two_processes_go_on_where_one_and_three_left_off(tmp_path: Path) -> None:
    job = Job(tmp_path, items=700, keys=40, lanes=6, seed=1)
    prepare(job)
    for execution, (processes, times) in enumerate([(1, 20), (3, 25), (2, 25)]):
        codes = execute(job, execution, Crash(Point.TOKEN_PICKLED, times), processes)
        assert -signal.SIGKILL in codes, logs(job)
    finish(job, 9, 2)


@pytest.mark.parametrize(
    ("point", "how"),
    [(Point.IMAGE_WRITTEN, "helper"), (Point.IMAGE_RENAMED, "helper"), (Point.IMAGE_SYNCED, "hang")],
)
def test_a_helper_that_dies_or_hangs_is_replaced_and_the_flow_goes_on(tmp_path: Path, point: Point, how: str) -> None:
    waits = how != "hang"
    job = Job(tmp_path, items=200 if waits else 700, keys=25, lanes=3, seed=5)  # to wait for each image takes long
    prepare(job)
    assert execute(job, 0, Crash(point, 2, helper_only=how, waits=waits)) == [0], logs(job)
    assert "its log is kept instead, and it is tried again" in logs(job)
    assert list((job.folder / "recovery" / "state").glob("*.image"))
    check(job)
