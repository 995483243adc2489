"""The rules that ship beside the tutorial's: each fires on what it is for, and not a step beside it."""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dataflow.features.batch import FeatureBatch
from dataflow.features.catalogue import FIELDS
from dataflow.rules import RuleResult, load_rules
from dataflow.scoring.operating_point import MODEL_FIELDS, columns_without_model
from dataflow.settings import Settings
from tests.rules.builders import evaluate, row
from tests.rules.test_ruleset import FOUR_CHECKS
from tests.support.builders import DAY, HOUR, MINUTE, NOON, txn
from tests.support.profile_builders import Profiles
from training.histories.history import Past, after, read_history
from training.histories.replay import replay

RULES = load_rules(Settings().rules_file)
NEW = [rule.id for rule in RULES.rules if rule.effect == "active" and rule.id not in FOUR_CHECKS]


class Case(NamedTuple):
    """Features on which a rule fires at the edge of its condition, and for each what is a step too little."""

    rule: str
    fires: dict[str, Any]
    silent: list[dict[str, Any]]


EMPTIED = {"txn_type": "withdrawal", "amount": 200.01, "amount_per_hour": 200.01, "usual_amount": 50.0, "history": 20.0}
TRANSFER = {"new_device": True, "txn_type": "transfer", "amount_ratio": 6.01, "history": 10.0}
CASES = [
    Case(
        "impossible_travel",
        {"speed": 900.1, "km_since_last": 500.0, "km_from_centre": 500.0, "history": 10.0},
        [{"speed": 900.0}, {"km_since_last": 499.9}, {"km_from_centre": 499.9}, {"history": 9.0}],
    ),
    Case(
        "card_testing",
        {"txn_per_hour": 3.0, "mean_amount_hour": 7.49, "usual_amount": 50.0, "history": 10.0},
        [{"txn_per_hour": 2.0}, {"mean_amount_hour": 7.5}, {"usual_amount": 49.9}, {"history": 9.0}],
    ),
    Case(
        "burst",
        {
            "txn_per_hour": 4.0,
            "burst": 3.01,
            "amount_per_hour": 400.0,
            "amount": 50.01,
            "usual_amount": 50.0,
            "mean_amount_hour": 100.0,
            "history": 20.0,
        },
        [
            {"txn_per_hour": 3.0},
            {"burst": 3.0},
            {"amount_per_hour": 399.9},
            {"amount": 50.0},
            {"usual_amount": 50.01},
            {"history": 19.0},
        ],
    ),
    Case(
        "new_device_transfer",
        TRANSFER,
        [{"new_device": False}, {"txn_type": "purchase"}, {"amount_ratio": 6.0}, {"history": 9.0}],
    ),
    Case("new_device_transfer", TRANSFER | {"amount_ratio": 1.0, "new_location": True}, [{"new_location": False}]),
    Case("new_device_transfer", TRANSFER | {"amount_ratio": 1.0, "speed": 500.1}, [{"speed": 500.0}]),
    Case("new_device_transfer", TRANSFER | {"txn_type": "WIRE"}, [{"txn_type": "wired"}]),
    Case(
        "account_emptied",
        EMPTIED,
        [
            {"txn_type": "purchase"},
            {"amount": 200.0},
            {"amount_per_hour": 200.0},
            {"usual_amount": 50.01},
            {"history": 19.0},
        ],
    ),
    Case("account_emptied", EMPTIED | {"txn_type": "TRANSFER"}, [{"txn_type": "deposit"}]),
    Case("account_emptied", EMPTIED | {"txn_type": "CASH_OUT"}, [{"txn_type": ""}]),
    Case(
        "merchant_under_attack",
        {"merchant_compromised": 0.651, "merchant_frauds_week": 3.0, "merchant_risk_week": 0.501},
        [{"merchant_compromised": 0.65}, {"merchant_frauds_week": 2.0}, {"merchant_risk_week": 0.5}],
    ),
    Case("ml_block", {"model_block": True}, [{"model_block": False, "model_alert": True}]),
]


def result(features: dict[str, Any]) -> RuleResult:
    (found,) = evaluate(RULES, [row(**features)])
    return found


def without_model(batch: FeatureBatch) -> list[RuleResult]:
    """What the rules say where no model says anything."""
    batch.put(columns_without_model(len(batch)))
    return RULES.evaluate(batch)


