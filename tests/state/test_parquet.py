"""Profiles leave a recovery directory as Parquet files and go into another, of other lanes and another layout."""

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dataflow.errors import UserError
from dataflow.state.__main__ import main
from dataflow.state.image import write_image
from dataflow.state.parquet import export_to, import_from, read_lanes
from dataflow.tables.table import Layout, Tables
from tests.state.support import COUNTS, STEP, Engine, contents
from tests.state.test_lane_recovery import expected, items_of, run


def exported(tmp_path: Path, items: list[tuple[str, int]]) -> Path:
    engine = Engine(tmp_path / "old")
    run(engine, items, 5)
    engine.close()
    export_to(tmp_path / "old", tmp_path / "files")
    return tmp_path / "files"


@pytest.mark.parametrize("lanes", [1, 3, 7])
def test_profiles_survive_another_number_of_lanes(tmp_path: Path, lanes: int) -> None:
    items = items_of(1, 500)
    files = exported(tmp_path, items[:300])
    done = import_from(files, tmp_path / "new", {STEP: COUNTS}, lanes)
    assert done[STEP] == (len(expected(items[:300]).states), [], [])
    plain = expected(items[:300])
    found: dict[str, tuple] = {}
    for lane in read_lanes(tmp_path / "new"):
        found |= contents(lane.tables)
    assert found == plain.states
    engine = Engine(tmp_path / "new", lanes)
    assert engine.take(items[300:]) == [plain.take(*item) for item in items[300:]]
    engine.end_epoch()
    engine.close()
    again = Engine(tmp_path / "new", lanes)
    assert again.contents() == {key: state for key, state in plain.states.items() if key in again.contents()}
    again.take([(f"user {number}", 1) for number in range(40)])
    assert len(again.contents()) == 40
    again.close()


def test_an_import_is_still_there_after_a_crash_before_the_first_snapshot_and_is_not_left_when_images_follow(
    tmp_path: Path,
) -> None:
    items = items_of(2, 400)
    files = exported(tmp_path, items[:200])
    import_from(files, tmp_path / "new", {STEP: COUNTS}, 3)
    lost = Engine(tmp_path / "new")
    lost.take(items[200:300])
    lost.close()
    engine = Engine(tmp_path / "new")
    run(engine, items[200:], 8)
    assert engine.contents() == expected(items).states
    assert not list(engine.directory.glob("*.000000000000.image"))
    engine.close()


def test_a_field_that_is_new_is_zero_one_that_is_gone_is_left_out_and_one_of_another_type_is_converted(
    tmp_path: Path,
) -> None:
    files = exported(tmp_path, [("ann", 3), ("ann", 4), ("bob", 9)])
    counts = np.dtype([("n", "f4"), ("new", "i2"), ("last", "f8", 5), ("place", "u2")])
    layout = Layout({"counts": counts, "places": COUNTS.tables["places"]}, {("counts", "place"): "places"})
    done = import_from(files, tmp_path / "new", {STEP: layout}, 2)
    assert done[STEP] == (2, ["counts.at", "counts.digest"], ["counts.new"])

    def look(tables: Tables, rows: np.ndarray, values: list[int]) -> list[tuple]:
        found = tables["counts"].rows[rows]
        return [(*row.tolist()[:3], tables["places"].keys[int(row["place"])]) for row in found]

    engine = Engine(tmp_path / "new", 2, mapper=look, layout=layout)
    (ann,) = engine.take([("ann", 0)])
    assert ann[:2] == (2.0, 0)
    assert ann[2].tolist() == [3.0, 4.0, 0.0, 0.0, 0.0]
    assert ann[3] == "place 4"
    engine.close()


NODE = Layout(
    {"heads": np.dtype([("first", "i4")]), "nodes": np.dtype([("next", "i4"), ("value", "i8")])},
    references={("heads", "first"): "nodes", ("nodes", "next"): "nodes"},
    unkeyed=("nodes",),
)


def push(tables: Tables, rows: np.ndarray, values: list[int]) -> list[list[int]]:
    """Each key has a chain of rows in a table without keys, whose row 0 is what a new row is."""
    heads, nodes = tables["heads"], tables["nodes"]
    made = []
    for row, value in zip(rows.tolist(), values, strict=True):
        nodes.use(max(nodes.used, 1) + 1)
        nodes.rows["value"][0] = -7
        node = nodes.used - 1
        nodes.rows[node] = heads.rows["first"][row], value
        heads.rows["first"][row] = node
        nodes.mark([0, node])
        chain, at = [], node
        while at:
            chain.append(int(nodes.rows["value"][at]))
            at = int(nodes.rows["next"][at])
        made.append(chain)
    return made


