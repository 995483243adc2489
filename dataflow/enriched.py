"""What the user's step hands on to the merchant's step: payments and lessons, told apart by their type."""

import msgspec

from dataflow.transaction import Transaction


class Replaced(msgspec.Struct, gc=False, frozen=True):
    """What a lesson takes the place of: the same label as it counted before."""

    labelled_at: float
    fraud: bool
    explained: bool


class Lesson(msgspec.Struct, gc=False, frozen=True):
    """What a label teaches the merchant that it names; times in seconds since 1970 UTC."""

    merchant: str
    key: bytes  # six bytes that stand for the user and the transaction
    at: float  # of the transaction, as its first label says
    labelled_at: float
    fraud: bool
    explained: bool  # the amount was unusual for the user: a fraud speaks against the card, not the merchant
    before: Replaced | None = None


class Payment(msgspec.Struct, gc=False, frozen=True):
    """A transaction with what the user's profile knew before it, and what labels that waited for it teach now."""

    transaction: Transaction
    last_location: str
    numbers: bytes  # the facts of the user, packed
    counts: bool  # False for a repeat
    lessons: tuple[Lesson, ...] = ()
