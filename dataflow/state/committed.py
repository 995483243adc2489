"""The tokens and the states in Bytewax's rows: what the next execution will resume from.

Not to be read in a process in which Bytewax has the rows open: it has a SQLite of its own, and where two of them have a
file open in one process, the one takes the other's locks away (https://sqlite.org/howtocorrupt.html, 2.2.1), and the
process dies of a bus error.
"""

import contextlib
import io
import pickle
import sqlite3
from pathlib import Path
from typing import Any

from dataflow.errors import UserError
from dataflow.state.log import Token, read_token

OPERATOR = ".stateful_batch"
"""What Bytewax adds to a step's id, as its operator inside ours is named."""


def resume_epoch(recovery: Path) -> int:
    """The epoch at which Bytewax 0.21 resumes: the one that the slowest worker of the last execution had reached.

    Raises:
        UserError: a recovery partition cannot be read.
    """
    executions: dict[int, tuple[int, int]] = {}
    reached: dict[tuple[int, int], int] = {}
    for part in _parts(recovery):
        for number, workers, resumed in _rows(part, "SELECT ex_num, worker_count, resume_epoch FROM exs"):
            executions[number] = workers, resumed
        for number, worker, epoch in _rows(part, "SELECT ex_num, worker_index, worker_frontier FROM fronts"):
            reached[number, worker] = max(epoch, reached.get((number, worker), 0))
    if not executions:
        return 1
    last = max(executions)
    workers, resumed = executions[last]
    return min(max(resumed, reached.get((last, worker), 0)) for worker in range(workers))


def committed_tokens(recovery: Path) -> dict[tuple[str, str], Token]:
    """The token that each lane will be resumed from, by step and by the name of the lane.

    Raises:
        UserError: a recovery partition cannot be read.
    """
    found = {}
    for (step_id, name), change in _committed_changes(recovery, f"*{OPERATOR}").items():
        token = _read(change)
        if isinstance(token, Token):
            found[step_id.removesuffix(OPERATOR).rpartition(".")[2], name] = token
    return found


def committed_states(recovery: Path, step_id: str) -> dict[str, Any]:
    """The states that the parts of an input or output will be resumed from, by part; of plain values only.

    Raises:
        UserError: a recovery partition cannot be read.
    """
    states = {part: _read(change) for (_, part), change in _committed_changes(recovery, step_id).items()}
    return {part: state for part, state in states.items() if state is not None}


def _committed_changes(recovery: Path, step_ids: str) -> dict[tuple[str, str], bytes | None]:
    """By step and key the newest pickled change of an epoch that is past; `step_ids` as in SQLite's GLOB."""
    before = resume_epoch(recovery)
    newest: dict[tuple[str, str], tuple[int, bytes | None]] = {}
    for part in _parts(recovery):
        query = "SELECT step_id, state_key, snap_epoch, ser_change FROM snaps WHERE snap_epoch < ? AND step_id GLOB ?"
        for step_id, key, epoch, change in _rows(part, query, (before, step_ids)):
            if epoch >= newest.get((step_id, key), (0, None))[0]:
                newest[step_id, key] = epoch, change
    return {where: change for where, (_, change) in newest.items()}


class _OnlyTokens(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == (read_token.__module__, read_token.__name__):
            return read_token
        msg = f"{module}.{name} is no token"
        raise pickle.UnpicklingError(msg)


def _read(change: bytes | None) -> Any:
    """The token or the plain values in a row; None if it is of another kind."""
    try:
        return _OnlyTokens(io.BytesIO(change or b"")).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, IndexError):
        return None


def _parts(recovery: Path) -> list[Path]:
    return sorted(recovery.glob("part-*.sqlite3"))


def _rows(part: Path, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    try:
        with contextlib.closing(sqlite3.connect(f"file:{part}?mode=ro", uri=True, timeout=10)) as db:
            return db.execute(query, values).fetchall()
    except sqlite3.Error as error:
        msg = f"{part} is no recovery partition ({error}): restore it from a backup, or use an empty recovery directory"
        raise UserError(msg) from error
