"""The flow's own steps up to the merchant's profile, called one event after the other, on one worker."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from dataflow.features.batch import FeatureBatch
from dataflow.profile_steps import Event, ProfileLimits, ProfileSteps
from dataflow.profiles.amounts import AmountPrior
from dataflow.profiles.profiles import MERCHANT_LAYOUT, USER_LAYOUT
from dataflow.rules import LiveRules
from dataflow.scoring.metadata import Scorer
from dataflow.settings import Settings
from dataflow.steps import Steps, dead_letter
from dataflow.tables.table import new_tables


class Model:
    """As much of a model as the profiles' steps read, and whoever would explain its alerts."""

    amount_prior = AmountPrior()
    version = "none"
    features = ("amount",)
    metadata = SimpleNamespace(common_values=None)


class Lanes:
    """The flow's own steps from the user's profile to the merchant's, with one lane of each."""

    def __init__(self, clock: float = 0.0, **settings: Any) -> None:
        """`clock` is what the wall clock says, seconds since 1970."""
        self.clock = clock
        given = Settings(**settings)
        limits = ProfileLimits(given.profile_age_days, given.max_profiles)
        self.profiles = ProfileSteps(["0"], AmountPrior(), limits, dead_letter)
        model, rules = cast(Scorer, Model()), cast(LiveRules, None)
        self.steps = Steps(model, rules, given, self.profiles, lambda: self.clock)
        self.tables = new_tables(USER_LAYOUT), new_tables(MERCHANT_LAYOUT)
        self._users, self._merchants = self.profiles.users(self.tables[0]), self.profiles.merchants(self.tables[1])
        self.known: list[FeatureBatch] = []

    def read(self, events: Iterable[Event]) -> "Lanes":
        for event in events:
            of_users = [(lane, self._users.take(part)) for lane, part in self.profiles.key_by_user([event])]
            by_merchant = self.profiles.key_by_merchant(of_users)
            batch, _ = self.profiles.learned([(lane, self._merchants.take(part)) for lane, part in by_merchant])
            self.known.append(batch)
        return self

    def fact(self, name: str) -> list[Any]:
        """A field of all transactions, in their order."""
        return [value for batch in self.known for value in np.asarray(batch.column(name)).tolist()]

    def last_at(self, user: str) -> float:
        """Event time of a user's newest transaction, seconds since 1970."""
        return self._last_at(0, user)

    def merchant_last_at(self, merchant: str) -> float:
        """Likewise of a merchant's."""
        return self._last_at(1, merchant)

    def _last_at(self, step: int, key: str) -> float:
        table = self.tables[step]["profiles"]
        return float(table.rows["last_at"][table.row_of[key]])

    def state(self) -> Any:
        """All that is kept, as bytes."""
        return [
            {name: (table.rows[: table.used].tobytes(), table.keys) for name, table in tables.items()}
            for tables in self.tables
        ]
