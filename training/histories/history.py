"""Where transactions of the past come from: a CSV, a Parquet file, or the simulation; always in event-time order."""

import csv
import gzip
import heapq
import io
import math
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import count, islice
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec

from dataflow.errors import UserError
from dataflow.events.parsing import event_time
from dataflow.events.transaction import DAY, UNKNOWN, Transaction
from dataflow.simulation.simulator import DEFAULT_START, history, natural_rate

CHUNK = 100_000
"""Rows held in memory at once where a file must be sorted, about 100 MB."""

BLOCK = 1_000
"""Rows of a chunk on disk that are read back at a time."""

KEPT = 1_000_000
"""Simulated transactions that are kept for the next iteration, 0.7 GB; of more, each iteration makes them anew."""

REQUIRED = ("timestamp", "user", "merchant", "amount")
UNKNOWN_WITHOUT = ("location", "device", "txn_type")
OPTIONAL = ("transaction_id", "latitude", "longitude", "category", "ip")
_LOOKING = 0.25  # of the time that reading a file takes, roughly, goes into seeing whether it is in order
LABEL = "fraud"
"""The contract's column of labels."""
NO_LABELS = "none"
"""What `--label-column` takes where no column of a history holds labels."""
LABEL_COLUMN_HELP = (
    f"the history's column of labels (0 or 1, true or false, empty: not known), or {NO_LABELS}; default: {LABEL}, "
    "where there is one"
)
_COLUMNS = frozenset((*REQUIRED, *UNKNOWN_WITHOUT, *OPTIONAL, LABEL, "scenario"))
_LIKE_LABELS = frozenset(
    ("class", "label", "labels", "target", "fraudulent", "isfraudulent", "fraudlabel", "fraudflag", "fraudind")
)
"""What columns of labels are called elsewhere, in lower case, letters alone; so is whatever ends with "fraud"."""
TRUTH = {"": None, "0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
"""What a label's text says, in lower case; None: not known."""


class Past(msgspec.Struct, gc=False):
    """A transaction of the past, and what is known of it."""

    transaction: Transaction
    fraud: bool | None  # None: not known
    scenario: str  # the kind of fraud, "" for none or not known; nothing that decides may read it


class History:
    """Transactions in event-time order; each iteration reads them from the start.

    `source` names it for people, `progress` is how much of the iteration under way is done, 0 to 1.
    """

    def __init__(self, source: str, rows: Callable[[], Iterator[Past]], progress: Callable[[], float]):
        self.source = source
        self._rows = rows
        self._progress = progress

    def __iter__(self) -> Iterator[Past]:
        return self._rows()

    @property
    def progress(self) -> float:
        """How much of the iteration under way is done, 0 to 1."""
        return min(max(self._progress(), 0.0), 1.0)


def read_history(
    path: Path | None,
    *,
    seed: int = 42,
    users: int = 2_000,
    days: float = 14,
    start: datetime = DEFAULT_START,
    population: str = "realistic",
    label_column: str | None = LABEL,
) -> History:
    """The history in a file (.csv, .csv.gz, .parquet), or a simulated one where `path` is None.

    A file has the columns of the contract: timestamp, user, merchant and amount are needed; location, device and
    txn_type are "unknown" where it has none; transaction_id, latitude, longitude, category, ip, fraud and scenario are
    optional; others are left alone. Labels are 0 or 1, true or false, or empty where nothing is known; `label_column`
    is where they stand, None for nowhere: see `find_label_column`. A file that is out of order is sorted, in chunks on
    disk.

    Raises:
        UserError: the file cannot be read or lacks a column, or, while it is iterated, a row is wrong; with its line.
    """
    if path is None:
        return _simulated(seed, users, days, start, population)
    return _filed(path, label_column)


def find_label_column(path: Path, named: str | None) -> str | None:
    """The column of a file that holds its labels; None where it has no labels.

    `named` is what the user says: a column, `NO_LABELS`, or None, which takes the contract's own.

    Raises:
        UserError: the file cannot be read, or has no such column; or nothing is named, and the file has columns that
            look like labels under another name than the contract's: to train without a word as if there were none
            would be worse than to ask.
    """
    if named == NO_LABELS:
        return None
    names = [name.strip() for name in _open(path, named).names()]
    if named is None:
        if LABEL in names:
            return LABEL
        like = [name for name in names if _looks_like_labels(name)]
        if not like:
            return None
        msg = (
            f"{path} has no column {LABEL}, but {', '.join(like)}, which may be labels: say --label-column {like[0]}, "
            f"or --label-column {NO_LABELS} where {'it is' if len(like) == 1 else 'they are'} not"
        )
        raise UserError(_line(msg))
    if named not in names:
        msg = f"--label-column {named}: {path} has no such column (it has: {', '.join(names) or 'none'})"
        raise UserError(_line(msg))
    if named in _COLUMNS - {LABEL}:
        msg = f"--label-column {named}: that column is the transaction's {named}: name the one that holds 0 and 1"
        raise UserError(msg)
    return named


def _looks_like_labels(name: str) -> bool:
    plain = "".join(filter(str.isalpha, name.lower()))
    return plain in _LIKE_LABELS or plain.endswith("fraud")


LabelTime = Callable[[Past], float | None]
"""When the label of a transaction comes, in seconds since 1970 UTC; None where it never does."""


def after(delay: float) -> LabelTime:
    """Labels that come so many seconds after their transactions, where these are known at all."""
    return lambda past: None if past.fraud is None else past.transaction.at + delay


def _simulated(seed: int, users: int, days: float, start: datetime, population: str) -> History:
    begin = (start if start.tzinfo else start.replace(tzinfo=UTC)).timestamp()
    now = begin

    def lived() -> Iterator[Past]:
        for each in history(seed, users, days, start, population):
            txn = Transaction(
                transaction_id=each.transaction_id,
                timestamp=each.timestamp,
                at=each.at,
                user=each.user,
                merchant=each.merchant,
                amount=each.amount,
                location=each.location,
                device=each.device,
                txn_type=each.txn_type,
                latitude=each.latitude,
                longitude=each.longitude,
                category=each.category,
            )
            yield Past(txn, each.fraud, each.scenario if each.fraud else "")

    again = _kept(lived()) if natural_rate(users) * days * DAY <= KEPT else lived

    def rows() -> Iterator[Past]:
        nonlocal now
        for each in again():
            now = each.transaction.at
            yield each

    source = f"simulation: {population}, {users:,} users, {days:g} days, seed {seed}"
    return History(source, rows, lambda: (now - begin) / (days * DAY))


def _kept(made: Iterator[Past]) -> Callable[[], Iterator[Past]]:
    """What is iterated as often as it is asked for, and made once: each of it when it is first reached."""
    kept: list[Past] = []

    def rows() -> Iterator[Past]:
        for place in count():
            if place == len(kept):
                following = next(made, None)
                if following is None:
                    return
                kept.append(following)
            yield kept[place]

    return rows


class _Table(Protocol):
    """Rows of text cells with the number that a message names them by; the first is the header."""

    path: Path
    unit: str  # what the number counts
    label: str | None  # the column of labels

    @property
    def progress(self) -> float: ...

    def names(self) -> list[str]:
        """All columns of the file, also those that are not read."""

    def __iter__(self) -> Iterator[tuple[int, Sequence[str]]]: ...


class _Csv:
    unit = "line"

    def __init__(self, path: Path, label: str | None):
        self.path = path
        self.label = label
        self._raw: IO[bytes] | None = None
        self._size = path.stat().st_size

    @property
    def progress(self) -> float:
        return self._raw.tell() / self._size if self._raw and not self._raw.closed else 0.0

    def names(self) -> list[str]:
        """All columns."""
        return list(next(iter(self), (0, ()))[1])

    def __iter__(self) -> Iterator[tuple[int, Sequence[str]]]:
        with ExitStack() as files:
            self._raw = files.enter_context(self.path.open("rb"))
            plain: Any = self._raw
            if self.path.suffix == ".gz":
                plain = files.enter_context(gzip.open(self._raw))
            reader = csv.reader(files.enter_context(io.TextIOWrapper(plain, encoding="utf-8-sig", newline="")))
            try:
                for cells in reader:
                    if cells:
                        yield reader.line_num, cells
            except (csv.Error, UnicodeDecodeError) as error:
                msg = f"{self.path}, near line {reader.line_num + 1}: not a CSV in UTF-8 ({error}): mend the file"
                raise UserError(msg) from None
            except (OSError, EOFError, zlib.error) as error:
                msg = f"{self.path}, after line {reader.line_num}: cannot be read on ({error}): is the file complete?"
                raise UserError(msg) from None


class _Parquet:
    unit = "row"

    def __init__(self, path: Path, label: str | None):
        self.path = path
        self.label = label
        self._rows = 0
        self._done = 0

    @property
    def progress(self) -> float:
        return self._done / self._rows if self._rows else 0.0

    def names(self) -> list[str]:
        """All columns."""
        with self._opened() as file:
            return list(file.schema_arrow.names)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        from pyarrow import ArrowException, parquet

        try:
            with parquet.ParquetFile(self.path) as file:
                yield file
        except (OSError, ArrowException) as error:
            msg = f"{self.path} cannot be read as Parquet ({_line(error)}): is the file complete?"
            raise UserError(msg) from None

    def __iter__(self) -> Iterator[tuple[int, Sequence[str]]]:
        with self._opened() as file:
            self._rows, self._done = file.metadata.num_rows, 0
            header = [name for name in file.schema_arrow.names if name.strip() in (*_COLUMNS, self.label)]
            yield 0, header
            for batch in file.iter_batches(batch_size=10_000, columns=header):
                for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    self._done += 1
                    yield self._done, [_text(cell) for cell in cells]


def _open(path: Path, label: str | None) -> _Table:
    endings: dict[str, type[_Csv] | type[_Parquet]] = {".csv": _Csv, ".csv.gz": _Csv, ".parquet": _Parquet}
    reader = next((reader for ending, reader in endings.items() if path.name.endswith(ending)), None)
    if reader is None:
        msg = f"{path} is none of the files that are read as a history: {', '.join(endings)}"
        raise UserError(msg)
    try:
        with path.open("rb"):
            return reader(path, label)
    except OSError as error:
        msg = f"cannot read the history {path}: {error.strerror}"
        raise UserError(msg) from None


def _filed(path: Path, label: str | None) -> History:
    table = _open(path, label)
    begin, share = 0.0, 0.0
    ordered: bool | None = None  # not known before the first iteration

    def rows() -> Iterator[Past]:
        nonlocal begin, share, ordered
        looking = 0.0
        if ordered is None:
            looking = _LOOKING
            begin, share = 0.0, looking
            ordered = _in_order(table)
        begin, share = looking, 1 - looking
        yield from _rows(table) if ordered else _sorted(_rows(table))
        begin = 1.0

    return History(str(path), rows, lambda: begin + share * table.progress)


def _in_order(table: _Table) -> bool:
    """Whether the file is in event-time order; looked up first, as most are, and need no sorting then."""
    rows = iter(table)
    header = _header(table, next(rows, (0, ()))[1])
    column = header.index("timestamp")
    before = -math.inf
    for _, cells in rows:
        try:
            at = event_time(cells[column])
        except (ValueError, OverflowError, IndexError):
            return True  # the row is wrong, and `_rows` will say how
        if at < before:
            return False
        before = at
    return True


def _header(table: _Table, header: Sequence[str]) -> list[str]:
    names = [name.strip() for name in header]
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        found = ", ".join(names) or "none"
        msg = (
            f"{table.path} has no column {', '.join(missing)} (it has: {found}): name the columns as the contract does"
        )
        raise UserError(msg)
    twice = [name for name in names if (name in _COLUMNS or name == table.label) and names.count(name) > 1]
    if twice:
        msg = f"{table.path} has the column {twice[0]} twice: remove one"
        raise UserError(msg)
    return names


def _rows(table: _Table) -> Iterator[Past]:
    rows = iter(table)
    header = _header(table, next(rows, (0, ()))[1])
    fields = [(i, name) for i, name in enumerate(header) if name in _COLUMNS - {LABEL, "scenario"}]
    truth = header.index(table.label) if table.label in header else None
    kind = header.index("scenario") if "scenario" in header else None
    base = dict.fromkeys(UNKNOWN_WITHOUT, UNKNOWN)
    for line, cells in rows:
        try:
            if len(cells) != len(header):
                msg = f"{len(cells)} cells where the header has {len(header)}"
                raise ValueError(msg)
            values = base.copy()
            for i, name in fields:
                if cells[i]:
                    values[name] = cells[i]
            txn = _transaction(values)
            fraud = None if truth is None else TRUTH[cells[truth].lower()]
        except KeyError as error:
            what = f"{table.label} is {str(error)[:40]}, and a label is 0 or 1, true or false, or empty"
            raise _wrong(table, line, what) from None
        except (ValueError, OverflowError) as error:
            raise _wrong(table, line, str(error)) from None
        if txn.transaction_id is None:
            txn.transaction_id = f"{table.path.name}-{line}"
        scenario = cells[kind] if kind is not None else ""
        yield Past(txn, fraud, "" if scenario == "0" else scenario)


def _transaction(values: dict[str, str]) -> Transaction:
    """A transaction out of text, by the very limits of the contract; a ValueError says what is wrong."""
    txn = msgspec.convert(values, Transaction, strict=False)  # its ValidationError is a ValueError
    if not math.isfinite(txn.amount):
        msg = "amount is not finite"
        raise ValueError(msg)
    if (txn.latitude is None) != (txn.longitude is None):
        msg = "half a coordinate: latitude and longitude go together"
        raise ValueError(msg)
    try:
        txn.at = event_time(txn.timestamp)
    except (ValueError, OverflowError):
        msg = f"timestamp {txn.timestamp[:40]!r} is not an ISO 8601 time"
        raise ValueError(msg) from None
    return txn


def _wrong(table: _Table, line: int, what: str) -> UserError:
    what = what.replace(" - at `$.", ": field `").replace("`", "")
    return UserError(f"{table.path}, {table.unit} {line}: {what}: mend or remove that {table.unit}")


def _sorted(rows: Iterator[Past]) -> Iterator[Past]:
    """Merge sort by event time over chunks on disk; rows of one time stay in the file's order."""
    with ExitStack() as files:
        folder = Path(files.enter_context(tempfile.TemporaryDirectory(prefix="redflag-")))
        runs: list[Iterator[Past]] = []
        while chunk := list(islice(rows, CHUNK)):
            chunk.sort(key=_at)
            run = files.enter_context((folder / str(len(runs))).open("w+b"))
            for begin in range(0, len(chunk), BLOCK):
                block = msgspec.msgpack.encode(chunk[begin : begin + BLOCK])
                run.write(len(block).to_bytes(4, "little") + block)
            run.seek(0)
            runs.append(_blocks(run))
        del chunk
        yield from heapq.merge(*runs, key=_at)


def _blocks(run: IO[bytes]) -> Iterator[Past]:
    while size := run.read(4):
        yield from _decode(run.read(int.from_bytes(size, "little")))


_decode = msgspec.msgpack.Decoder(list[Past]).decode


def _at(past: Past) -> float:
    return past.transaction.at


def _text(cell: Any) -> str:
    """A Parquet cell as a CSV has it."""
    if cell is None or cell != cell:  # noqa: PLR0124 (NaN is how pandas writes that there is nothing)
        return ""
    return str(cell.isoformat() if hasattr(cell, "isoformat") else cell)


def _line(error: BaseException | str) -> str:
    return " ".join(str(error).split())
