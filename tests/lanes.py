"""The flow's own steps up to the merchant's profile, called one event after the other."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from dataflow.profile import ANYONE, MerchantProfile, UserProfile
from dataflow.rules import LiveRules
from dataflow.scoring import Scorer
from dataflow.settings import Settings
from dataflow.steps import Event, Profiled, Steps, key_by_merchant, key_by_user
from dataflow.table import Table


class Model:
    """As much of a model as the profiles' steps read, and whoever would explain its alerts."""

    population = ANYONE
    version = "none"
    features = ("amount",)
    metadata = SimpleNamespace(common_values=None)


class Lanes:
    """The flow's own steps from the user's profile to the merchant's, on one worker."""

    def __init__(self, clock: float = 0.0, **settings: Any) -> None:
        """`clock` is what the wall clock says, seconds since 1970."""
        self.clock = clock
        model, rules = cast(Scorer, Model()), cast(LiveRules, None)
        self.steps = Steps(model, rules, Settings(**settings), lambda: self.clock)
        self.users: dict[str, UserProfile] = {}
        self.merchants: dict[str, MerchantProfile] = {}
        self.known: list[Profiled] = []

    def read(self, events: Iterable[Event]) -> "Lanes":
        for user, event in key_by_user(list(events)):
            self.users[user], made = self.steps.update_user_profile(self.users.get(user), event)
            for merchant, item in key_by_merchant([(user, made)]):
                found = self.merchants.get(merchant)
                self.merchants[merchant], profiled = self.steps.update_merchant_profile(found, item)
                if profiled is not None:
                    self.known.append(profiled)
        return self

    def fact(self, name: str) -> list[Any]:
        """A field of all transactions, in their order."""
        txns, lasts, numbers = zip(*self.known, strict=True)
        return np.asarray(Table(list(txns), list(lasts), list(numbers)).column(name)).tolist()

    def state(self) -> Any:
        return [{key: each.__reduce__()[1] for key, each in part.items()} for part in (self.users, self.merchants)]
