"""What rules say of columns is what the evaluator that came before said of rows: every verdict, reason and figure."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflow.features import Facts
from dataflow.rules import ALL_FIELDS, Rule, RuleSet, load_rules
from dataflow.rules.conditions import SCREENED_ROWS
from dataflow.rules.fields import KINDS
from dataflow.rules.language import RuleError, read_condition
from dataflow.settings import TUTORIAL_RULES, Settings
from tests.rules.builders import evaluate, row
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
WORDS = [
    "Shop",
    " Shop\t",
    "SHOP",
    "shop",
    "Zo\u00eb",
    "Zoe\u0308",
    "STRASSE",
    "Stra\u00dfe",
    "\u0130x",
    "",
    " ",
    "x",
    "S",
]

numbers = st.one_of(st.sampled_from(PLAIN), st.sampled_from(EXTREME), st.floats(), st.floats(-10, 500))
texts = st.one_of(st.sampled_from(WORDS), st.text(max_size=4))
VALUES = {"number": numbers, "text": texts, "flag": st.booleans()}
READ = {name: VALUES[KINDS[name]] for name in (*NUMBERS, *TEXTS, *FLAGS)}
rows = st.fixed_dictionaries(READ).map(lambda values: row(**values))

constants = st.one_of(
    st.sampled_from([*PLAIN, 1e308, 5e-324]), st.floats(allow_nan=False, allow_infinity=False), st.integers(-9, 500)
).map(repr)
quoted = st.sampled_from(WORDS).map(repr)


def listed(items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(items, min_size=1, max_size=4).map(lambda each: "[" + ", ".join(each) + "]")


number = st.deferred(
    lambda: st.one_of(
        st.sampled_from(NUMBERS),
        constants,
        st.builds("({} {} {})".format, number, st.sampled_from("+-*/"), number),
        st.builds("(-{})".format, number),
        st.builds("{}({})".format, st.sampled_from(["abs", "log1p", "hour", "weekday"]), number),
        st.builds("{}({}, {})".format, st.sampled_from(["min", "max"]), number, number),
        st.builds("length({})".format, text),
    )
)
text = st.deferred(lambda: st.one_of(st.sampled_from(TEXTS), quoted, st.builds("lower({})".format, text)))
SIGNS = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
IN = st.sampled_from(["in", "not in"])
bound = st.builds("({} {} {})".format, st.sampled_from(NUMBERS), SIGNS, constants)
flag = st.deferred(
    lambda: st.one_of(
        st.sampled_from([*FLAGS, "true", "false"]),
        bound,
        st.builds("({} {} {})".format, constants, SIGNS, st.sampled_from(NUMBERS)),
        st.builds("({} {} {})".format, number, SIGNS, number),
        st.builds("({} {} {} {} {})".format, number, SIGNS, number, SIGNS, number),
        st.builds("({} {} {})".format, text, SIGNS, text),
        st.builds("({} {} {} {} {})".format, text, SIGNS, text, SIGNS, text),
        st.builds("({} {} {})".format, flag, st.sampled_from(["==", "!="]), flag),
        st.builds("({} == {} != {})".format, flag, flag, flag),
        st.builds("({} {} lists.{})".format, text, IN, st.sampled_from([*LISTS])),
        st.builds("({} {} {})".format, text, IN, listed(quoted)),
        st.builds("({} {} {})".format, number, IN, listed(constants)),
        st.builds("({} {} [True])".format, flag, IN),
        st.builds("(not {})".format, flag),
        st.builds("({} {} {})".format, flag, st.sampled_from(["and", "or"]), flag),
        st.builds("{}({}, {})".format, st.sampled_from(["startswith", "endswith", "contains"]), text, text),
    )
)
# Mostly what is joined by 'and', as people write it: of that each part is evaluated by itself.
condition = st.one_of(flag, st.lists(st.one_of(bound, flag), min_size=1, max_size=4).map(" and ".join))
rule = st.builds(
    Rule,
    id=st.just(""),
    when=condition,
    reason=st.sampled_from(["High", "{merchant} of {user}: {amount}, {model_score}", "{new_device} {block_threshold}"]),
    weight=st.floats(0, 1),
    effect=st.sampled_from(["active", "active", "active", "shadow", "off", "deny", "allow"]),
    cooldown=st.sampled_from([0.0, 600.0]),
    action=st.sampled_from(["review", "block"]),
)


def check(rules: Sequence[Rule], rows: Sequence[Facts]) -> None:
    """Both evaluators must say the same of these rows, in a batch, in a large one and one by one."""
    found = RuleSet(rules, [read_condition(r.when, KINDS, LISTS, CASELESS) for r in rules], LISTS, "v")
    expected = RowEvaluator(rules, LISTS, CASELESS).evaluate(Rows(rows))
    assert evaluate(found, rows) == expected
    many = SCREENED_ROWS // len(rows) + 1
    assert evaluate(found, [*rows] * many) == expected * many
    assert [result for one in rows for result in evaluate(found, [one])] == expected


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(rule, min_size=1, max_size=4), st.lists(rows, min_size=1, max_size=4))
def test_any_rules_say_of_any_rows_what_they_said_before(rules: list[Rule], rows: list[Facts]) -> None:
    named = [each._replace(id=f"r{number}") for number, each in enumerate(rules)]
    try:
        for each in named:
            read_condition(each.when, KINDS, LISTS, CASELESS)
    except RuleError as error:
        assert "too large" in str(error) or "characters" in str(error) or "nested" in str(error), error
        return
    check(named, rows)


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


def some_value(random: random.Random, kind: str) -> Any:
    if kind == "flag":
        return random.random() < 0.3
    if kind == "text":
        return random.choice([*WORDS, "XYZ_Merchant", "UnknownShop ", "transfer", "WIRE", "withdrawal", "US", "IN"])
    return random.choice([random.choice(PLAIN), random.choice(EXTREME), random.uniform(0, 30), random.uniform(0, 2000)])


@pytest.mark.parametrize("path", [Settings().rules_file, TUTORIAL_RULES], ids=["shipped", "tutorial"])
@pytest.mark.parametrize("count", [1, 3, SCREENED_ROWS, 1000])
def test_the_shipped_rules_say_of_thousands_of_rows_what_they_said_before(path: Path, count: int) -> None:
    rules = load_rules(path)
    seeded = random.Random(count)
    rows = [tuple(some_value(seeded, field.kind) for field in ALL_FIELDS) for _ in range(3000)]
    found = [result for at in range(0, len(rows), count) for result in evaluate(rules, rows[at : at + count])]
    assert found == RowEvaluator(rules.rules, rules.lists, {"transfers", "money_out"}).evaluate(Rows(rows))
    fired = {name for result in found for name in result.rules}
    assert {r.id for r in rules.rules if r.effect == "active"} <= fired
