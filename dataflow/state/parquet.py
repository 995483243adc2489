"""Profiles as Parquet files: out of one recovery directory, and into another.

A file a step and table, `<step>.<table>.parquet`: the lane, the number of the row in it, the key, and a column a field.
Rows find each other by lane and number. An import takes fields by their name, gives each key the lane that it has in
the new directory, and takes along the rows that its row refers to. So profiles survive another layout, another number
of lanes and a new recovery directory.
"""

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataflow.errors import UserError
from dataflow.state.batches import lane_of
from dataflow.state.committed import committed_tokens
from dataflow.state.compaction import read_layout
from dataflow.state.disk import DIRECTORY, Disk
from dataflow.state.image import ImageId, image_id, write_image
from dataflow.state.loading import Loaded, load_lane
from dataflow.state.log import BEGINNING, ChunkId
from dataflow.state.store import UNFINISHED, Store, chunks_of, read_manifest
from dataflow.tables.table import Layout, Rows, Table, Tables, new_tables

LANE, ROW, KEY = "_lane", "_row", "_key"
_TRIES = 5
"""A flow that runs may put a lane's files away while they are read, and commit others; so often it does not."""


class LaneFiles(NamedTuple):
    """A lane that is in a recovery directory, as it will be resumed."""

    step: str
    lane: int
    tables: Tables


def read_lanes(recovery: Path, steps: tuple[str, ...] = (), lane: int | None = None) -> Iterator[LaneFiles]:
    """As `load_lanes`, without what they were read from."""
    for step, number, loaded in load_lanes(recovery, steps, lane):
        yield LaneFiles(step, number, loaded.tables)


def load_lanes(
    recovery: Path, steps: tuple[str, ...] = (), lane: int | None = None
) -> Iterator[tuple[str, int, Loaded]]:
    """The lanes of a recovery directory as of the last committed epoch, or of these steps or this lane only.

    Beside a flow that runs, a lane whose files it has replaced meanwhile is of an epoch committed since.

    Raises:
        UserError: there are none, or something of them is missing or damaged.
    """
    layouts = {step: read_layout(described) for step, described in read_manifest(recovery)["steps"].items()}
    for (step, number), chunk in sorted(_committed(recovery).items()):
        if step in layouts and (not steps or step in steps) and lane in (None, number):
            yield step, number, _load_committed(recovery, step, number, chunk, layouts[step])


def _committed(recovery: Path) -> dict[tuple[str, int], ChunkId]:
    """The last committed chunk of each lane, by step and lane."""
    directory = recovery / DIRECTORY
    last = chunks_of(directory, read_manifest(recovery)["lanes"], committed_tokens(recovery))
    for path in directory.glob("*.image"):
        image = image_id(path)
        if image is not None:  # imported, and no snapshot was taken since; any other without a row is refused
            last.setdefault((image.step, image.lane), BEGINNING)
    return last


def _load_committed(recovery: Path, step: str, lane: int, chunk: ChunkId, layout: Layout) -> Loaded:
    for _ in range(_TRIES):
        try:
            return load_lane(recovery / DIRECTORY, step, lane, chunk, layout)
        except UserError:
            before, chunk = chunk, _committed(recovery).get((step, lane), chunk)
            if chunk == before:
                raise
    return load_lane(recovery / DIRECTORY, step, lane, chunk, layout)


def export_to(recovery: Path, out: Path) -> dict[str, int]:
    """Writes all lanes of a recovery directory; how many keys each step has.

    The files bear their names once all are whole: what could not be finished is not taken for an export.

    Raises:
        UserError: there are none, or something of them is missing or damaged, or a file is there already.
    """
    layouts = {step: read_layout(described) for step, described in read_manifest(recovery)["steps"].items()}
    paths = {(step, name): out / f"{step}.{name}.parquet" for step, layout in layouts.items() for name in layout.tables}
    aside = {of: path.with_name(f".{path.name}.new") for of, path in paths.items()}
    counts = dict.fromkeys(layouts, 0)
    writers: dict[tuple[str, str], pq.ParquetWriter] = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in paths.values():
            if path.exists():
                msg = f"{path} is there already: name a directory without such files"
                raise UserError(msg)
        for step, name in paths:
            writers[step, name] = pq.ParquetWriter(aside[step, name], _schema(layouts[step].tables[name]))
        for step, lane, tables in read_lanes(recovery):
            counts[step] += len(next(iter(tables.values())))
            for name, table in tables.items():
                writers[step, name].write_table(_columns(lane, table))
        for writer in writers.values():
            writer.close()
        for of, path in reversed(paths.items()):  # a step's first table last: without it the others are no export
            aside[of].replace(path)
    except OSError as error:
        msg = f"{out}: {error.strerror or error}: see that this user can write there, and that there is room"
        raise UserError(msg) from error
    finally:
        for of, writer in writers.items():
            with contextlib.suppress(OSError):  # it has failed before, which is what is said
                writer.close()
            aside[of].unlink(missing_ok=True)
    return counts


