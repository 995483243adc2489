"""What a start imports: what it need not wait for comes later, or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TRAINING = {
    "sklearn",
    "scipy.sparse",
    "scipy.stats",
    "pandas",
    "joblib",
    "pyarrow",
    "matplotlib",
    "nicegui",
    "rich",
    "sqlalchemy",
}
FLOW = {"bytewax", "numba", "numpy", "confluent_kafka", "prometheus_client"}

UP_TO_THE_FLOW = """
import os, runpy, sys
from pathlib import Path
def goes_on(path, arguments):
    assert arguments[1:4] == ["-m", "bytewax.run", "dataflow.detect:flow"], arguments
    print(*sorted(sys.modules))
    raise SystemExit
os.execv = goes_on
sys.argv = ["detect"]
runpy.run_module("dataflow.detect", run_name="__main__")
"""


def imported(code: str, **environ: str) -> set[str]:
    """The modules that a process has imported which runs that code and says their names."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.slow
def test_the_flow_imports_nothing_that_only_training_or_the_console_needs() -> None:
    found = imported("import sys, dataflow.detect; print(*sorted(sys.modules))")
    assert found > FLOW
    assert not found & TRAINING


@pytest.mark.parametrize("start", ["new", "resumed"])
def test_before_it_goes_on_as_bytewax_a_start_imports_nothing_that_the_flow_imports_again(
    tmp_path: Path, start: str
) -> None:
    directory = {"RECOVERY_DIR": str(tmp_path / "recovery")}
    # Only a new directory needs what makes recovery partitions.
    of_bytewax = imported(UP_TO_THE_FLOW, **directory) & (FLOW | TRAINING)
    assert of_bytewax <= {"bytewax"}
    if start == "resumed":
        assert not imported(UP_TO_THE_FLOW, **directory) & (FLOW | TRAINING)
