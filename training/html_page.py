"""A report as one HTML page: nothing is loaded from anywhere, no script runs, and every text is escaped.

A page is made of `Html`, which only the functions here make, of plain text: what stands in a transaction, a rule or a
file's name cannot become markup.
"""

import base64
from collections.abc import Collection, Iterable, Sequence
from html import escape
from typing import Any, NewType

Html = NewType("Html", str)
"""Markup, with all text in it escaped."""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1f2933 }}
table {{ border-collapse: collapse; margin: .5rem 0 1.5rem }}
th, td {{ padding: .2rem .7rem; border-bottom: 1px solid #e4e7eb; text-align: right; vertical-align: top }}
th {{ border-bottom: 2px solid #9aa5b1 }} .text {{ text-align: left; overflow-wrap: anywhere }}
img {{ max-width: 100% }}
h2 {{ font-size: 1.25rem; margin: 2.5rem 0 0 }} h3 {{ font-size: 1.05rem; margin: 1.5rem 0 0 }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


def page(title: str, parts: Iterable[Html]) -> str:
    """The whole page, with its title above the parts."""
    return _PAGE.format(title=escape(title), body="\n".join(parts))


def heading(text: str, level: int = 2) -> Html:
    """A heading; the page's own is level 1."""
    return Html(f"<h{level}>{escape(text)}</h{level}>")


def paragraph(text: str) -> Html:
    """A paragraph."""
    return Html(f"<p>{escape(text)}</p>")


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], text: Collection[int] = (0,)) -> Html:
    """A table; the columns whose numbers are in `text` are left-aligned, the others hold numbers."""

    def cells(tag: str, row: Sequence[Any]) -> str:
        written = (
            f"<{tag}{' class=text' if number in text else ''}>{escape(str(cell))}</{tag}>"
            for number, cell in enumerate(row)
        )
        return f"<tr>{''.join(written)}</tr>"

    return Html("\n".join([f"<table>{cells('th', head)}", *(cells("td", row) for row in rows)]) + "</table>")


def picture(png: bytes, name: str) -> Html:
    """A PNG within the page; `name` is for those who cannot see it."""
    return Html(f'<img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">')
