"""A rules file that is placed where others edit it: whose change stands afterwards, and that none is lost."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from dataflow.process import whole_files
from dataflow.rules.__main__ import main
from dataflow.rules.placing import RECORD, REPLACED, place
from dataflow.rules.rules_file import load_rules
from tests.rules.builders import rule

RULES = '[lists]\nbad = "lists/bad.txt"\n' + rule("listed", "merchant in lists.bad")
NEWER = RULES + rule("high")
EDITED = RULES + rule("low", "amount < 10")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The original."""
    made = tmp_path / "original" / "rules.toml"
    (made.parent / "lists").mkdir(parents=True)
    made.write_text(RULES)
    (made.parent / "lists" / "bad.txt").write_text("Kiosk\n")
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where it is placed."""
    made = tmp_path / "placed"
    made.mkdir()
    return made


def files(folder: Path) -> dict[str, str]:
    """What stands there, but for the record."""
    found = [each for each in folder.rglob("*") if each.is_file() and each.name != RECORD]
    return {str(each.relative_to(folder)): each.read_text() for each in found}


def test_an_empty_folder_gets_the_file_and_its_lists(path: Path, folder: Path) -> None:
    assert place(path, folder) == [
        f"{folder / name} is new from {path.parent / name}" for name in ("lists/bad.txt", "rules.toml")
    ]
    assert files(folder) == {"rules.toml": RULES, "lists/bad.txt": "Kiosk\n"}
    assert load_rules(folder / "rules.toml").version == load_rules(path).version


def test_what_was_edited_there_stays_while_the_original_is_the_same(path: Path, folder: Path) -> None:
    place(path, folder)
    (folder / "rules.toml").write_text(EDITED)
    for _ in range(2):
        list_line, rules_line = place(path, folder)
        assert rules_line.startswith(f"{folder / 'rules.toml'} stays as it was edited")
        assert " is as " in list_line
        assert files(folder) == {"rules.toml": EDITED, "lists/bad.txt": "Kiosk\n"}


def test_a_changed_original_wins_and_what_was_edited_is_kept_beside_it(path: Path, folder: Path) -> None:
    place(path, folder)
    (folder / "rules.toml").write_text(EDITED)
    (folder / "lists" / "bad.txt").write_text("Kiosk\nStall\n")
    path.write_text(NEWER)
    place(path, folder)
    # Each file for itself: of the list there is nothing newer.
    assert files(folder) == {"rules.toml": NEWER, f"rules.toml{REPLACED}": EDITED, "lists/bad.txt": "Kiosk\nStall\n"}
    (folder / "rules.toml").write_text(EDITED + "# again\n")
    place(path, folder)
    assert (folder / "rules.toml").read_text() == EDITED + "# again\n"


def test_what_nobody_edited_gives_way_without_a_copy(path: Path, folder: Path) -> None:
    place(path, folder)
    path.write_text(NEWER)
    assert place(path, folder)[1] == f"{folder / 'rules.toml'} is new from {path}"
    assert files(folder) == {"rules.toml": NEWER, "lists/bad.txt": "Kiosk\n"}


def test_an_edit_that_came_back_as_the_original_leaves_nothing_to_do(path: Path, folder: Path) -> None:
    place(path, folder)
    (folder / "rules.toml").write_text(EDITED)
    path.write_text(EDITED)  # exported, and committed
    before = (folder / "rules.toml").stat()
    assert " is as " in place(path, folder)[1]
    assert (folder / "rules.toml").stat() == before
    path.write_text(RULES)  # an earlier release is another original
    place(path, folder)
    assert files(folder) == {"rules.toml": RULES, "lists/bad.txt": "Kiosk\n"}


@pytest.mark.parametrize("written", [1, 2, 3, 4])
def test_a_kill_in_between_loses_no_edit(
    written: int, path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(path, folder)
    (folder / "rules.toml").write_text(EDITED)
    path.write_text(NEWER)
    (path.parent / "lists" / "bad.txt").write_text("Stall\n")
    done = 0

    def killed(contents: Mapping[Path, bytes]) -> None:
        nonlocal done
        for target, content in list(contents.items())[:written]:
            whole_files.put_in_place({target: content})
            done += 1
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("dataflow.rules.placing.put_in_place", killed)
        with pytest.raises(KeyboardInterrupt):
            place(path, folder)
    assert done == written
    place(path, folder)
    assert files(folder) == {"rules.toml": NEWER, f"rules.toml{REPLACED}": EDITED, "lists/bad.txt": "Stall\n"}


def test_mistakes_are_one_line_and_nothing_is_placed(
    path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(rule("a", "amont > 4"))
    assert main(["place", str(path), str(folder)]) == 2
    outside = path.parent.parent / "outside.txt"
    outside.write_text("Kiosk\n")
    path.write_text(RULES.replace("lists/bad.txt", "lists/../../outside.txt"))
    assert main(["place", str(path), str(folder)]) == 2
    path.write_text(RULES)
    (folder / "lists").write_text("no folder")
    assert main(["place", str(path), str(folder)]) == 2
    (folder / "lists").unlink()
    (folder / RECORD).write_text("[")
    assert main(["place", str(path), str(folder)]) == 2
    captured = capsys.readouterr()
    told = captured.err.splitlines()
    assert len(told) == 4
    for line, said in zip(
        told, ("rule 'a'", "is not in the rules file's folder", "File exists", "is damaged: remove it"), strict=True
    ):
        assert line.startswith("redflag: ")
        assert said in line
    assert captured.out == ""
    assert files(folder) == {}
