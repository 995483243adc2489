"""Compiled and interpreted profiles: the same facts, bit for bit, the same snapshots, and never code of old sources."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dataflow import compiled
from dataflow.compile import build, lacking

ROOT = Path(__file__).parent.parent

# Reads what another process pickled, if anything, goes on from there, and writes what came of it: facts, then states.
REPLAY = """
import pickle, random, sys
from dataflow import compiled
from dataflow.compile import build, lacking
from dataflow.features import observe_basic, observe_merchant, observe_user, row
from dataflow.feedback import Feedback
from dataflow.profile import BasicProfile, MerchantProfile, Population, UserProfile
from tests.builders import DAY, HOUR, NOON, txn

begin, end, states, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
users, merchants, basics = pickle.load(open(states, "rb")) if states else ({}, {}, {})
population = Population(40.0, 0.6)
chance = random.Random(7)
at, facts, past = NOON, [], []
for n in range(end):
    at += chance.choice([0.0, 1.0, 40.0, 900.0, 5 * HOUR]) * chance.random()
    place = {} if chance.random() < 0.3 else {
        "latitude": chance.uniform(-90, 90), "longitude": chance.choice([-180.0, 180.0, chance.uniform(-180, 180)])
    }
    late = chance.choice([0.0] * 8 + [600.0, 3 * DAY])
    each = txn(
        f"user {chance.randrange(40)}", offset=n, at=at - late, transaction_id=f"t{chance.randrange(n + 1)}",
        amount=chance.choice([0.0, 1e18, chance.lognormvariate(3, 1.5)]) if n % 7 == 0 else chance.lognormvariate(3, 1),
        merchant=f"merchant {chance.randrange(25)}", device=chance.choice(["unknown", "mobile", "web", "pos", "é"]),
        location=chance.choice(["unknown", "US", "DE", "FR"]), **place,
    )
    label = chance.choice(past) if past and n % 5 == 0 else None
    fraud = chance.random() < 0.4
    past.append(each)
    if n < begin:
        continue
    user = users.setdefault(each.user, UserProfile())
    merchant = merchants.setdefault(each.merchant, MerchantProfile())
    payment = observe_user(each, user, population)
    numbers = observe_merchant(payment, merchant, population)
    facts.append((row(each, payment.last_location, numbers), payment.counts))
    facts.append(row(each, *observe_basic(each, basics.setdefault(each.user, BasicProfile()))))
    lessons = payment.lessons
    if label is not None:
        early = chance.choice([0.0, 0.0, DAY])  # some before their transactions
        known = Feedback(label.transaction_id, label.user, label.merchant, label.at + early, fraud, at + early)
        lessons += users.setdefault(label.user, UserProfile()).learn(known)
    for lesson in lessons:
        merchants.setdefault(lesson.merchant, MerchantProfile()).learn(lesson)
states = [{key: pickle.dumps(state) for key, state in part.items()} for part in (users, merchants, basics)]
with open(out, "wb") as file:
    pickle.dump((users, merchants, basics), file)
