"""Whether the files that a start of a run executes are those that were written.

After a power loss files that were not synced are empty or cut. ``RUN/executed.b2`` holds the
BLAKE2 sum of each file that a start executes (code, launcher script, submitit's pickle), as
``b2sum --check`` reads it: the batch script compares them in 20 ms, without a Python that could be
damaged itself. What differs is made again where that is possible; else the run ends once, with the
file's name.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from mgpt4_hpc.config.run_config_file import read_config
from mgpt4_hpc.disk import sync_tree
from mgpt4_hpc.errors import FatalTrainingError, MgptError, RunDamaged
from mgpt4_hpc.launch.job.environment import start_of
from mgpt4_hpc.launch.job.event_hooks import FAILED, run_hooks
from mgpt4_hpc.launch.job.requeue import leave_behind
from mgpt4_hpc.launch.submit.code_snapshot import PACKAGE, code_digest, take_snapshot
from mgpt4_hpc.launch.submit.container import write_launcher
from mgpt4_hpc.retry import retry_storage
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.causes import Cause

_SUMS = "executed.b2"
_PICKLE = "_submitted.pkl"


def seal(run: RunDir, *more: Path) -> None:
    """List what a start executes, and return once the run's folder would survive a power loss.

    Args:
        run: before its job is submitted.
        more: files beside code and launcher script.

    Raises:
        OSError: if it cannot be written.
    """
    files = [path for path in sorted(run.code.rglob("*")) if path.is_file()]
    lines = [
        f"{_sum(path)}  {path.relative_to(run.path)}\n"
        for path in (*files, run.slurm / "python", *more)
    ]
    temporary = run.path / f".{_SUMS}.tmp"
    temporary.write_text("".join(lines), encoding="utf-8")
    temporary.replace(run.path / _SUMS)
    for part in (run.code, run.slurm):
        sync_tree(part)
    sync_tree(run.path, deep=False)


def seal_lines(run: RunDir, folder: str, python: str = sys.executable) -> list[str]:
    """Lines for a batch script that end the job with 70 if what it is to execute is damaged.

    Args:
        run: the run, which may be one of an array's.
        folder: its path as a word of the shell.
        python: of an environment with this package, which makes again what can be.
    """
    return [
        "# what a power loss left empty or cut would end every start in the same way",
        f"mgpt4_run={folder}",
        f'if [ -e "$mgpt4_run/{_SUMS}" ]; then',
        "    # byte code of an earlier start is on nobody's list",
        f'    find "$mgpt4_run/{run.code.name}" -name "*.pyc" -newer "$mgpt4_run/{_SUMS}" -delete',
        f'    (cd "$mgpt4_run" && b2sum --check --quiet --strict {_SUMS} 2>&1) ||',
        f'        {shlex.quote(python)} -P -m mgpt4_hpc.launch.submit.integrity "$mgpt4_run" ||',
        f"        [ $? -ne {FatalTrainingError.exit_code} ] || exit {FatalTrainingError.exit_code}",
        "fi",
    ]


def mend(run: RunDir) -> list[str]:
    """Make again what is damaged of the files that a start executes.

    Returns:
        what was made, one sentence each; empty if all is as it was written.

    Raises:
        RunDamaged: naming the files that cannot be made again, with the fix.
        OSError: if storage does not give them out.
    """
    sums = _read_sums(run)
    bad = [path for path, digest in sums.items() if _sum(path) != digest]
    made = []
    if code := [path for path in bad if run.code in path.parents and path.suffix != ".pyc"]:
        _take_code_again(run, code)
        made.append(f"{_names(run, code)}: taken again from {PACKAGE}, which has the same digest")
    elif not sums and _code_digest(run) not in ("", code_digest(run.code / PACKAGE.name)):
        # A run of an older version, or its list is damaged.
        _take_code_again(run, [run.code])
        made.append(f"{run.code.name}: taken again from {PACKAGE}")
    for path in bad:
        if path.suffix == ".pyc":
            path.unlink(missing_ok=True)
        elif path == run.slurm / "python":
            write_launcher(run, read_config(run.config_file).config)
        elif path.name.endswith(_PICKLE):
            _write_pickle(run, path)
        elif path not in code:
            raise RunDamaged(
                f"{path} is damaged: it is not what was written, as after a power loss",
                fix=f"`mgpt4 resume {shlex.quote(str(run.path))}` writes it again",
            )
        if path not in code:
            made.append(f"{path.relative_to(run.path)}: made again")
    if made:
        seal(run, *(path for path in sums if path.parent == run.slurm and path.name != "python"))
    return made


def _take_code_again(run: RunDir, damaged: Sequence[Path]) -> None:
    """Put this environment's package in the place of the run's copy, if it is the same.

    Raises:
        RunDamaged: it is another one.
    """
    digest = _code_digest(run)
    if code_digest() != digest:
        version = run.identity().get("code_version", "?")
        raise RunDamaged(
            f"the run's code is damaged: {_names(run, damaged)} in {run.path}",
            why="it is not what was written, as after a power loss; and the package in "
            f"{PACKAGE} is another one ({code_digest()}, not {digest})",
            fix=f"resume the run with mgpt4-hpc {version} as it was when the run was submitted, "
            "which has that digest: the code is then taken from there; or start a new run from "
            f"this one's newest checkpoint: mgpt4 submit --set "
            f"model.projector={shlex.quote(str(run.path))} ...",
        )
    partial = run.path / ".code.partial"
    shutil.rmtree(partial, ignore_errors=True)
    take_snapshot(partial)
    sync_tree(partial)
    shutil.rmtree(run.code)
    partial.rename(run.code)


def _code_digest(run: RunDir) -> str:
    return str(run.identity().get("code_digest", ""))


def _write_pickle(run: RunDir, path: Path) -> None:
    from submitit.core.utils import DelayedSubmission

    from mgpt4_hpc.launch.task import StageTask

    DelayedSubmission(StageTask(str(run.path))).dump(path)


def _read_sums(run: RunDir) -> dict[Path, str]:
    """The listed files and their sums; empty if the list itself is missing or damaged."""
    try:
        lines = (run.path / _SUMS).read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        return {}
    pairs = [line.split("  ", 1) for line in lines]
    if any(len(pair) != 2 or len(pair[0]) != 128 for pair in pairs):
        return {}
    sums = {run.path / name: digest for digest, name in pairs}
    return sums if run.slurm / "python" in sums else {}


def _sum(path: Path) -> str:
    """As ``b2sum`` writes it; empty if the file is missing."""
    try:
        return hashlib.blake2b(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def _names(run: RunDir, paths: Sequence[Path]) -> str:
    first = ", ".join(str(path.relative_to(run.path)) for path in paths[:5])
    return first + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")


def main(argv: Sequence[str]) -> int:
    """Entry for the batch script: 70 if the run cannot be executed."""
    run = RunDir(Path(argv[0]).resolve())
    try:
        for sentence in retry_storage(lambda: mend(run)):
            print(sentence, flush=True)
    except (MgptError, OSError) as error:
        print(f"error: {error}", flush=True)
        if isinstance(error, OSError) or not error.will_repeat:
            return 1  # srun will fail for it, and the supervisor decides
        leave_behind(run.failed, f"{error}\n")
        run_hooks(run, start_of(os.environ), FAILED, Cause.FATAL, str(error))
        return FatalTrainingError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
