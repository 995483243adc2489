"""The helper that makes images: one that dies or hangs is replaced by one that makes them."""

import io
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataflow.state import compaction
from dataflow.state.compaction import GO_ON, HOLD, NICENESS, Compacted, Compactor, SharedDisk
from dataflow.state.loading import load_lane
from dataflow.state.log import Token
from tests.state.support import COUNTS, EAGER, STEP, Engine, Inline, read_rows

NO_IMAGES = EAGER._replace(compact_bytes=10**9, log_bytes=10**9)
"""A lane that asks for no image by itself."""


def with_one_committed(folder: Path) -> tuple[Engine, Token]:
    """One lane without an image, and its committed token."""
    engine = Engine(folder / "r", lanes=1, pace=NO_IMAGES)
    engine.take([("ann", 1)])
    engine.end_epoch()
    _, (token,) = read_rows(engine.recovery)
    return engine, token


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
    engine, token = with_one_committed(tmp_path)
    real = [sys.executable, "-m", "dataflow.state.compaction", str(engine.directory), "10"]
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


@pytest.mark.slow
@pytest.mark.parametrize(("hurry", "niceness"), [(True, 0), (False, NICENESS)])
def test_a_helper_gives_way_to_the_flow_but_for_one_that_is_to_hurry(
    tmp_path: Path, hurry: bool, niceness: int
) -> None:
    engine, token = with_one_committed(tmp_path)
    compactor = Compactor(engine.directory, engine.store.layouts)
    try:
        if hurry:
            compactor.hurry()
        compactor.ask(STEP, 0, token.chunk)
        assert answer(compactor) is not None
        assert compactor.helper is not None
        ours = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, compactor.helper.pid) == min(ours + niceness, 19)
    finally:
        compactor.close()
        engine.close()


@pytest.mark.parametrize(("due", "hurried"), [(1, True), (10**9, False)])
def test_a_flow_that_begins_far_behind_has_its_helper_hurry(tmp_path: Path, due: int, hurried: bool) -> None:
    engine = Engine(tmp_path / "r", lanes=1, pace=NO_IMAGES)
    for number in range(3):
        engine.take([("ann", number)])
        engine.end_epoch()
    engine.close()
    again = Engine(tmp_path / "r", lanes=1, pace=NO_IMAGES._replace(compact_bytes=due))
    again.close()
    assert isinstance(again.store.compactor, Inline)
    assert again.store.compactor.hurried is hurried


class Pipe:
    """Lines that a test gives one by one."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def put(self, line: bytes) -> None:
        self._lines.put(line)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._lines.get, b"")


def test_a_helper_that_is_held_writes_nothing_until_it_may_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "HOLD_SECONDS", 60.0)
    monkeypatch.setattr(os, "_exit", lambda _: None)
    engine, token = with_one_committed(tmp_path)
    engine.close()
    requests, answers = Pipe(), io.BytesIO()
    helper = threading.Thread(target=compaction.serve, args=(engine.directory, requests, answers), daemon=True)
    helper.start()
    said = {"step": STEP, "lane": 0, "chunk": [token.chunk.version, *token.chunk.place], "layout": COUNTS.described()}
    requests.put(HOLD)
    requests.put(json.dumps(said).encode() + b"\n")
    time.sleep(1.0)
    assert not answers.getvalue()
    assert not list(engine.directory.glob("*.image"))
    requests.put(GO_ON)
    deadline = time.monotonic() + 30
    while not answers.getvalue() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert json.loads(answers.getvalue())["size"] > 0
    requests.put(b"")
    helper.join(10)


def test_a_helper_that_is_never_told_to_go_on_goes_on_by_itself_and_waits_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float | None] = []
    disk = SharedDisk()
    monkeypatch.setattr(disk._free, "wait", lambda seconds=None: waited.append(seconds))
    disk.hold(True)
    disk._held_until -= 0.1
    fd = disk.create(tmp_path / "file")
    assert disk.write(fd, [b"abc"]) == 3
    disk._held_until -= compaction.HOLD_SECONDS
    assert disk.write(fd, [b"def"]) == 3
    disk.hold(False)
    assert disk.write(fd, [b"ghi"]) == 3
    disk.close(fd)
    first, second = waited
    assert first is not None
    assert 0.0 < first <= compaction.HOLD_SECONDS - 0.1
    assert second == 0.0


@pytest.mark.slow
def test_a_compactor_holds_its_helper_and_makes_the_image_all_the_same(tmp_path: Path) -> None:
    engine, token = with_one_committed(tmp_path)
    compactor = Compactor(engine.directory, engine.store.layouts)
    try:
        for held in (True, False):  # before it has a helper, and with one
            compactor.hold(held)
            compactor.ask(STEP, 0, token.chunk)
            made = answer(compactor)
            assert made is not None
        helper = compactor.helper
        assert helper is not None
        helper.kill()
        helper.wait()
        compactor.hold(True)  # whom nobody hears
    finally:
        compactor.close()
        engine.close()


def test_a_helper_that_hangs_while_it_has_nothing_to_do_does_not_stop_the_flow(tmp_path: Path) -> None:
    compactor = Compactor(tmp_path, {}, command=lambda: ["sleep", "1000"])
    helper = compactor._started()  # no image is asked for, so nobody would find out

    def end_epochs() -> None:
        for number in range(2**14):  # more than a pipe holds
            compactor.hold(number % 2 == 0)

    flow = threading.Thread(target=end_epochs, daemon=True)
    flow.start()
    flow.join(60)
    hung = flow.is_alive()
    helper.kill()
    helper.wait()
    assert not hung