def test_rows_of_a_table_without_keys_go_along_with_the_row_that_refers_to_them(tmp_path: Path) -> None:
    keys = [f"k{number % 9}" for number in range(60)]
    engine = Engine(tmp_path / "old", mapper=push, layout=NODE)
    for number, key in enumerate(keys):
        engine.take([(key, number)])
        if number % 10 == 9:
            engine.end_epoch()
    engine.close()
    resumed = Engine(tmp_path / "old", mapper=push, layout=NODE)
    assert resumed.take([("k0", 100)]) == [[100, *[n for n in range(59, -1, -1) if n % 9 == 0]]]
    resumed.close()
    export_to(tmp_path / "old", tmp_path / "files")
    import_from(tmp_path / "files", tmp_path / "new", {STEP: NODE}, 5)
    engine = Engine(tmp_path / "new", 5, mapper=push, layout=NODE)
    for key in range(9):
        assert engine.take([(f"k{key}", 100)]) == [[100, *[n for n in range(59, -1, -1) if n % 9 == key]]]
    assert engine.lanes[0].state.tables["nodes"].rows["value"][0] == -7
    engine.close()


def test_an_import_into_a_directory_that_was_used_is_refused(tmp_path: Path) -> None:
    files = exported(tmp_path, items_of(3, 100))
    with pytest.raises(UserError, match="holds profiles already"):
        import_from(files, tmp_path / "old", {STEP: COUNTS})


def test_files_that_are_missing_or_are_no_export_are_refused(tmp_path: Path) -> None:
    files = exported(tmp_path, items_of(3, 100))
    with pytest.raises(UserError, match="is no export of other"):
        import_from(files, tmp_path / "new", {"other": COUNTS})
    path = files / f"{STEP}.counts.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["_lane"]), path)
    with pytest.raises(UserError, match="is no export of count"):
        import_from(files, tmp_path / "newer", {STEP: COUNTS})
    path.write_bytes(b"not Parquet")
    with pytest.raises(UserError, match="is no export of count"):
        import_from(files, tmp_path / "newest", {STEP: COUNTS})


def test_an_export_does_not_write_over_files(tmp_path: Path) -> None:
    exported(tmp_path, items_of(3, 100))
    with pytest.raises(UserError, match="is there already"):
        export_to(tmp_path / "old", tmp_path / "files")


def test_a_layout_that_changed_is_refused_with_the_fields_that_differ(tmp_path: Path) -> None:
    Engine(tmp_path / "r").close()
    counts = np.dtype([("at", "f8"), ("n", "i4"), ("digest", "u8"), ("place", "u4"), ("last", "f4", 3)])
    with pytest.raises(UserError, match=r"other fields .*counts\.n.*export it with the version that wrote it"):
        Engine(tmp_path / "r", layout=COUNTS._replace(tables={**COUNTS.tables, "counts": counts}))


def test_the_command_shows_lanes_and_one_key_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(tmp_path, items_of(4, 300))
    shutil.rmtree(tmp_path / "files")
    recovery = str(tmp_path / "old")
    assert main(["show", recovery]) == 0
    out = capsys.readouterr().out
    assert "40" in out.splitlines()[-1]
    assert "s ago" in out
    assert main(["user", recovery, "user 7"]) == 0
    out = capsys.readouterr().out
    assert f"n: {expected(items_of(4, 300)).states['user 7'][1]}" in out
    assert f"place: {expected(items_of(4, 300)).states['user 7'][3]}" in out
    assert "long:" in out
    assert main(["export", recovery, str(tmp_path / "files")]) == 0
    assert "40 keys written" in capsys.readouterr().out
    assert main(["import", str(tmp_path / "files"), str(tmp_path / "new"), recovery, "--lanes", "2"]) == 0
    assert "40 keys read" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "nowhere"],
        ["show", "a file"],
        ["user", "OLD", "nobody"],
        ["export", "nowhere", "files"],
        ["export", "OLD", "a file"],
        ["export", "OLD", "a file/below"],
        ["import", "nowhere", "new", "OLD"],
        ["import", "files", "a file", "OLD"],
        ["import", "files", "new", "../mistyped"],
        ["import", "files", "new", ":LAYOUTS"],
        ["import", "files", "new", "os:path"],
        ["import", "files", "new", "os:environ"],
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    exported(tmp_path, items_of(4, 50))
    (tmp_path / "a file").write_text("")
    with contextlib.chdir(tmp_path):
        assert main([argument.replace("OLD", "old") for argument in arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_lanes_are_read_beside_a_flow_that_puts_their_files_away_meanwhile(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "r")
    run(engine, items_of(3, 300), 5)
    before = expected(items_of(3, 300)).states
    lanes = read_lanes(tmp_path / "r")
    first = contents(next(lanes).tables)
    assert first == {key: before[key] for key in first}
    files = set(engine.directory.iterdir())
    run(engine, items_of(4, 600), 10)
    assert files - set(engine.directory.iterdir())
    for lane in lanes:
        assert contents(lane.tables) == contents(engine.lanes[lane.lane].state.tables)
    engine.close()


def test_a_directory_whose_rows_are_gone_is_not_taken_for_an_empty_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(tmp_path, items_of(3, 300))
    (tmp_path / "old" / "part-0.sqlite3").unlink()
    for command in (["show", "old"], ["user", "old", "user 7"], ["export", "old", "more"]):
        with contextlib.chdir(tmp_path):
            assert main(command) == 2
        assert "no row in the recovery data" in capsys.readouterr().err


def damage_the_last_image(recovery: Path) -> None:
    path = max((recovery / "state").glob("*.image"))
    sound = path.read_bytes()
    at = max(place for place, byte in enumerate(sound) if byte)
    path.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])


