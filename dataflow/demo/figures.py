"""How good decisions are against the truth: frauds caught and missed, false alarms, money, all of it by scenario."""

import math
from typing import TypeVar

import msgspec

Value = TypeVar("Value")

MAX_WAITING = 100_000
"""Decisions whose truth has not come, and truths without a decision, that are kept; of more the oldest go."""


class Count(msgspec.Struct):
    """Some frauds, and what they amount to."""

    number: int = 0
    money: float = 0.0

    def add(self, amount: float) -> None:
        """One more, of that amount."""
        self.number += 1
        self.money += amount


class Scenario(msgspec.Struct):
    """The frauds of one kind: all, and those that raised an alert."""

    frauds: Count = msgspec.field(default_factory=Count)
    caught: Count = msgspec.field(default_factory=Count)


class Figures:
    """Joins decisions with the truth about them, whichever comes first, and counts.

    A fraud is caught if its decision is an alert, else missed; an alert on what is genuine is a false alarm. Money is
    the sum of the amounts.
    """

    def __init__(self) -> None:
        self.frauds = Count()
        self.caught = Count()
        self.false_alarms = Count()
        self.judged = 0  # decisions whose truth is known
        self.by_scenario: dict[str, Scenario] = {}
        self._decided: dict[str, tuple[float, bool]] = {}
        self._truths: dict[str, tuple[bool, str]] = {}

    def decided(self, transaction_id: str, amount: float, alert: bool) -> None:
        """Takes a decision."""
        truth = self._truths.pop(transaction_id, None)
        if truth is not None:
            self._judge(amount, alert, *truth)
        else:
            _keep(self._decided, transaction_id, (amount, alert))

    def truth(self, transaction_id: str, fraud: bool, scenario: str) -> None:
        """Takes the truth about a transaction."""
        decision = self._decided.pop(transaction_id, None)
        if decision is not None:
            self._judge(*decision, fraud, scenario)
        else:
            _keep(self._truths, transaction_id, (fraud, scenario))

    def _judge(self, amount: float, alert: bool, fraud: bool, scenario: str) -> None:
        self.judged += 1
        if not fraud:
            if alert:
                self.false_alarms.add(amount)
            return
        of_scenario = self.by_scenario.setdefault(scenario, Scenario())
        for count in (self.frauds, of_scenario.frauds):
            count.add(amount)
        if alert:
            for count in (self.caught, of_scenario.caught):
                count.add(amount)

    @property
    def missed(self) -> Count:
        """Frauds without an alert."""
        return Count(self.frauds.number - self.caught.number, self.frauds.money - self.caught.money)

    @property
    def precision(self) -> float:
        """The share of frauds among the alerts; nan without an alert."""
        return _share(self.caught.number, self.caught.number + self.false_alarms.number)

    @property
    def recall(self) -> float:
        """The share of frauds that raised an alert; nan without a fraud."""
        return _share(self.caught.number, self.frauds.number)


def _keep(waiting: dict[str, Value], transaction_id: str, value: Value) -> None:
    if len(waiting) >= MAX_WAITING:
        del waiting[next(iter(waiting))]
    waiting[transaction_id] = value


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