# repr of a float is exact, and tells 0.0 from -0.0 and 1 from 1.0
print(compiled.running(), len(facts), file=sys.stderr)
print(repr(facts), repr(states))
"""


@pytest.fixture(scope="session")
def code() -> Path:
    """The compiled code; skipped (failed with REQUIRE_COMPILER=1, as in CI) where there is no compiler."""
    missing = lacking()
    if missing and os.environ.get("REQUIRE_COMPILER", "") not in ("", "0"):
        pytest.fail(f"REQUIRE_COMPILER is set: {missing}", pytrace=False)
    if missing:
        pytest.skip(missing)
    build()
    return compiled.folder()


def python(*arguments: str, root: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False
    )


def replay(begin: int, end: int, states: str, out: Path, interpreted: bool) -> str:
    done = python("-c", REPLAY, str(begin), str(end), states, str(out), INTERPRETED=str(int(interpreted)))
    assert done.returncode == 0, done.stderr
    assert done.stderr.split()[0] == str(not interpreted)
    assert len(done.stdout) > 100_000
    return done.stdout


@pytest.fixture
def copy(code: Path, tmp_path: Path) -> Path:
    """A copy of the package, with its compiled code."""
    shutil.copytree(ROOT / "dataflow", tmp_path / "dataflow", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)  # mypy's settings
    return tmp_path


def running(root: Path, **variables: str) -> str:
    done = python("-c", "from dataflow import compiled, profile; print(compiled.running(), profile.HOUR)", root=root,
                  **variables)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_compiled_code_says_the_same_to_the_last_bit(code: Path, tmp_path: Path) -> None:
    here = replay(0, 4000, "", tmp_path / "a", interpreted=False)
    assert here == replay(0, 4000, "", tmp_path / "b", interpreted=True)


@pytest.mark.parametrize("first", [False, True], ids=["compiled first", "interpreted first"])
def test_each_goes_on_from_the_others_snapshot(code: Path, tmp_path: Path, first: bool) -> None:
    replay(0, 2000, "", tmp_path / "half", interpreted=first)
    resumed = replay(2000, 4000, str(tmp_path / "half"), tmp_path / "a", interpreted=not first)
    whole = replay(2000, 4000, str(tmp_path / "half"), tmp_path / "b", interpreted=first)
    assert resumed == whole


def test_compiled_code_runs_where_it_fits_the_sources(copy: Path) -> None:
    assert running(copy) == "True 3600.0"
    assert running(copy, INTERPRETED="0") == "True 3600.0"
    assert running(copy, INTERPRETED="1") == "False 3600.0"


@pytest.mark.parametrize("module", [*compiled.MODULES, "transaction", "scoring", "compile"])
def test_code_of_sources_that_have_changed_is_never_used(copy: Path, module: str) -> None:
    changed = copy / "dataflow" / f"{module}.py"
    changed.write_text(changed.read_text() + "\n# changed\n")
    assert running(copy) == "False 3600.0"


def test_building_anew_takes_the_place_of_what_was_there(copy: Path) -> None:
    changed = copy / "dataflow" / "profile.py"
    changed.write_text(changed.read_text().replace("HOUR: Final = 3600.0", "HOUR: Final = 3601.0"))
    assert running(copy) == "False 3601.0"
    done = python("-m", "dataflow.compile", root=copy)
    assert done.returncode == 0, done.stderr
    assert running(copy) == "True 3601.0"
    assert len(list((copy / "dataflow" / ".compiled").iterdir())) == 1


def test_a_build_that_fails_leaves_nothing(copy: Path) -> None:
    changed = copy / "dataflow" / "windows.py"
    changed.write_text(changed.read_text() + "\nWRONG: int = 'text'\n")
    done = python("-m", "dataflow.compile", root=copy)
    assert done.returncode != 0
    assert "WRONG" not in running(copy)
    assert running(copy) == "False 3600.0"
    assert not [path for path in (copy / "dataflow" / ".compiled").iterdir() if path.name.startswith("tmp")]


def test_without_a_compiler_the_flow_runs_interpreted_and_says_so(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "dataflow", tmp_path / "dataflow", ignore=shutil.ignore_patterns("__pycache__", ".compiled"))
    done = python("-m", "dataflow.compile", root=tmp_path, PATH="/nonexistent")
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("redflag: not compiled, so the flow runs interpreted, which is slower: no C compiler")
    assert running(tmp_path) == "False 3600.0"


def test_code_is_of_the_sources_of_the_rules_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types of the rules' package are compiled into the steps."""
    (tmp_path / "rules").mkdir()
    (tmp_path / "steps.py").write_text("")
    (tmp_path / "rules" / "ruleset.py").write_text("")
    monkeypatch.setattr(compiled, "PACKAGE", tmp_path)
    before = compiled.folder()
    assert compiled.folder() == before
    (tmp_path / "rules" / "ruleset.py").write_text("changed = True")
    assert compiled.folder() != before
