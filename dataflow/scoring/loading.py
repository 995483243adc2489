"""The model at serving: a pickle, refused unless its digest is right, whose trees a compiled kernel walks.

scikit-learn's own `predict` takes 5,000 µs for one row, the kernel some 40 (see `trees`), and what comes out is the
same: see `Model.score`.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

from dataflow.errors import UserError
from dataflow.scoring.isolation_forest import Model, agrees
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
from dataflow.scoring.tiers import TieredModel


def load_model(path: Path) -> Scorer:
    """Loads and compiles the model at `path`; its metadata is the JSON beside it.

    Unpickling runs code, so nothing is unpickled before the pickle's digest, the feature names and the version of
    scikit-learn are known to be right, and what is unpickled are the very bytes that were digested. This catches
    damage and mix-ups; who can write both files can still forge a model.

    Raises:
        UserError: there is no such model, or it does not fit its metadata, this program, or this scikit-learn.
    """
    metadata = read_metadata(path)
    pickled = read_file(path)
    if hashlib.sha256(pickled).hexdigest() != metadata.sha256:
        described = beside(path)
        msg = f"{path} is not the model that {described} describes (its SHA-256 differs), so it was not opened: {AGAIN}"
        raise UserError(msg)

    import joblib
    import sklearn

    trained, here = metadata.versions.get("scikit-learn", "unknown"), sklearn.__version__
    if trained.split(".")[:2] != here.split(".")[:2]:
        msg = f"{path} was trained with scikit-learn {trained}, here is {here}: install that version, or {AGAIN}"
        raise UserError(msg)
    try:
        artifact = joblib.load(io.BytesIO(pickled))
        if metadata.tiers != [ISOLATION_FOREST]:
            return _tiered(path, metadata, artifact)
        forest = artifact
        if forest.n_features_in_ != len(metadata.features):
            msg = f"it has {forest.n_features_in_}"
            raise ValueError(msg)
        model = Model(metadata, forest)
        same = agrees(model, forest)
    except UserError:
        raise
    except Exception as error:
        msg = f"{path} holds no Isolation Forest of {len(metadata.features)} features ({one_line(error)}): {AGAIN}"
        raise UserError(msg) from error
    if not same:
        msg = f"{path}: compiled, it scores otherwise than in scikit-learn {here}, so it is of no use: {AGAIN}"
        raise UserError(msg)
    return model


def _tiered(path: Path, metadata: Metadata, artifact: Any) -> Scorer:
    if "normal" not in artifact:  # what is read for users without history
        msg = f"{path} holds tiers of an earlier release, which read newcomers in another way: {AGAIN}"
        raise UserError(msg)
    model = TieredModel(metadata, artifact)
    if not model.agrees(artifact):
        msg = f"{path}: compiled, it scores otherwise than in scikit-learn, so it is of no use: {AGAIN}"
        raise UserError(msg)
    return model
