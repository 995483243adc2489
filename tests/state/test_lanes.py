"""A lane's tables, what is forgotten of them, values that a mapper fails on, and batches of lanes."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.errors import UserError
from dataflow.events.transaction import Rejection
from dataflow.process.faults import Guard
from dataflow.state.batches import lane_of
from dataflow.state.chunk import apply_chunk, pack_chunk, pack_keys, unpack_keys
from dataflow.state.compaction import read_layout
from dataflow.state.lane import LanePace
from dataflow.state.store import Store
from dataflow.tables.table import Layout, Table, Tables, describe, new_tables, undescribe
from tests.state.support import COUNTS, EAGER, Engine, Inline, contents, count
from tests.state.test_lane_recovery import expected, items_of, run
from tests.support.mapped_lanes import PICKLED, Divider, Limits, guarded

ROW = np.dtype([("at", "f8"), ("n", "i4")])


def test_a_new_row_is_zero_and_a_row_is_found_again_when_the_table_has_grown() -> None:
    table = Table(ROW)
    keys = [f"k{number}" for number in range(5000)]
    for begin in range(0, 5000, 100):
        rows = table.find(keys[begin : begin + 100])
        assert not table.rows[rows]["n"].any()
        table.rows["n"][rows] = rows + 1
    assert (table.rows["n"][table.find(keys)] == table.find(keys) + 1).all()
    assert len(table) == 5000


def test_a_key_that_is_twice_in_a_batch_gets_one_row() -> None:
    table = Table(ROW)
    assert table.find(["a", "b", "a"]).tolist() == [0, 1, 0]


def test_a_freed_row_is_zero_and_another_keys() -> None:
    table = Table(ROW)
    table.rows["n"][table.find(["a", "b"])] = 7
    table.free(["a"])
    assert "a" not in table
    assert table.find(["c"]).tolist() == [0]
    assert table.rows["n"][:2].tolist() == [0, 7]


NAMES = ["a", "bb", "", "\ud800", "\0", "é" * 3, "k1", "k2", "k3"]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("uuuf"), st.sampled_from(NAMES), st.integers(1, 99)), max_size=8), max_size=8
    )
)
def test_chunks_make_the_same_table_elsewhere(epochs: list[list[tuple[str, str, int]]]) -> None:
    layout = Layout({"t": ROW})
    here, there = new_tables(layout), new_tables(layout)
    table = here["t"]
    for epoch in epochs:
        for what, key, value in epoch:
            if what == "u":
                rows = table.find([key])
                table.rows["n"][rows] += value
                table.mark(rows)
            elif key in table:
                table.free([key])
        chunk = b"".join(pack_chunk([table.take_changes()]))
        apply_chunk(there, chunk)
        assert there["t"].keys == table.keys
        assert (there["t"].rows[: table.used] == table.rows[: table.used]).all()
        assert [there["t"].row(key) for key in NAMES] == [table.row(key) for key in NAMES]


def test_nothing_changed_is_no_chunk() -> None:
    tables = new_tables(Layout({"t": ROW}))
    tables["t"].find(["a"])
    assert pack_chunk([tables["t"].take_changes()])
    assert pack_chunk([tables["t"].take_changes()]) == []


@given(st.lists(st.one_of(st.none(), st.text(st.characters(), max_size=5))))
def test_keys_come_back_as_they_were(keys: list[str | None]) -> None:
    assert unpack_keys(*pack_keys(keys)) == keys


def test_a_chunk_that_ends_too_early_or_names_rows_that_are_not_there_is_refused() -> None:
    tables = new_tables(Layout({"t": ROW}))
    tables["t"].find(["a", "b"])
    chunk = b"".join(pack_chunk([tables["t"].take_changes()]))
    with pytest.raises(ValueError, match="in the middle"):
        apply_chunk(new_tables(Layout({"t": ROW})), chunk[:-1])
    tables["t"].mark([1])
    with pytest.raises(ValueError, match="writes row 1"):
        apply_chunk(new_tables(Layout({"t": ROW})), b"".join(pack_chunk([tables["t"].take_changes()])))


def test_a_layout_comes_back_from_its_description() -> None:
    aligned = np.dtype([("a", "u1"), ("b", "f8", (2, 3)), ("c", "S4")], align=True)
    assert undescribe(describe(aligned)) == aligned
    layout = Layout({"t": aligned, "texts": ROW}, {("t", "a"): "texts"}, (), ("texts",))
    assert read_layout(layout.described()).described() == layout.described()
    with pytest.raises(TypeError, match="only numbers and fixed bytes"):
        describe(np.dtype([("o", "O")]))


def test_of_too_many_keys_the_oldest_are_forgotten_with_what_they_have_in_other_tables(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "r", lanes=1, limits=Limits("at", rows=64))
    for number in range(400):
        engine.take([(f"user {number}", number + 1)] * 4)
        if number % 20 == 0:
            engine.end_epoch()
    kept = engine.contents()
    assert 63 <= len(kept) <= 64
    assert min(int(key.split()[1]) for key in kept) == 400 - len(kept)
    tables = engine.lanes[0].state.tables
    assert len(tables["long"]) == len(kept)
    engine.end_epoch()
    engine.close()
    resumed = Engine(tmp_path / "r", lanes=1, limits=Limits("at", rows=64))
    assert resumed.contents() == kept
    resumed.close()


def test_a_key_that_was_idle_for_too_long_gives_up_its_row_and_begins_anew(tmp_path: Path) -> None:
    limits = Limits("at", age_seconds=1000, lateness_seconds=100)
    engine = Engine(tmp_path / "r", lanes=1, limits=limits)
    engine.take([("old", 5), ("older", 4)])
    for at in range(0, 1100, 50):
        engine.take([("busy", at)])
        assert "old" in engine.contents()
    engine.take([("busy", 1106)])
    engine.take([("busy", 1107)])
    assert set(engine.contents()) == {"busy"}
    engine.end_epoch()
    engine.close()
    resumed = Engine(tmp_path / "r", lanes=1, limits=limits)
    assert set(resumed.contents()) == {"busy"}
    resumed.take([("old", 1108)])
    assert resumed.contents()["old"] == expected([("old", 1108)]).states["old"]
    resumed.close()


def test_memory_is_bounded_whatever_users_are_invented(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "r", lanes=2, limits=Limits("at", rows=100))
    for number in range(100):
        engine.take([(f"invented {number} {which}", number) for which in range(30)])
        engine.end_epoch()
    assert all(lane.state.tables["counts"].used <= 160 for lane in engine.lanes.values())
    engine.close()


def test_a_value_that_the_mapper_fails_on_becomes_a_rejection_and_its_row_stays_as_it_was() -> None:
    def fails(tables: Tables, rows: Any, values: list[int]) -> list[Any]:
        made = []
        for row, value in zip(rows, values, strict=True):
            made += count(tables, np.array([row]), [abs(value)])  # it has written before it fails
            if value < 0:
                raise ZeroDivisionError
        return made

    letters = []

    def letter(value: Any, error: str, step: str) -> Rejection:
        letters.append((value, error, step))
        return Rejection(error, "", 0, 0, 0, b"", b"")

    mapper = guarded(fails, Guard("step", letter))
    tables = new_tables(COUNTS)
    values = [1, -2, 3, 4, -5, 6]
    keys = ["a", "a", "a", "b", "b", "a"]
    made = mapper(tables, tables["counts"].find(keys), values)
    plain = expected([])
    assert [each for each in made if isinstance(each, int)] == [
        plain.take(key, value) for key, value in zip(keys, values, strict=True) if value > 0
    ]
    assert [isinstance(each, Rejection) for each in made] == [False, True, False, False, True, False]
    assert [value for value, *_ in letters] == [-2, -5]
    n = {key: state[1] for key, state in contents(tables).items()}
    assert n == {"a": 3, "b": 1}


def test_a_users_mistake_in_a_mapper_is_no_rejection() -> None:
    def fails(tables: Tables, rows: Any, values: list[int]) -> list[Any]:
        msg = "a setting is wrong"
        raise UserError(msg)

    mapper = guarded(fails, Guard("step", lambda *_: None))
    tables = new_tables(COUNTS)
    with pytest.raises(UserError, match="a setting is wrong"):
        mapper(tables, tables["counts"].find(["a"]), [1])


def test_a_divided_batch_is_put_together_in_its_order_however_its_lanes_come_back() -> None:
    divider = Divider([f"{lane}" for lane in range(5)], PICKLED, in_order=True)
    chance = random.Random(1)
    items = [(f"user {chance.randrange(50)}", number) for number in range(300)]
    waiting = []
    for begin in range(0, 300, 30):
        waiting += divider.divide(items[begin : begin + 30])
    chance.shuffle(waiting)
    out: list[tuple[str, int]] = []
    while waiting:
        several = [waiting.pop() for _ in range(min(3, len(waiting)))]
        out += divider.join(several)
    assert out == items


def test_a_batch_of_a_lane_holds_its_keys_in_order() -> None:
    divider = Divider(["x", "y", "z"], PICKLED, in_order=False)
    items = [(f"user {number % 20}", number) for number in range(100)]
    for name, batch in divider.divide(items):
        assert name == "xyz"[batch.lane]
        assert [lane_of(key, 3) for key in batch.keys] == [batch.lane] * len(batch)
        assert batch.values == sorted(batch.values)
    assert sorted(divider.join(divider.divide(items))) == sorted(items)


def test_the_lane_of_a_key_stays_what_it_was() -> None:
    """Recovery data depends on it: CRC-32 of UTF-8, modulo lanes."""
    assert [lane_of(key, 1000) for key in ("ann", "bob", "émile", "")] == [347, 104, 763, 0]


@pytest.mark.slow
def test_lanes_write_one_after_the_other_each_at_most_two_seconds_after_a_change(tmp_path: Path) -> None:
    now = 0.0
    pace = LanePace()
    engine = Engine(tmp_path / "r", lanes=8, pace=pace, clock=lambda: now)
    log = engine.store.log
    assert log is not None
    keys = [f"user {number}" for number in range(200)]
    written: list[int] = []
    for step in range(500):
        now = step / 50
        before = log.appended
        engine.take([(key, step) for key in keys])
        written.append(log.appended - before)
    steady = written[200:]  # once all lanes have begun: 6 s, in which each writes three times
    assert sum(1 for size in steady if size) == 8 * 3
    assert max(steady) < sum(steady) / 3 / 4  # they do not write all at once
    waits = np.diff([at for at, size in enumerate(steady) if size])
    assert waits.max() < 25  # half a second from one lane to the next
    engine.end_epoch()
    engine.close()


def test_lanes_write_shortly_before_an_epoch_ends_and_the_helper_leaves_them_the_disk(tmp_path: Path) -> None:
    now = 0.0
    engine = Engine(tmp_path / "r", lanes=4, pace=LanePace(flush_seconds=1000), clock=lambda: now)
    engine.store.epoch_seconds = 5.0
    log, compactor = engine.store.log, engine.store.compactor
    assert log is not None
    assert isinstance(compactor, Inline)
    keys = [f"user {number}" for number in range(100)]
    for _ in range(2):  # of the first epoch no lane knows when it began
        engine.take([(key, 1) for key in keys])
        engine.end_epoch()
    before, compactor.held = log.appended, []
    written: list[float] = []
    for _ in range(100):
        now += 0.05
        engine.take([(key, 2) for key in keys])
        if log.appended > before:
            written.append(now % 5 or 5.0)
        before = log.appended
    assert len(written) == 4  # lanes
    assert 4.55 < min(written) < max(written) < 4.85
    assert compactor.held[0] is False
    assert compactor.held[-1] is True
    engine.end_epoch()
    assert log.appended > before  # what changed since
    engine.take([("user 1", 3)])
    assert compactor.held[-1] is False

    compactor.held, engine.store.epoch_seconds = [], 1.0
    for _ in range(100):
        now += 0.05
        engine.take([(key, 4) for key in keys])
    assert True not in compactor.held  # it would be held for nearly half of the time
    engine.close()


def test_a_directory_that_cannot_be_written_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "state").write_text("a file")
    with pytest.raises(UserError, match="see that this user can write there"):
        Store.open(tmp_path / "r", 2)
    with pytest.raises(UserError, match="0 lanes are asked for"):
        Store.open(None, 0)


def test_a_manifest_that_is_damaged_or_gone_is_refused(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "r")
    run(engine, items_of(1, 100), 4)
    engine.close()
    manifest = tmp_path / "r" / "state" / "state.json"
    sound = manifest.read_text()
    for text, said in (("{", "damaged"), ("[]", "damaged"), ('{"format": 99}', "format 99")):
        manifest.write_text(text)
        with pytest.raises(UserError, match=said):
            Engine(tmp_path / "r")
    manifest.unlink()
    with pytest.raises(UserError, match="is missing"):
        Engine(tmp_path / "r")
    manifest.write_text(sound)
    Engine(tmp_path / "r").close()


def test_files_can_be_read_by_their_user_only(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "r", pace=EAGER)
    run(engine, items_of(1, 200), 4)
    files = [path for path in engine.directory.iterdir() if path.is_file()]
    assert {path.suffix for path in files} >= {".log", ".image", ".json"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)
    assert engine.directory.stat().st_mode & 0o077 == 0
    engine.close()


@given(st.lists(st.integers(0, 5), max_size=40), st.lists(st.integers(0, 39)), st.integers(0, 45))
def test_the_oldest_rows_are_those_with_the_smallest_values_and_of_equals_the_lower_numbers(
    values: list[int], freed: list[int], count: int
) -> None:
    table = Table(ROW)
    table.find([f"user {number}" for number in range(len(values))])
    table.rows["at"][: len(values)] = values
    gone = {f"user {number}" for number in freed if number < len(values)}
    table.free(gone)
    held = sorted((value, n) for n, value in enumerate(values) if f"user {n}" not in gone)
    assert table.oldest("at", count) == [f"user {number}" for _, number in held[:count]]
