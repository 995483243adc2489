"""What every transaction passes through as compiled code, where `python -m dataflow.compile` has made it.

It does the same in less time. It lies under a digest of its sources: the code of sources that have changed since is
never used. With `INTERPRETED=1` the sources run as they stand.
"""

import os
import sys
from hashlib import sha256
from pathlib import Path

MODULES = ("packed", "windows", "profile", "features", "parsing", "outbox", "keyed_state", "steps")
"""What is compiled."""

PACKAGE = Path(__file__).parent
BUILDS = PACKAGE / ".compiled"


def folder() -> Path:
    """Where the code of the sources as they stand is, or would be."""
    # All of them: besides those that are compiled, what decides how, and those whose types are compiled into them.
    sources = sorted([*PACKAGE.glob("*.py"), *PACKAGE.glob("rules/*.py")])
    digest = sha256(b"\0".join(path.read_bytes() for path in sources))
    return BUILDS / digest.hexdigest()[:16]


def use(package_path: list[str]) -> None:
    """Lets the package find its compiled modules first, if there are any."""
    if os.environ.get("INTERPRETED", "") not in ("", "0"):
        return
    found = folder()
    if found.is_dir():
        package_path.insert(0, str(found / "dataflow"))
        sys.path.append(str(found))  # for the library in which they are


def running() -> bool:
    """Whether the profiles of this process run compiled."""
    from dataflow import profile

    return not profile.__file__.endswith(".py")
