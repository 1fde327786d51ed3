"""Every file of a run, empty and cut in half, as a power loss leaves it.

The commands name it and the fix, or do without it; none starts what cannot work.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from mgpt4_hpc.config.load import merge
from mgpt4_hpc.errors import RunDamaged
from mgpt4_hpc.launch.submit import integrity
from mgpt4_hpc.launch.submit.batch_script import setup_lines
from mgpt4_hpc.launch.submit.integrity import mend, seal
from mgpt4_hpc.launch.submit.submit_run import create_run
from mgpt4_hpc.run_dir import RunDir, read_json, write_json
from tests.cli.fakes import FakeSlurm, Mgpt4, squeue_row
from tests.cli.synthetic import SETTINGS, attempt, submitted

CUTS = {"empty": 0.0, "half": 0.5}

MENDED = {"code", "slurm/python", "slurm/17_submitted.pkl"}
"""What a start or a resume makes again."""

NAMED = {"run.json", "config.yaml", "pins.json", "slurm/job.json"}
"""What a resume refuses, with the name."""

DONE_WITHOUT = {
    "heartbeat.json", "ledger/attempt-0001.jsonl", "attempts/0001", "executed.b2",
    "slurm/job.sbatch", "checkpoints/step-00000040/manifest.json",
}  # fmt: skip
"""What says less, and keeps nothing from working: a checkpoint has hashes of its own."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of which the first attempt was preempted, as a submission and a start leave it."""
    run = RunDir(tmp_path_factory.mktemp("whole") / "runs" / "one")
    create_run(run, merge([("file made.yaml", {**SETTINGS, "name": "one"})]))
    submitted(run)
    attempt(run, 1, first=1, last=40, cause="preempted", requeue=True)
    os.utime(run.checkpoints / "step-00000040" / "manifest.json", (0, 0))
    write_json(run.heartbeat, {**read_json(run.heartbeat), "time": time.time() - 3600})
    write_json(run.pins_file, {"bundle": "abc", "about": {}, "noted": {}})
    (run.slurm / "job.sbatch").write_text("#!/bin/bash\n# for people\n")
    pickle = run.slurm / "17_submitted.pkl"
    integrity._write_pickle(run, pickle)
    seal(run, pickle)
    return run


@pytest.fixture
def run(whole: RunDir, tmp_path: Path) -> RunDir:
    shutil.copytree(whole.path, tmp_path / "runs" / "one", copy_function=os.link)
    return RunDir(tmp_path / "runs" / "one")


def cut(path: Path, part: float) -> None:
    data = path.read_bytes()
    path.unlink()  # a link of the whole run's
    path.write_bytes(data[: int(len(data) * part)])


@pytest.mark.slow
def test_the_table_has_every_file(whole: RunDir) -> None:
    files = {str(path.relative_to(whole.path)) for path in whole.path.rglob("*") if path.is_file()}
    grouped = {"code" if name.startswith("code/") else name for name in files}
    assert grouped == MENDED | NAMED | DONE_WITHOUT


@pytest.mark.slow
@pytest.mark.parametrize("part", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("name", sorted(NAMED | DONE_WITHOUT))
def test_commands_name_a_damaged_file_or_do_without_it(
    mgpt4: Mgpt4,
    slurm: FakeSlurm,
    run: RunDir,
    name: str,
    part: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slurm.sacct = squeue_row("17", "FAILED")
    cut(run.path / name, part)
    for command in ("status", "history", "usage"):
        ended = mgpt4(command, "one")
        assert ended.code in (0, 7), (command, ended)
        assert ended.code == 0 or name in ended.err

    def submit(*_: object, **__: object) -> None:
        raise RuntimeError("the job would be submitted")

    monkeypatch.setattr(
        "mgpt4_hpc.launch.manage.resume.preflight_findings", lambda *_, **__: ([], [])
    )
    monkeypatch.setattr("mgpt4_hpc.launch.manage.resume.submit_run", submit)
    if name in NAMED:
        ended = mgpt4("resume", "one")
        assert ended.code == 7 and f"{name} is damaged" in ended.err and "fix: " in ended.err
    else:
        with pytest.raises(RuntimeError, match="would be submitted"):
            mgpt4("resume", "one")


@pytest.mark.slow
def test_pins_are_made_again_where_a_person_accepts_it_or_nothing_hangs_on_them(
    run: RunDir,
) -> None:
    from mgpt4_hpc.train.inputs.pins import read_pins

    cut(run.pins_file, 0)
    with pytest.raises(RunDamaged, match="--accept-drift"):
        read_pins(run, accepted=False)
    assert read_pins(run, accepted=True) is None
    shutil.rmtree(run.checkpoints / "step-00000040")
    assert read_pins(run, accepted=False) is None


@pytest.mark.slow
@pytest.mark.parametrize("part", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("name", sorted(MENDED))
def test_what_can_be_made_again_is(whole: RunDir, run: RunDir, name: str, part: float) -> None:
    name = "code/mgpt4_hpc/launch/task.py" if name == "code" else name
    cut(run.path / name, part)
    assert shell_check(run) == "1", "the batch script sees it"
    told = mend(run)
    assert len(told) == 1 and name in told[0]
    made = (run.path / name).read_bytes()
    expected = (whole.path / name).read_bytes()
    assert made == expected.replace(str(whole.path).encode(), str(run.path).encode()) or (
        name.endswith(".pkl")
    )
    assert shell_check(run) == "0" and mend(run) == []


def test_the_batch_script_sees_every_damaged_module(run: RunDir) -> None:
    files = [path for path in sorted(run.code.rglob("*")) if path.is_file() and path.stat().st_size]
    for number, path in enumerate(files):
        cut(path, number % 2 / 2)
    done = subprocess.run(
        ["b2sum", "--check", "--quiet", "executed.b2"], cwd=run.path, text=True, capture_output=True
    )
    failed = set(re.findall(r"^(.*): FAILED$", done.stdout, re.MULTILINE))
    assert failed == {str(path.relative_to(run.path)) for path in files}


def test_code_that_no_longer_exists_ends_the_run_once_with_the_files_name(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(integrity, "code_digest", lambda *_: "that of another version")
    cut(run.code / "mgpt4_hpc" / "train" / "loop.py", 0.5)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert integrity.main([str(run.path)]) == 70
    told = capsys.readouterr().out
    assert "code/mgpt4_hpc/train/loop.py" in told and "resume the run with mgpt4-hpc" in told
    assert told.removeprefix("error: ").strip() == run.failed.read_text().strip()


def shell_check(run: RunDir) -> str:
    """Whether the batch script would call for Python: "1" if so."""
    lines = "\n".join(setup_lines(run, merge([("x", SETTINGS)]).config.launch))
    check = re.search(r"\(cd .* b2sum .*\)", lines)
    assert check is not None
    script = f"mgpt4_run='{run.path}'; {check[0]} >&2; echo $?"
    return subprocess.run(["bash", "-c", script], text=True, capture_output=True).stdout.strip()
