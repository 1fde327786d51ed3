"""Identity, attempts and fencing of a run directory."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path

import pytest

from mgpt4_hpc.errors import MgptError, NoSuchRun, Overtaken, RunDamaged, RunLocked
from mgpt4_hpc.run_dir import RunDir, list_runs, read_json, write_json
from tests.support.forked import in_processes


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "runs" / "one")
    made.create({"name": "one"})
    return made


def test_a_run_is_made_once_and_for_its_owner_only(run: RunDir) -> None:
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
    assert run.identity() == {"name": "one", "format_version": 1, "id": run.run_id}
    with pytest.raises(RunLocked, match="exists already"):
        run.create({"name": "one"})


def test_a_run_that_cannot_be_made_says_where_to_put_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MgptError, match="--runs-dir"):
        RunDir(tmp_path / "file" / "one").create({})


def test_what_is_no_run_is_told(run: RunDir) -> None:
    run.identity_file.unlink()
    with pytest.raises(NoSuchRun, match="no run directory"):
        run.identity()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format_version": '])
def test_a_damaged_identity_is_told_with_the_file(run: RunDir, text: str) -> None:
    run.identity_file.write_text(text)
    with pytest.raises(RunDamaged, match=r"run\.json is damaged"):
        run.identity()


@pytest.mark.parametrize("version", [2, 99, "2", None, [1]])
def test_a_format_from_the_future_is_left_alone(run: RunDir, version: object) -> None:
    write_json(run.identity_file, {"format_version": version})
    with pytest.raises(RunLocked, match="format version"):
        run.identity()


def test_threads_never_share_an_attempt(run: RunDir) -> None:
    claimed: list[int] = []
    begin = threading.Barrier(8)

    def claim() -> None:
        begin.wait()
        claimed.extend(run.claim_attempt({"who": number}) for number in range(5))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == list(range(1, 41)) == run.attempt_numbers()


def test_processes_never_share_an_attempt(run: RunDir) -> None:
    claimed = in_processes(
        [lambda: [run.claim_attempt({"pid": os.getpid()}) for _ in range(10)] for _ in range(4)]
    )
    assert sorted(number for mine in claimed for number in mine) == list(range(1, 41))
    for path in run.attempts.iterdir():
        assert json.loads(path.read_text())["pid"]


def test_a_claim_that_a_stale_listing_hides_is_passed_over(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        run.claim_attempt({})
    monkeypatch.setattr(RunDir, "attempt_numbers", lambda self: [1])  # NFS, 30 s behind
    assert run.claim_attempt({}) == 4


def test_the_newest_attempt_may_write_and_no_other(run: RunDir) -> None:
    first = run.claim_attempt({"host": "node1"})
    run.assert_newest(first)
    second = run.claim_attempt({"host": "node2"})
    run.assert_newest(second)
    with pytest.raises(Overtaken, match=r"attempt 1 of one was overtaken by attempt 2 .*node2"):
        run.assert_newest(first)


def test_a_supervisors_claim_fences_nobody_off_but_a_torn_one_does(run: RunDir) -> None:
    first = run.claim_attempt({"host": "node1"})
    run.claim_attempt({"by": "supervisor", "job_id": "7"})
    run.assert_newest(first)
    (run.attempts / "0003").write_text("")  # killed between the claim and its text
    with pytest.raises(Overtaken):
        run.assert_newest(first)


def test_foreign_files_among_the_attempts_do_not_count(run: RunDir) -> None:
    for name in (".nfs000012", "0001.tmp", "7", "notes"):
        (run.attempts / name).write_text("")
    assert run.claim_attempt({}) == 1


def test_markers_of_an_earlier_attempt_go(run: RunDir) -> None:
    run.failed.write_text("x")
    run.resubmit_needed.write_text("x")
    run.clear_markers()
    run.clear_markers()
    assert not run.failed.exists() and not run.resubmit_needed.exists()


def test_json_is_replaced_whole(run: RunDir, tmp_path: Path) -> None:
    write_json(run.pins_file, {"a": 1})

    class Unwritable:
        pass

    with pytest.raises(TypeError):
        write_json(run.pins_file, {"a": Unwritable()})
    assert read_json(run.pins_file) == {"a": 1}
    with pytest.raises(ValueError, match="no JSON object"):
        (tmp_path / "list").write_text("[]")
        read_json(tmp_path / "list")


def test_runs_are_listed(run: RunDir, tmp_path: Path) -> None:
    runs_dir = run.path.parent
    assert list_runs(runs_dir) == [run]
    assert list_runs(tmp_path / "nowhere") == []
