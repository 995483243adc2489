"""The documents: links lead somewhere, and every command, file, setting and metric that they name is there."""

import json
import re
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest

from console import metrics as console_metrics
from dataflow import metrics
from dataflow.events.decision import Explanation, Verdict
from dataflow.events.parsing import parse
from dataflow.events.transaction import Transaction
from dataflow.settings import TABLE, markdown

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("reports/*.md")]
)
OURS = ("dataflow", "training", "console", "tests", "benchmarks", "docs", "observability", "reports")
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
SOURCES = "".join(path.read_text() for path in ROOT.glob("dataflow/**/*.py"))

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def code(text: str) -> list[str]:
    """What stands in blocks and spans of code, each with its white space as single blanks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.partition(" #")[0] for block in blocks for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`]+)`", prose)
    return [" ".join(each.split()) for each in (*lines, *spans)]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def block(document: str, language: str) -> list[str]:
    """The blocks of code of a language."""
    text = (ROOT / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def metric_names() -> set[str]:
    """All names by which Prometheus knows them: a histogram is three series."""
    listed = [*metrics.METRICS, *console_metrics.METRICS]
    found = {metric.name for metric in listed}
    histograms = [metric.name for metric in listed if metric.kind == "histogram"]
    return found | {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}


def test_all_documents_are_looked_at() -> None:
    names = {str(path.relative_to(ROOT)) for path in DOCUMENTS}
    assert {"README.md", "CONTRIBUTING.md", "docs/rules.md", "docs/state.md", "benchmarks/README.md"} <= names
    assert {"help", "run", "test", "test-fast"} <= TARGETS


@every_document
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


@every_document
def test_each_make_target_is_there(document: Path) -> None:
    for each in code(document.read_text()):
        if called := re.match(r"(?:[A-Z_]+=\S+ )*make ([a-z]\S*)", each):
            assert called[1] in TARGETS, each


@every_document
def test_each_module_that_is_run_is_there(document: Path) -> None:
    for each in code(document.read_text()):
        for module in re.findall(r"python -m ([\w.]+)", each):
            if module.startswith(OURS):
                path = ROOT / module.replace(".", "/")
                assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), each
            else:
                assert find_spec(module) is not None, each


@every_document
def test_each_file_of_ours_is_there(document: Path) -> None:
    for each in code(document.read_text()):
        for path in re.findall(rf"(?<![\w./-])(?:{'|'.join(OURS)})/[\w./-]+", each):
            assert (ROOT / path).exists(), each


@every_document
def test_each_metric_is_there(document: Path) -> None:
    for each in code(document.read_text()):
        for name in re.findall(r"redflag_\w+", each):
            assert name in metric_names(), each


def test_each_metric_is_in_the_documents() -> None:
    told = (ROOT / "docs" / "metrics.md").read_text()
    assert len(metrics.METRICS) > 30
    assert metrics.markdown() in told, "put in what python -m dataflow.metrics prints"
    assert len(console_metrics.METRICS) > 8
    assert metrics.markdown(console_metrics.METRICS) in told, "put in what python -m console.metrics prints"


def test_the_table_of_settings_is_what_the_command_prints() -> None:
    assert markdown() in (ROOT / "docs" / "operations.md").read_text(), "put in what python -m dataflow.settings prints"


@every_document
def test_each_setting_in_a_span_of_code_is_one(document: Path) -> None:
    """Names with the beginning of one of ours; `KAFKA_CONFIG_` is followed by whatever librdkafka knows."""
    known = {setting.name for setting in TABLE}
    beginnings = tuple({name.partition("_")[0] + "_" for name in known if "_" in name})
    for each in code(document.read_text()):
        for name in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", each):
            if name.startswith(beginnings) and not name.startswith("KAFKA_CONFIG_"):
                assert name in known or f"{name}" in SOURCES, each


def test_the_readmes_alert_is_the_readmes_transaction_and_the_verdicts_fields() -> None:
    sent, got = map(json.loads, block("README.md", "json"))
    assert isinstance(parse(json.dumps(sent).encode(), sent["user"].encode(), "transactions", 0, 0, 0), Transaction)
    assert {name: got.pop(name) for name in sent} == sent
    optional = {"suppressed", "transaction_id"}
    assert list(got) == [name for name in Verdict.__struct_fields__ if name not in optional or name in got]
    for entry in got["explanation"]:
        assert set(entry) <= set(Explanation.__struct_fields__)
        assert {"feature", "value", "usual", "effect", "text"} <= set(entry)


def test_the_map_of_the_house_is_complete() -> None:
    """Each module and folder at the top of dataflow/ is on it."""
    told = set(code((ROOT / "docs" / "development.md").read_text()))
    top = [path for path in (ROOT / "dataflow").iterdir() if not path.name.startswith((".", "_"))]
    files = {f"dataflow/{path.name}" for path in top if path.suffix in (".py", ".toml")}
    folders = {f"dataflow/{path.name}/" for path in top if any(path.glob("[a-z]*.*"))}
    assert files - told == set()
    assert folders - told == set()


def test_the_guide_to_a_new_statistic_names_what_is_there() -> None:
    """Followed from the text: each name that it says to change stands in the file that it says."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for path, names in {
        "dataflow/profiles/user.py": ("DTYPE", "BLANK", "EVENT", "def _read(", "def _update("),
        "dataflow/features/catalogue.py": ("USER_FIELDS", "TEXTS", "class Field("),
        "dataflow/scoring/operating_point.py": ("MODEL_FIELDS",),
        "dataflow/rules/fields.py": ("OF_FEEDBACK",),
        "dataflow/rules/functions.py": ("FUNCTIONS",),
    }.items():
        assert f"`{path}`" in text
        source = (ROOT / path).read_text()
        assert all(name in source for name in names), path


def test_the_guides_statistic_counts_what_a_plain_list_counts(tmp_path: Path) -> None:
    (source,) = block("CONTRIBUTING.md", "python")
    path = tmp_path / "same_amount.py"
    path.write_text(source)
    spec = spec_from_file_location("same_amount", path)
    assert spec is not None
    assert spec.loader is not None
    statistic = module_from_spec(spec)
    spec.loader.exec_module(statistic)
    p = np.zeros(1, statistic.FIELDS)[0]
    paid: list[float] = []
    for amount in np.random.default_rng(1).choice([0.0, 9.99, 25.0], 200).tolist():
        run = len(list(takewhile(lambda before, now=amount: before == now, reversed(paid))))
        assert statistic.read(p, amount) == run
        statistic.update(p, amount)
        paid.append(amount)
