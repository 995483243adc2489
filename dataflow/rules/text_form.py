"""The form in which texts are compared: no trailing blank, and no other way to write an accent, evades a rule or list.

Look-alikes (a Cyrillic letter for a Latin one, an invisible character inside) stay different texts.
"""

from collections.abc import Iterable
from unicodedata import normalize


def comparable(texts: Iterable[str]) -> list[str]:
    """Each text without white space around it, composed as Unicode's NFC; white space inside and case stay."""
    stripped = list(map(str.strip, texts))
    if "".join(stripped).isascii():  # which is composed: the check is far quicker for all than for each
        return stripped
    return [text if text.isascii() else normalize("NFC", text) for text in stripped]


def caseless(text: str) -> str:
    """The text as it compares where case is ignored: Unicode's canonical caseless match (D145), composed."""
    if text.isascii():
        return text.lower()
    return normalize("NFC", normalize("NFD", text).casefold())
