"""Texts of transactions as they are shown: always as text, with nothing in them that acts unseen."""

import re
from datetime import UTC, datetime

import msgspec

# Between two digits of a card number may stand up to three blanks, dashes or characters that are not seen.
_BETWEEN = r"[\s\-\u00ad\u200b-\u200f\u2010-\u2015\u2060\u2212\ufeff]{0,3}"
_CARD = re.compile(rf"(?<!\d)\d(?:{_BETWEEN}\d){{12,18}}(?!\d)")


def shown(text: object, cards: bool = False) -> str:
    """A text in which each character that is not seen (controls, marks of direction) is named.

    Card numbers are masked, unless `cards` says that they may be seen.
    """
    whole = str(text)
    return "".join(_visible(character) for character in (whole if cards else masked(whole)))


def masked(text: str) -> str:
    """A text with only the first six and the last four digits of each card number."""
    return _CARD.sub(_masked, text)


def _visible(character: str) -> str:
    return character if character.isprintable() else f"[U+{ord(character):04X}]"


def _masked(found: re.Match[str]) -> str:
    """All but the first six and the last four digits of what may be a card number."""
    digits = [character for character in found[0] if character.isdigit()]
    if not _passes_luhn(digits):
        return found[0]
    return "".join(digits[:6]) + "*" * (len(digits) - 10) + "".join(digits[-4:])


def _passes_luhn(digits: list[str]) -> bool:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def money(amount: float) -> str:
    """An amount as people write it."""
    return f"{amount:,.2f}" if abs(amount) < 1e15 else f"{amount:g}"


def moment(at: float) -> str:
    """A time, s since 1970, as people write it; UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def value(found: object) -> str:
    """What stands in an explanation, for people."""
    if found is None:
        return "not known"
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, float | int):
        return f"{found:,.2f}".rstrip("0").rstrip(".")
    return shown(found)


def record(raw: bytes, cards: bool = False) -> str:
    """A record's JSON over several lines; `cards` as for `shown`."""
    try:
        text = msgspec.json.format(raw, indent=2).decode()
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = raw.decode(errors="replace")
    return "\n".join(shown(line, cards) for line in text.split("\n"))
