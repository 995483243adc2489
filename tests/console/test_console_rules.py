"""The rules file in the console: what is a version, what is written, what is tried in shadow, what is counted."""

import asyncio
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from console.programs import Programs
from console.rules import versions
from console.rules.backtest import arguments
from console.rules.rules_file import ChangedMeanwhileError, RulesFile
from console.rules.statistics import statistics
from console.rules.trial import in_shadow
from console.rules.versions import Version
from console.store import Batch
from dataflow.errors import UserError
from dataflow.rules import examine, load_rules
from dataflow.settings import Settings
from tests.console.builders import Console, alert
from tests.rules.builders import rule
from tests.support.builders import NOON

RULES = "# ours\n[lists]\nbad = ['Shop']\n" + rule("big", "amount > 400") + rule("odd", "merchant in lists.bad")


@pytest.fixture
def console(place: str) -> Iterator[Console]:
    made = Console(place)
    yield made
    made.store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "rules" / "rules.toml"
    made.parent.mkdir()
    made.write_text(RULES)
    return made


def opened(console: Console, path: Path) -> RulesFile:
    """The file as a console has it that has just started; nobody looks at it by the clock."""
    file = RulesFile(path, console.store.database, 3600.0, console.clock)
    file.begin()
    file.stop()
    return file


@pytest.fixture
def file(console: Console, path: Path) -> RulesFile:
    return opened(console, path)


def kept(console: Console) -> list[Version]:
    return versions.all_of(console.store.database.read(), 100)


def digest(text: str) -> str:
    return versions.digest_of(text.encode())


# --------------------------------------------------------------------------------------------------------- versions


def test_what_is_written_is_a_version_with_author_time_and_reason_and_stands_in_the_audit_trail(
    console: Console, file: RulesFile, path: Path
) -> None:
    path.chmod(0o640)
    console.clock.now = NOON
    written = file.write(RULES.replace("400", "300").encode(), digest(RULES), "promote", "eve", "too many")
    assert path.read_text() == RULES.replace("400", "300")
    assert path.stat().st_mode & 0o777 == 0o640
    assert (written.number, written.who, written.what, written.reason, written.at) == (
        2, "eve", "promote", "too many", NOON,
    )  # fmt: skip
    assert [(each.number, each.who, each.what) for each in kept(console)] == [
        (2, "eve", "promote"),
        (1, "the file", "file"),
    ]
    (entry,) = console.rows("SELECT who, what, detail FROM audit WHERE who = 'eve'")
    assert entry == ("eve", "rules: promoted", f"version 2 ({written.digest[:12]}): too many")
    assert sorted(each.name for each in path.parent.iterdir()) == ["rules.toml"]


def test_what_changes_on_the_disk_is_a_version_from_the_file(console: Console, file: RulesFile, path: Path) -> None:
    file.notice()
    assert len(kept(console)) == 1
    path.write_text(RULES + rule("theirs", "amount > 9"))
    file.notice()
    file.notice()
    newest = kept(console)[0]
    assert (len(kept(console)), newest.who, newest.what) == (2, "the file", "file")
    assert newest.text == path.read_text()
    path.write_text(RULES)  # also where it says again what it has said before
    assert file.notice().number == 3


def test_a_change_is_noticed_by_the_clock_while_nobody_looks(console: Console, path: Path) -> None:
    file = RulesFile(path, console.store.database, 0.05, console.clock)
    file.begin()
    try:
        path.write_text(RULES + "\n# more\n")
        for _ in range(200):
            if len(kept(console)) == 2:
                break
            file._stop.wait(0.02)
    finally:
        file.stop()
    assert [each.what for each in kept(console)] == ["file", "file"]


def test_nothing_is_written_over_what_was_not_seen(console: Console, file: RulesFile, path: Path) -> None:
    theirs = RULES + rule("theirs", "amount > 9")
    path.write_text(theirs)
    mine = RULES.replace("400", "300").encode()
    with pytest.raises(ChangedMeanwhileError, match="Somebody has changed the file meanwhile") as told:
        file.write(mine, digest(RULES), "promote", "eve", "too many")
    assert path.read_text() == theirs
    assert told.value.now.text == theirs
    file.write(mine, told.value.now.digest, "promote", "eve", "too many")
    assert path.read_bytes() == mine
    assert [each.text for each in kept(console)] == [mine.decode(), theirs, RULES]  # theirs is not lost


