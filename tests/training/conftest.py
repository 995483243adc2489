"""In most tests of the training nobody looks at the pictures."""

from collections.abc import Iterator

import pytest

from tests.support.pictures import MODULES, pictures_not_drawn
from training.plots import png


@pytest.fixture(scope="module", autouse=True)
def plotted() -> Iterator[None]:
    with pictures_not_drawn():
        yield


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test that looks at the pictures."""
    for module in MODULES:
        monkeypatch.setattr(module, "png", png)
