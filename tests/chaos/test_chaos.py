"""A short chaos run, and proof that its check bites: faults put in on purpose must make it fail.

The long run is `make chaos`.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.__main__ import run
from tests.chaos.comparison import Counts
from tests.chaos.disturbances import DECISIONS, STUCK_SECONDS, Chaos, StuckError

pytestmark = [pytest.mark.usefixtures("apache_kafka"), pytest.mark.timeout(600)]


def chaos(tmp_path: Path, model_file: Path, mutant: str | None) -> Chaos:
    """A flow, or one with a fault, that a scenario starts."""
    command = ["tests.support.mutants"] if mutant else ["dataflow.detect"]
    fault = {"REDFLAG_MUTANT": mutant} if mutant else {}
    return Chaos(tmp_path, model_file, users=100, command=command, environ=fault, say=print)


def start(made: Chaos, **environ: str) -> None:
    """Has one process of the flow run with these settings; kills the one that runs with others."""
    made.cluster.kill_all()
    made.cluster.extra = environ
    made.cluster.go_on(1)


def sound(counts: Counts) -> bool:
    return not (
        counts.lost
        or counts.doubled
        or counts.different
        or counts.states_different
        or counts.merchants_different
        or counts.cooldowns_different
    )


# ------------------------------------------------------------------------------------------------------- the scenarios


def decide_without_a_snapshot(made: Chaos) -> None:
    """Killed with all decided and nothing of it in a snapshot, so that all of it is decided again."""
    start(made, RECOVERY_INTERVAL="600")
    before = made.written()
    made.feeder.release(1000, 0.2)
    made.wait("the decisions", lambda: made.written() >= before + 1000)
    made.cluster.kill_all()


def grow_outputs_without_a_snapshot(made: Chaos) -> None:
    """Killed likewise, and then the outputs grow: most source partitions are written elsewhere from then on."""
    decide_without_a_snapshot(made)
    for topic in DECISIONS:
        made.grow(topic, 1)


def take_snapshots_while_records_linger(made: Chaos) -> None:
    """Killed after snapshots, in a producer that would send its records only much later if nobody asked it to."""
    start(made, KAFKA_CONFIG_LINGER_MS="60000")
    decide_up_to_snapshots(made, 500, 0.2)


def feed_what_is_too_large(made: Chaos) -> None:
    start(made)
    made.wait_ready()
    made.feeder.release(100, 0.1)
    made.feeder.release_large(valid=True)
    made.feeder.release_large(valid=False)


def feed_while_it_is_down(made: Chaos) -> None:
    """All of it, labels too. Interpreted: compiled code cannot be changed."""
    start(made, NUMBA_DISABLE_JIT="1")
    made.wait_ready()
    made.cluster.kill_all()
    made.feeder.release(1000, 0.2)


def go_on_paying_after_snapshots(made: Chaos) -> None:
    """Killed after snapshots of all of it; then the same users go on paying."""
    start(made)
    decide_up_to_snapshots(made, 600, 1.0)
    made.feeder.release(600, 1.0)


def lose_power_after_snapshots(made: Chaos) -> None:
    """Killed right after a commit, on a disk that loses what was not synced."""
    start(made)
    decide_up_to_snapshots(made, 500, 0.2)


def decide_up_to_snapshots(made: Chaos, transactions: int, seconds: float) -> None:
    """Feeds so many, and kills the flow once there are snapshots of all of it."""
    made.wait_ready()
    made.feeder.release(transactions, seconds)
    made.feeder.pause()
    made.wait("snapshots of all of it", made.read_to_the_end)
    made.cluster.kill_all()
    made.feeder.go_on()


# The first two count what they decide, so all before them must be decided; what is last runs on to the end.
SCENARIOS: tuple[Callable[[Chaos], None], ...] = (
    decide_without_a_snapshot,
    grow_outputs_without_a_snapshot,
    take_snapshots_while_records_linger,
    feed_what_is_too_large,
    go_on_paying_after_snapshots,
    feed_while_it_is_down,
)


# ----------------------------------------------------------------------------------------------------------- the tests


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


def test_a_flow_without_a_fault_passes_every_scenario_that_catches_one(tmp_path: Path, model_file: Path) -> None:
    """One after the other, on one broker: so it is the fault that each of the tests below catches."""
    with chaos(tmp_path, model_file, None) as made:
        for scenario in SCENARIOS:
            scenario(made)
        counts = made.finish()
    assert sound(counts), counts
    assert not counts.failed(), counts
    assert counts.transactions >= 4800
    assert counts.labels > 0
    assert counts.invalid >= 2  # with the two that are too large


def test_a_sink_that_ignores_what_stands_there_is_caught(tmp_path: Path, model_file: Path) -> None:
    with chaos(tmp_path, model_file, "skip_list") as made:
        decide_without_a_snapshot(made)
        counts = made.finish(8)
    assert counts.doubled >= 1000, counts
    assert counts.failed(), counts


def test_a_sink_that_looks_only_where_it_writes_now_is_caught(tmp_path: Path, model_file: Path) -> None:
    with chaos(tmp_path, model_file, "grown_outputs") as made:
        grow_outputs_without_a_snapshot(made)
        counts = made.finish(8)
    assert counts.doubled > 0, counts
    assert counts.failed(), counts


def test_a_snapshot_without_a_flush_is_caught(tmp_path: Path, model_file: Path) -> None:
    with chaos(tmp_path, model_file, "flush") as made:
        take_snapshots_while_records_linger(made)
        counts = made.finish(8)
    assert counts.lost > 0, counts
    assert counts.failed(), counts


def test_a_sink_that_loses_what_is_too_large_is_caught(tmp_path: Path, model_file: Path) -> None:
    with chaos(tmp_path, model_file, "too_large") as made:
        feed_what_is_too_large(made)
        counts = made.finish(8)
    assert counts.lost == 2, counts
    assert counts.failed(), counts


@pytest.mark.parametrize("mutant", ["labels_first", "labels_at_once"])
def test_labels_that_are_read_before_the_transactions_are_caught(tmp_path: Path, model_file: Path, mutant: str) -> None:
    with chaos(tmp_path, model_file, mutant) as made:
        feed_while_it_is_down(made)
        counts = made.finish()
    assert counts.labels > 0
    assert counts.lost == counts.doubled == 0
    # Where labels wait for their transactions, state is the same in the end; only decisions in between are not.
    assert counts.different > 0, counts
    assert (counts.states_different > 0) is (mutant == "labels_at_once"), counts


@pytest.mark.parametrize("mutant", ["unmarked_rows", "unmarked_side_rows"])
def test_rows_that_were_written_and_are_not_in_the_log_are_caught(
    tmp_path: Path, model_file: Path, mutant: str
) -> None:
    with chaos(tmp_path, model_file, mutant) as made:
        go_on_paying_after_snapshots(made)
        counts = made.finish()
    assert counts.lost == counts.doubled == 0, counts
    assert counts.states_different > 0, counts
    assert counts.failed(), counts


@pytest.mark.parametrize("mutant", ["power_loss", "tokens_at_once"])
def test_a_token_that_does_not_wait_for_the_disk_is_caught(tmp_path: Path, model_file: Path, mutant: str) -> None:
    """The flow refuses to start on what is left; one that waits for such a disk does not."""
    with chaos(tmp_path, model_file, mutant) as made:
        lose_power_after_snapshots(made)
        counts = made.finish(8 if mutant == "tokens_at_once" else STUCK_SECONDS)
        said = made.cluster.last_said()
    assert (counts.states_different > 0) is (mutant == "tokens_at_once"), counts
    assert counts.failed() is (mutant == "tokens_at_once"), counts
    assert ("is damaged at byte" in said) is (mutant == "tokens_at_once")