class Imported(NamedTuple):
    """What an import did with a step."""

    keys: int
    lost: list[str]  # fields of the files that the new layout does not have, as `table.field`
    zero: list[str]  # fields of the layout that the files do not have


def import_from(
    files: Path,
    recovery: Path,
    layouts: dict[str, Layout],
    lanes: int | None = None,
    optional: Collection[str] = (),
) -> dict[str, Imported | None]:
    """Reads what `export_to` wrote into a recovery directory on which no flow has run.

    What it did with each step; None for an optional one of which there is no file.

    Args:
        files: the directory of the Parquet files.
        recovery: the recovery directory; its lanes are made.
        layouts: of each step, as the flow that will run on it has them.
        lanes: how many; None for the default.
        optional: steps that begin empty where there is no file of them.

    Raises:
        UserError: a file is missing or is no such file, or a flow has run on the directory, or runs; nothing is
            imported then.
    """
    if committed_tokens(recovery) or any((recovery / DIRECTORY).glob("*.image")):
        msg = f"{recovery} holds profiles already: import into a new recovery directory"
        raise UserError(msg)
    store = Store.open(recovery, lanes)
    assert store.directory is not None  # noqa: S101
    unfinished = store.directory / UNFINISHED
    written: list[Path] = []
    try:
        store.hold_alone()
        unfinished.touch(0o600)
        found: dict[str, Imported | None] = {}
        for step, layout in layouts.items():
            store.step(step, layout)
            if step in optional and not any(files.glob(f"{step}.*.parquet")):
                found[step] = None
                continue
            sources, found[step] = _read_files(files, step, layout)
            for lane, tables in _divided(sources, layout, store.lanes).items():
                path, _ = write_image(store.directory, ImageId(step, lane, 0), BEGINNING, tables, Disk())
                written.append(path)
        written.clear()
        return found
    except OSError as error:
        msg = (
            f"{store.directory}: {error.strerror or error}: see that this user can write there, and that there is room"
        )
        raise UserError(msg) from error
    finally:
        for path in written:  # a flow would begin with a part of the profiles
            path.unlink()
        unfinished.unlink(missing_ok=True)
        store.close()


class _Source(NamedTuple):
    """A table of the files: all rows, and where each lane's begin."""

    rows: Rows
    keys: list[str | None]
    places: dict[tuple[int, int], int]  # of lane and row


def _schema(dtype: np.dtype[Any]) -> pa.Schema:
    assert dtype.fields is not None  # noqa: S101
    fields = [pa.field(LANE, pa.int32()), pa.field(ROW, pa.int64()), pa.field(KEY, pa.string())]
    for name, (field, *_) in dtype.fields.items():
        kind = pa.binary() if field.base.kind in "SV" else pa.from_numpy_dtype(field.base)
        size = int(np.prod(field.shape))
        fields.append(pa.field(name, pa.list_(kind, size) if field.shape else kind))
    return pa.schema(fields)


def _columns(lane: int, table: Table) -> pa.Table:
    """The rows of a lane that are in use: those with a key, or all of a table without keys."""
    numbers = [row for row, key in enumerate(table.keys) if key is not None] if table.keyed else list(range(table.used))
    rows = table.rows[numbers]
    schema = _schema(table.dtype)
    keys = [table.keys[row] for row in numbers] if table.keyed else [None] * len(numbers)
    columns: list[Any] = [
        pa.array([lane] * len(numbers), pa.int32()),
        pa.array(numbers, pa.int64()),
        pa.array([None if key is None else _writable(key) for key in keys], pa.string()),
    ]
    for name in table.dtype.names or ():
        kind = schema.field(name).type
        values = np.ascontiguousarray(rows[name])
        if pa.types.is_fixed_size_list(kind):
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(_flat(values), kind.value_type), kind.list_size))
        else:
            columns.append(pa.array(_flat(values), kind))
    return pa.Table.from_arrays(columns, schema=schema)


def _flat(values: NDArray[Any]) -> Any:
    flat = values.reshape(-1)
    return [bytes(value) for value in flat] if flat.dtype.kind in "SV" else flat


