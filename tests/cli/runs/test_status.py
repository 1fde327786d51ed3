"""``status`` and ``ls`` on synthetic run folders."""

import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from mgpt4_hpc.cli.runs.status import status_table
from mgpt4_hpc.launch.runs.status import look_at
from mgpt4_hpc.launch.runs.sweep_dir import SweepDir, create_sweep
from mgpt4_hpc.run_dir import RunDir
from tests.cli.fakes import FakeSlurm, Mgpt4, replace_sleep, squeue_row
from tests.cli.synthetic import Clock, attempt, make_run, submitted


def test_a_running_run(mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "seven")
    submitted(run)
    attempt(run, 1, first=1, last=30, cause="preempted", clock=Clock(time.time() - 600))
    attempt(run, 2, first=26, last=50, restart_count=1, clock=Clock(time.time() - 40))
    slurm.squeue = squeue_row("17", "RUNNING", restarts=1)

    (row,) = mgpt4("status", "--json").json
    assert row["state"] == row["text"] == "running"
    assert row["source"] == "squeue"
    assert (row["step"], row["max_steps"], row["percent"]) == (50, 100, 50.0)
    assert row["loss"] == 4.5
    assert row["samples_per_s"] == 8.0
    assert row["eta_s"] == 50 * 8 / 8.0
    assert row["attempt"] == 2
    assert row["nodes"] == "node[1-2]"
    assert row["checkpoint_step"] == 50
    # 30 new steps and 20 more of 75 s; 5 were done twice.
    assert row["goodput"] == pytest.approx(50 / 75, abs=0.01)

    table = mgpt4("status").out
    assert "seven" in table
    assert "50/100" in table
    assert "squeue" in table


def test_the_best_checkpoint_and_the_rest_of_a_failure(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "runs", "seven")
    submitted(run)
    attempt(run, 1, first=1, last=50, cause="crashed")
    assert "best" not in mgpt4("status").out.splitlines()[0]
    manifest = run.checkpoints / "step-00000050" / "manifest.json"
    manifest.write_text('{"meta": {"best_step": 40, "best_loss": 1.25}}')
    run.failed.write_text("crashed 6 times; the last fault: no apptainer\n  fix: install it\n")
    (row,) = mgpt4("status", "--json").json
    assert (row["best_step"], row["best_value"]) == (40, 1.25)
    assert row["text"] == "failed: no apptainer"
    assert row["details"] == ["crashed 6 times", "fix: install it"]
    ended = mgpt4("status")
    assert "1.2500 @40" in ended.out and "failed: no apptainer" in ended.out
    assert ended.err == "seven: crashed 6 times\nseven: fix: install it\n"