@pytest.mark.parametrize(
    ("text", "why", "told"),
    [
        (RULES.replace("amount", "amuont"), "so", "nothing was written: rule 'big', when, column 1"),
        ("[[rule]\n", "so", "nothing was written: not a TOML file"),
        (RULES, "so", "says just that already"),
        (RULES.replace("400", "300"), "  ", "say why"),
    ],
)
def test_what_is_wrong_is_not_written(
    console: Console, file: RulesFile, path: Path, text: str, why: str, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        file.write(text.encode(), digest(RULES), "promote", "eve", why)
    assert path.read_text() == RULES
    assert len(kept(console)) == 1


def test_a_folder_that_cannot_be_written_is_one_line_and_leaves_no_version(
    console: Console, file: RulesFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("dataflow.process.whole_files.os.fsync", refused)
    with pytest.raises(UserError) as told:
        file.write(RULES.replace("400", "300").encode(), digest(RULES), "promote", "eve", "so")
    (line,) = str(told.value).splitlines()
    assert line.startswith(f"RULES_FILE: cannot write {path}: Read-only file system")
    assert path.read_text() == RULES
    assert len(kept(console)) == 1
    assert console.rows("SELECT count(*) FROM rule_versions") == [1]
    assert sorted(each.name for each in path.parent.iterdir()) == ["rules.toml"]


MINE = RULES.replace("400", "300")


@pytest.mark.parametrize(
    ("holds", "who"),
    [
        (MINE, "eve"),  # killed behind the replacement
        (RULES, "the file"),  # before it
        (RULES + "# theirs\n", "the file"),  # before it, and then others changed the file
    ],
)
def test_a_kill_around_the_replacement_leaves_what_the_file_holds(
    console: Console, file: RulesFile, path: Path, holds: str, who: str
) -> None:
    console.store.database.write(
        lambda connection: versions.intend(connection, MINE.encode(), "promote", "eve", "too many", NOON)
    )
    path.write_text(holds)
    again = opened(console, path)
    newest = kept(console)[0]
    assert (newest.who, newest.text) == (who, holds)
    if holds != MINE:  # whoever writes the same later is not taken for eve
        path.write_text(MINE)
        assert again.notice().who == "the file"
    assert console.rows("SELECT count(*) FROM rule_versions WHERE NOT in_place") == [0]


def test_a_link_to_the_file_stays_one(console: Console, path: Path, tmp_path: Path) -> None:
    link = tmp_path / "linked.toml"
    link.symlink_to(path)
    opened(console, link).write(MINE.encode(), digest(RULES), "promote", "eve", "too many")
    assert link.is_symlink()
    assert path.read_text() == MINE


def test_an_earlier_version_comes_back(console: Console, file: RulesFile, path: Path) -> None:
    file.write(RULES.replace("400", "300").encode(), digest(RULES), "promote", "eve", "too many")
    back = file.go_back(1, kept(console)[0].digest, "mel")
    assert path.read_text() == RULES
    assert (back.number, back.what, back.who) == (3, "back", "mel")
    assert back.reason == "back to version 1: the first that the console saw"
    with pytest.raises(UserError, match="there is no version 9"):
        file.go_back(9, back.digest, "mel")


def test_a_missing_file_is_told_and_the_console_goes_on(console: Console, path: Path) -> None:
    path.unlink()
    file = opened(console, path)
    assert str(path) in file.trouble
    path.write_text(RULES)
    file._reload()
    assert file.trouble == ""
    assert len(kept(console)) == 1


# --------------------------------------------------------------------------------------------------------- checking


def test_the_checker_is_the_commands_and_says_the_line(file: RulesFile, path: Path) -> None:
    text = RULES + '[[rule]]\nid = "night"\nwhen = """\namount > 1\n  and amuont > 2"""\nreason = "r"\nwieght = 1\n'
    path.write_text(text)
    _, commands = examine(path)
    _, found = file.examine(text.encode())
    assert [f"{path}: {each.text}" for each in found] == commands
    lines = text.split("\n")
    assert [lines[each.line - 1] for each in found if each.line is not None] == ["[[rule]]"]
    (mistake,) = file.examine(text.replace("wieght = 1\n", "").encode())[1]
    assert mistake.line is not None
    assert lines[mistake.line - 1] == '  and amuont > 2"""'
    (broken,) = file.examine(b"a = 1\nb = = 2\n")[1]
    assert broken.line == 2


def test_lists_are_found_beside_the_file(file: RulesFile, path: Path) -> None:
    (path.parent / "more.txt").write_text("Kiosk\n")
    text = RULES.replace("['Shop']", "'more.txt'").encode()
    rules, mistakes = file.examine(text)
    assert mistakes == []
    assert rules is not None
    assert rules.lists["bad"] == {"Kiosk"}


# ------------------------------------------------------------------------------------------------------------ shadow


def tried(service: str, copy: str) -> tuple[dict[str, Any], list[str]]:
    text, untried = in_shadow(service, copy)
    return {each["id"]: each for each in tomllib.loads(text)["rule"]}, untried


def test_a_changed_rule_is_tried_beside_the_one_in_service_and_a_new_one_by_its_name() -> None:
    copy = RULES.replace("400", "300") + rule("new", "amount > 5", action="block")
    rules, untried = tried(RULES, copy)
    assert list(rules) == ["big", "odd", "big_shadow", "new"]
    assert rules["big"]["when"] == "amount > 400"
    assert "mode" not in rules["big"]
    assert (rules["big_shadow"]["when"], rules["big_shadow"]["mode"]) == ("amount > 300", "shadow")
    assert (rules["new"]["action"], rules["new"]["mode"]) == ("block", "shadow")
    assert untried == []
    assert in_shadow(RULES, copy)[0].startswith("# ours\n")  # comments stay


def test_what_has_no_shadow_is_named_or_refused() -> None:
    copy = rule("new", "amount > 5") + "[[deny]]\nfield = 'user'\nlist = 'bad'\n" + RULES.replace("# ours\n", "")
    assert tried(RULES, "[lists]\nmore = ['a']\n" + RULES.replace("# ours\n[lists]\n", "") + rule("new"))[1] == []
    _, untried = tried(RULES, copy.replace(rule("odd", "merchant in lists.bad"), ""))
    assert [each.split(",")[0] for each in untried] == [
        "[[deny]] differs", "rule 'odd' stays until the copy is promoted",
    ]  # fmt: skip
    with pytest.raises(UserError, match="list 'bad' differs"):
        in_shadow(RULES, RULES.replace("'Shop'", "'Kiosk'") + rule("new"))
    with pytest.raises(UserError, match="nothing to try"):
        in_shadow(RULES, RULES)
    with pytest.raises(UserError, match="nothing to try"):  # another layout says the same
        in_shadow(RULES, RULES + "\n# a comment\n")


def test_another_copy_in_shadow_takes_the_place_of_the_one_before_also_after_going_back_to_it(
    console: Console, file: RulesFile, path: Path
) -> None:
    first, second = RULES.replace("400", "300"), RULES.replace("400", "200")
    one, _ = file.try_in_shadow(first, digest(RULES), "eve", "lower")
    assert (one.what, one.copy, one.base) == ("shadow", first, 1)
    assert [each.id for each in load_rules(path).rules] == ["big", "odd", "big_shadow"]
    two, _ = file.try_in_shadow(second, one.digest, "eve", "lower still")
    assert [each.when for each in load_rules(path).rules if each.effect == "shadow"] == ["amount > 200"]
    back = file.go_back(one.number, two.digest, "eve")
    assert back.copy == first
    file.try_in_shadow(second, back.digest, "eve", "lower still")
    assert [each.id for each in load_rules(path).rules] == ["big", "odd", "big_shadow"]
    with pytest.raises(UserError, match="nothing was written: rule 'big', when"):
        file.try_in_shadow(RULES.replace("amount", "amuont"), "", "eve", "why")


def test_a_rule_that_is_off_is_tried_in_its_own_place_and_one_in_shadow_is_tried_already() -> None:
    service = RULES + rule("night", "amount > 7", mode="off")
    rules, _ = tried(service, service.replace("mode = 'off'", "mode = 'active'"))
    assert [each for each in rules if each.startswith("night")] == ["night"]
    assert rules["night"]["mode"] == "shadow"
    shadowed = RULES + rule("night", "amount > 7", mode="shadow")
    with pytest.raises(UserError, match="nothing to try"):
        in_shadow(shadowed, shadowed.replace("mode = 'shadow'", "mode = 'active'"))


def test_names_of_what_is_tried_are_free_and_no_longer_than_a_name_may_be(tmp_path: Path) -> None:
    name = "n" * 64
    service = rule(name, "amount > 1") + rule("n" * 57 + "_shadow", "amount > 2")
    text, _ = in_shadow(service, service.replace("amount > 1", "amount > 3"))
    (tmp_path / "tried.toml").write_text(text)
    rules = load_rules(tmp_path / "tried.toml")
    assert [each.effect for each in rules.rules] == ["active", "active", "shadow"]


def test_the_shipped_rules_can_be_tried(tmp_path: Path) -> None:
    shipped = Settings().rules_file
    text, _ = in_shadow(shipped.read_text(), shipped.read_text().replace("amount > 400", "amount > 390"))
    rules, mistakes = examine(shipped, content=text.encode())
    assert mistakes == []
    assert rules is not None
    assert [each.id for each in rules.rules if each.effect == "shadow"] == ["high_amount_shadow"]


# ---------------------------------------------------------------------------------------------------------- backtest


def test_a_copy_finds_the_lists_beside_the_file_wherever_it_lies(tmp_path: Path) -> None:
    folder = tmp_path / "ours" / "rules"
    (folder / "lists").mkdir(parents=True)
    (folder / "lists" / "a.txt").write_text("Shop\n")
    (tmp_path / "ours" / "b.txt").write_text("Kiosk\n")
    text = "[lists]\na = 'lists/a.txt'\nb = {file = '../b.txt'}\nc = ['x']\n" + rule("r", "merchant in lists.b")
    (folder / "rules.toml").write_text(text)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    settings = Settings(rules_file=folder / "rules.toml")
    given = arguments(settings, text, scratch, NOON, 7.0, 1.0)
    copy = load_rules(Path(given[1]))
    assert (copy.lists["a"], copy.lists["b"]) == ({"Shop"}, {"Kiosk"})
    assert copy.version == load_rules(settings.rules_file).version  # byte by byte the same
    assert given[3] == str(settings.rules_file)
    assert given[5] == "kafka:transactions@2026-02-22T12:00:00+00:00"
    assert given[7] == "1d"


def test_a_program_runs_aside_one_at_a_time_and_its_mistake_is_one_line(tmp_path: Path) -> None:
    async def runs() -> None:
        programs = Programs()
        run = programs.start("b", "eve", "The backtest", "training.backtest", lambda _: ["--rules", "no/such.toml"])
        with pytest.raises(UserError, match="The backtest of eve is under way"):
            programs.start("w", "mel", "The trial", "training.threshold", lambda _: [])
        while programs.under_way is not None:
            await asyncio.sleep(0.05)
        assert run.error.startswith("'no/such.toml': No such file")
        assert run.result is None

    asyncio.run(asyncio.wait_for(runs(), 60))


def test_a_program_is_stopped_with_all_that_it_has_started(tmp_path: Path) -> None:
    async def runs() -> None:
        programs, told = Programs(), tmp_path / "pid"
        run = programs.start("b", "eve", "The backtest", "tests.console.starts_another", lambda _: [str(told)])
        while not told.exists():
            await asyncio.sleep(0.05)
        programs.stop()
        while programs.under_way is not None:
            await asyncio.sleep(0.05)
        assert run.error == "it was stopped"
        while Path(f"/proc/{told.read_text()}").exists() and "State:\tZ" not in _status(told.read_text()):
            await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(runs(), 60))


def _status(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it is gone
        return "State:\tZ"


# -------------------------------------------------------------------------------------------------------- statistics


def test_what_rules_find_is_counted_with_labels_and_overlap(console: Console) -> None:
    console.come(
        alert("ann", rules=["big"], shadow_rules=["try"], amount=10.0, transaction_id="a"),
        alert("bob", rules=["big", "odd"], amount=20.0, transaction_id="b"),
        alert("cid", rules=["odd"], amount=40.0, transaction_id="c"),
    )
    store = console.store
    for user, found in (("ann", "fraud"), ("bob", "genuine")):
        store.label_case(console.number(user), found, "eve")  # type: ignore[arg-type]
    # Transactions that are no alerts: an allow list excused one, and a rule in shadow fired on another.
    store.ingest(Batch(transactions=5, fired=[(["allow_x_user", "big"], []), ([], ["try"])]))
    found = statistics(store.database.read(), console.clock.now)
    assert found.alerts == 3
    big, odd, shadow = found.found["big"], found.found["odd"], found.found["try"]
    assert (big.alerts, big.alone, big.fraud, big.genuine, big.precision, big.fraud_money) == (2, 1, 1, 1, 0.5, 10.0)
    assert (odd.alerts, odd.alone, odd.fraud, odd.genuine, odd.precision) == (2, 1, 0, 1, 0.0)
    assert (shadow.shadow, shadow.alerts, shadow.precision) == (True, 1, 1.0)
    assert found.together == {("big", "odd"): 1, ("big", "try"): 1}
    assert found.fires == {"big": 3, "odd": 2, "allow_x_user": 1}
    assert found.fires_in_shadow == {"try": 2}
    console.clock.now += 3 * 86_400
    assert statistics(store.database.read(), console.clock.now).fires == {}


def test_an_alert_that_the_database_cannot_parse_counts_without_its_rules_in_shadow(console: Console) -> None:
    console.come(alert("ann", rules=["big"], shadow_rules=["try"]), alert("bob", rules=["big"]))
    console.store.database.write(
        lambda connection: connection.execute("UPDATE alerts SET raw = '{' WHERE user = 'ann'")
    )
    found = statistics(console.store.database.read(), console.clock.now).found
    assert {name: each.alerts for name, each in found.items()} == {"big": 2}


def test_of_no_alerts_nothing_is_said(console: Console) -> None:
    found = statistics(console.store.database.read(), NOON)
    assert (found.alerts, found.since, found.found) == (0, None, {})