def test_each_new_rule_has_its_case() -> None:
    assert sorted({case.rule for case in CASES}) == sorted(NEW)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_a_rule_fires_at_the_edge_of_its_condition_and_not_a_step_beside_it(case: Case) -> None:
    assert case.rule in result(case.fires).rules
    for step in case.silent:
        assert case.rule not in result(case.fires | step).rules, step


def test_someone_without_a_past_is_accused_by_none_of_them() -> None:
    """A second payment elsewhere, and a new device and a large amount, say nothing of someone who is new."""
    strange = {field.name: 1e6 for field in FIELDS if field.kind == "number"}
    strange |= {"history": 1.0, "usual_amount": 1.0, "mean_amount_hour": 0.0, "new_device": True, "new_location": True}
    told = {"merchant_compromised": 0.0, "amount": 10.0}
    assert result(strange | told | {"txn_type": "transfer"}).rules == []


@pytest.mark.parametrize(
    ("rule", "action"),
    [(rule, "block" if rule in ("card_testing", "merchant_under_attack", "ml_block") else "review") for rule in NEW],
)
def test_the_near_certain_ones_block(rule: str, action: str) -> None:
    case = next(case for case in CASES if case.rule == rule)
    found = result(case.fires)
    assert (found.rules, found.action) == ([rule], action)
    assert "unknown" not in found.reasons[0]


def test_the_page_about_rules_names_each_rule_with_its_action_and_each_field_of_the_model() -> None:
    page = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    shown = {cells[0]: cells[2] for cells in rows if len(cells) == 4}
    for rule in RULES.rules:
        if rule.effect == "active":
            assert shown[f"`{rule.id}`"] == rule.action
    for field in MODEL_FIELDS:
        assert [f"`{field.name}`", field.kind, field.doc] in rows


