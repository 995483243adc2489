"""Texts of transactions as they are shown: always as text, with nothing in them that acts unseen."""

import re
from datetime import UTC, datetime
from itertools import accumulate

import msgspec

# Between two digits of a card number may stand up to three blanks, dashes or characters that are not seen.
_BETWEEN = r"[\s\-\u00ad\u200b-\u200f\u2010-\u2015\u2060\u2212\ufeff]{0,3}"
_DIGITS = re.compile(rf"\d(?:{_BETWEEN}\d){{12,}}")
_GROUP = re.compile(r"\d+")
SHORTEST, LONGEST = 13, 19
"""Digits of a card's number."""


def shown(text: object, cards: bool = False) -> str:
    """A text in which each character that is not seen (controls, marks of direction) is named.

    Card numbers are masked, unless `cards` says that they may be seen.
    """
    found = str(text) if cards else masked(str(text))
    if found.isprintable():  # as nearly all are; character by character a page of the queue took 5 ms
        return found
    return "".join(_visible(character) for character in found)


def masked(text: str) -> str:
    """A text with only the first six and the last four digits of each card number."""
    return _DIGITS.sub(_masked, text)


def _visible(character: str) -> str:
    return character if character.isprintable() else f"[U+{ord(character):04X}]"


def _masked(found: re.Match[str]) -> str:
    """All but the first six and the last four digits of what may be card numbers, among other numbers or not."""
    text, groups = found[0], list(_GROUP.finditer(found[0]))
    digits = "".join(group[0] for group in groups)
    ends = list(accumulate((len(group[0]) for group in groups), initial=0))  # among the digits, behind each group
    sums = _luhn_sums(digits)
    pieces, done, first = [], 0, 0
    while first < len(groups):
        begin, card = ends[first], 0  # the last group of the longest card's number that begins here
        for last in range(first, len(groups)):
            end = ends[last + 1]
            if end - begin > LONGEST:
                break
            of_its_parity = sums[end % 2]
            if end - begin >= SHORTEST and (of_its_parity[end] - of_its_parity[begin]) % 10 == 0:
                card = last + 1
        if card:
            end = ends[card]
            hidden = "*" * (end - begin - 10)
            pieces += [text[done : groups[first].start()], digits[begin : begin + 6], hidden, digits[end - 4 : end]]
            done = groups[card - 1].end()
        first = max(card, first + 1)
    return "".join(pieces) + text[done:]


def _luhn_sums(digits: str) -> tuple[list[int], list[int]]:
    """Sums of all digits before each, those at an even place, or at an odd place, doubled as Luhn's check does.

    So a number that ends before place `e` is right where its share of the sum of `e`'s parity is one of ten:
    https://patents.google.com/patent/US2950048A/en.
    """
    values = [int(digit) for digit in digits]
    doubled = [(2 * value - 9 if value > 4 else 2 * value) for value in values]
    even = accumulate((doubled[i] if i % 2 == 0 else values[i] for i in range(len(values))), initial=0)
    odd = accumulate((doubled[i] if i % 2 else values[i] for i in range(len(values))), initial=0)
    return list(even), list(odd)


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
