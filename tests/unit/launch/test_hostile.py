"""Whatever a user calls things, a batch script passes it on as text. Real bash, stubs around it."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.errors import ConfigError, MgptError
from mgpt4_hpc.launch.submit.submit_run import render
from mgpt4_hpc.run_dir import RunDir
from tests.support.runs import REPO

CANARY = "pwned"
_PIECES = [
    f"$(touch {CANARY})", f"`touch {CANARY}`", f"'; touch {CANARY}; '", f'"; touch {CANARY}; "',
    f"; touch {CANARY} #", f"&& touch {CANARY} &", f"| touch {CANARY}",
    f"${{x:=$(touch {CANARY})}}",
    "'", '"', "\\", "$", "`", " ", "  ", "*", "?", "~", "!", "#", "-", "--", "{a,b}", "<", ">", "=",
    "é", "run", "$HOME", "\\n", "%%",
]  # fmt: skip
texts = st.lists(st.sampled_from(_PIECES), min_size=1, max_size=5).map("".join)
names = texts.filter(lambda text: text not in (".", "..") and "/" not in text and text.strip())


@contextmanager
def stubs() -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder, and a PATH where Slurm and Python only note their arguments in it."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "bin").mkdir()
        note = 'for a; do printf "%s\\0" "$a"; done > "$NOTES/$(basename "$0")"; exit "${CODE:-0}"'
        not_over = 'case "$*" in *start_check*) exit 1;; esac'
        for name in ("srun", "stub-python"):
            path = folder / "bin" / name
            path.write_text(f"#!/bin/bash\n{not_over}\n{note}\n")
            path.chmod(0o755)
        scontrol = folder / "bin" / "scontrol"
        scontrol.write_text("#!/bin/bash\necho NodeAddr=10.0.0.7 x=1\n")
        scontrol.chmod(0o755)
        environ = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "HOME": str(folder),
            "NOTES": str(folder),
            "SLURMD_NODENAME": "node1",
        }
        yield folder, environ


def told(folder: Path, program: str) -> list[str]:
    return (folder / program).read_text().split("\0")[:-1]


def assert_harmless(folder: Path) -> None:
    assert not list(folder.rglob(CANARY))


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(name=names, value=texts, env=texts)
def test_a_rendered_script_executes_nothing_that_a_user_wrote(
    name: str, value: str, env: str
) -> None:
    overrides = {
        "launch.account": value,
        "launch.constraint": value,
        "launch.sbatch.comment": value,
        "launch.env": {"HOSTILE": env},
        "launch.modules": [],
    }
    with stubs() as (folder, environ):
        run = RunDir(folder / name)
        run.create({"name": "x"})
        script = render(run, load_config("stage1-vicuna7b", overrides=overrides))
        script = script.replace(shlex.quote(sys.executable), "stub-python")
        done = subprocess.run(
            ["bash"], input=script, env=environ, cwd=folder, text=True, capture_output=True
        )
        assert (done.returncode, done.stderr) == (0, ""), script
        words = told(folder, "srun")
        assert words[words.index("/bin/sh") + 1] == str(run.slurm / "python")
        assert words[-1] == str(run.slurm)
        assert told(folder, "stub-python")[2:] == [str(run.path), "--exit-code", "0"]
        assert_harmless(folder)


@pytest.mark.parametrize("stage", [1, 2])
@settings(max_examples=8, deadline=None)
@given(name=names, value=texts)
def test_a_template_passes_its_arguments_on_as_they_are(stage: int, name: str, value: str) -> None:
    with stubs() as (folder, environ):
        run = folder / name
        done = subprocess.run(
            ["bash", str(REPO / "slurm" / f"stage{stage}.sbatch"), str(run), "--set", value],
            env={**environ, "MGPT4_PYTHON": str(folder / "bin" / "stub-python"), "CONFIG": value},
            cwd=folder,
            text=True,
            capture_output=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        words = told(folder, "srun")
        assert words[words.index("/bin/sh") + 1] == f"{run}/slurm/python"
        assert words[-1] == str(run)
        # The supervisor, the last that Python was asked for.
        assert told(folder, "stub-python")[2:] == [str(run), "--exit-code", "0"]
        assert_harmless(folder)


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\x1bb", f"x\ntouch {CANARY}"])
def test_a_line_break_in_a_path_is_refused_before_a_script_has_it(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(MgptError, match="control character"):
        RunDir(tmp_path / name).create({"name": "x"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "x; touch pwned"),
        ("name", "../x"),
        ("name", "x\n"),
        ("launch.account", "a\n#SBATCH --uid=0"),
        ("launch.partition", "a\rb"),
        ("launch.sbatch.comment", "a\nb"),
        ("launch.modules", ["a\nb"]),
    ],
)
def test_settings_that_could_begin_a_line_of_their_own_are_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key.split(".")[-1]):
        load_config("stage1-vicuna7b", overrides={key: value})


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "my_password", "AWS_ACCESS_KEY_ID"])
def test_a_secret_is_not_written_into_settings_and_script(name: str) -> None:
    with pytest.raises(ConfigError, match=f"launch.env.{name} looks like a secret") as caught:
        load_config("stage1-vicuna7b", overrides={"launch.env": {name: "hf_abc"}})
    assert "hf_abc" not in str(caught.value)
    load_config("stage1-vicuna7b", overrides={"launch.env": {"TOKENIZERS_PARALLELISM": "x"}})


def test_the_stubs_would_notice(tmp_path: Path) -> None:
    with stubs() as (folder, environ):
        subprocess.run(["bash", "-c", f"echo $(touch {CANARY})"], env=environ, cwd=folder)
        with pytest.raises(AssertionError):
            assert_harmless(folder)
