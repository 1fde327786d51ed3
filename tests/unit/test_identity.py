"""A run is itself: names, paths and numbers are used again, its identity is not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from mgpt4_hpc.errors import Displaced, Overtaken
from mgpt4_hpc.identity import user_name
from mgpt4_hpc.run_dir import RunDir, read_json, write_json
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.heartbeat import Heartbeat
from mgpt4_hpc.telemetry.ledger import Ledger


def make(path: Path) -> RunDir:
    run = RunDir(path)
    run.create({"name": path.name})
    return run


@pytest.fixture
def held(tmp_path: Path) -> RunDir:
    """A run on which this process works as attempt 1."""
    run = make(tmp_path / "one").held()
    assert run.claim_attempt({}) == 1
    return run


def test_every_run_has_an_identity_of_its_own(tmp_path: Path) -> None:
    assert make(tmp_path / "one").run_id != make(tmp_path / "two").run_id


def test_a_run_from_before_identities_gets_the_same_one_from_everybody(tmp_path: Path) -> None:
    run = make(tmp_path / "one")
    old = {"name": "one", "created": "2026-11-01T10:00:00", "config_digest": "ab"}
    write_json(run.identity_file, old)
    expected = run.run_id
    assert RunDir(run.path).held().run_id == expected
    assert read_json(run.identity_file) == {**old, "id": expected}
    write_json(run.identity_file, {**old, "created": "2026-11-01T10:00:01"})
    assert run.run_id != expected


def test_a_job_does_not_begin_in_a_folder_that_another_run_has_taken(tmp_path: Path) -> None:
    first = make(tmp_path / "one").run_id
    shutil.rmtree(tmp_path / "one")
    make(tmp_path / "one")
    with pytest.raises(Displaced, match="another run"):
        RunDir(tmp_path / "one", expected=first).held()


def test_a_job_never_writes_into_the_run_that_took_its_folders_place(held: RunDir) -> None:
    heartbeat = Heartbeat(held.heartbeat, 1, every_s=0)
    ledger = Ledger(held.ledger, 1, run_id=held.run_id)
    heartbeat.beat(1)
    shutil.rmtree(held.path)
    other = make(held.path)
    assert not heartbeat.beat(2)
    ledger.event(Kind.STEPS, step=2)
    with pytest.raises(Displaced):
        held.assert_newest(1)
    with pytest.raises(OSError):
        held.claim_attempt({})
    written = {path.name for path in other.path.rglob("*") if path.is_file()}
    assert written == {"run.json"}


def test_what_a_job_makes_lies_where_its_folder_was_moved(held: RunDir) -> None:
    assert held.data == held.path / "data"
    moved = held.path.rename(held.path.with_name("elsewhere"))
    assert held.data == moved / "data"


def test_a_job_whose_folder_is_gone_ends(held: RunDir) -> None:
    shutil.rmtree(held.path)
    with pytest.raises(Displaced, match="gone"):
        held.assert_newest(1)


def test_a_mount_that_is_away_is_no_reason_to_end(
    held: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a forced unmount: the handle is dead, and the parent is another file system's."""
    shutil.rmtree(held.path)
    assert held.hold is not None
    monkeypatch.setattr(held.hold, "_device", -1)
    with pytest.raises(FileNotFoundError):
        held.assert_newest(1)


def test_a_job_follows_its_folder_and_leaves_a_new_run_in_the_old_place_alone(
    held: RunDir,
) -> None:
    moved = held.path.with_name("moved")
    held.path.rename(moved)
    other = make(held.path)
    held.assert_newest(1)
    assert held.place == moved and held.hold is not None and held.hold.is_moved
    held.failed.write_text("x")
    assert (moved / "FAILED").exists() and not other.failed.exists()


def test_a_backup_put_in_the_runs_place_is_the_run_if_it_knows_this_attempt(
    held: RunDir, tmp_path: Path
) -> None:
    shutil.copytree(held.path, tmp_path / "backup")
    shutil.rmtree(held.path)
    (tmp_path / "backup").rename(held.path)
    held.assert_newest(1)
    held.failed.write_text("x")
    assert (held.path / "FAILED").exists()


def test_a_backup_from_before_this_attempt_is_not(tmp_path: Path) -> None:
    run = make(tmp_path / "one")
    shutil.copytree(run.path, tmp_path / "backup")
    held = run.held()
    held.claim_attempt({})
    shutil.rmtree(run.path)
    (tmp_path / "backup").rename(run.path)
    # The same number, claimed by somebody else, proves nothing.
    RunDir(run.path).claim_attempt({})
    with pytest.raises(Displaced):
        held.assert_newest(1)


def test_a_newer_attempt_still_fences_an_older_one_off(held: RunDir) -> None:
    RunDir(held.path).held().claim_attempt({})
    with pytest.raises(Overtaken, match="attempt 2"):
        held.assert_newest(1)


def test_claims_name_the_run(held: RunDir) -> None:
    claims = [json.loads(path.read_text()) for path in (held.path / "attempts").iterdir()]
    assert [claim["run"] for claim in claims] == [held.run_id]


def test_a_user_without_a_name_is_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert user_name() == "54321"
