"""The helper that makes images: one that dies or hangs is replaced by one that makes them."""

import sys
import time
from pathlib import Path

import pytest

from dataflow.state.compaction import Compacted, Compactor
from dataflow.state.loading import load_lane
from tests.state.support import COUNTS, EAGER, STEP, Engine, read_rows

NO_IMAGES = EAGER._replace(compact_bytes=10**9, log_bytes=10**9)
"""A lane that asks for no image by itself."""


def answer(compactor: Compactor) -> Compacted | None:
    """What became of the image of lane 0, once that is known."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, image = compactor.answer(STEP, 0)
        if done:
            return image
        time.sleep(0.02)
    pytest.fail("the compactor does not answer")


@pytest.mark.slow
@pytest.mark.parametrize("first", ["exit 1", "read request; exit 1", "exec sleep 1000"])
def test_after_a_helper_that_dies_or_hangs_another_makes_the_image(tmp_path: Path, first: str) -> None:
    engine = Engine(tmp_path / "r", lanes=1, pace=NO_IMAGES)
    engine.take([("ann", 1)])
    engine.end_epoch()
    _, (token,) = read_rows(engine.recovery)
    real = [sys.executable, "-m", "dataflow.state.compaction", str(engine.directory)]
    commands = iter([["sh", "-c", first], real])
    compactor = Compactor(engine.directory, engine.store.layouts, 2.0, lambda: next(commands))
    try:
        compactor.ask(STEP, 0, token.chunk)
        assert answer(compactor) is None
        assert compactor.helper is None
        compactor._hang_seconds = 60.0  # a start takes a while on a busy machine
        compactor.ask(STEP, 0, token.chunk)
        made = answer(compactor)
    finally:
        compactor.close()
        engine.close()
    assert made is not None
    assert made.chunk == token.chunk
    assert load_lane(engine.directory, STEP, 0, token.chunk, COUNTS).chain.head is not None
