"""Why a decision is an alert, in entries that people read and programs sort."""

import msgspec


class Explanation(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One reason for an alert: a feature that is unusual, or a rule that fired."""

    feature: str  # the feature, or of its group the one that names it; of a rule "rule:ID"
    value: float | str | bool
    usual: float | str | bool | None  # this user's or merchant's normal; None where there is none
    effect: float  # by how much the score falls if this feature alone were usual
    text: str  # a plain sentence
    fraud_factor: float | None = None  # how much more often transactions with such a value were frauds
