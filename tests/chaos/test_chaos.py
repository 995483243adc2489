"""A short chaos run, and proof that its check bites: faults put in on purpose must make it fail.

The long run is `make chaos`.
"""

from pathlib import Path

import pytest

from tests.chaos.__main__ import run
from tests.chaos.comparison import Counts
from tests.chaos.disturbances import DECISIONS, STUCK_SECONDS, Chaos, StuckError

pytestmark = [pytest.mark.usefixtures("apache_kafka"), pytest.mark.timeout(600)]


def chaos(tmp_path: Path, model_file: Path, mutant: str | None, **environ: str) -> Chaos:
    """One process of the flow, or of a flow with a fault."""
    command = ["tests.support.mutants"] if mutant else ["dataflow.detect"]
    fault = {"REDFLAG_MUTANT": mutant} if mutant else {}
    made = Chaos(tmp_path, model_file, users=100, command=command, environ={**fault, **environ}, say=print)
    made.cluster.go_on(1)
    return made


def sound(counts: Counts) -> bool:
    return not (
        counts.lost
        or counts.doubled
        or counts.different
        or counts.states_different
        or counts.merchants_different
        or counts.cooldowns_different
    )


def test_nothing_is_lost_doubled_or_different_whatever_is_killed(tmp_path: Path, model_file: Path) -> None:
    with Chaos(tmp_path, model_file, seed=7, users=1000, say=print) as made:
        counts = run(made, transactions=20_000, kills=6, broker_kills=2, away=0, freezes=1, stops=1, growths=1, anew=1)
    assert not counts.failed(), counts
    assert counts.transactions >= 20_000
    assert counts.states >= 1000
    assert counts.kills >= 6
    assert counts.broker_kills >= 2
    # What is compared says something only where there is something to compare.
    for each in (counts.labels, counts.merchants, counts.cooldowns, counts.suppressed, counts.oversize):
        assert each > 0, counts
    assert counts.threshold_changes == 1
    assert len(counts.by_threshold) == 2, counts
    assert (counts.source_growths, counts.output_growths, counts.topics_made_anew) == (1, 1, 1)


def test_a_flow_that_does_not_start_ends_the_run_with_the_last_that_it_said(tmp_path: Path, model_file: Path) -> None:
    with Chaos(tmp_path, model_file, users=100, command=["tests.no_such_flow"], say=print) as made:
        made.cluster.go_on(1)
        with pytest.raises(
            StuckError, match=r"a start did not come in 2 s\n(.*\n)*.*No module named tests.no_such_flow"
        ):
            made.wait("a start", made.cluster.ready, 2)
        assert made.counts.failed()


@pytest.mark.parametrize("mutant", [None, "skip_list"])
def test_a_sink_that_ignores_what_stands_there_is_caught(tmp_path: Path, model_file: Path, mutant: str | None) -> None:
    """Killed with all decided and nothing of it in a snapshot, so that all of it is decided again."""
    with chaos(tmp_path, model_file, mutant, RECOVERY_INTERVAL="600") as made:
        made.feeder.release(1000, 0.2)
        made.wait("the decisions", lambda: made.written() >= 1000)
        made.cluster.kill_all()
        counts = made.finish(8 if mutant else STUCK_SECONDS)
    assert (counts.doubled >= 1000) is (mutant is not None)
    assert sound(counts) is (mutant is None)
    assert counts.failed() is (mutant is not None), counts


@pytest.mark.parametrize("mutant", [None, "grown_outputs"])
def test_a_sink_that_looks_only_where_it_writes_now_is_caught(
    tmp_path: Path, model_file: Path, mutant: str | None
) -> None:
    """Killed likewise, and then the outputs grow: most source partitions are written elsewhere from then on."""
    with chaos(tmp_path, model_file, mutant, RECOVERY_INTERVAL="600") as made:
        made.feeder.release(1000, 0.2)
        made.wait("the decisions", lambda: made.written() >= 1000)
        made.cluster.kill_all()
        for topic in DECISIONS:
            made.grow(topic, 1)
        counts = made.finish(8 if mutant else STUCK_SECONDS)
    assert (counts.doubled > 0) is (mutant is not None)
    assert sound(counts) is (mutant is None)


