"""What an alert says of a rule that fired: its reason, with the transaction's values filled in."""

import math
import string

from dataflow.rules.fields import KINDS
from dataflow.rules.language import RuleError, suggestion


def parse_reason(reason: str) -> tuple[str, tuple[str, ...]]:
    """A reason as a format with bare `{}`, and the fields that fill it.

    Raises:
        RuleError: it is no format, or names a field that does not exist.
    """
    form, used = [], []
    try:
        pieces = list(string.Formatter().parse(reason))
    except ValueError as error:
        msg = f"{error} (a brace that is meant as one is written twice)"
        raise RuleError(msg) from None
    for text, name, spec, conversion in pieces:
        form.append(text.replace("{", "{{").replace("}", "}}"))
        if name is None:
            continue
        column = reason.find("{" + name) + 2
        if name not in KINDS:
            msg = f"there is no field {name!r}{suggestion(name, KINDS)}"
            raise RuleError(msg, column)
        if spec or conversion:
            msg = f"{{{name}}} takes no format"
            raise RuleError(msg, column)
        form.append("{}")
        used.append(name)
    return "".join(form), tuple(used)


def show(value: float | str | bool) -> str:
    """A value as a reason shows it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not math.isfinite(value):
        return "unknown"
    text = f"{value:.2f}".rstrip("0").rstrip(".") if abs(value) < 1e15 else f"{value:g}"
    return "0" if text == "-0" else text
