"""The model at serving: a pickle, refused unless its digest is right, whose trees a compiled kernel walks.

scikit-learn's own `predict` takes 5,000 µs for one row, the kernel some 40 (see `trees`), and what comes out is the
same: see `Model.score`.
"""

import hashlib
import io
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dataflow.errors import UserError
from dataflow.scoring.isolation_forest import ForestAnswers, ForestParts, Model
from dataflow.scoring.kept_parts import Answers, KeptParts, Parts
from dataflow.scoring.metadata import (
    AGAIN,
    ISOLATION_FOREST,
    Metadata,
    Scorer,
    beside,
    one_line,
    read_file,
    read_metadata,
)
from dataflow.scoring.tier_parts import TierAnswers, TierParts
from dataflow.scoring.tiers import SUPERVISED, TieredModel


def load_model(path: Path, keep_in: Path | None = None) -> Scorer:
    """Loads and compiles the model at `path`; its metadata is the JSON beside it.

    Unpickling runs code, so nothing is unpickled before the pickle's digest, the feature names and the version of
    scikit-learn are known to be right, and what is unpickled are the very bytes that were digested. This catches
    damage and mix-ups; who can write both files can still forge a model.

    Whatever is loaded has scored some rows as scikit-learn does. With a folder `keep_in`, what that said is kept there,
    and what was read of the pickle: a later start needs neither as long as nothing has changed, see `KeptParts`.

    Raises:
        UserError: there is no such model, or it does not fit its metadata, this program, or this scikit-learn.
    """
    metadata = read_metadata(path)
    pickled = read_file(path)
    if hashlib.sha256(pickled).hexdigest() != metadata.sha256:
        described = beside(path)
        msg = f"{path} is not the model that {described} describes (its SHA-256 differs), so it was not opened: {AGAIN}"
        raise UserError(msg)
    trained, here = metadata.versions.get("scikit-learn", "unknown"), version("scikit-learn")
    if trained.split(".")[:2] != here.split(".")[:2]:
        msg = f"{path} was trained with scikit-learn {trained}, here is {here}: install that version, or {AGAIN}"
        raise UserError(msg)
    kept = KeptParts(keep_in, metadata) if keep_in is not None else None
    if kept is not None and (found := kept.read()) is not None:
        parts, answers = found
        model = of_parts(metadata, parts)
        if agrees(model, answers):
            return model

    import joblib  # late, as scikit-learn is, which the pickle needs: 1.6 s of CPU

    try:
        artifact = joblib.load(io.BytesIO(pickled))
        _check(path, metadata, artifact)
        parts, answers = read_parts(metadata, artifact), ask(metadata, artifact)
        model = of_parts(metadata, parts)
        same = agrees(model, answers)
    except UserError:
        raise
    except Exception as error:
        msg = f"{path} holds no Isolation Forest of {len(metadata.features)} features ({one_line(error)}): {AGAIN}"
        raise UserError(msg) from error
    if not same:
        msg = f"{path}: compiled, it scores otherwise than in scikit-learn {here}, so it is of no use: {AGAIN}"
        raise UserError(msg)
    if kept is not None:
        kept.write(parts, answers)
    return model


def _check(path: Path, metadata: Metadata, artifact: Any) -> None:
    if metadata.tiers != [ISOLATION_FOREST]:
        if "normal" not in artifact:  # what is read for users without history
            msg = f"{path} holds tiers of an earlier release, which read newcomers in another way: {AGAIN}"
            raise UserError(msg)
    elif artifact.n_features_in_ != len(metadata.features):
        msg = f"it has {artifact.n_features_in_}"
        raise ValueError(msg)


def read_parts(metadata: Metadata, artifact: Any) -> Parts:
    """What is read of an artifact of training."""
    if metadata.tiers == [ISOLATION_FOREST]:
        return ForestParts.of(artifact)
    return TierParts.of(artifact, supervised=SUPERVISED in metadata.tiers)


def of_parts(metadata: Metadata, parts: Parts) -> Model | TieredModel:
    """The model, ready to score."""
    return Model(metadata, parts) if isinstance(parts, ForestParts) else TieredModel(metadata, parts)


def ask(metadata: Metadata, artifact: Any) -> Answers:
    """What scikit-learn says of rows at the splits of an artifact's trees."""
    if metadata.tiers == [ISOLATION_FOREST]:
        return ForestAnswers.of(artifact, range(len(metadata.features)), len(metadata.features))
    return TierAnswers.of(artifact, metadata.features, supervised=SUPERVISED in metadata.tiers)


def agrees(model: Model | TieredModel, answers: Answers) -> bool:
    """Whether a model says what scikit-learn said."""
    if isinstance(model, Model):
        return isinstance(answers, ForestAnswers) and model.agrees(answers)
    return isinstance(answers, TierAnswers) and model.agrees(answers)
