"""What rules say of columns is what the evaluator that came before said of rows: every verdict, reason and figure."""

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflow.rules import ALL_FIELDS, Rule, RuleSet, load_rules
from dataflow.rules.conditions import SCREENED_ROWS
from dataflow.rules.fields import KINDS
from dataflow.rules.language import read_condition
from dataflow.settings import TUTORIAL_RULES, Settings
from tests.rules.builders import Row, evaluate, row
from tests.rules.row_evaluator import RowEvaluator, Rows

NUMBERS = ("amount", "timestamp", "txn_per_hour", "seconds_since_last", "history", "model_score", "block_threshold")
TEXTS = ("user", "merchant", "txn_type", "last_location")
FLAGS = ("location_changed", "new_device", "new_location", "model_alert")
LISTS = {
    "exact": frozenset({"Shop", "Zo\u00eb", "x"}),
    "caseless": frozenset({"shop", "zo\u00eb", "strasse", "i\u0307x"}),
    "empty": frozenset[str](),
}
CASELESS = {"caseless"}

# Values at which something turns: an equal one, no number, the ends of what a float can hold, and a point in time.
PLAIN = [0.0, -0.0, 1.0, -1.0, 2.0, 3.0, 0.5, 399.99, 400.0, 400.01, 1e15, 1.7e9, 3600.0, 86_399.5, -7.5]
EXTREME = [math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324]
WORDS = ["Shop", " Shop\t", "SHOP", "shop", "S", "", " ", "x"]
WORDS += ["Zo\u00eb", "Zoe\u0308", "STRASSE", "Stra\u00dfe", "\u0130x"]
WORDS += ["XYZ_Merchant", "UnknownShop ", "transfer", "WIRE", "withdrawal"]


class Draw(random.Random):
    """Draws values, conditions and rules; the same ones of the same seed."""

    def likely(self, share: float) -> bool:
        return self.random() < share

    def value(self, kind: str) -> Any:
        if kind == "flag":
            return self.likely(0.5)
        if kind == "text":
            return self.choice(WORDS)
        return self.choice(
            [self.choice(PLAIN), self.choice(PLAIN), self.choice(EXTREME), self.uniform(-10, 30), self.uniform(0, 2000)]
        )

    def row(self) -> Row:
        return row(**{name: self.value(KINDS[name]) for name in (*NUMBERS, *TEXTS, *FLAGS)})

    def sign(self) -> str:
        return self.choice(["<", "<=", ">", ">=", "==", "!="])

    def constant(self) -> str:
        return repr(self.choice([*PLAIN, *PLAIN, 1e308, 5e-324, self.randint(-9, 500)]))

    def word(self) -> str:
        return repr(self.choice(WORDS))

    def among(self, draw: Callable[[], str]) -> str:
        return f"{self.choice(['in', 'not in'])} [{', '.join(draw() for _ in range(self.randint(1, 4)))}]"

    def number(self, depth: int) -> str:
        if not depth or self.likely(0.4):
            return self.choice(NUMBERS) if self.likely(0.7) else self.constant()
        one, other = self.number(depth - 1), self.number(depth - 1)
        return self.choice(
            [
                *(f"({one} {sign} {other})" for sign in "+-*/"),
                f"(-{one})",
                f"{self.choice(['abs', 'log1p', 'hour', 'weekday'])}({one})",
                f"{self.choice(['min', 'max'])}({one}, {other})",
                f"length({self.text(depth - 1)})",
            ]
        )

    def text(self, depth: int) -> str:
        if depth and self.likely(0.2):
            return f"lower({self.text(depth - 1)})"
        return self.choice(TEXTS) if self.likely(0.7) else self.word()

    def chain(self, draw: Callable[[], str], sign: Callable[[], str]) -> str:
        """A comparison of two, or of three or four."""
        more = self.choice([1, 1, 1, 2, 3])
        return f"({draw()}{''.join(f' {sign()} {draw()}' for _ in range(more))})"

    def flag(self, depth: int) -> str:
        kind = self.choice(["plain", "bound", "numbers", "texts", "list", "items", "numbered"])
        if depth and self.likely(0.5):
            kind = self.choice(["and", "or", "not", "flags", "flagged", "call"])
        match kind:
            case "plain":
                return self.choice([*FLAGS, *FLAGS, "true", "false"])
            case "bound":
                sides = self.choice(NUMBERS), self.constant()
                return (
                    f"({sides[0]} {self.sign()} {sides[1]})"
                    if self.likely(0.5)
                    else (f"({sides[1]} {self.sign()} {sides[0]})")
                )
            case "numbers":
                return self.chain(lambda: self.number(2), self.sign)
            case "texts":
                return self.chain(lambda: self.text(1), self.sign)
            case "list":
                return f"({self.text(1)} {self.choice(['in', 'not in'])} lists.{self.choice([*LISTS])})"
            case "items":
                return f"({self.text(1)} {self.among(self.word)})"
            case "numbered":
                return f"({self.number(1)} {self.among(self.constant)})"
            case "not":
                return f"(not {self.flag(depth - 1)})"
            case "flags":
                return self.chain(lambda: self.flag(depth - 1), lambda: self.choice(["==", "!="]))
            case "flagged":
                return f"({self.flag(depth - 1)} {self.choice(['in', 'not in'])} [True])"
            case "call":
                return f"{self.choice(['startswith', 'endswith', 'contains'])}({self.text(1)}, {self.text(1)})"
        return f"({self.flag(depth - 1)} {kind} {self.flag(depth - 1)})"

    def rule(self, name: str) -> Rule:
        # Mostly what is joined by 'and', as people write it: of that each part is evaluated by itself.
        when = " and ".join(self.flag(2) for _ in range(self.choice([1, 1, 2, 3])))
        reasons = ["High", "{merchant} of {user}: {amount}, {model_score}", "{new_device} {block_threshold}"]
        effect = self.choice(["active", "active", "active", "shadow", "off", "deny", "allow"])
        action = self.choice(["review", "block"])
        return Rule(name, when, self.choice(reasons), self.random(), effect, self.choice([0.0, 600.0]), action)


