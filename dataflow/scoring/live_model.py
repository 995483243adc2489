"""The operating point of a model in service: taken up when its JSON changes, at a batch's boundary, or left as it is.

Only the operating point is: the model itself, which the fingerprint binds, stays what it was at the start. So after a
move a running flow decides as one would that is started then.
"""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

from dataflow.errors import UserError
from dataflow.metrics import ALERT_THRESHOLD, BLOCK_THRESHOLD, MODEL_RELOAD_ERRORS, MODEL_RELOADS
from dataflow.process.file_watch import FileWatch, Stamps, stamp
from dataflow.scoring.metadata import Scorer, beside, read_metadata
from dataflow.scoring.operating_point import OperatingPoint

_log = logging.getLogger("redflag.model")


class LiveModel(FileWatch):
    """Watches the JSON beside a model, and swaps `model.operating_point` when it was moved.

    The workers of a process share the model, and each batch reads its operating point once.
    """

    def __init__(
        self, model: Scorer, path: Path, check_every: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`model` is what was loaded from `path`, just before; what changed since then is noticed, too."""
        super().__init__("redflag-model", check_every, clock)
        self._model = model
        self._path = path
        self._json = beside(path)
        self._show()

    def _stamps(self) -> Stamps:
        return (stamp(self._json),)

    def _reload(self) -> None:
        self._used = self._stamps()  # before reading: a file that changes meanwhile differs from it, and is read again
        try:
            point = self._read()
            if point != self._model.operating_point:
                self._model.operating_point = point
                self._show()
                MODEL_RELOADS.inc()
                _log.info("operating point of model %s from %s: %s", self._model.version, self._json, point.in_words())
        except UserError as error:
            self._refuse(str(error))
        except Exception as error:  # no memory left, or a fault of ours: the looks must go on
            self._refuse(f"{self._json}: {type(error).__name__}: {error}")

    def _read(self) -> OperatingPoint:
        found, own = read_metadata(self._path), self._model.metadata
        if found.identity != own.identity:
            msg = (
                f"{self._json} describes model {found.fingerprint[:12]}, and {self._model.version} is in service: a "
                "restart takes the other model"
            )
            raise UserError(msg)
        return found.operating_point or OperatingPoint.of_the_forest(self._model.threshold)

    def _refuse(self, why: str) -> None:
        MODEL_RELOAD_ERRORS.inc()
        _log.warning("the changed operating point is not used, the old one stays: %s", why)

    def _show(self) -> None:
        point = self._model.operating_point
        ALERT_THRESHOLD.set(point.alert)
        BLOCK_THRESHOLD.set(math.inf if point.block is None else point.block)
