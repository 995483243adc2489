"""The pictures of docs/images: of each page at each size, and none that tells of the machine where it was taken."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.console import screenshots
from tests.console.running import ROOT


def browser(text: str) -> Any:
    return SimpleNamespace(find_element=lambda *_: SimpleNamespace(text=text))


def test_no_picture_is_taken_of_a_page_that_shows_where_the_repository_lies() -> None:
    screenshots._check(browser(f"In service: version 1 of {screenshots.RULES}"), "rules")
    assert (ROOT / screenshots.RULES).is_file()
    with pytest.raises(SystemExit, match="the page 'rules' shows where the repository lies"):
        screenshots._check(browser(f"In service: version 1 of {ROOT / screenshots.RULES}"), "rules")


@pytest.mark.parametrize("page", ["queue", "case", "overview", "rules"])
def test_each_page_is_shown_at_each_size_light_and_dark(page: str) -> None:
    documents = (ROOT / "docs" / "console.md").read_text()
    for width in screenshots.SIZES:
        for wish in ("light", "dark"):
            name = f"console-{page}-{width}-{wish}.png"
            assert (screenshots.IMAGES / name).is_file()
            assert f"(images/{name})" in documents
