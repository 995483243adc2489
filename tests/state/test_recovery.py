"""Recovery data: made if missing, refused if it is not this flow's, and cleared of what an abandoned execution left."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig
from bytewax.testing import TestingSink, TestingSource, run_main

from dataflow.detect import recovery_identity
from dataflow.errors import UserError
from dataflow.process import lifecycle
from dataflow.settings import Settings
from dataflow.state import recovery
from dataflow.state.committed import committed_tokens

OWN = recovery_identity(Settings())


@pytest.fixture(autouse=True)
def released(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Locks taken in a test end with it; no thread outlives it to look at a disk that is gone."""
    monkeypatch.setattr(recovery, "_watch_room", lambda _directory: None)
    yield
    for lock in recovery._held:
        lock.close()
    recovery._held.clear()
    lifecycle._when_running.clear()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    directory = tmp_path / "recovery"
    recovery.prepare(directory, 2)
    return directory


def guard(store: Path, own: dict[str, Any] = OWN, *options: str) -> recovery.FlowIdentity:
    return recovery.lock_and_verify(own, ["-r", str(store), *options], {})


def hold_elsewhere(store: Path, state: str = "running", process: int = 0) -> subprocess.Popen[str]:
    """Another process that holds the directory until it is killed."""
    code = (
        "import fcntl, os, sys, time\n"
        f"lock = open({str(store / f'lock.{process}')!r}, 'w')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        f"lock.write(f'{{os.getpid()}} {state}'); lock.flush()\n"
        "print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_it_is_made_once_and_then_left_alone(store: Path) -> None:
    before = {part.name: part.stat().st_mtime_ns for part in store.glob("part-*.sqlite3")}
    assert sorted(before) == ["part-0.sqlite3", "part-1.sqlite3"]
    recovery.prepare(store, 4)
    assert {part.name: part.stat().st_mtime_ns for part in store.glob("part-*.sqlite3")} == before


def test_nobody_else_can_read_it_and_what_others_could_read_is_shut(tmp_path: Path) -> None:
    directory = tmp_path / "recovery"
    mask = os.umask(0)
    try:
        recovery.prepare(directory, 2)
        guard(directory)
        execution(directory, [1, 2])
        files = sorted(directory.iterdir())
        assert {path.name for path in files} >= {"redflag.json", "lock.0", "part-0.sqlite3"}
        assert directory.stat().st_mode & 0o777 == 0o700
        assert {path.name: path.stat().st_mode & 0o077 for path in files} == {path.name: 0 for path in files}
        for path in (directory, *files):
            path.chmod(0o755)  # as an older version left them
        recovery.prepare(directory, 2)
        assert [path.stat().st_mode & 0o077 for path in (directory, *files)] == [0] * (1 + len(files))
    finally:
        os.umask(mask)


def test_a_directory_that_others_use_too_stays_open_to_them(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "notes").write_text("of somebody else")
    (tmp_path / "notes").chmod(0o644)
    recovery.prepare(tmp_path, 2)
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "notes").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "part-0.sqlite3").stat().st_mode & 0o077 == 0


def test_another_number_of_partitions_than_the_directorys_is_said(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recovery.prepare(store, 2)
    assert caplog.messages == []
    recovery.prepare(store, 128)
    (line,) = caplog.messages
    assert line.startswith(f"RECOVERY_PARTITIONS=128, but recovery directory {store} was made with 2, and keeps them")


def test_what_is_held_says_whether_a_flow_ran_on_it_before(store: Path) -> None:
    assert guard(store).held == recovery.Held(store, 2, False)
    recovery._held.pop().close()
    execution(store, [1, 2])
    assert guard(store).held == recovery.Held(store, 2, True)
    assert recovery.lock_and_verify(OWN, [], {}).held is None


def test_a_set_that_a_kill_left_incomplete_is_made_again(store: Path) -> None:
    (store / "part-1.sqlite3").unlink()
    recovery.prepare(store, 2)
    assert len(list(store.glob("part-*.sqlite3"))) == 2


def test_two_processes_that_start_together_make_it_once(tmp_path: Path) -> None:
    directory = tmp_path / "r"
    threads = [threading.Thread(target=recovery.prepare, args=(directory, 2)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(directory.glob("part-*.sqlite3"))) == 2


def test_the_same_flow_may_use_it_again(store: Path) -> None:
    first = guard(store)
    assert json.loads((store / recovery.MANIFEST).read_text()) == {**OWN, "id": first.flow}
    recovery._held.pop().close()
    assert guard(store) == first


def test_a_copy_is_the_same_flow_in_another_place(store: Path, tmp_path: Path) -> None:
    first = guard(store)
    copied = guard(Path(shutil.copytree(store, tmp_path / "copy")))
    assert copied.flow == first.flow
    assert copied.place != first.place


def test_the_processes_of_a_cluster_are_one_flow_with_and_without_a_directory(store: Path) -> None:
    processes = [["-i", str(process), "-a", "127.0.0.1:1;127.0.0.1:2"] for process in range(2)]
    assert len({guard(store, OWN, *options).flow for options in processes}) == 1
    assert len({recovery.lock_and_verify(OWN, options, {}).flow for options in processes}) == 1
    assert recovery.lock_and_verify(OWN, [], {}).flow != recovery.lock_and_verify(OWN, [], {}).flow


def test_data_from_before_flows_had_an_id_is_given_one(store: Path) -> None:
    (store / recovery.MANIFEST).write_text(json.dumps(OWN))
    first = guard(store)
    assert json.loads((store / recovery.MANIFEST).read_text()) == {**OWN, "id": first.flow}


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("flow", "generate", "belongs to flow"),
        ("state_version", -1, "belongs to state_version"),
        ("source", "payments", "belongs to source"),
        ("outputs", ["a", "b"], "belongs to outputs"),
    ],
)
def test_another_flows_topics_or_version_is_refused_with_advice(
    store: Path, key: str, value: object, says: str
) -> None:
    (store / recovery.MANIFEST).write_text(json.dumps({**OWN, key: value}))
    with pytest.raises(UserError, match=rf"{says}.*name another directory in RECOVERY_DIR"):
        guard(store)


