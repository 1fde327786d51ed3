"""How a task's Python starts: with the stop signals blocked.

A signal that arrives during ``import torch`` would kill the process (default action) or vanish
(ignored). Blocked, it waits until the trainer's handlers stand. The mask survives exec.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from mgpt4_hpc.launch.job.staged_environment import shell_lines
from mgpt4_hpc.stop_signals import STOP_SIGNALS

NOT_FOUND = 127
"""The shell's exit code for a program that is not there."""

UNSET = "PYTHONDONTWRITEBYTECODE"
"""A variable of the submitting shell that no rank gets; ``launch.env`` may set it."""


def gone_lines(python: str, code: int) -> list[str]:
    """Shell lines that say so, and how to go on, where an environment was moved or removed."""
    interpreter = shlex.quote(python)
    return [
        f"command -v {interpreter} >/dev/null || {{",
        '    printf "error: %s, with which this run was submitted, is not there any more\\n'
        '  fix: activate the environment that took its place, then: mgpt4 resume RUN\\n" '
        f"{interpreter}",
        f"    exit {code}",
        "}",
    ]


def write_shim(
    path: Path,
    python: str = sys.executable,
    lines_before: Sequence[str] = (),
    stage_env: str | None = None,
) -> Path:
    """Write the executable script that stands in for ``python`` in the job's command line.

    It execs, so that no wrapper stands between Slurm and the task: with proctrack/cgroup only
    the direct child is signalled.

    Args:
        path: of the script.
        python: the interpreter.
        lines_before: shell lines that come first.
        stage_env: ``launch.stage_env``, for an interpreter on the node's own disk.
    """
    interpreter = shlex.quote(python)
    started = interpreter if stage_env is None else '"${staged:-$shared}"'
    options = " ".join(f"--block-signal={name}" for name in STOP_SIGNALS)
    names = ", ".join(f"signal.SIG{name}" for name in STOP_SIGNALS)
    fallback = (
        f"import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [{names}]); "
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    before = [*lines_before, *gone_lines(python, NOT_FOUND)]
    if stage_env is not None:
        before += [f"shared={interpreter}", *shell_lines(stage_env, python)]
    path.write_text(
        "#!/bin/sh\n"
        "# Each start would compile all modules again: more than twice the CPU time.\n"
        f"unset {UNSET}\n"
        + "".join(f"{line}\n" for line in before)
        + "# Stop signals wait until the trainer's handlers stand, instead of killing the import.\n"
        f"if env {options} true 2>/dev/null; then\n"
        f'    exec env {options} {started} "$@"\n'
        "fi\n"
        "# coreutils before 8.31 has no --block-signal.\n"
        f'exec {started} -S -E -c {shlex.quote(fallback)} {started} "$@"\n',
        encoding="utf-8",
    )
    path.chmod(0o700)
    return path
