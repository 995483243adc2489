"""Where no PostgreSQL server is installed, the tests that need one are skipped by name, and no others."""

import os
import re
import subprocess
import sys

import pytest

from tests.console.running import ROOT

pytestmark = pytest.mark.slow

WITHOUT_A_SERVER = """
import sys, pytest
from tests.console import postgres_server
postgres_server.programs = lambda: None
sys.exit(pytest.main(sys.argv[1:]))
"""
OF_BOTH = "tests/console/test_console_filters.py::test_rules_of_forgotten_alerts_are_forgotten"
OF_POSTGRES = "tests/console/test_console_postgres.py::test_a_password_comes_from_the_environment"


def test_without_a_server_what_needs_one_is_skipped_by_name_and_the_rest_runs() -> None:
    told = subprocess.run(
        [
            sys.executable, "-c", WITHOUT_A_SERVER, "-q", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist",
            OF_BOTH, OF_POSTGRES,
        ],
        cwd=ROOT, env={**os.environ, "PYTEST_ADDOPTS": ""}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr
    assert "needs Debian's postgresql" in told.stdout
    assert re.search(r"\b1 passed, 2 skipped\b", told.stdout), told.stdout
