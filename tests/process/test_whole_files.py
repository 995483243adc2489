"""Files that are put in place whole or not at all."""

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


def test_of_several_none_is_replaced_where_one_cannot_be_written(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("before")
    with pytest.raises(UserError) as told:
        put_in_place({old: b"after", tmp_path / "no" / "folder": b""})
    assert str(told.value) == f"cannot write {tmp_path / 'no' / 'folder'}: No such file or directory"
    assert old.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["old"]