def check(rules: Sequence[Rule], rows: Sequence[Row]) -> None:
    """Both evaluators must say the same of these rows, in a batch, in a large one and one by one."""
    found = RuleSet(rules, [read_condition(r.when, KINDS, LISTS, CASELESS) for r in rules], LISTS, "v")
    expected = RowEvaluator(rules, LISTS, CASELESS).evaluate(Rows(rows))
    many = SCREENED_ROWS // len(rows) + 1
    with np.errstate(all="raise"):  # whatever is asked of arithmetic, a ruleset raises and warns of nothing
        assert evaluate(found, rows) == expected
        assert evaluate(found, [*rows] * many) == expected * many
        assert [result for one in rows for result in evaluate(found, [one])] == expected


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))])
def test_any_rules_say_of_any_rows_what_they_said_before(seed: int) -> None:
    draw = Draw(seed)
    for _ in range(250):
        check([draw.rule(f"r{n}") for n in range(draw.randint(1, 4))], [draw.row() for _ in range(6)])


def test_each_field_is_read_by_itself() -> None:
    """Whatever its place among the features, by its own name and with its own kind."""
    conditions = {"number": "{} > 1.5", "text": "{} == 'it'", "flag": "{}"}
    quiet = row(**{f.name: {"number": 1.0, "text": "other", "flag": False}[f.kind] for f in ALL_FIELDS})
    loud = {"number": 2.0, "text": "it", "flag": True}
    rules = [Rule(f.name, conditions[f.kind].format(f.name), f"{{{f.name}}}", 0.5, "active", 0.0) for f in ALL_FIELDS]
    rows = [
        tuple(loud[f.kind] if at == place else value for at, value in enumerate(quiet))
        for place, f in enumerate(ALL_FIELDS)
    ]
    check(rules, rows)
    found = RuleSet(rules, [read_condition(r.when, KINDS, LISTS, CASELESS) for r in rules], LISTS, "v")
    for count in (1, 10, len(rows)):
        results = [r for at in range(0, len(rows), count) for r in evaluate(found, rows[at : at + count])]
        assert [result.rules for result in results] == [[f.name] for f in ALL_FIELDS]


@pytest.mark.slow
@pytest.mark.parametrize("path", [Settings().rules_file, TUTORIAL_RULES], ids=["shipped", "tutorial"])
@pytest.mark.parametrize("count", [1, 3, SCREENED_ROWS, 1000])
def test_the_shipped_rules_say_of_thousands_of_rows_what_they_said_before(path: Path, count: int) -> None:
    rules = load_rules(path)
    draw = Draw(count)
    rows = [tuple(draw.value(field.kind) for field in ALL_FIELDS) for _ in range(3000)]
    found = [result for at in range(0, len(rows), count) for result in evaluate(rules, rows[at : at + count])]
    assert found == RowEvaluator(rules.rules, rules.lists, {"transfers", "money_out"}).evaluate(Rows(rows))
    fired = {name for result in found for name in result.rules}
    assert {r.id for r in rules.rules if r.effect == "active"} <= fired