OLD = {
    "flow": "detect", "state_version": [3, 2], "profiles": "full", "source": "transactions",
    "outputs": ["fraud_alerts", "classified_transactions", "invalid_transactions"],
    "id": "5f2a52c1c5e84a4f9f7b6f6d1f6f0a11",
}  # fmt: skip
"""The manifest of the release that kept each profile as a row of Bytewax's own."""


@pytest.fixture
def old(store: Path) -> Path:
    """A recovery directory of that release: its manifest, and a profile among Bytewax's rows; no `state`."""
    (store / recovery.MANIFEST).write_text(json.dumps(OLD, indent=2))
    profile = "redflag_detect.update_user_profile.stateful_batch", "ann", 1, b"\x80\x04cdataflow.profile\nrestore\n."
    with sqlite3.connect(store / "part-0.sqlite3") as db:
        db.execute("INSERT INTO exs (ex_num, worker_count, resume_epoch) VALUES (0, 1, 1)")
        db.execute("INSERT INTO fronts (ex_num, worker_index, worker_frontier) VALUES (0, 0, 2)")
        db.execute("INSERT INTO snaps (step_id, state_key, snap_epoch, ser_change) VALUES (?, ?, ?, ?)", profile)
    return store


def contents(directory: Path) -> dict[str, bytes]:
    """All files but those that SQLite keeps beside a partition that is read."""
    found = [path for path in directory.rglob("*") if path.is_file() and not path.name.endswith(("-shm", "-wal"))]
    return {path.name: path.read_bytes() for path in found}


@pytest.mark.slow
def test_data_of_the_release_before_profiles_were_tables_is_refused_in_one_line_and_left_as_it_is(old: Path) -> None:
    before = contents(old)
    environ = {
        **os.environ,
        "RECOVERY_DIR": str(old),
        "RECOVERY_PARTITIONS": "2",
        "METRICS_ADDRESS": "off",
        "LOG_FORMAT": "text",
    }
    command = [sys.executable, "-m", "dataflow.detect"]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    (line,) = (ended.stdout + ended.stderr).splitlines()
    assert f"recovery directory {old} belongs to state_version [3, 2], but this flow has [4, 3]: name another" in line
    after = contents(old)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) <= {"lock.0", "lock.prepare"}


def test_profiles_of_that_release_cannot_be_looked_at_and_its_rows_are_taken_for_no_lane(old: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "dataflow.state", "user", str(old), "ann"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"redflag: {old} holds no profiles: name a recovery directory on which a flow has run")
    assert committed_tokens(old) == {}


def test_another_programs_data_is_refused(store: Path) -> None:
    execution(store, [1, 2])
    with pytest.raises(UserError, match="another program"):
        guard(store)


def test_a_directory_in_use_is_refused_and_its_user_named(store: Path) -> None:
    holder = hold_elsewhere(store)
    try:
        with pytest.raises(UserError, match=f"in use by process {holder.pid}: stop it"):
            guard(store)
    finally:
        holder.kill()
        holder.wait()
    guard(store)


def test_a_process_of_a_larger_cluster_that_still_lives_is_refused(store: Path) -> None:
    holder = hold_elsewhere(store, process=1)
    try:
        with pytest.raises(UserError, match=f"in use by process {holder.pid}"):
            guard(store)
    finally:
        holder.kill()
        holder.wait()


