"""``status`` and ``ls`` on synthetic run folders."""

import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from mgpt4_hpc.cli.runs.status import status_table
from mgpt4_hpc.errors import SlurmRejected
from mgpt4_hpc.formatting import clock_time
from mgpt4_hpc.launch.runs.status import look_at
from mgpt4_hpc.launch.runs.sweep_dir import SweepDir, create_sweep
from mgpt4_hpc.run_dir import read_json, write_json
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


def test_one_call_each_for_two_hundred_runs_in_two_seconds(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path
) -> None:
    rows = []
    for number in range(200):
        run = make_run_quickly(tmp_path / "runs", f"run{number:03d}", str(number))
        rows.append(squeue_row(run, "RUNNING"))
    slurm.squeue = "".join(rows[:100])
    began = time.monotonic()
    shown = mgpt4("status", "--json").json
    assert time.monotonic() - began < 2
    assert len(shown) == 200
    assert [command[0] for command in slurm.calls] == ["squeue", "sacct"]


def make_run_quickly(root: Path, name: str, job_id: str) -> str:
    """A run with two thousand steps logged, by copying lines rather than settings."""
    run = make_run(root, name) if name.endswith("000") else None
    template = root / "run000"
    if run is None:
        import shutil

        shutil.copytree(template, root / name)
    else:
        attempt(run, 1, first=1, last=2000, job_id="0")
    from mgpt4_hpc.run_dir import RunDir

    submitted(RunDir(root / name), job_id)
    return job_id


def test_finished_runs_need_no_slurm(mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    submitted(run)
    attempt(run, 1, first=1, last=100, cause="finished")
    slurm.squeue = slurm.sacct = None
    ended = mgpt4("status", "--json")
    assert ended.code == 0
    assert ended.json[0]["text"] == "finished"
    assert slurm.calls == []


def test_squeue_fails_and_sacct_knows(mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    submitted(run)
    slurm.squeue, slurm.sacct = None, "17|RUNNING|0:0|1795360162|Unknown|node[1-4]|None|||\n"
    ended = mgpt4("status", "--json")
    assert ended.code == 0
    (row,) = ended.json
    assert row["source"] == "sacct"
    assert "`squeue` cannot reach Slurm" in ended.err
    # Nobody knows what became of it since.
    assert row["as_of"] == read_json(run.slurm / "job.json")["submitted"]
    assert row["text"] == f"starting, as of {clock_time(row['as_of'], time.time())}"
    assert row["text"] in mgpt4("status").out
    # What accounting says is over is over, and what squeue says is of now.
    slurm.sacct = "17|CANCELLED by 1000|0:0|1795360162|1795360204|node1|None|||\n"
    assert mgpt4("status", "--json").json[0]["as_of"] is None
    slurm.squeue = squeue_row("17", "RUNNING")
    assert mgpt4("status", "--json").json[0]["as_of"] is None


def test_preempted_in_accounting_may_be_back_in_the_queue(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "runs")
    submitted(run)
    attempt(run, 1, first=1, last=5, cause="preempted", requeue=True, clock=Clock(1e9))
    slurm.squeue, slurm.sacct = None, "17|PREEMPTED|0:0|1795360162|1795360204|node1|None|||\n"
    assert mgpt4("status", "--json").json[0]["state"] == "unknown"
    slurm.squeue = ""
    assert mgpt4("status", "--json").json[0]["state"] == "stopped"


def test_who_cancelled_a_job_that_waited_for_another(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path
) -> None:
    """As Slurm 22.05 shows one cancelled by hand (17), and one cancelled by itself (18)."""
    first = make_run(tmp_path / "runs", "first")
    for name, job_id in (("by-hand", "17"), ("by-slurm", "18")):
        submitted(make_run(tmp_path / "runs", name, model__projector=str(first.path)), job_id)
    slurm.sacct = (
        "17|CANCELLED by 1000|0:0|1795360162|1795360162|None assigned|Dependency|||\n"
        "18|CANCELLED|0:0|1795360162|1795360162|None assigned|Dependency|||\n"
    )
    told = {
        "by-hand": "cancelled by user 1000",
        "by-slurm": "stopped: first, which it waited for, did not finish; run `mgpt4 resume first`",
        "first": "stopped: never submitted; run `mgpt4 resume first`",
    }
    in_queue = squeue_row("17", "CANCELLED", "Dependency")
    in_queue += squeue_row("18", "CANCELLED", "DependencyNeverSatisfied")
    for slurm.squeue in (in_queue, ""):
        rows = mgpt4("status", "--json").json
        assert {row["name"]: row["text"] for row in rows} == told
    # Without accounting squeue alone must do.
    slurm.squeue, slurm.sacct = in_queue, None
    ended = mgpt4("status", "--json")
    texts = {row["name"]: row["text"] for row in ended.json}
    assert texts == {**told, "by-hand": "cancelled"} and ended.err == ""
    # Slurm may remove it for another reason than the one it was told to wait for.
    attempt(first, 1, first=1, last=8, cause="finished")
    rows = mgpt4("status", "by-slurm", "--json").json
    why = "stopped: Slurm removed it, though first is finished; run `mgpt4 resume by-slurm`"
    assert rows[0]["text"] == why


def test_slurm_is_down(mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    submitted(run)
    slurm.squeue = slurm.sacct = None
    ended = mgpt4("status")
    assert ended.code == 5
    assert "unknown: Slurm does not answer" in ended.out
    assert "cannot reach Slurm" in ended.err


def test_no_accounting_is_no_news(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "runs")
    submitted(run)

    def no_accounting(command: list[str]) -> str:
        if command[0] == "sacct":
            raise SlurmRejected("Slurm accounting storage is disabled")
        return ""

    monkeypatch.setattr("mgpt4_hpc.launch.slurm.queue.run_slurm", no_accounting)
    ended = mgpt4("status", "--json")
    assert ended.code == 0
    assert ended.err == ""
    assert ended.json[0]["state"] == "lost"


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


def test_ls_tells_local_times_as_history_does(
    mgpt4: Mgpt4, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {}
    for name, created in (("a", "2026-11-22T18:47:19+0000"), ("b", "once")):
        run = make_run(tmp_path / "runs", name)
        write_json(run.identity_file, {**read_json(run.identity_file), "created": created})
        told[name] = created
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Etc/GMT-2")
        time.tzset()
        out = mgpt4("ls").out
    time.tzset()
    assert "2026-11-22 20:47:19" in out and "once" in out
    assert {row["name"]: row["created"] for row in mgpt4("ls", "--json").json} == told


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


def test_a_squeue_that_crashes_is_no_answer(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs must not look as if it were over: `rm` and `resume` believe what they see here."""
    submitted(make_run(tmp_path / "runs", "one"))

    def crash(command: list[str], **_: object) -> str:
        if command[0] == "squeue":
            raise SlurmRejected("`squeue` was refused: it ended with code -11 and said nothing")
        return ""

    monkeypatch.setattr("mgpt4_hpc.launch.slurm.queue.run_slurm", crash)
    for words in (["status"], ["cancel", "one"], ["rm", "one", "--yes"]):
        ended = mgpt4(*words)
        assert ended.code == 5, words
        assert "it ended with code -11" in ended.err


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
