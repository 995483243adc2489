"""How much more often transactions with such a value were frauds than all: learned in training, told by alerts."""

from bisect import bisect_left
from collections.abc import Mapping

import msgspec

PRIOR_FRAUDS = 1.0
"""Frauds expected in a bin, seen at the rate of all, that what is seen there is averaged with: the prior's shape."""


class BinnedFrauds(msgspec.Struct, frozen=True):
    """The labelled transactions of the training window by one feature's value.

    Bin `i` holds the values above `edges[i - 1]`, up to and with `edges[i]`; the last one those above the last edge.
    """

    edges: list[float]  # ascending
    seen: list[int]  # transactions in each bin, one more than there are edges
    frauds: list[int]  # frauds among them

    def factor(self, value: float) -> float | None:
        """The rate of frauds in the value's bin in that of all; None where no fraud, or nothing, was seen at all.

        Gamma-Poisson shrinkage of the relative risk towards 1 (Clayton and Kaldor, "Empirical Bayes estimates of
        age-standardized relative risks", Biometrics 43, 1987): with `expected` frauds at the rate of all, it is
        (frauds + a) / (expected + a), a being `PRIOR_FRAUDS`. A bin in which few were seen stays near 1.
        """
        seen, frauds = sum(self.seen), sum(self.frauds)
        if not frauds:
            return None
        place = bisect_left(self.edges, value)
        expected = self.seen[place] * frauds / seen
        return (self.frauds[place] + PRIOR_FRAUDS) / (expected + PRIOR_FRAUDS)


class CommonValues(msgspec.Struct, frozen=True):
    """What the training window knows of the values of a model's features; for explanations, not for scores."""

    typical: Mapping[str, float] = {}  # the median of each feature among all transactions
    fraud_factors: Mapping[str, BinnedFrauds] = {}  # of each feature; empty without labels known in time
