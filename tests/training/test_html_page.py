"""The page of a report: whole by itself, and without markup that comes from data."""

from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.html_page import heading, page, paragraph, picture, table

EVIL = "<script>alert('1')</script> & \"x\" </td></html>"
PNG = b"\x89PNG"


class Parsed(HTMLParser):
    """The tags of a page with their attributes, and the text between them."""

    def __init__(self, content: str):
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.texts: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def made(text: str) -> str:
    return page(text, [heading(text), paragraph(text), table([text], [[text], [1.5]]), picture(PNG, text)])


@pytest.mark.parametrize("text", [EVIL, "{body}", "{0}", "\u202egnp.exe"])
def test_text_stays_text_wherever_it_stands(text: str) -> None:
    parsed = Parsed(made(text))
    assert [tag for tag, _ in parsed.tags] == [tag for tag, _ in Parsed(made("plain")).tags]
    assert parsed.texts.count(text) == 6  # title, both headings, paragraph, two cells
    (image,) = (dict(attributes) for tag, attributes in parsed.tags if tag == "img")
    assert image["alt"] == text


@given(st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"])))
def test_no_text_makes_a_tag(text: str) -> None:
    assert [tag for tag, _ in Parsed(made(text)).tags] == [tag for tag, _ in Parsed(made("plain")).tags]


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    parsed = Parsed(made("plain"))
    (policy,) = (
        dict(each)["content"] for tag, each in parsed.tags if tag == "meta" and ("charset", "utf-8") not in each
    )
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not {"script", "link", "iframe"} & {tag for tag, _ in parsed.tags}
    (source,) = (dict(each)["src"] for tag, each in parsed.tags if tag == "img")
    assert source == "data:image/png;base64,iVBORw=="


def test_columns_of_text_are_told_from_columns_of_numbers() -> None:
    parsed = Parsed(table(["name", "count"], [["a", 1]]))
    assert parsed.tags == [
        ("table", []), ("tr", []), ("th", [("class", "text")]), ("th", []),
        ("tr", []), ("td", [("class", "text")]), ("td", []),
    ]  # fmt: skip


def test_no_other_module_of_training_writes_markup() -> None:
    modules = Path("training").rglob("*.py")
    assert [str(path) for path in modules if "</" in path.read_text()] == ["training/html_page.py"]
