"""The batch scripts in ``slurm/``: what they share with ``submit``, and how they pass words on."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from mgpt4_hpc.resources import slurm_dir
from mgpt4_hpc.stop_signals import STOP_SIGNALS
from tests.support.scripts import script_of

TEMPLATES = sorted(slurm_dir().glob("*.sbatch"))
STOPS = " ".join(STOP_SIGNALS)
ODD = ['it\'s "one" $(touch pwned)', "`touch pwned`;\n-x", "*", ""]


def options(script: str) -> dict[str, str]:
    """The #SBATCH lines; a flag's value is empty."""
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.MULTILINE)
    return {key: shlex.split(value)[0] if value else "" for key, value in found}


def code(script: str) -> list[str]:
    """The lines that do something, with each script's own names made equal."""
    lines = re.sub(r"\\\n\s*", "", script).splitlines()
    lines = [line.partition("  # ")[0].strip() for line in lines]
    known = [
        ('"$MGPT4_PYTHON"', "PYTHON"),
        ('"$RUN_DIR/code${PYTHONPATH:+:$PYTHONPATH}"', 'RUN/code"${PYTHONPATH:+:$PYTHONPATH}"'),
        ('"$RUN_DIR"', "RUN"),
        ("/scratch/runs/my-run", "RUN"),
    ]
    for own, name in known:
        lines = [line.replace(own, name) for line in lines]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize(("template", "case"), [("stage1", "four-gpus"), ("stage2", "one-gpu")])
def test_a_stage_asks_for_what_submit_asks_for(template: str, case: str) -> None:
    ours = options((slurm_dir() / f"{template}.sbatch").read_text())
    theirs = options(script_of(case))
    # Names and places are the user's; memory is the site's unless somebody says otherwise.
    for own in ("job-name", "output", "chdir", "mem"):
        ours.pop(own, None)
        theirs.pop(own, None)
    assert ours == theirs


@pytest.mark.parametrize(("template", "case"), [("stage1", "four-gpus"), ("stage2", "one-gpu")])
def test_a_stage_starts_and_ends_as_submit_does(template: str, case: str) -> None:
    ours, theirs = code((slurm_dir() / f"{template}.sbatch").read_text()), code(script_of(case))
    shared = [
        f"trap : {STOPS}",
        'leave=$(PYTHON -m mgpt4_hpc.launch.job.start_check RUN) && exit "$leave"',
        "rm -f -- RUN/FAILED RUN/RESUBMIT_NEEDED",
        'export PYTHONPATH=RUN/code"${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1',
        next(line for line in theirs if line.startswith("export MGPT4_MASTER_ADDR=")),
        "code=$?",
        f"trap '' {STOPS}",
        "exec PYTHON -m mgpt4_hpc.launch.supervise RUN --exit-code $code",
    ]
    for line in shared:
        assert line in theirs
        assert line in ours
    assert ours[-3:] == shared[-3:]
    assert srun(ours) == srun(theirs)


def srun(lines: list[str]) -> tuple[set[str], str]:
    """The flags of srun, and how the task's Python is started."""
    [line] = [line for line in lines if line.startswith("srun ")]
    line = line.replace('"${SLURM_CPUS_PER_TASK:-1}"', "8").replace("--output ", "--output=")
    line = line.replace('"$RUN_DIR/slurm/%j_%t_log.out"', "RUN/slurm/%j_%t_log.out")
    line = line.replace('"$RUN_DIR/slurm/python"', "RUN/slurm/python")
    flags, _, task = line.removeprefix("srun ").partition(" /bin/sh ")
    return set(flags.split()), task.partition(" -m ")[0]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_each_is_bash_says_how_it_is_used_and_survives_preemption(template: Path) -> None:
    text = template.read_text()
    assert text.startswith("#!/bin/bash\n# ")
    assert f"slurm/{template.name}" in text.partition("#SBATCH")[0]
    subprocess.run(["bash", "-n", str(template)], check=True)
    told = options(text)
    assert told["requeue"] == ""
    assert told["open-mode"] == "append"
    assert "time" in told
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("template", "command", "environ", "part"),
    [
        ("index", ["data", "index"], {}, []),
        ("index", ["data", "index"], {"SLURM_ARRAY_TASK_ID": "3"}, ["--part", "3/9"]),
        ("download", ["data", "download"], {}, []),
        ("download", ["data", "download"], {"SLURM_ARRAY_TASK_ID": "3"}, ["--part", "3/9"]),
        (
            "download",
            ["data", "download"],
            {"SLURM_ARRAY_TASK_ID": "3", "PARTS": "64"},
            ["--part", "3/64"],
        ),
        ("tensorboard", ["tensorboard"], {}, []),
    ],
)
def test_arguments_arrive_whole(
    tmp_path: Path, template: str, command: list[str], environ: dict[str, str], part: list[str]
) -> None:
    python = tmp_path / "my python"
    python.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(slurm_dir() / f"{template}.sbatch"), *ODD],
        env={"PATH": "/usr/bin:/bin", "MGPT4_PYTHON": str(python), "SLURM_ARRAY_TASK_COUNT": "9"}
        | environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    words = done.stdout.split("\0")[:-1]
    assert words == ["-P", "-u", "-m", "mgpt4_hpc.cli.main", *command, *part, *ODD]
    assert [path.name for path in tmp_path.iterdir()] == ["my python"]


@pytest.mark.parametrize("template", ["stage1", "stage2", "index", "download"])
def test_without_arguments_they_say_how(template: str) -> None:
    script = slurm_dir() / f"{template}.sbatch"
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"usage: sbatch {template}.sbatch" in done.stderr.replace("[--array=1-PARTS] ", "")
