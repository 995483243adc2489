"""Rules as data: the file, its checks, and what its rules say of a batch of transactions.

`python -m dataflow.rules check FILE` checks a file, `python -m dataflow.rules fields` lists what a rule may read.
"""

from dataflow.events.decision import Action
from dataflow.rules.fields import ALL_FIELDS, NUMBER_OF, Batch, value_of
from dataflow.rules.reloading import LiveRules
from dataflow.rules.rules_file import examine, load_rules
from dataflow.rules.ruleset import Cooldowns, Rule, RuleResult, RuleSet

__all__ = [
    "ALL_FIELDS",
    "NUMBER_OF",
    "Action",
    "Batch",
    "Cooldowns",
    "LiveRules",
    "Rule",
    "RuleResult",
    "RuleSet",
    "examine",
    "load_rules",
    "value_of",
]
