"""What was read of a model's pickle, and what scikit-learn said of some rows, kept for the next start.

To import scikit-learn, unpickle and ask takes 2.9 s of CPU, of 4 s that a start took; to read this and to compare again
with what scikit-learn said, .1 s.

It lies beside the kernels' machine code, and like that it is named by a digest of all that it depends on: the pickle's
bytes and the features, the sources of this package and of the kernels, the versions of Python and of the libraries, the
processor. Where one of them is another, no file of that name is there, and scikit-learn is asked. What is read is data,
never code, with a digest before it; who can write to that folder can replace the machine code as well.
"""

import logging
import tempfile
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import llvmlite.binding as llvm
import msgspec
import numba
import numpy as np

from dataflow.scoring.isolation_forest import ForestAnswers, ForestParts
from dataflow.scoring.metadata import ISOLATION_FOREST, Metadata
from dataflow.scoring.tier_parts import TierAnswers, TierParts

Parts = ForestParts | TierParts
Answers = ForestAnswers | TierAnswers
Kept = tuple[Parts, Answers]

KEPT: Final = 3
"""Models whose parts stay, the newest: a model of before may be in use, or come back."""
PREFIX: Final = "model-"
DIGEST_BYTES: Final = 32
PACKAGE: Final = Path(__file__).parent
LIBRARIES: Final = ("scikit-learn", "scipy", "numpy", "joblib", "msgspec", "llvmlite")

_log = logging.getLogger("redflag.model")


class KeptParts:
    """The parts of one model in a folder."""

    def __init__(self, folder: Path, metadata: Metadata):
        """`folder`: that of the kernels, whose name says their sources, Numba's version and Python's."""
        self._folder = folder
        alone = metadata.tiers == [ISOLATION_FOREST]
        self._kind: Any = tuple[ForestParts, ForestAnswers] if alone else tuple[TierParts, TierAnswers]
        self._file = folder / f"{PREFIX}{_depends_on(folder, metadata)[:32]}"

    def read(self) -> Kept | None:
        """What was kept; None where there is nothing, or the file is damaged."""
        try:
            content = self._file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._complain(error)
            return None
        digest, packed = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if sha256(packed).digest() != digest:
            _log.warning("%s is damaged: scikit-learn is asked again", self._file)
            return None
        kept: Kept = msgspec.msgpack.decode(packed, type=self._kind, dec_hook=_unpacked)  # whole, and of these sources
        return kept

    def write(self, parts: Parts, answers: Answers) -> None:
        """Keeps what has been compared; one line of the log where that cannot be done."""
        packed = msgspec.msgpack.encode((parts, answers), enc_hook=_packed)
        aside: Path | None = None
        try:
            # Renamed when it is whole: another process may be about to read. Only this user can read it.
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".model-", delete=False) as new:
                aside = Path(new.name)
                new.write(sha256(packed).digest() + packed)
            aside.rename(self._file)
            files = sorted(self._folder.glob(f"{PREFIX}*"), key=lambda path: path.stat().st_mtime)
            for earlier in files[:-KEPT]:
                earlier.unlink(missing_ok=True)
        except OSError as error:
            if aside is not None:
                aside.unlink(missing_ok=True)
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        _log.warning("%s: %s: each start asks scikit-learn anew, which takes seconds", self._file, error.strerror)


def _depends_on(folder: Path, metadata: Metadata) -> str:
    """A digest of all that makes the comparison come out as it does."""
    versions = [f"{name} {version(name)}" for name in LIBRARIES]
    processor = [llvm.get_host_cpu_name(), numba.config.CPU_NAME, numba.config.CPU_FEATURES, numba.config.DISABLE_JIT]
    sources = [path.read_bytes() for path in sorted(PACKAGE.glob("*.py"))]
    about = [metadata.fingerprint, folder.name, versions, [str(each) for each in processor]]
    return sha256(msgspec.msgpack.encode([about, sources])).hexdigest()


def _packed(array: Any) -> Any:
    """An array, or a number of NumPy's, as msgpack takes it."""
    if isinstance(array, np.generic):
        return array.item()
    if not isinstance(array, np.ndarray) or array.dtype.hasobject:
        msg = f"{type(array).__name__} cannot be kept"
        raise TypeError(msg)
    return array.dtype.str, array.shape, array.tobytes()


def _unpacked(_kind: Any, packed: Any) -> Any:
    dtype, shape, content = packed
    return np.frombuffer(content, dtype).reshape(shape).copy()  # Numba compiles anew for what cannot be written
