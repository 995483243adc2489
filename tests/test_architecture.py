"""Imports point one way: from what decides down to what it is made of, and nowhere in a circle."""

import ast
import functools
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEVELS = [
    ("errors", "metrics"),
    ("settings", "tables", "events"),
    ("process", "profiles"),
    ("features", "state"),
    ("scoring", "connectors"),
    ("rules", "simulation", "kernels"),
    ("explanations", "profile_steps", "alert_steps"),
    ("layouts", "steps", "generate", "start_report", "explain", "dead_letters", "launch"),
    ("demo", "detect"),
    ("training",),
    ("console",),
]
"""Parts of `dataflow`, `training` and `console`: each may import those of its level and of those before."""
FOR_THE_CONSOLE = {"errors", "metrics", "settings", "events", "process", "connectors", "rules"}
"""The parts of `dataflow` that the console may import: it reads what the flow writes, and knows nothing of how.

Of the rules it takes the checker, so that an editor and the command tell the same. What it has of training runs in
processes of its own.
"""
LEVEL = {part: number for number, parts in enumerate(LEVELS) for part in parts}


def modules() -> dict[str, Path]:
    """All modules by name."""
    found = {}
    for path in [path for top in ("dataflow", "training", "console") for path in (ROOT / top).rglob("*.py")]:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """The modules of ours that a module imports, wherever in it."""
    return frozenset(_imported(ast.parse(path.read_text())))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in inside if node.module in MODULES)


def part(module: str) -> str:
    """The part that a module is of."""
    top, _, rest = module.partition(".")
    return rest.partition(".")[0] if top == "dataflow" else top


def test_every_part_has_its_level() -> None:
    assert {part(module) for module in MODULES} - {""} == set(LEVEL)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_imports_what_lies_above_its_part(module: str) -> None:
    if module.endswith("__main__") or module == "dataflow":  # a command may need what lies above its part
        return
    above = {name for name in imported(MODULES[module]) if LEVEL[part(name)] > LEVEL[part(module)]}
    assert not above


@pytest.mark.parametrize("module", sorted(name for name in MODULES if part(name) == "console"))
def test_the_console_imports_little_of_the_flow(module: str) -> None:
    parts = {part(name) for name in imported(MODULES[module])}
    if not module.startswith("console.rules"):
        assert "rules" not in parts
    assert parts <= {"console", *FOR_THE_CONSOLE}


def test_the_flow_and_training_do_not_import_the_console() -> None:
    importing = {name for name, path in MODULES.items() if "console" in {part(each) for each in imported(path)}}
    assert {part(name) for name in importing} == {"console"}


def test_no_imports_go_in_a_circle() -> None:
    graph = {module: imported(path) - {module} for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # names the circle, where there is one


def test_what_a_mistake_would_look_like_is_seen() -> None:
    with pytest.raises(ValueError, match="nodes are in a cycle"):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()
    assert "dataflow.errors" in imported(MODULES["dataflow.settings"])
    assert LEVEL[part("training.train")] > LEVEL[part("dataflow.detect")] > LEVEL[part("dataflow.events.transaction")]