def test_finished_runs_need_no_slurm(mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    submitted(run)
    attempt(run, 1, first=1, last=100, cause="finished")
    slurm.squeue = slurm.sacct = None
    ended = mgpt4("status", "--json")
    assert ended.code == 0
    assert ended.json[0]["text"] == "finished"
    assert slurm.calls == []


def test_slurm_is_down(mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    submitted(run)
    slurm.squeue = slurm.sacct = None
    ended = mgpt4("status")
    assert ended.code == 5
    assert "unknown: Slurm does not answer" in ended.out
    assert "cannot reach Slurm" in ended.err


def test_a_folder_in_ruins_is_still_shown(mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    run.config_file.write_text(": : [")
    run.heartbeat.write_text("{")
    (run.ledger / "attempt-0001.jsonl").write_bytes(b'{"t": 1, "kind": "start"}\n{"t": 2, "ki')
    (run.slurm / "job.json").write_text("[]")
    (row,) = mgpt4("status", "--json").json
    assert row["max_steps"] is None
    assert row["attempt"] == 1


def test_no_runs(mgpt4: Mgpt4) -> None:
    assert mgpt4("status", "--json").json == []
    ended = mgpt4("status")
    assert (ended.code, ended.out) == (0, "")
    assert "runs does not exist" in ended.err and "--runs-dir" in ended.err
    assert "/nope does not exist" in mgpt4("ls", "--runs-dir", "/nope").err
    gone = mgpt4("status", "one", "--runs-dir", "/nope")
    assert gone.code == 6 and "/nope does not exist" in gone.err
    Path("runs").mkdir()
    assert mgpt4("ls").err.startswith(f"no runs in {Path('runs').absolute()}\n")


def drawn(table: Table, width: int) -> str:
    with (console := Console(width=width)).capture() as captured:
        console.print(table)
    return captured.get()


def test_a_narrow_terminal_is_told_what_was_left_out(slurm: FakeSlurm, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "seven")
    submitted(run)
    attempt(run, 1, first=1, last=50)
    slurm.squeue = squeue_row("17", "RUNNING")
    rows = look_at([run]).rows
    narrow, wide = drawn(status_table(rows, 80), 80), drawn(status_table(rows, 160), 160)
    # What a person who waits for a preemption looks at first.
    assert "attempt" in narrow and "checkpoint" in narrow
    assert "left out in 80 columns: goodput, nodes, source" in narrow
    assert "left out" not in wide and "source" in wide
    assert all(len(line) <= 80 for line in narrow.splitlines())
    piped = status_table(rows)
    assert len(piped.columns) == 12 and piped.caption is None


def test_unknown_names_are_told_the_nearest_and_how_many_there_are(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path
) -> None:
    runs = [make_run(tmp_path / "runs", f"run-{number:02d}") for number in range(12)]
    create_sweep(SweepDir.of("seeds", tmp_path / "runs"), runs[:2], [{}] * 2, "slurm")
    told = mgpt4("status", "run03")
    assert told.code == 6 and "no run 'run03' in" in told.err
    assert "did you mean run-03?" in told.err
    assert told.err.count("run-") == 11 and "... and 2 more; sweeps: seeds" in told.err
    assert "did you mean seeds?" in mgpt4("cancel", "seed").err
    of_one = mgpt4("history", "seeds")
    assert of_one.code == 6 and "'seeds' is a sweep, and this wants one run" in of_one.err
    assert "`mgpt4 status SWEEP` shows one): seeds" in mgpt4("ls").err


def test_watch_and_json_exclude_each_other(mgpt4: Mgpt4) -> None:
    assert mgpt4("status", "--watch", "--json").code == 2


def test_watch_ends_with_ctrl_c(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "runs", "watched")
    looks = []

    def interrupt(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) > 1:
            raise KeyboardInterrupt

    replace_sleep(monkeypatch, "mgpt4_hpc.cli.runs.status", interrupt)
    ended = mgpt4("status", "--watch", "--every", "2")
    assert ended.code == 0
    assert looks == [2.0, 2.0]
    assert ended.out.count("\nwatched ") == 2, "in a pipe each look is a table of its own"


def test_ls(mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "listed")
    submitted(run)
    attempt(run, 1, first=1, last=7)
    (row,) = mgpt4("ls", "--json").json
    assert (row["name"], row["step"], row["max_steps"], row["attempts"]) == ("listed", 7, 100, 1)
    assert "listed" in mgpt4("ls").out
    assert slurm.calls == []


def test_names_are_text_and_not_markup(mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "plain")
    run.path.rename(run.path.with_name("[red]x\x1b[2Jy"))
    out = mgpt4("ls").out
    assert "[red]x?[2Jy" in out
    assert "\x1b" not in out
    submitted(RunDir(run.path.with_name("[red]x\x1b[2Jy"))).failed.write_text("a\nb\x1b[2J\n")
    assert "[red]x?[2Jy: b [2J" in mgpt4("status").err


def test_hints_can_be_pasted_whatever_a_run_is_called(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path
) -> None:
    make_run(tmp_path / "runs", "one").path.rename(tmp_path / "runs" / "-a $(b)\x1b[31m")
    (row,) = mgpt4("status", "--json").json
    assert "run `mgpt4 resume './-a $(b)\x1b[31m'`" in row["text"]
    for words in (["status"], ["cancel", "--", row["name"]], ["rm", "-y", "--", row["name"]]):
        ended = mgpt4(*words)
        assert ended.code == 0
        assert "\x1b" not in ended.out + ended.err
