"""The console's own messages on the feedback topic: their headers say which message of which outbox they are."""

from collections.abc import Sequence
from typing import Final

CONSOLE: Final = "console"  # the database's id
NUMBER: Final = "console_number"  # of the outbox

Headers = Sequence[tuple[str, bytes | None]]


def headers_of(console: str, number: int) -> list[tuple[str, bytes | None]]:
    """The headers of a message of an outbox."""
    return [(CONSOLE, console.encode()), (NUMBER, str(number).encode())]


def own_number(headers: Headers | None, console: str) -> int | None:
    """The number that a message has in this console's outbox; None for anybody else's."""
    found = dict(headers or ())
    number = found.get(NUMBER)
    if found.get(CONSOLE) != console.encode() or number is None or not number.isdigit():
        return None
    return int(number)