def test_an_export_that_fails_leaves_nothing_that_could_be_imported(tmp_path: Path) -> None:
    exported(tmp_path, items_of(3, 300))
    damage_the_last_image(tmp_path / "old")
    with pytest.raises(UserError, match="is damaged"):
        export_to(tmp_path / "old", tmp_path / "more")
    assert not list((tmp_path / "more").iterdir())


def test_an_export_on_a_disk_without_room_is_a_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(tmp_path, items_of(3, 300))

    def fails(writer: pq.ParquetWriter) -> None:
        writer.is_open = False
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pq.ParquetWriter, "close", fails)  # it writes the end of the file
    with pytest.raises(UserError, match=r"No space left on device: see .* that there is room"):
        export_to(tmp_path / "old", tmp_path / "more")
    assert not list((tmp_path / "more").iterdir())


def test_an_import_that_fails_leaves_nothing_to_begin_with(tmp_path: Path) -> None:
    files = exported(tmp_path, items_of(3, 300))
    with pytest.raises(UserError, match="is no export of other"):
        import_from(files, tmp_path / "new", {STEP: COUNTS, "other": COUNTS}, 3)
    assert not list((tmp_path / "new" / "state").glob("*.image"))
    import_from(files, tmp_path / "new", {STEP: COUNTS}, 3)
    engine = Engine(tmp_path / "new")
    engine.take([("user 7", 0)])
    assert len(engine.contents()) > 1
    engine.close()


def test_no_flow_begins_on_an_import_that_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = exported(tmp_path, items_of(3, 300))
    written = 0

    def write_one(*given: Any) -> Any:
        nonlocal written
        written += 1
        if written == 2:
            shutil.copytree(tmp_path / "new", tmp_path / "killed")
        return write_image(*given)

    monkeypatch.setattr("dataflow.state.parquet.write_image", write_one)
    import_from(files, tmp_path / "new", {STEP: COUNTS}, 3)
    assert list((tmp_path / "killed" / "state").glob("*.image"))
    with pytest.raises(UserError, match="was not finished"):
        Engine(tmp_path / "killed")
    Engine(tmp_path / "new").close()


def test_nothing_is_imported_under_a_flow_that_runs(tmp_path: Path) -> None:
    files = exported(tmp_path, items_of(3, 300))
    engine = Engine(tmp_path / "new")
    engine.take([("user 7", 0)])  # of an epoch that has not ended: no row says that there is a flow
    with pytest.raises(UserError, match="a flow runs on"):
        import_from(files, tmp_path / "new", {STEP: COUNTS})
    engine.close()


def test_what_stands_in_a_transaction_does_not_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def put(tables: Tables, rows: np.ndarray, values: list[str]) -> list[str]:
        tables["counts"].rows["place"][rows] = tables["places"].find(values)
        return values

    engine = Engine(tmp_path / "r", mapper=put)
    engine.take([("ann", "\x1b[2Jshop\nall is well")])
    engine.end_epoch()
    engine.close()
    assert main(["user", str(tmp_path / "r"), "ann"]) == 0
    assert "place: \N{REPLACEMENT CHARACTER}[2Jshop\N{REPLACEMENT CHARACTER}all is well\n" in capsys.readouterr().out
