"""What a rules file may hold, how its mistakes are told, and what its rules say of transactions."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflow.errors import UserError
from dataflow.rules import ALL_FIELDS, Rule, RuleResult, RuleSet, examine, load_rules
from dataflow.rules import conditions as conditions_module
from dataflow.rules.conditions import STEP_CHARACTERS
from dataflow.scoring.operating_point import MODEL_FIELDS
from dataflow.settings import TUTORIAL_RULES, Settings
from tests.rules.builders import Row, batch, evaluate, row, rule

BUILT_IN = Settings().rules_file
FOUR_CHECKS = ["high_amount", "location_change", "flagged_merchant", "ml_anomaly"]
LISTED = "[lists]\nbad = ['x']\n"


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def load(*parts: str, **lists: str) -> RuleSet:
        for name, content in lists.items():
            (tmp_path / f"{name}.txt").write_text(content)
        path = tmp_path / "rules.toml"
        path.write_text("\n".join(parts))
        return load_rules(path)

    return load


@pytest.fixture
def mistakes(tmp_path: Path) -> Any:
    def mistakes(*parts: str | bytes) -> list[str]:
        path = tmp_path / "rules.toml"
        path.write_bytes(b"\n".join(p.encode() if isinstance(p, str) else p for p in parts))
        rules, found = examine(path)
        assert rules is None
        assert all(str(path) in line or str(tmp_path) in line for line in found)
        assert not any("\n" in line for line in found)
        return [line.removeprefix(f"{path}: ") for line in found]

    return mistakes


def only(rules: RuleSet, **values: Any) -> RuleResult:
    (result,) = evaluate(rules, [row(**values)])
    return result


# ----------------------------------------------------------------------------------------------------------- meaning


def test_the_tutorials_rules_are_the_four_checks_in_their_order() -> None:
    rules = load_rules(TUTORIAL_RULES)
    assert [r.id for r in rules.rules if r.effect == "active"] == FOUR_CHECKS
    result = only(
        rules,
        amount=400.01,
        location_changed=True,
        seconds_since_last=3600.0,
        last_location="US",
        location="IN",
        merchant="UnknownShop",
        model_alert=True,
    )
    assert result.reasons == [
        "High amount",
        "Location change from US to IN",
        "Merchant UnknownShop flagged",
        "ML anomaly detection",
    ]
    assert only(rules, amount=400.0) == RuleResult(False, [], [], [], 1.0, ())


def test_the_built_in_rules_begin_with_the_tutorials_as_they_are() -> None:
    built_in, tutorial = load_rules(BUILT_IN), load_rules(TUTORIAL_RULES)
    assert built_in.rules[: len(tutorial.rules)] == tutorial.rules
    assert len(built_in.rules) > len(tutorial.rules)


def test_an_alert_asks_for_the_strictest_action_of_the_rules_that_made_it(load: Any) -> None:
    rules = load(
        rule("asks", "amount > 10"),
        rule("says_so", "amount > 20", action="review"),
        rule("stops", "amount > 30", action="block"),
        rule("in_shadow", "amount > 5", action="block", mode="shadow"),
        rule("off", "amount > 5", action="block", mode="off"),
    )
    found = evaluate(rules, [row(amount=amount) for amount in (5.0, 6.0, 11.0, 21.0, 31.0)])
    assert [(o.fraudulent, o.action) for o in found] == [
        (False, "approve"),
        (False, "approve"),
        (True, "review"),
        (True, "review"),
        (True, "block"),
    ]


@pytest.mark.parametrize(
    ("said", "action"), [("", "block"), ('action = "block"', "block"), ('action = "review"', "review")]
)
def test_a_deny_list_blocks_unless_it_says_otherwise_and_an_allow_list_approves(
    load: Any, said: str, action: str
) -> None:
    rules = load(
        "[lists]\nbad = ['eve']\ngood = ['ann', 'eve']",
        f"[[deny]]\nfield = 'user'\nlist = 'bad'\n{said}\n[[allow]]\nfield = 'user'\nlist = 'good'",
        rule("asks", "amount > 10"),
        rule("stops", "amount > 30", action="block"),
    )
    assert [r.action for r in rules.rules] == [action, "approve", "review", "block"]
    assert only(rules, user="eve", amount=1.0).action == action  # the deny list wins over the allow list
    assert only(rules, user="eve", amount=40.0).action == "block"
    assert only(rules, user="ann", amount=40.0).action == "approve"
    assert only(rules, user="bob", amount=20.0).action == "review"


def test_decisions_are_counted_by_action_once_a_batch(load: Any) -> None:
    rules = load(rule("asks", "amount > 10"), rule("also", "amount > 15"), rule("stops", "amount > 30", action="block"))
    counted: list[tuple[str, int]] = []
    rules.count_actions = lambda action, times: counted.append((action, times))
    evaluate(rules, [row(amount=amount) for amount in (1.0, 2.0, 11.0, 16.0, 31.0)])
    assert sorted(counted) == [("approve", 2), ("block", 1), ("review", 2)]
    counted.clear()
    evaluate(rules, [row(amount=1.0)] * 3)
    assert counted == [("approve", 3)]
    counted.clear()
    evaluate(rules, [])
    assert counted == []


def test_reasons_and_ids_stand_in_the_order_of_the_file(load: Any) -> None:
    rules = load(rule("z", reason="Z"), rule("a", "amount > 1", "A"), rule("m", "amount > 1e9", "M"), rule("k", "true"))
    result = only(rules, amount=500.0)
    assert (result.reasons, result.rules) == (["Z", "A", "High"], ["z", "a", "k"])


def test_a_shadow_rule_is_named_and_changes_nothing(load: Any) -> None:
    rules = load(rule("s", mode="shadow", weight=1.0), rule("a", "amount > 1000", "A"))
    assert only(rules, amount=500.0) == RuleResult(False, [], [], ["s"], 1.0, ())
    both = only(rules, amount=2000.0)
    assert (both.fraudulent, both.reasons, both.rules, both.shadow_rules, both.p_genuine) == (
        True,
        ["A"],
        ["a"],
        ["s"],
        0.5,
    )


def test_a_rule_that_is_off_is_checked_and_never_evaluated(load: Any, mistakes: Any) -> None:
    rules = load(rule("o", mode="off"), rule("a", "amount > 1000"))
    assert only(rules, amount=500.0) == RuleResult(False, [], [], [], 1.0, ())
    assert only(rules, amount=5000.0).rules == ["a"]
    assert "'amont'" in mistakes(rule("o", "amont > 1", mode="off"))[0]


def test_p_genuine_is_the_product_of_what_each_rule_leaves(load: Any) -> None:
    rules = load(rule("a", weight=0.6), rule("b", "amount > 600", weight=0.5), rule("c", "amount > 700", weight=0))
    assert only(rules, amount=500.0).p_genuine == pytest.approx(0.4)
    assert only(rules, amount=650.0).p_genuine == pytest.approx(0.4 * 0.5)
    assert only(rules, amount=800.0).p_genuine == pytest.approx(0.4 * 0.5)
    assert only(load(rule("a", weight=1)), amount=500.0).p_genuine == 0.0


LISTS = """
[lists]
denied = "denied.txt"
allowed = "allowed.txt"
[[deny]]
field = "user"
list = "denied"
reason = "User {user} denied"
[[allow]]
field = "user"
list = "allowed"
"""


def test_an_allow_list_wins_over_rules_and_a_deny_list_over_all(load: Any) -> None:
    rules = load(LISTS, rule("a", reason="High", weight=0.6), denied="eve\nboth\n", allowed="ann\nboth\n")
    assert only(rules, user="bob", amount=500.0).reasons == ["High"]

    allowed = only(rules, user="ann", amount=500.0)
    assert (allowed.fraudulent, allowed.reasons, allowed.p_genuine) == (False, ["user ann on allowed"], 1.0)
    assert allowed.rules == ["allow_allowed_user", "a"]
    assert only(rules, user="ann", amount=5.0).reasons == ["user ann on allowed"]

    denied = only(rules, user="eve", amount=5.0)
    assert (denied.fraudulent, denied.reasons, denied.p_genuine) == (True, ["User eve denied"], 0.0)
    assert only(rules, user="eve", amount=500.0).reasons == ["User eve denied", "High"]

    both = only(rules, user="both", amount=500.0)
    assert (both.fraudulent, both.reasons, both.p_genuine) == (True, ["User both denied", "High"], 0.0)
    assert both.rules == ["deny_denied_user", "allow_allowed_user", "a"]


def test_a_list_holds_lines_without_blanks_around_comments_and_empty_ones(load: Any) -> None:
    text = "\ufeff# flagged\r\n  Shop A \r\n\n\tZoë\nlast"
    rules = load('[lists]\nbad = "bad.txt"\nhere = ["x", "y"]', rule("a", "merchant in lists.bad"), bad=text)
    assert rules.lists == {"bad": {"Shop A", "Zoë", "last"}, "here": {"x", "y"}}
    assert only(rules, merchant="Zoë").fraudulent
    assert not only(rules, merchant="# flagged").fraudulent


@pytest.mark.parametrize("emptied", ["", "# nobody", "\n \u00a0 \n", "\ufeff"])
def test_a_list_file_without_an_entry_is_refused_unless_it_may_be_empty(
    load: Any, tmp_path: Path, emptied: str
) -> None:
    listed = rule("a", "user in lists.watch or amount > 400")
    with pytest.raises(UserError) as refused:
        load('[lists]\nwatch = "watch.txt"', listed, watch=emptied)
    path, file = tmp_path / "rules.toml", tmp_path / "watch.txt"
    assert str(refused.value) == (
        f"{path}: list 'watch' has no entry in {str(file)!r}: add one, "
        'or say that it may be empty: watch = {file = "watch.txt", may_be_empty = true}'
    )
    with pytest.raises(UserError, match=r'watch = \{file = "watch.txt", case = "ignore", may_be_empty = true\}'):
        load('[lists]\nwatch = {file = "watch.txt", case = "ignore", may_be_empty = false}', listed, watch=emptied)
    rules = load('[lists]\nwatch = {file = "watch.txt", may_be_empty = true}', listed, watch=emptied)
    assert rules.lists["watch"] == set()
    assert not only(rules, user="eve", amount=5.0).fraudulent


# What stands on a list or in a condition, and what is to meet it.
ALIKE = [
    ("XYZ_Merchant", "XYZ_Merchant "),
    ("XYZ_Merchant", "\t\u00a0XYZ_Merchant\r\n"),
    ("  XYZ_Merchant\u2003", "XYZ_Merchant"),
    ("Zoe\u0308", "Zo\u00eb"),
    ("Zo\u00eb", " Zoe\u0308"),
    ("\u1100\u1161", "\uac00"),
]


@pytest.mark.parametrize(("entry", "value"), ALIKE)
@pytest.mark.parametrize(
    ("lists", "condition"),
    [
        ("bad = 'bad.txt'", "merchant in lists.bad"),
        ("bad = [{0}]", "merchant in lists.bad"),
        ("", "merchant == {0}"),
        ("", "{0} in ['y'] or not merchant != {0}"),
        ("", "merchant in [{0}, 'y']"),
        ("", "lower(merchant) == lower({1})"),
        ("bad = 'bad.txt'", ""),
    ],
)
def test_texts_that_differ_in_blanks_around_or_in_composition_are_the_same(
    load: Any, lists: str, condition: str, entry: str, value: str
) -> None:
    def quoted(text: str) -> str:
        return '"' + "".join(f"\\u{ord(c):04x}" for c in text) + '"'

    given = quoted(entry), quoted(entry.strip())  # a function takes its text as it stands
    judge = (
        rule("a", condition.format(*given), "at {merchant}")
        if condition
        else "[[deny]]\nfield = 'merchant'\nlist = 'bad'\nreason = 'at {merchant}'"
    )
    rules = load(f"[lists]\n{lists.format(*given)}", judge, bad=f"z\n{entry}\n")
    results = evaluate(rules, [row(merchant=m) for m in (value, "other", value + "x")])
    assert [result.fraudulent for result in results] == [True, False, False]
    assert results[0].reasons == [f"at {value}"]  # as it stands in the transaction


def test_white_space_inside_counts(load: Any) -> None:
    rules = load("[lists]\nbad = ['Shop A']", rule("a", "merchant in lists.bad or merchant == 'Shop B'"))
    found = evaluate(rules, [row(merchant=m) for m in ("Shop A", "Shop  A", "ShopA", "Shop B", "Shop\u00a0B")])
    assert [result.fraudulent for result in found] == [True, False, False, True, False]


def test_the_built_in_rule_meets_a_flagged_merchant_with_a_blank_behind() -> None:
    result = only(load_rules(BUILT_IN), merchant="XYZ_Merchant ")
    assert (result.rules, result.reasons) == (["flagged_merchant"], ["Merchant XYZ_Merchant  flagged"])


@pytest.mark.parametrize(
    ("entry", "value"),
    [("Straße", "STRASSE"), ("ZOE\u0308", "zo\u00eb "), ("abc", "ABC"), ("\u0130x", " i\u0307X")],
)
def test_case_is_ignored_where_the_list_says_so(load: Any, entry: str, value: str) -> None:
    exact, ignoring = "[lists]\nbad = 'bad.txt'", "[lists]\nbad = {file = 'bad.txt', case = 'ignore'}"
    inline = f"[lists]\nbad = {{entries = ['{entry}'], case = 'ignore'}}"
    listed = rule("a", "merchant in lists.bad"), "[[deny]]\nfield = 'user'\nlist = 'bad'"
    rows = [row(merchant=value), row(merchant=value + "x"), row(user=value), row(user=entry)]
    for lists, expected in ((exact, [0, 0, 0, 1]), (ignoring, [1, 0, 1, 1]), (inline, [1, 0, 1, 1])):
        assert [result.fraudulent for result in evaluate(load(lists, *listed, bad=entry), rows)] == expected
    without = load(ignoring, rule("a", "merchant not in lists.bad"), bad=entry)
    assert [result.fraudulent for result in evaluate(without, rows[:2])] == [False, True]


def test_one_file_may_be_two_lists_of_which_one_ignores_case(load: Any) -> None:
    rules = load(
        "[lists]\nany = {file = 'bad.txt', case = 'ignore'}\nsame = 'bad.txt'",
        rule("any", "merchant in lists.any"),
        rule("same", "merchant in lists.same"),
        bad="Shop",
    )
    found = evaluate(rules, [row(merchant=m) for m in ("Shop", "SHOP", "x")])
    assert [result.rules for result in found] == [["any", "same"], ["any"], []]


def test_a_list_that_spans_many_blocks_is_read_whole(load: Any) -> None:
    entries = [f"Händler {n}" for n in range(60_000)]
    rules = load('[lists]\nbad = "bad.txt"', rule("a", "merchant in lists.bad"), bad="\n".join(entries))
    assert rules.lists["bad"] == set(entries)


@pytest.mark.parametrize(
    ("reason", "values", "shown"),
    [
        ("From {last_location} to {location}", {"last_location": "US", "location": "IN"}, "From US to IN"),
        ("{{literal}} {amount}", {"amount": 12.0}, "{literal} 12"),
        ("{amount}", {"amount": 12.345}, "12.35"),
        ("{amount}", {"amount": 100.0}, "100"),
        ("{amount}", {"amount": -0.001}, "0"),
        ("{amount}", {"amount": 1e300}, "1e+300"),
        ("{seconds_since_last}", {"seconds_since_last": math.inf}, "unknown"),
        ("{amount}", {"amount": math.nan}, "unknown"),
        ("{location_changed} {model_anomaly}", {"location_changed": True}, "yes no"),
        ("{merchant}", {"merchant": "{amount}"}, "{amount}"),
        ("{merchant}", {"merchant": "{0.__class__}"}, "{0.__class__}"),
        ("{merchant} {merchant}", {"merchant": "%s {} [red]<b>"}, "%s {} [red]<b> %s {} [red]<b>"),
        ("100 %", {}, "100 %"),
        ("no placeholder {{", {}, "no placeholder {"),
    ],
)
def test_a_reason_shows_values_as_they_are(load: Any, reason: str, values: dict[str, Any], shown: str) -> None:
    rules = load(rule("a", "true", reason))
    assert only(rules, **values).reasons == [shown]
    assert only(rules, **values).reasons == [shown]


def test_reasons_of_one_transaction_do_not_leak_into_another(load: Any) -> None:
    rules = load(rule("a", "true", "at {merchant}"))
    results = evaluate(rules, [row(merchant="A"), row(merchant="B"), row(merchant="C")])
    assert [o.reasons for o in results] == [["at A"], ["at B"], ["at C"]]


def test_batches_do_not_change_what_rules_say(load: Any) -> None:
    rules = load(*(rule(f"r{n}", f"amount > {n}", f"over {n}: {{amount}}") for n in range(70)))
    rows = [row(amount=float(n)) for n in range(-1, 75)]
    assert evaluate(rules, rows) == [only(rules, amount=float(n)) for n in range(-1, 75)]
    assert only(rules, amount=69.5).rules == [f"r{n}" for n in range(70)]
    assert evaluate(rules, []) == []


def test_rules_that_are_compiled_in_several_steps_say_what_each_says_by_itself(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    compile_step = conditions_module._compile_step
    monkeypatch.setattr(conditions_module, "_compile_step", lambda *given: steps.append(1) or compile_step(*given))
    large = "".join(f" or amount == {n} / 7" for n in range(70))  # of which few make a step
    each = [rule(f"r{n}", f"amount > {n} or txn_per_hour > {n}" + large * (n > 50)) for n in range(75)]
    rows = [row(amount=float(n), txn_per_hour=m) for n, m in ((-1, 0), (30, 40), (70, 3), (99, 0))]
    rules = load(*each)
    together = [result.rules for result in evaluate(rules, rows)]
    alone = [[result.rules for result in evaluate(load(one), rows)] for one in each]
    assert len(steps) > 3 + len(each)
    assert together == [[name for names in place for name in names] for place in zip(*alone, strict=True)]


def test_no_step_compiles_much_code_and_a_pause_follows_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def spying(source: str, *others: Any) -> Any:
        steps.append(source)
        return compile(source, *others)

    monkeypatch.setattr(conditions_module, "compile", spying, raising=False)
    large = " or ".join(f"amount == {n} / 7" for n in range(70))
    path = tmp_path / "rules.toml"
    path.write_text("".join(rule(f"r{n}", large if n % 400 > 350 else "amount > 4") for n in range(1000)))
    paused_at: list[int] = []
    load_rules(path, pause=lambda: paused_at.append(len(steps)))
    assert sum(step.count(" > 4.0") + step.count("== divide(0.0, 7.0)") for step in steps) == 1000
    assert STEP_CHARACTERS == 8000
    assert max(map(len, steps)) < 1.2 * STEP_CHARACTERS  # with what each step needs besides
    assert len(steps) <= 2 * sum(map(len, steps)) / STEP_CHARACTERS  # nor many steps
    assert paused_at.count(0) == 1000  # after the check of each
    assert {*range(1, len(steps) + 1)} <= set(paused_at)


def test_more_combinations_than_are_kept_are_right_as_well(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataflow.rules.ruleset.CACHED_COMBINATIONS", 2)
    rules = load(*(rule(f"r{n}", f"amount > {n}") for n in range(9)))
    rows = [row(amount=float(n)) for n in (*range(10), *range(10))]
    found = [len(result.rules) for result in evaluate(rules, rows)]
    assert found == [*range(10), *range(10)]
    assert len(rules._templates) <= 2


def test_cooldowns_are_those_of_the_rules_that_made_the_alert(load: Any) -> None:
    rules = load(
        rule("a", cooldown="10m"),
        rule("b", "amount > 600"),
        rule("c", "amount < 100", cooldown="1h"),
        rule("s", "true", mode="shadow", cooldown="1d"),
    )
    assert only(rules, amount=500.0).cooldowns == (("a", 600.0),)
    assert only(rules, amount=700.0).cooldowns == (("a", 600.0), ("b", 0.0))
    assert only(rules, amount=50.0).cooldowns == (("c", 3600.0),)
    assert only(rules, amount=200.0).cooldowns == ()
    assert only(load(rule("b")), amount=500.0).cooldowns == ()


def test_hits_are_counted_once_a_batch_also_of_shadow_rules_and_lists(load: Any) -> None:
    rules = load(LISTS, rule("a"), rule("s", "amount > 600", mode="shadow"), denied="eve", allowed="zoe")
    calls: list[tuple[str, int]] = []
    rules.count = lambda fired, times: calls.append((fired.id, times))
    evaluate(rules, [row(amount=a) for a in (1.0, 500.0, 700.0, 500.0, 1.0)] + [row(user="eve")])
    assert calls == [("a", 3), ("s", 1), ("deny_denied_user", 1)]
    evaluate(rules, [row(amount=1.0)] * 3)
    assert len(calls) == 3


def test_matches_counts_each_condition_also_under_another(load: Any) -> None:
    rules = load(rule("a"), rule("o", mode="off"), rule("s", "amount > 600", mode="shadow"))
    assert rules.matches(batch([row(amount=a) for a in (1.0, 500.0, 700.0)])) == [2, 0, 1]


# ----------------------------------------------------------------------------------------------------------- version


def test_the_version_is_a_digest_of_the_file_and_its_lists(load: Any) -> None:
    parts = '[lists]\nbad = "bad.txt"', rule("a", "merchant in lists.bad")
    first = load(*parts, bad="x\n").version
    assert first == load(*parts, bad="x\n").version
    assert len(first) == 12
    versions = {first, load(*parts, "# a comment", bad="x\n").version, load(*parts, bad="y\n").version}
    assert len(versions) == 3


# ---------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (rule("a", "amont > 4"), "rule 'a', when, column 1: there is no field 'amont', did you mean 'amount'?"),
        (rule("a", "amount > 4\n  and amont > 4"), "rule 'a', when, line 2, column 7: there is no field 'amont'"),
        (rule("a", "amount > 'x'"), "rule 'a', when, column 10: 'amount' is a number"),
        (rule("a", "amount"), "must be true or false"),
        (rule("a", "merchant in lists.bad"), "there is no list 'bad'"),
        (
            rule("a", reason="to {locaton}"),
            "rule 'a', reason, column 5: there is no field 'locaton', did you mean 'loc",
        ),
        (rule("a", reason="x {amount:>10}"), "rule 'a', reason, column 4: {amount} takes no format"),
        (rule("a", reason="{amount!r}"), "{amount} takes no format"),
        (rule("a", reason="{amount.real}"), "no field 'amount.real'"),
        (rule("a", reason="{amount[0]}"), "no field 'amount[0]'"),
        (rule("a", reason="{}"), "no field ''"),
        (rule("a", reason="{0}"), "no field '0'"),
        (rule("a", reason="{amount"), "a brace that is meant as one is written twice"),
        (rule("a", reason="amount}"), "a brace that is meant as one is written twice"),
        (rule("a", reason=" "), "rule 'a': reason = ' ' is wrong: it takes a text"),
        (rule("a", ""), "rule 'a': when = '' is wrong: it takes a text"),
        ("[[rule]]\nid='a'\nwhen='true'", "rule 'a': 'reason' is missing: it takes a text"),
        (rule("a") + rule("a"), "rule 'a' stands twice: ids must differ"),
        (
            rule("1a"),
            "rule '1a': id = '1a' is wrong: it takes a letter, and up to 63 letters, digits, '_' and '-' behind",
        ),
        (rule("a b"), "id = 'a b' is wrong: it takes a letter, and up to 63"),
        (rule("a" * 65), "is wrong: it takes a letter, and up to 63"),
        ('[[rule]]\nid = "a\\n"\nwhen = "true"\nreason = "x"', "id = 'a\\n' is wrong: it takes a letter"),
        (rule("a", weight=1.5), "weight = 1.5 is wrong: it takes a number from 0 to 1"),
        (rule("a", weight=-1), "weight = -1 is wrong"),
        ("[[rule]]\nid='a'\nwhen='true'\nreason='x'\nweight=true", "weight = True is wrong"),
        ("[[rule]]\nid='a'\nwhen='true'\nreason='x'\nweight=nan", "weight = nan is wrong"),
        (f"[[rule]]\nid='a'\nwhen='true'\nreason='x'\nweight=0x1{'0' * 6000}", "weight = a very large number is wrong"),
        (f"[[rule]]\nid='a'\nwhen='true'\nreason='x'\nweight=1{'0' * 6000}", "not a TOML file"),
        (f"[[rule]]\nid='a'\nwhen='true'\nreason='x'\nmode={list(range(99))}", "..."),
        (rule("a", mode="on"), "mode = 'on' is wrong: it takes active, shadow, off"),
        (rule("a", action="approve"), 'action = \'approve\' is wrong: it takes "review" or "block"'),
        (rule("a", action="Block"), "rule 'a': action = 'Block' is wrong"),
        (rule("a", action=["block"]), "rule 'a': action = ['block'] is wrong"),
        (rule("a", aktion="block"), "rule 'a' has an unknown key 'aktion', did you mean 'action'?"),
        (LISTED + "[[deny]]\nfield='user'\nlist='bad'\naction='stop'\n", "[[deny]]: action = 'stop' is wrong"),
        (LISTED + "[[allow]]\nfield='user'\nlist='bad'\naction='block'\n", "[[allow]] has an unknown key 'action'"),
        (rule("a", cooldown="10"), "cooldown = '10' is wrong"),
        (rule("a", cooldown=600), "cooldown = 600 is wrong"),
        (rule("a", cooldown="31d"), "cooldown = '31d' is wrong: it takes at most 30d"),
        (rule("a", wieght=1), "rule 'a' has an unknown key 'wieght', did you mean 'weight'?"),
        ("[[rule]]\nwhen='true'\nreason='x'", "rule number 1: 'id' is missing: it takes a letter, and up to 63"),
        ("[[rule]]\nid=3\nwhen='true'\nreason='x'", "rule number 1: id = 3 is wrong: it takes a letter"),
        ("[rule]\nid='a'", "'rule' must be written as [[rule]]"),
        ("rule = 3", "'rule' must be written as [[rule]]"),
        ("rule = [3]", "'rule' must be written as [[rule]]"),
        ("[[rules]]\nid='a'", "the file has an unknown key 'rules', did you mean 'rule'?"),
        ("", "there is no rule in it"),
        ("# nothing", "there is no rule in it"),
        ("lists = 3\n" + rule(), "[lists] must be a table"),
        ("[lists]\nbad = 3\n" + rule(), "list 'bad' must be the name of a file, or entries in brackets"),
        ("[lists]\nbad = [3]\n" + rule(), "list 'bad' must be the name of a file, or entries in brackets"),
        (
            "[lists]\nbad = {}\n" + rule(),
            'or {file = "FILE"} or {entries = ["ENTRY", ...]}, with may_be_empty and case',
        ),
        ("[lists]\nbad = {file = 'x', entries = ['y']}\n" + rule(), "list 'bad' must be the name of a file"),
        ("[lists]\nbad = {file = 3}\n" + rule(), "list 'bad': file = 3 is wrong: it takes the name of a file"),
        (
            "[lists]\nbad = {entries = 'x'}\n" + rule(),
            "list 'bad': entries = 'x' is wrong: it takes [\"ENTRY\", ...], each entry a text",
        ),
        ("[lists]\nbad = {entries = ['x', 3]}\n" + rule(), "list 'bad': entries = ['x', 3] is wrong: it takes"),
        ("[lists]\nbad = {entries = ['x'], cases = 'x'}\n" + rule(), "unknown key 'cases', did you mean 'case'?"),
        ("[lists]\nbad = {entries = ['x'], case = 'fold'}\n" + rule(), "case = 'fold' is wrong: it takes \"exact\" or"),
        ("[lists]\nbad = {entries = ['x'], case = ['ignore']}\n" + rule(), "case = ['ignore'] is wrong"),
        (
            "[lists]\nbad = {entries = [], may_be_empty = 'yes'}\n" + rule(),
            "may_be_empty = 'yes' is wrong: it takes true",
        ),
        ("[lists]\nbad = []\n" + rule(), "list 'bad' has no entry: add one, or say that it may be empty: bad = {entr"),
        ("[lists]\n'a-b' = []\n" + rule(), "list 'a-b': a name has letters"),
        ("[lists]\n'class' = []\n" + rule(), "list 'class': a name has letters"),
        ("[lists]\n'ﬁ' = []\n" + rule(), "list 'ﬁ': a name has letters"),
        ("[[deny]]\nfield='user'\nlist='bad'", "[[deny]]: there is no list 'bad': name it under [lists]"),
        (
            "[lists]\nb=['x']\n[[deny]]\nfield='amount'\nlist='b'",
            "[[deny]]: field = 'amount' is wrong: it takes user, mer",
        ),
        ("[lists]\nb=['x']\n[[deny]]\nfield='user or true'\nlist='b'", "field = 'user or true' is wrong"),
        ("[lists]\nb=['x']\n[[allow]]\nfield='user'\nlist='b'\nwhen='x'", "[[allow]] has an unknown key 'when'"),
        ("[lists]\nb=['x']\n[[deny]]\nfield='user'\nlist='b'\n[[deny]]\nfield='user'\nlist='b'", "stands twice"),
        ("[[rule]\nid", "not a TOML file: Expected"),
        ("a = " + "[" * 3000, "not a TOML file"),
        (b"\xff\xfe", "not a TOML file"),
    ],
)
def test_a_mistake_is_told_in_one_line(mistakes: Any, text: str | bytes, says: str) -> None:
    found = mistakes(text)
    assert says in found[0]
    assert len(found) == 1


def test_all_mistakes_of_a_file_are_told(mistakes: Any) -> None:
    found = mistakes(
        "[lists]\nbad = 'missing.txt'\n",
        rule("a", "amont > 4", "{locaton}"),
        rule("b", weight=3),
        rule("c"),
        rule("c", mode="of"),
        rule("c"),
        "[more]",
    )
    told = [
        "unknown key 'more'",
        "missing.txt",
        "rule 'b': weight",
        "mode = 'of'",
        "'amont'",
        "'locaton'",
        "stands twice",
    ]
    assert len(found) == len(told)
    assert all(word in line for word, line in zip(told, found, strict=True))


def test_all_mistakes_of_one_table_are_told(mistakes: Any) -> None:
    found = mistakes(
        "[[rule]]\nid = 'a'\nwhen = 3\nwieght = 1\nweight = 2\nmode = 'on'\ncooldown = '1 d'\naction = 'stop'\n",
        LISTED + "[[deny]]\nfield = 7\naction = 1\n",
    )
    assert [line.partition(" is ")[0].partition(" has ")[0] for line in found] == [
        *("[[deny]]: field = 7", "[[deny]]: 'list'", "[[deny]]: action = 1", "rule 'a'", "rule 'a': when = 3"),
        *("rule 'a': 'reason'", "rule 'a': weight = 2", "rule 'a': mode = 'on'"),
        *("rule 'a': cooldown = '1 d'", "rule 'a': action = 'stop'"),
    ]


def test_loading_tells_the_first_and_how_to_see_the_rest(load: Any) -> None:
    with pytest.raises(UserError, match=r"'amont'.*\(and 1 more: python -m dataflow.rules check "):
        load(rule("a", "amont > 4"), rule("b", "amount"))


def test_too_many_rules_are_refused(mistakes: Any) -> None:
    assert "1001 rules, 1000 are allowed" in mistakes(*(rule(f"r{n}") for n in range(1001)))[-1]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("missing.txt", "No such file"),
        (".", "no regular file"),
        ("\\u0000", "null byte"),
        ("bytes.txt", "not UTF-8 text near byte"),
        ("cut.txt", "not UTF-8 text near byte"),
    ],
)
def test_a_list_that_cannot_be_read_is_told(mistakes: Any, tmp_path: Path, source: str, says: str) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"good\n\xff\n")
    (tmp_path / "cut.txt").write_bytes("Zoë".encode()[:-1])
    (line,) = mistakes(f'[lists]\nbad = "{source}"\n', rule("a", "merchant in lists.bad"))
    assert says in line


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_rules_file_that_cannot_be_read_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"No such file|no regular file"):
        load_rules(tmp_path / name)


def test_a_byte_order_mark_and_crlf_are_no_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_bytes(b"\xef\xbb\xbf" + rule("a", "amount > 4\n and true").replace("\n", "\r\n").encode())
    assert only(load_rules(path), amount=5.0).rules == ["a"]


# ---------------------------------------------------------------------------------------------------------- property

VALUES = {
    "number": st.one_of(st.floats(), st.integers(0, 10**6), st.sampled_from([math.inf, -math.inf, math.nan, -0.0])),
    "text": st.one_of(st.text(max_size=6), st.sampled_from(["", "{amount}", "{", "}", "x\n"])),
    "flag": st.booleans(),
}
rows = st.tuples(*(VALUES[field.kind] for field in ALL_FIELDS))
names = st.sampled_from([f.name for f in ALL_FIELDS] + ["amont", "lists.bad"])
atoms = st.one_of(
    st.builds(
        "{} {} {}".format,
        names,
        st.sampled_from(["<", ">=", "==", "!=", "in", "not in", "* 2 >", "/ amount <"]),
        st.one_of(names, st.sampled_from(["400", "'x'", "['x']", "[1, 2]", "1e308", "true"])),
    ),
    names,
    st.text(max_size=10),
)
conditions = st.one_of(
    atoms, st.builds("{} {} {}".format, atoms, st.sampled_from(["and", "or", "and not"]), atoms), st.text(max_size=20)
)
reasons = st.one_of(
    st.sampled_from(["High", "{merchant} of {user}", "{amount}", "{{}}", "{", "{x}"]), st.text(max_size=9)
)


def toml(value: str) -> str:
    """A TOML string; TOML takes no lone surrogates, and hypothesis makes none here."""
    return '"' + "".join(f"\\U{ord(c):08X}" for c in value) + '"'


entries = st.builds(
    "[[rule]]\nid = {}\nwhen = {}\nreason = {}\nmode = {}\nweight = {}\ncooldown = {}\n".format,
    st.sampled_from(["a", "b", "c", "1"]).map(toml),
    conditions.map(toml),
    reasons.map(toml),
    st.sampled_from(["active", "shadow", "off", "on"]).map(toml),
    st.sampled_from(["0", "0.5", "1", "2", "'x'", "nan"]),
    st.sampled_from(["0s", "10m", "x"]).map(toml),
)
files = st.one_of(
    st.lists(entries, min_size=1, max_size=3).map(lambda e: "[lists]\nbad = ['x', '']\n" + "\n".join(e)),
    st.text(max_size=60),
    st.binary(max_size=60),
)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(files, st.lists(rows, max_size=3))
def test_any_file_is_refused_in_lines_or_evaluates_on_any_rows(
    tmp_path: Path, content: str | bytes, rows: list[Row]
) -> None:
    path = write(tmp_path / "rules.toml", content)
    rules, found = examine(path)
    if rules is None:
        assert found
        assert all(line.startswith(str(path)) and "\n" not in line for line in found)
        with pytest.raises(UserError):
            load_rules(path)
    else:
        check_results(rules, rows)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(conditions.filter(str.strip), st.lists(rows, min_size=1, max_size=3))
def test_a_file_with_one_random_condition_is_told_its_rule_or_evaluates(
    tmp_path: Path, condition: str, rows: list[Row]
) -> None:
    content = (
        f"[lists]\nbad = ['x']\n[[rule]]\nid = 'a'\nwhen = {toml(condition)}\nreason = '{{merchant}} {{amount}}'\n"
    )
    path = write(tmp_path / "rules.toml", content)
    rules, found = examine(path)
    if rules is None:
        (line,) = found
        assert line.startswith(f"{path}: rule 'a', when, ")
    else:
        check_results(rules, rows)


def check_results(rules: RuleSet, rows: list[Row]) -> None:
    effects = {r.id: r.effect for r in rules.rules}
    for result in evaluate(rules, rows):
        assert result.fraudulent == bool(result.rules)
        assert len(result.reasons) == len(result.rules)
        assert all(effects[name] == "active" for name in result.rules)
        assert all(effects[name] == "shadow" for name in result.shadow_rules)
        assert 0 <= result.p_genuine <= 1


def test_the_models_fields_come_last() -> None:
    assert ALL_FIELDS[-len(MODEL_FIELDS) :] == MODEL_FIELDS
    assert isinstance(load_rules(BUILT_IN).rules[0], Rule)
