"""What an analyst asks of the queue."""

from typing import Literal

import msgspec

from console.cases import Pivot

Order = Literal["newest", "riskiest"]
State = Literal["waiting", "mine", "closed", "suppressed"]


class View(msgspec.Struct, frozen=True):
    """What an analyst wants to see; an empty filter lets everything through."""

    order: Order = "newest"
    group: Pivot = "user"
    state: State = "waiting"
    analyst: str = ""  # of "mine"
    rule: str = ""
    scenario: str = ""
    merchant: str = ""
    action: str = ""
    at_least: float | None = None  # amount
    at_most: float | None = None
    score_from: float | None = None
    search: str = ""
    cards: bool = False  # whether whoever asks may see card numbers
