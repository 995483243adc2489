"""What the JSON beside a model says of it, checked; and what the flow asks of any model."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from dataflow.errors import UserError
from dataflow.features.catalogue import FIELDS
from dataflow.profiles.amounts import AmountPrior
from dataflow.scoring.common_values import CommonValues
from dataflow.scoring.decision_tree import Bools, Floats, Rows
from dataflow.scoring.operating_point import OperatingPoint

FORMAT = 1
"""Of the metadata; another number is refused."""

ISOLATION_FOREST = "isolation_forest"

TIERS = [
    [ISOLATION_FOREST],
    [ISOLATION_FOREST, "evidence"],
    [ISOLATION_FOREST, "evidence", "feedback"],
    [ISOLATION_FOREST, "evidence", "feedback", "supervised"],
]
"""What a model may be made of: see `dataflow.scoring.tiers`. The first is scikit-learn's forest and nothing else."""

TRAIN = "train one with `make train` (python -m training.train)"

AGAIN = "train again with `make train TRAIN=--force` (python -m training.train --force)"


class Window(msgspec.Struct, frozen=True):
    """The history that a model was trained on; event times in ISO 8601, UTC."""

    source: str
    first: str
    last: str
    rows: int


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON beside the pickle.

    Serving goes by the fields that the fingerprint binds and by the version of scikit-learn; the rest is for people.
    """

    format: int
    tiers: list[str]
    features: list[str]  # names out of `features.catalogue.FIELDS`, in the order of the model's columns
    sha256: str  # of the pickle's bytes
    fingerprint: str  # of all the above, see `fingerprint`; its first 12 digits are the model's version
    versions: dict[str, str]  # of Python and of the libraries
    window: Window
    hyperparameters: dict[str, Any]
    seed: int
    metrics: dict[str, Any]
    created_at: str
    operating_point: OperatingPoint | None = None  # not bound by the fingerprint: it is moved without training
    common_values: CommonValues | None = None  # for explanations; of models trained before there is none

    @property
    def identity(self) -> tuple[str, str]:
        """What tells two models apart, whatever their operating points."""
        return self.fingerprint, self.sha256


class Scorer(Protocol):
    """What the flow asks of a model, whatever its tiers."""

    metadata: Metadata
    version: str
    features: tuple[str, ...]
    amount_prior: AmountPrior
    threshold: float  # of the Isolation Forest alone: a risk of its own above it is an anomaly
    operating_point: OperatingPoint  # replaced as a whole when it is moved; a batch reads it once

    def score(self, rows: Rows) -> tuple[Floats, Bools]:
        """Risk, 0 to 1, and whether the Isolation Forest calls it an anomaly, for each row."""
        ...

    def risk_first(self, rows: Rows) -> tuple[Floats, Callable[[], Bools]]:
        """The same, but of the anomalies what works them out: a risk that does not need the forest does not ask it."""
        ...


def fingerprint(tiers: Sequence[str], features: Sequence[str], sha256: str) -> str:
    """SHA-256 that binds the feature names and their order to a pickle's bytes: neither can change unnoticed."""
    return hashlib.sha256(msgspec.json.encode([FORMAT, tiers, features, sha256])).hexdigest()


def read_file(path: Path) -> bytes:
    """The bytes of a file of a model.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        msg = f"there is no model at {path}: {TRAIN}, or name another in MODEL_FILE"
        raise UserError(msg) from None
    except OSError as error:
        msg = f"cannot read the model at {path} ({error.strerror}): mend that, or name another in MODEL_FILE"
        raise UserError(msg) from None


def beside(path: Path) -> Path:
    """Where the metadata of the model at `path` lies."""
    return path.with_suffix(".json")


def read_metadata(path: Path) -> Metadata:
    """What the JSON beside the model at `path` says, checked; the model itself is not opened.

    Raises:
        UserError: there is no such model, or its JSON does not describe a model that this program knows.
    """
    where = beside(path)
    if not path.exists():
        read_file(path)  # raises and says so
    if not where.exists():
        msg = f"{path} has no metadata beside it ({where} is missing), so it was not opened: {AGAIN}"
        raise UserError(msg)
    try:
        metadata = msgspec.json.decode(read_file(where), type=Metadata)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"{where} is not the metadata of a model ({one_line(error)}): {AGAIN}"
        raise UserError(msg) from None
    if metadata.format != FORMAT or metadata.tiers not in TIERS:
        kind = f"format {metadata.format}, tiers {metadata.tiers}"
        msg = f"{where} describes a model of another kind ({kind}) than this program knows: {AGAIN}"
        raise UserError(msg)
    numbers = {field.name for field in FIELDS if field.kind != "text"}
    strange = [name for name in metadata.features if name not in numbers]
    if strange or not metadata.features:
        named = f"the feature {strange[0]!r}, which is no number" if strange else "no feature"
        msg = f"{where} names {named} that this program computes: {AGAIN}"
        raise UserError(msg)
    if fingerprint(metadata.tiers, metadata.features, metadata.sha256) != metadata.fingerprint:
        msg = f"{where} was changed: its features are not those that {path} was trained on; {AGAIN}"
        raise UserError(msg)
    mistake = None if metadata.operating_point is None else metadata.operating_point.mistake()
    if mistake is not None:
        msg = f"{where}: operating_point.{mistake}: move it with `python -m training.threshold --at`, or {AGAIN}"
        raise UserError(msg)
    return metadata


def one_line(error: BaseException) -> str:
    """An error's type and text, without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())
