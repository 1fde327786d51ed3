"""Fake commands of Slurm, for ends that cannot be had on request; the real ones: tests/slurm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

RECORD = (
    "JobId=17 JobName=run UserId=u(1) Requeue=1 Restarts={restarts} BatchFlag=1 JobState={state} "
    "Reason={reason} RunTime=00:10:00 TimeLimit=01:00:00 EndTime=2026-03-01T10:00:20 "
    "PreemptTime={preempt} Command=/x y/z WorkDir=/w Comment={comment}"
)


class FakeScontrol:
    """Answers ``show job`` from a file, and notes every call.

    squeue prints the file ``waiting``; sbatch takes every job as the next number from 50 on, unless
    the file ``no-jobs`` holds its complaint, and keeps the last one's script and environment.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir()
        self.answer = folder / "answer"
        self.calls_file = folder / "calls"
        self.refusal = folder / "refusal"
        script = folder / "scontrol"
        script.write_text(
            "#!/bin/sh\n"
            f'echo "$@" >> {self.calls_file}\n'
            f'if [ "$1" = requeue ] && [ -f {self.refusal} ]; then\n'
            f"    cat {self.refusal} >&2; exit 1\n"
            "fi\n"
            f'[ "$1" = requeue ] || cat {self.answer} || {{ echo down >&2; exit 1; }}\n'
        )
        script.chmod(0o755)
        self.waiting = folder / "waiting"
        self.waiting.write_text("")
        self.no_jobs = folder / "no-jobs"
        self.submitted = folder / "submitted"
        others = {
            "squeue": f"cat {self.waiting}",
            "sbatch": f'echo "sbatch $@" >> {self.calls_file}\n'
            f"if [ -f {self.no_jobs} ]; then cat {self.no_jobs} >&2; exit 1; fi\n"
            f'for script; do :; done; {{ env; cat "$script"; }} > {self.submitted}\n'
            f"echo $((49 + $(grep -c ^sbatch {self.calls_file})))",
        }
        for name, body in others.items():
            (folder / name).write_text(f"#!/bin/sh\n{body}\n")
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def says(
        self,
        state: str = "RUNNING",
        restarts: int = 0,
        reason: str = "None",
        preempt: str = "None",
        comment: str = "",
    ) -> None:
        self.answer.write_text(
            RECORD.format(
                state=state, restarts=restarts, reason=reason, preempt=preempt, comment=comment
            )
        )

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []

    @property
    def requeues(self) -> list[str]:
        return [call for call in self.calls if call.startswith("requeue")]
