"""What is kept of a model between starts: read in place of its pickle, and held against scikit-learn's answers anew."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

from dataflow.errors import UserError
from dataflow.scoring import isolation_forest, kept_parts, trees
from dataflow.scoring.isolation_forest import ForestAnswers, ForestParts
from dataflow.scoring.kept_parts import KEPT, PREFIX, KeptParts
from dataflow.scoring.loading import load_model
from tests.scoring.test_scoring import assert_same, data, forest, metadata, saved

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    kept = tmp_path / "kernels"
    kept.mkdir()
    return kept


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def watch_for_the_pickle(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fills the list returned whenever a pickle is opened."""
    opened: list[str] = []
    real = joblib.load

    def load(file: Any) -> Any:
        opened.append("opened")
        return real(file)

    monkeypatch.setattr(joblib, "load", load)
    return opened


def test_a_second_start_opens_no_pickle_and_scores_the_same(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = forest(contamination=0.02)
    path = saved(tmp_path, tried)
    opened = watch_for_the_pickle(monkeypatch)
    load_model(path, folder)
    assert opened == ["opened"]
    assert [file.name[: len(PREFIX)] for file in files(folder)] == [PREFIX]
    assert files(folder)[0].stat().st_mode & 0o077 == 0
    assert_same(load_model(path, folder), tried, data(2, 500, 9))  # type: ignore[arg-type]
    assert opened == ["opened"]


@pytest.mark.slow
def test_a_second_start_does_not_import_scikit_learn(tmp_path: Path, folder: Path) -> None:
    path = saved(tmp_path)
    load_model(path, folder)
    code = (
        "import sys; from pathlib import Path; from dataflow.scoring.loading import load_model\n"
        "load_model(Path(sys.argv[1]), Path(sys.argv[2])); print({'sklearn', 'joblib', 'pandas'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(path), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "set()"), done.stderr


def test_a_tampered_pickle_is_refused_though_it_was_kept_what_it_was(tmp_path: Path, folder: Path) -> None:
    path = saved(tmp_path)
    load_model(path, folder)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match="SHA-256"):
        load_model(path, folder)


@pytest.mark.parametrize("change", ["a byte", "cut", "empty"])
def test_what_was_kept_and_is_damaged_is_not_used(
    tmp_path: Path, folder: Path, change: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = forest(contamination=0.02)
    path = saved(tmp_path, tried)
    load_model(path, folder)
    (kept,) = files(folder)
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes({"a byte": bytes(content), "cut": kept.read_bytes()[:-9], "empty": b""}[change])
    opened = watch_for_the_pickle(monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert_same(load_model(path, folder), tried, data(2, 500, 9))  # type: ignore[arg-type]
    assert opened == ["opened"]
    assert "is damaged" in caplog.text
    load_model(path, folder)  # it has been mended
    assert opened == ["opened"]


def test_what_was_kept_is_held_against_scikit_learns_answers_at_each_start(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, forest(width=2, rows=5_000, trees=50))
    load_model(path, folder)
    monkeypatch.setattr(trees, "round_down", lambda threshold: threshold.astype(np.float32))
    with pytest.raises(UserError, match="scores otherwise"):
        load_model(path, folder)


def test_of_a_model_that_is_refused_nothing_is_kept(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path)
    monkeypatch.setattr(isolation_forest, "average_path_length", lambda samples: np.ones(len(samples)))
    with pytest.raises(UserError, match="scores otherwise"):
        load_model(path, folder)
    assert not files(folder)


@pytest.mark.parametrize("changed", ["library", "source", "processor", "model"])
def test_what_was_kept_is_not_found_where_something_has_changed(
    tmp_path: Path, folder: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path)
    load_model(path, folder)
    if changed == "library":
        monkeypatch.setattr(kept_parts, "version", lambda _name: "9.9.9")
    elif changed == "source":
        sources = tmp_path / "sources"
        sources.mkdir()
        (sources / "trees.py").write_text("# other")
        monkeypatch.setattr(kept_parts, "PACKAGE", sources)
    elif changed == "processor":
        monkeypatch.setattr(kept_parts.llvm, "get_host_cpu_name", lambda: "another")
    else:
        path = saved(tmp_path, forest(seed=8))
    opened = watch_for_the_pickle(monkeypatch)
    load_model(path, folder)
    assert opened == ["opened"]
    assert len(files(folder)) == 2


def test_a_folder_that_cannot_be_used_costs_time_and_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tried = forest(contamination=0.02)
    path = saved(tmp_path, tried)
    with caplog.at_level(logging.WARNING):
        model = load_model(path, tmp_path / "there is none")
    assert_same(model, tried, data(2, 500, 9))  # type: ignore[arg-type]
    (line,) = caplog.messages
    assert "each start asks scikit-learn anew" in line


def test_the_newest_models_are_kept(tmp_path: Path, folder: Path) -> None:
    for seed in range(KEPT + 2):
        load_model(saved(tmp_path, forest(seed=seed, trees=2)), folder)
    assert len(files(folder)) == KEPT


def test_numbers_of_numpys_are_kept_as_numbers(folder: Path) -> None:
    tried = forest(contamination=0.02)
    parts, answers = ForestParts.of(tried), ForestAnswers.of(tried, range(2), 2)
    parts = parts._replace(offset=np.float64(parts.offset), max_samples=np.int64(parts.max_samples))
    kept = KeptParts(folder, metadata())
    kept.write(parts, answers)
    found = kept.read()
    assert found is not None
    assert (found[0][1:], [type(each) for each in found[0][1:]]) == (parts[1:], [float, int])