@pytest.mark.parametrize("mutant", [None, "flush"])
def test_a_snapshot_without_a_flush_is_caught(tmp_path: Path, model_file: Path, mutant: str | None) -> None:
    """Killed after snapshots, in a producer that would send its records only much later if nobody asked it to."""
    with chaos(tmp_path, model_file, mutant, KAFKA_CONFIG_LINGER_MS="60000") as made:
        made.wait_ready()
        made.feeder.release(500, 0.2)
        made.feeder.pause()
        made.wait("snapshots of all of it", made.read_to_the_end)
        made.cluster.kill_all()
        counts = made.finish(8 if mutant else STUCK_SECONDS)
    assert (counts.lost > 0) is (mutant is not None), counts
    assert sound(counts) is (mutant is None)
    assert counts.failed() is (mutant is not None), counts


@pytest.mark.parametrize("mutant", [None, "too_large"])
def test_a_sink_that_loses_what_is_too_large_is_caught(tmp_path: Path, model_file: Path, mutant: str | None) -> None:
    with chaos(tmp_path, model_file, mutant) as made:
        made.wait_ready()
        made.feeder.release(100, 0.1)
        made.feeder.release_large(valid=True)
        made.feeder.release_large(valid=False)
        counts = made.finish(8 if mutant else STUCK_SECONDS)
    assert counts.lost == (2 if mutant else 0), counts
    assert counts.failed() is (mutant is not None), counts


@pytest.mark.parametrize("mutant", [None, "labels_first", "labels_at_once"])
def test_labels_that_are_read_before_the_transactions_are_caught(
    tmp_path: Path, model_file: Path, mutant: str | None
) -> None:
    """All is fed while the flow is down. Interpreted: compiled code cannot be changed."""
    with chaos(tmp_path, model_file, mutant, NUMBA_DISABLE_JIT="1") as made:
        made.wait_ready()
        made.cluster.kill_all()
        made.feeder.release(1000, 0.2)
        counts = made.finish()
    assert counts.labels > 0
    assert counts.lost == counts.doubled == 0
    # Where labels wait for their transactions, state is the same in the end; only decisions in between are not.
    assert (counts.different > 0) is (mutant is not None), counts
    assert (counts.states_different > 0) is (mutant == "labels_at_once"), counts


@pytest.mark.parametrize("mutant", [None, "unmarked_rows", "unmarked_side_rows"])
def test_rows_that_were_written_and_are_not_in_the_log_are_caught(
    tmp_path: Path, model_file: Path, mutant: str | None
) -> None:
    """Killed after snapshots of all of it; then the same users go on paying."""
    with chaos(tmp_path, model_file, mutant) as made:
        made.wait_ready()
        made.feeder.release(600, 1.0)
        made.feeder.pause()
        made.wait("snapshots of all of it", made.read_to_the_end)
        made.cluster.kill_all()
        made.feeder.go_on()
        made.feeder.release(600, 1.0)
        counts = made.finish()
    assert counts.lost == counts.doubled == 0, counts
    assert (counts.states_different > 0) is (mutant is not None), counts
    assert counts.failed() is (mutant is not None), counts


@pytest.mark.parametrize("mutant", ["power_loss", "tokens_at_once"])
def test_a_token_that_does_not_wait_for_the_disk_is_caught(tmp_path: Path, model_file: Path, mutant: str) -> None:
    """Killed right after a commit, on a disk that loses what was not synced; it refuses to start then."""
    with chaos(tmp_path, model_file, mutant) as made:
        made.wait_ready()
        made.feeder.release(500, 0.2)
        made.feeder.pause()
        made.wait("snapshots of all of it", made.read_to_the_end)
        made.cluster.kill_all()
        counts = made.finish(8 if mutant == "tokens_at_once" else STUCK_SECONDS)
        said = made.cluster.last_said()
    assert (counts.states_different > 0) is (mutant == "tokens_at_once"), counts
    assert counts.failed() is (mutant == "tokens_at_once"), counts
    assert ("is damaged at byte" in said) is (mutant == "tokens_at_once")
