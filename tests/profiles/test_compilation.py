"""Where compiled code is kept: read-only places, processes that start at once, sources that change, no JIT at all."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dataflow.profiles.compilation import FOLDER, PACKAGE

pytestmark = pytest.mark.slow

ROOT = PACKAGE.parent.parent
WARM_UP = [sys.executable, "-c", "from dataflow import kernels\nfrom dataflow.profiles import compilation, user\n"
           "kernels.warm_up(); print(compilation.FOLDER, sum(user.observe.stats.cache_hits.values()))"]  # fmt: skip
# Those of trees alone, which compile in a few seconds.
WARM_UP_TREES = [sys.executable, "-c", "from dataflow import kernels\nfrom dataflow.scoring import trees\n"
                 "kernels._profiles = lambda: None; kernels.warm_up()\n"
                 "print(sum(trees._add_by_row.stats.cache_hits.values()))"]  # fmt: skip
WHERE = [sys.executable, "-c", "from dataflow.profiles.compilation import FOLDER; print(FOLDER)"]


def run(command: list[str], root: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def copied(to: Path) -> Path:
    """The package's sources by themselves, without what is compiled."""
    shutil.copytree(ROOT / "dataflow", to / "dataflow", ignore=shutil.ignore_patterns("__pycache__"))
    return to


@pytest.fixture
def read_only(tmp_path: Path) -> Path:
    """A copy of the package that cannot be written to: a file stands where its __pycache__ would be.

    (The tests may run as root, whom no file mode stops.)
    """
    root = copied(tmp_path)
    (root / "dataflow" / "profiles" / "__pycache__").write_text("")
    return root


def test_where_the_package_cannot_be_written_to_the_users_cache_is_used(read_only: Path) -> None:
    said = run(WHERE, read_only, XDG_CACHE_HOME=str(read_only / "cache"), NUMBA_CACHE_DIR="")
    assert Path(said).parent == read_only / "cache" / "redflag"


def test_where_nothing_can_be_written_to_a_temporary_folder_is_used_and_goes_with_the_process(read_only: Path) -> None:
    (read_only / "file").write_text("")
    temporary = read_only / "tmp"
    temporary.mkdir()
    said = run(WHERE, read_only, XDG_CACHE_HOME=str(read_only / "file"), NUMBA_CACHE_DIR="", TMPDIR=str(temporary))
    assert Path(said).parent == temporary
    assert not Path(said).exists()


def test_a_user_without_a_home_has_no_cache_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of a container who has a number and no name."""
    from dataflow.profiles import compilation

    def fail(self: Path) -> Path:
        msg = "Could not determine home directory."
        raise RuntimeError(msg)

    monkeypatch.setattr(Path, "expanduser", fail)
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert compilation._bases() == [PACKAGE / "__pycache__"]


def test_what_was_compiled_into_a_place_that_is_read_only_now_is_copied_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataflow.profiles import compilation

    name = f"kernels-{compilation._digest()}"
    image, home = tmp_path / "image", tmp_path / "home"
    (image / name / "profiles_1").mkdir(parents=True)
    (image / name / "profiles_1" / "code.nbc").write_text("compiled")
    monkeypatch.setattr(compilation, "_bases", lambda: [image, home])
    writable = compilation._writable
    monkeypatch.setattr(compilation, "_writable", lambda folder: image not in folder.parents and writable(folder))
    assert compilation.cache_folder() == home / name
    assert (home / name / "profiles_1" / "code.nbc").read_text() == "compiled"


def test_a_changed_statistic_is_compiled_anew_and_what_is_not_compiled_changes_nothing(tmp_path: Path) -> None:
    root = copied(tmp_path)
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    first = run(WHERE, root, **cache)
    with (root / "dataflow" / "profiles" / "table.py").open("a") as file:
        file.write("\n")
    assert run(WHERE, root, **cache) == first
    with (root / "dataflow" / "profiles" / "windows.py").open("a") as file:
        file.write("\n")
    assert run(WHERE, root, **cache) != first


def test_a_second_process_loads_what_the_first_compiled_though_both_start_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path)}
    both = [
        subprocess.Popen(WARM_UP_TREES, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = sorted(process.communicate(timeout=500)[0].split()[-1] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert said == ["0", "1"]  # how often the kernel came from the cache
    assert len(list(tmp_path.glob("kernels-*"))) == 1


def test_the_kernels_of_profiles_are_loaded_where_they_are_compiled() -> None:
    for _ in range(2):  # the first compiles them, where that has not been done
        said = run(WARM_UP)
    assert said.split() == [str(FOLDER), "1"]  # how often the users' kernel came from the cache


def test_without_the_jit_the_same_comes_of_it() -> None:
    done = run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
         *(f"tests/profiles/test_{name}.py" for name in ("statistics", "golden", "labels", "fraud_run", "repeats")),
         "-k", "not whatever_else and not small and not one_byte"],
        NUMBA_DISABLE_JIT="1",
    )  # fmt: skip
    assert "passed" in done


def test_the_code_of_this_process_lies_in_a_folder_of_its_sources() -> None:
    assert FOLDER is not None
    assert FOLDER.name.startswith("kernels-")
