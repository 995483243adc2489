"""What a user has done wrong, and can mend, and how it is told."""

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec


class UserError(Exception):
    """A mistake the user can mend: one line that says what, where, and what to do; of several mistakes, a line each."""


def in_words(kind: Any) -> str:
    """What a value of a type must be, as a message says it: the type's own description, else its kind and its bounds.

    `kind` is the type of a field of a struct as msgspec checks it. Its description and bounds are those of a
    `msgspec.Meta`; of a whole number or a number there is a lower bound.
    """
    kind, meta = without_none(kind), msgspec.Meta()
    if get_origin(kind) is Annotated:
        kind, meta = get_args(kind)
    if meta.description is not None:
        return meta.description
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if kind is int:
        return f"a whole number of at least {meta.ge}"
    if kind is float:
        return f"a number of at least {meta.ge:g}" if meta.le is None else f"a number from {meta.ge:g} to {meta.le:g}"
    return "text"


def without_none(kind: Any) -> Any:
    """What of `X | None` a user can write."""
    if get_origin(kind) in (Union, UnionType):
        kind = next(each for each in get_args(kind) if each is not NoneType)
    return kind