def test_damaged_data_is_refused(store: Path) -> None:
    (store / "part-1.sqlite3").write_bytes(b"garbage" * 1000)
    with pytest.raises(UserError, match=r"part-1\.sqlite3 is no recovery partition .*restore it from a backup"):
        guard(store)


def test_a_damaged_manifest_is_refused(store: Path) -> None:
    (store / recovery.MANIFEST).write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        guard(store)


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory: name one that exists"):
        guard(tmp_path / "nowhere")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 4 MB."""
    directory = tmp_path / "small"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "redflag-test", str(directory)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here: needs root")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def test_a_full_disk_is_told_at_the_start_and_while_it_runs(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recovery.prepare(small / "r", 2)
    (small / "filler").write_bytes(b"\0" * 3_500_000)
    with pytest.raises(UserError, match="bytes are free there, 1000000 are needed: make room"):
        recovery.prepare(small / "r", 2)
    with pytest.raises(UserError, match="bytes are free there"):
        recovery._check_room(small)


def test_a_read_only_directory_is_told(small: Path) -> None:
    recovery.prepare(small / "r", 2)
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    with pytest.raises(UserError, match="Read-only file system"):
        recovery.prepare(small / "r", 2)
    with pytest.raises(UserError, match="Read-only file system"):
        guard(small / "r")


def rows(store: Path, query: str) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for part in sorted(store.glob("part-*.sqlite3")):
        with sqlite3.connect(part) as db:
            found += db.execute(query).fetchall()
    return found


def execution(store: Path, items: list[Any], seen: list[Any] | None = None) -> None:
    """A flow that counts, with an epoch for each item; what it counted goes to `seen`."""
    flow = Dataflow("counting")
    numbers = op.input("read", flow, TestingSource(items, 1))
    keyed = op.key_on("key", numbers, lambda _number: "all")

    def count(total: int | None, number: int) -> tuple[int, int]:
        return (total or 0) + number, (total or 0) + number

    op.output("write", op.stateful_map("count", keyed, count), TestingSink([] if seen is None else seen))
    run_main(flow, epoch_interval=timedelta(0), recovery_config=RecoveryConfig(store, backup_interval=timedelta(0)))


def put_abandoned(store: Path, epoch: int) -> None:
    """What a worker that was ahead of the others leaves when the cluster is killed."""
    for part in store.glob("part-*.sqlite3"):
        with sqlite3.connect(part) as db:
            last = "SELECT step_id, state_key, ?, ser_change FROM snaps WHERE step_id LIKE '%count%'"
            db.execute(f"INSERT INTO snaps (step_id, state_key, snap_epoch, ser_change) {last}", (epoch,))


def test_what_an_abandoned_execution_left_is_removed_before_the_next_counts_on(store: Path) -> None:
    guard(store)
    execution(store, [1, 2, 3])
    (resumes,) = rows(store, "SELECT max(worker_frontier) FROM fronts WHERE ex_num = 0")[:1] or [(None,)]
    epochs = [e for (e,) in rows(store, "SELECT max(snap_epoch) FROM snaps") if e is not None]
    put_abandoned(store, max(epochs) + 5)
    recovery._forget_abandoned(store)
    assert [e for (e,) in rows(store, "SELECT max(snap_epoch) FROM snaps") if e is not None] == epochs
    assert resumes is None or resumes[0] is None or resumes[0] > max(epochs)


def test_nothing_is_removed_while_a_process_of_the_cluster_still_runs(store: Path) -> None:
    guard(store)
    execution(store, [1, 2, 3])
    put_abandoned(store, 1000)
    recovery._held.pop().close()
    holder = hold_elsewhere(store, "running", process=1)
    options = ["-i", "0", "-a", "127.0.0.1:1;127.0.0.1:2"]
    try:
        guard(store, OWN, *options)
        assert rows(store, "SELECT count(*) FROM snaps WHERE snap_epoch = 1000") != [(0,), (0,)]
        recovery._held.pop().close()
    finally:
        holder.kill()
        holder.wait()
    holder = hold_elsewhere(store, "starting", process=1)
    try:
        guard(store, OWN, *options)
        assert rows(store, "SELECT count(*) FROM snaps WHERE snap_epoch = 1000") == [(0,), (0,)]
    finally:
        holder.kill()
        holder.wait()


def test_a_process_says_that_it_runs_once_the_cluster_stands(store: Path) -> None:
    guard(store)
    assert (store / "lock.0").read_text() == f"{os.getpid()} starting\n"
    lifecycle.cluster_stands()
    assert (store / "lock.0").read_text() == f"{os.getpid()} running\n"
