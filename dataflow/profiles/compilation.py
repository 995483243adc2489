"""Numba for the functions of this package, and where the machine code is kept from one start to the next.

Numba keeps machine code by the source of the outermost function only: an edit of `windows.py` would leave a kernel in
`user.py` as it was. So the code lies in a folder that is named by a digest of all sources that are compiled, of Numba
and of Python: what has changed is never used.

The folder lies in the first of these that can be written to: `NUMBA_CACHE_DIR` where it is set, the `__pycache__` of
the package, the user's cache (`XDG_CACHE_HOME`, else `~/.cache`), a folder of this process alone that goes with it.
Code that was compiled before into one that is now read-only, as in an image, is copied from there (12 MB). Where not
even a temporary folder can be made, each start compiles anew (40 s).

Processes that start at once: `compile_lock` lets one compile and the others wait, and then load. Without the lock they
would all compile; Numba replaces files as a whole, so nothing breaks.
"""

import atexit
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeVar

import numba
import numpy as np

PACKAGE: Final = Path(__file__).parent
KEPT: Final = 3
"""Folders of earlier versions that stay beside a new one: two versions may be in use at once."""

# What is read of a record has its field's width: before it is reckoned with it becomes one of these, compiled or not.
# (NumPy's float32 times a Python float stays float32; Numba's does not.)
float64: Final[Any] = np.float64
int64: Final[Any] = np.int64

Function = TypeVar("Function", bound=Callable[..., Any])


NOT_COMPILED: Final = frozenset(("__init__.py", "profiles.py", "table.py", "in_words.py"))
"""Modules of the package whose functions are plain Python, and of which nothing is compiled into others."""


def _digest() -> str:
    """Of the sources that are compiled, of Numba and of Python."""
    compiled_sources = [path for path in sorted(PACKAGE.glob("*.py")) if path.name not in NOT_COMPILED]
    sources = b"\0".join(path.read_bytes() for path in compiled_sources)
    return sha256(sources + f"\0{numba.__version__} {sys.version}".encode()).hexdigest()[:16]


def _bases() -> list[Path]:
    """Where the folder may lie, the best place first."""
    if named := os.environ.get("NUMBA_CACHE_DIR"):
        return [Path(named)]
    bases = [PACKAGE / "__pycache__"]
    with suppress(RuntimeError):  # a user without a home, as one of a container who has a number and no name
        bases.append(Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "redflag")
    return bases


def _writable(folder: Path) -> bool:
    """Whether files can be made there; makes the folder where there is none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _remove_earlier(base: Path) -> None:
    """Removes folders of versions before, but for the newest `KEPT`."""
    folders = sorted(base.glob("kernels-*"), key=lambda path: path.stat().st_mtime)
    for folder in folders[:-KEPT]:
        shutil.rmtree(folder, ignore_errors=True)


def _copy(before: Path, folder: Path) -> None:
    """Copies what was compiled to an empty folder as a whole: another process may be about to load from there."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        copied = Path(shutil.copytree(before, Path(aside) / folder.name))
        with suppress(OSError):  # another has been quicker
            copied.rename(folder)


def cache_folder() -> Path | None:
    """The folder for machine code of these very sources, made where there is none; None where none can be made."""
    name = f"kernels-{_digest()}"
    compiled_before: Path | None = None
    for base in _bases():
        folder = base / name
        there = folder.is_dir()
        if _writable(folder):
            if not there:
                _remove_earlier(base)
                if compiled_before:
                    _copy(compiled_before, folder)
            return folder
        if there:
            compiled_before = compiled_before or folder
    try:
        folder = Path(tempfile.mkdtemp(prefix="redflag-kernels-"))
    except OSError:
        return None
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if compiled_before:
        shutil.copytree(compiled_before, folder, dirs_exist_ok=True)
    return folder


FOLDER: Final = cache_folder()
if FOLDER is not None:
    numba.config.CACHE_DIR = str(FOLDER)


def compiled(function: Function) -> Function:
    """Compiles a function at its first call; with NUMBA_DISABLE_JIT=1 it stays the Python that it is.

    Without fastmath: the same numbers come of the same operations, in the order in which they stand.
    """
    made: Function = numba.njit(cache=FOLDER is not None, nogil=True)(function)
    return made


def is_compiled() -> bool:
    """Whether there is machine code in the folder, or none is wanted."""
    return bool(numba.config.DISABLE_JIT) or (FOLDER is not None and any(FOLDER.rglob("*.nbc")))


def quiet() -> AbstractContextManager[Any]:
    """Around a call of a kernel: with the JIT off NumPy would warn of what is meant, x / 0 and the like.

    With it on nothing warns, and NumPy's own way to switch that off takes 2 µs.
    """
    return np.errstate(all="ignore") if numba.config.DISABLE_JIT else nullcontext()


@contextmanager
def compile_lock() -> Iterator[None]:
    """Held by the one process that compiles; the lock goes with the process."""
    if FOLDER is None:
        yield
        return
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
