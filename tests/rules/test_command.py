"""What the command line says of a rules file."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dataflow.features.catalogue import FIELDS
from dataflow.rules.__main__ import main
from dataflow.rules.fields import ALL_FIELDS, OF_FEEDBACK
from dataflow.rules.functions import FUNCTIONS
from dataflow.settings import TUTORIAL_RULES, Settings
from tests.rules.builders import rule
from training.histories.history import after, read_history
from training.histories.replay import replay
from training.train import main as train

pytestmark = pytest.mark.slow


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODEL_FILE", str(tmp_path / "none.pkl"))
    return tmp_path / "rules.toml"


def test_each_mistake_is_a_line_and_the_status_is_2(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(rule("a", "amont > 4", "{x}") + rule("b", weight=7))
    assert main(["check", str(path)]) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"redflag: {path}: rule '") for line in lines)
    assert captured.out == ""


def test_a_condition_that_none_or_all_of_the_sample_meet_is_a_warning(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(
        rule("never", "amount > 1e9")
        + rule("always", "amount >= 0")
        + rule("some", "amount > 100", mode="shadow")
        + rule("off", "amount > 1e9", mode="off")
        + rule("model", "model_score > 2")
        + rule("labels", "merchant_frauds_week > 1e9 and amount > 1")
    )
    assert main(["check", str(path)]) == 0
    captured = capsys.readouterr()
    never, always = captured.err.splitlines()
    assert "warning" in never
    assert "rule 'never': none of 20,000 transactions" in never
    assert "rule 'always': every one of 20,000 transactions" in always
    assert "The file is right." in captured.out
    assert "There is no model" in captured.out
    assert "Those that read feedback are tried by" in captured.out
    assert captured.out.count("not tried") == 3


def test_the_features_that_a_sample_lacks_are_those_that_feedback_changes() -> None:
    """Each of them moves once labels come, and no other does."""
    moved: set[str] = set()
    past = read_history(None, users=200, days=5)
    for (_, without), (_, told) in zip(replay(past), replay(past, label_time=after(3600.0)), strict=True):
        for name in [field.name for field in FIELDS]:
            if not np.array_equal(np.asarray(without.column(name)), np.asarray(told.column(name))):
                moved.add(name)
    assert moved == OF_FEEDBACK


def test_each_action_is_shown(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists = "[lists]\nbad = ['x']\ngood = ['y']\n[[deny]]\nfield = 'user'\nlist = 'bad'\n"
    lists += "[[deny]]\nfield = 'device'\nlist = 'bad'\naction = 'review'\n[[allow]]\nfield = 'user'\nlist = 'good'\n"
    path.write_text(lists + rule("stops", "amount > 100", action="block") + rule("asks", "amount > 10"))
    assert main(["check", str(path)]) == 0
    shown = {}
    for line in capsys.readouterr().out.splitlines():
        cells = [cell.strip() for cell in line.split("│")]
        if len(cells) > 4:
            shown[cells[1]] = cells[3]
    assert shown == {
        "deny_bad_user": "block",
        "deny_bad_device": "review",
        "allow_good_user": "approve",
        "stops": "block",
        "asks": "review",
    }


def test_the_model_s_fields_are_tried_at_its_operating_point(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The share that `model_alert` holds for is the forest's contamination, as it is its own verdict."""
    model = path.with_name("model.pkl")
    options = ["--users", "200", "--days", "5", "--tiers", "isolation_forest", "--contamination", "0.02"]
    assert train([*options, "--trees", "10", "--out", str(model)]) == 0
    path.write_text(
        rule("alert", "model_alert")
        + rule("anomaly", "model_anomaly")
        + rule("block", "model_block or block_threshold < 1")
    )
    capsys.readouterr()
    assert main(["check", str(path), "--model", str(model)]) == 0
    captured = capsys.readouterr()
    share = {
        cells[1].strip(): cells[-2].strip()
        for cells in (ln.split("│") for ln in captured.out.splitlines())
        if cells[1:]
    }
    assert share["alert"] == share["anomaly"]
    assert 0.005 < float(share["alert"].rstrip("%")) / 100 < 0.06
    assert share["block"] == "0.000%"


def test_rules_can_be_tried_on_a_history_of_ones_own(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = path.with_suffix(".csv")
    history.write_text("timestamp,user,merchant,amount\n2026-03-02T12:00:00Z,ann,Shop,500\n")
    path.write_text(rule("high", "amount > 400 and merchant == 'Shop'"))
    assert main(["check", str(path), "--history", str(history)]) == 0
    captured = capsys.readouterr()
    assert f"every one of 1 transactions ({history}) meets it" in captured.err
    assert main(["check", str(path), "--history", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [["check", str(Settings().rules_file)], ["check", str(TUTORIAL_RULES)], ["fields"]]
)
def test_it_runs_as_a_module(arguments: list[str]) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "dataflow.rules", *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert (found.returncode, found.stderr) == (0, "")


def test_fields_lists_all_that_a_condition_may_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fields"]) == 0
    out = capsys.readouterr().out
    assert all(field.name in out for field in ALL_FIELDS)
    assert all(name in out for name in FUNCTIONS)
    assert all(function.doc for function in FUNCTIONS.values())