def test_the_examples_of_that_page_are_right(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()
    examples = [block.partition("```")[0] for block in page.split("```toml\n")[1:]]
    path = tmp_path / "rules.toml"
    path.write_text("[lists]\ntransfers = ['wire']\nwatched_merchants = ['x']\n" + "\n".join(examples))
    rules = load_rules(path)
    assert [(rule.id, rule.action) for rule in rules.rules] == [
        ("deny_watched_merchants_merchant", "review"),
        ("night_transfer", "block"),
    ]


# --------------------------------------------------------------------------------------------- on transactions, as told

HOME, FAR = (40.7, -74.0), (35.7, 139.7)  # New York, Tokyo
EVENING = NOON + 40 * DAY


class Account:
    """A user with forty days of a purchase of 50 each noon at home, and the rules' word on what follows."""

    def __init__(self) -> None:
        self.profiles = Profiles()
        for day in range(40):
            self.pays(NOON + day * DAY, merchant=f"shop{day % 5}")

    def pays(self, at: float, amount: float = 50.0, place: tuple[float, float] = HOME, **others: Any) -> list[str]:
        latitude, longitude = place
        others = {"location": "US", "device": "card-1"} | others
        each = txn(at=at, amount=amount, latitude=latitude, longitude=longitude, transaction_id=f"t{at}", **others)
        found = without_model(self.profiles.read(each).batch())[-1]
        return [rule for rule in found.rules if rule in NEW]


@pytest.fixture
def account() -> Account:
    return Account()


def test_a_payment_across_the_world_within_an_hour_is_impossible_travel_and_the_next_one_at_home_is_not(
    account: Account,
) -> None:
    assert account.pays(EVENING) == []
    assert account.pays(EVENING + HOUR, place=FAR, location="JP") == ["impossible_travel"]
    assert account.pays(EVENING + 2 * HOUR) == []


def test_a_flight_is_no_impossible_travel(account: Account) -> None:
    assert account.pays(EVENING) == []
    assert account.pays(EVENING + 14 * HOUR, place=FAR, location="JP") == []


def test_small_amounts_and_then_a_large_one_are_card_testing(account: Account) -> None:
    found = [account.pays(EVENING + n * MINUTE, amount=2.0) for n in range(4)]
    assert found == [[], [], [], ["card_testing"]]
    assert account.pays(EVENING + 20 * MINUTE, amount=380.0) == ["card_testing"]


def test_amounts_as_usual_before_a_large_one_are_no_card_testing(account: Account) -> None:
    found = [account.pays(EVENING + n * MINUTE, amount=12.0) for n in range(4)]
    assert [*found, account.pays(EVENING + 20 * MINUTE, amount=380.0)] == [[]] * 5


def test_one_purchase_after_the_other_is_a_burst_once_it_is_far_beyond_the_users_pace(account: Account) -> None:
    found = [account.pays(EVENING + n * 5 * MINUTE, amount=90.0, merchant=f"new{n}") for n in range(8)]
    assert found == [[]] * 6 + [["burst"]] * 2


def test_as_many_purchases_over_a_day_are_none(account: Account) -> None:
    found = [account.pays(EVENING + n * 2 * HOUR, amount=90.0, merchant=f"new{n}") for n in range(7)]
    assert found == [[]] * 7


def test_a_large_transfer_from_a_new_device_and_not_a_small_one_or_one_from_the_users_own(account: Account) -> None:
    assert account.pays(EVENING, amount=390.0, txn_type="transfer", device="card-1") == []
    assert account.pays(EVENING + DAY, amount=60.0, txn_type="transfer", device="mobile-7") == []
    assert account.pays(EVENING + 2 * DAY, amount=390.0, txn_type="transfer", device="mobile-9") == [
        "new_device_transfer"
    ]


def test_large_amounts_out_one_upon_the_other_empty_an_account(account: Account) -> None:
    steps = [account.pays(EVENING + n * 10 * MINUTE, amount=330.0, txn_type="withdrawal") for n in range(3)]
    assert steps == [[], ["account_emptied"], ["account_emptied"]]
    later = [account.pays(EVENING + n * 2 * HOUR, amount=330.0, txn_type="withdrawal") for n in (5, 6)]
    assert later == [[], []]


# -------------------------------------------------------------------------------------------------- on the simulation

DAYS, WARM = 22.0, 10.0


class Tally(NamedTuple):
    """What the new rules did on a simulation once profiles were warm: hits, and of these frauds by scenario."""

    hits: Counter[str]
    frauds: Counter[str]
    scenarios: Counter[tuple[str, str]]
    decided: int


@pytest.fixture(scope="module")
def simulated() -> Tally:
    tally = Tally(Counter(), Counter(), Counter(), 0)
    decided = 0
    begin = 0.0
    for past, batch in replay(read_history(None, seed=11, users=700, days=DAYS), label_time=after(3 * DAY)):
        begin = begin or past[0].transaction.at
        for each, found in zip(past, without_model(batch), strict=True):
            if each.transaction.at < begin + WARM * DAY:
                continue
            decided += 1
            tally.hits.update(found.rules)
            if each.fraud:
                tally.frauds.update(found.rules)
                tally.scenarios.update((rule, each.scenario) for rule in found.rules)
    return tally._replace(decided=decided)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "scenario"),
    [
        ("impossible_travel", "impossible_travel"),
        ("card_testing", "card_testing"),
        ("burst", "spending_burst"),
        ("new_device_transfer", "account_takeover"),
        ("account_emptied", "account_takeover"),
    ],
)
def test_on_the_simulation_a_rule_is_precise_cheap_and_finds_its_own_scenario(
    simulated: Tally, rule: str, scenario: str
) -> None:
    hits, frauds = simulated.hits[rule], simulated.frauds[rule]
    assert hits >= 3
    assert frauds / hits >= 0.5
    assert hits < 0.002 * simulated.decided
    assert max((found for found in simulated.scenarios if found[0] == rule), key=simulated.scenarios.__getitem__) == (
        rule,
        scenario,
    )


@pytest.mark.slow
def test_on_the_simulation_no_merchant_is_under_attack(simulated: Tally) -> None:
    """There a compromised merchant's frauds are a small part of its business: its customers are not accused."""
    assert simulated.hits["merchant_under_attack"] <= 0.0001 * simulated.decided


def test_a_merchant_is_under_attack_from_when_labels_say_so_until_they_say_otherwise() -> None:
    """Forty people pay once a day; at the kiosk all is fraud from day 10 to 19, labels come a day later."""
    past = [
        Past(
            txn(f"u{user}", at=NOON + day * DAY + user * MINUTE, merchant="kiosk" if user % 10 == day % 10 else "shop"),
            user % 10 == day % 10 and 10 <= day < 20,
            "",
        )
        for day in range(30)
        for user in range(40)
    ]
    accused: dict[str, list[int]] = {"kiosk": [], "shop": []}
    decided = [found for _, batch in replay(past, label_time=after(DAY)) for found in without_model(batch)]
    for number, (each, found) in enumerate(zip(past, decided, strict=True)):
        if "merchant_under_attack" in found.rules:
            accused[each.transaction.merchant].append(number // 40)
    assert accused["shop"] == []
    days = Counter(accused["kiosk"])
    assert all(days[day] == 4 for day in range(15, 20))  # all of that day's payments there
    assert set(days) <= set(range(12, 22))
