"""Trainings and evaluations whose pictures nobody looks at: to lay them out and draw them takes most of a small one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import training.backtesting.report
import training.evaluation.report
import training.train

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MODULES = (training.train, training.evaluation.report, training.backtesting.report)


@contextmanager
def pictures_not_drawn() -> Iterator[None]:
    """All is plotted as ever, but the finished figure does not become a PNG."""

    def png(figure: Any) -> bytes:
        assert figure.axes
        return SIGNATURE

    with pytest.MonkeyPatch.context() as patch:
        for module in MODULES:
            patch.setattr(module, "png", png)
        yield