def _writable(key: str) -> str:
    """A key as Parquet can hold it: half of a pair of surrogates, which JSON allows, is no UTF-8."""
    return key.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _read_files(files: Path, step: str, layout: Layout) -> tuple[dict[str, _Source], Imported]:
    sources: dict[str, _Source] = {}
    lost: list[str] = []
    zero: list[str] = []
    for table, dtype in layout.tables.items():
        path = files / f"{step}.{table}.parquet"
        if not path.exists() and table != next(iter(layout.tables)):
            zero += [f"{table}.{name}" for name in dtype.names or ()]
            sources[table] = _Source(np.zeros(0, dtype), [], {})
            continue
        try:
            found = pq.read_table(path)
            lanes, numbers, keys = (found[name].to_pylist() for name in (LANE, ROW, KEY))
        except (OSError, KeyError, pa.ArrowException) as error:
            msg = f"{path} is no export of {step}: {error}"
            raise UserError(msg.splitlines()[0]) from error
        names = [name for name in found.column_names if name not in (LANE, ROW, KEY)]
        rows = np.zeros(len(found), dtype)
        for name in dtype.names or ():
            if name in names:
                _fill(rows[name], found[name].combine_chunks(), f"{path}: {name}")
            else:
                zero.append(f"{table}.{name}")
        lost += [f"{table}.{name}" for name in names if name not in (dtype.names or ())]
        places = {place: row for row, place in enumerate(zip(lanes, numbers, strict=True))}
        sources[table] = _Source(rows, keys, places)
    return sources, Imported(len(sources[next(iter(layout.tables))].keys), lost, zero)


def _fill(into: NDArray[Any], column: Any, what: str) -> None:
    """Puts a column in a field; an array of another length keeps as many as fit."""
    try:
        if pa.types.is_fixed_size_list(column.type):
            size = column.type.list_size
            values = np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), size)
            wide = min(size, int(np.prod(into.shape[1:])))
            if into.ndim == 2:
                into[:, :wide] = values[:, :wide]
            else:
                into[...] = values.reshape(into.shape)
        else:
            into[...] = column.to_numpy(zero_copy_only=False)
    except (ValueError, TypeError) as error:
        msg = f"{what} does not fit: {error}"
        raise UserError(msg.splitlines()[0]) from error


def _divided(sources: dict[str, _Source], layout: Layout, lanes: int) -> dict[int, Tables]:
    """The tables of each lane."""
    first = next(iter(layout.tables))
    made: dict[int, Tables] = {}
    moved: dict[tuple[int, str, int, int], int] = {}  # new lane, table, old lane, old row: the new row
    references: dict[str, list[tuple[str, str]]] = {}
    for (referring, field), to in layout.references.items():
        references.setdefault(referring, []).append((field, to))

    def tables_of(lane: int, old_lane: int) -> Tables:
        if lane not in made:
            made[lane] = new_tables(layout)
            for name in layout.unkeyed:
                made[lane][name].use(1)  # row 0 stands for none, and for what a new row is
                blank = sources[name].places.get((old_lane, 0))
                if blank is not None:
                    made[lane][name].rows[0] = sources[name].rows[blank]
                    for field, _ in references.get(name, ()):
                        made[lane][name].rows[0][field] = 0
        return made[lane]

    def move(lane: int, old_lane: int, name: str, number: int) -> int:
        """The new number of a row; what it refers to is moved later, as chains of rows can be long."""
        place = moved.get((lane, name, old_lane, number))
        if place is None:
            table, source = made[lane][name], sources[name]
            at = source.places.get((old_lane, number))
            if at is None:
                msg = f"row {number} of lane {old_lane} is missing in the file of table {name}"
                raise UserError(msg)
            if table.keyed:
                place = int(table.find([source.keys[at] or ""])[0])
            else:
                place = table.used
                table.use(place + 1)
            moved[lane, name, old_lane, number] = place
            table.rows[place] = source.rows[at]
            left.append((lane, old_lane, name, place))
        return place

    left: list[tuple[int, int, str, int]] = []  # rows that were copied, and still refer to rows of their old lane

    def move_references() -> None:
        while left:
            lane, old_lane, name, row = left.pop()
            table = made[lane][name]
            for field, to in references.get(name, ()):
                old = np.atleast_1d(table.rows[field][row]).reshape(-1).tolist()
                if any(old):
                    new = [move(lane, old_lane, to, number) if number else 0 for number in old]
                    table.rows[field][row] = np.array(new).reshape(table.dtype[field].shape)

    for name in (first, *layout.followers):
        source = sources[name]
        lane_of_row = {row: old_lane for (old_lane, _), row in source.places.items()}
        for row, key in enumerate(source.keys):
            if key is not None:
                lane, old_lane = lane_of(key, lanes), lane_of_row[row]
                table = tables_of(lane, old_lane)[name]
                place = int(table.find([key])[0])
                table.rows[place] = source.rows[row]
                left.append((lane, old_lane, name, place))
                move_references()
    return made
