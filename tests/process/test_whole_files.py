"""Files that are put in place whole or not at all."""

import os
from pathlib import Path

import pytest

from dataflow.errors import UserError
from dataflow.process.whole_files import put_in_place


def test_a_file_keeps_its_mode_and_a_new_one_gets_the_users_own(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("before")
    old.chmod(0o604)
    put_in_place({old: b"after", new: b"made"})
    assert (old.read_text(), new.read_text()) == ("after", "made")
    assert old.stat().st_mode & 0o777 == 0o604
    (tmp_path / "plain").write_text("")
    assert new.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(each.name for each in tmp_path.iterdir()) == ["new", "old", "plain"]


def test_a_file_of_secrets_is_never_open_to_others_whatever_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("before")
    old.chmod(0o644)
    left = tmp_path / f".old.{os.getpid()}"  # by a process of that number which was killed
    left.touch()
    left.chmod(0o644)
    modes = []

    def sync(descriptor: int) -> None:
        modes.append(os.fstat(descriptor).st_mode & 0o777)

    made = []
    open_file = os.open
    monkeypatch.setattr(os, "open", lambda *asked: made.append(asked[2]) or open_file(*asked))
    monkeypatch.setattr(os, "fsync", sync)
    put_in_place({old: b"after", new: b"made"}, mode=0o600)
    assert made == modes == [0o600, 0o600]
    assert [each.stat().st_mode & 0o777 for each in (old, new)] == [0o600, 0o600]


def test_of_several_none_is_replaced_where_one_cannot_be_written(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("before")
    with pytest.raises(UserError) as told:
        put_in_place({old: b"after", tmp_path / "no" / "folder": b""})
    assert str(told.value) == f"cannot write {tmp_path / 'no' / 'folder'}: No such file or directory"
    assert old.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["old"]
