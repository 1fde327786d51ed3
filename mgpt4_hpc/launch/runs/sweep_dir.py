"""A sweep's folder beside its runs, and its name, which stands for all of them.

::

    RUNS/NAME-lr1e-4-seed1/      a run like any other, with a batch script of its own
    RUNS/.sweeps/NAME/
        sweep.json               runs and their values, how many at once, the array's job
        array.sbatch             what was submitted: task I hands over to the script of run I
        tasks/I -> RUN/slurm     where Slurm finds that script, and puts the task's log
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mgpt4_hpc.errors import MgptError, NoSuchRun, RunLocked
from mgpt4_hpc.launch.runs.job_ref import note_job
from mgpt4_hpc.run_dir import SWEEPS, RunDir, list_runs, list_sweeps, read_json, write_json
from mgpt4_hpc.run_reference import find_all, find_run, find_whole_run


@dataclass(frozen=True)
class SweepDir:
    """Paths of one sweep."""

    path: Path

    @classmethod
    def of(cls, name: str, runs_dir: Path) -> SweepDir:
        """The sweep of that name."""
        return cls(runs_dir / SWEEPS / name)

    @property
    def name(self) -> str:
        """Name of the sweep."""
        return self.path.name

    @property
    def file(self) -> Path:
        """``sweep.json``."""
        return self.path / "sweep.json"

    @property
    def script(self) -> Path:
        """``array.sbatch``."""
        return self.path / "array.sbatch"

    @property
    def tasks(self) -> Path:
        """A link to each run's ``slurm`` folder, by its number."""
        return self.path / "tasks"

    def max_parallel(self) -> int | None:
        """How many of its runs may be at work at once; None if nothing was said."""
        try:
            limit = read_json(self.file).get("max_parallel")
        except (OSError, ValueError):
            return None
        return limit if isinstance(limit, int) and limit > 0 else None

    def set_max_parallel(self, limit: int) -> None:
        """Set how many of its runs may be at work at once from now on."""
        write_json(self.file, {**read_json(self.file), "max_parallel": limit})

    def runs(self) -> list[RunDir]:
        """Its runs, without those that were removed since. Raises NoSuchRun if it is broken."""
        try:
            listed = [str(entry["run"]) for entry in read_json(self.file)["runs"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NoSuchRun(f"{self.path} is no sweep: sweep.json is broken ({error})") from error
        runs = [RunDir(self.path.parent.parent / name) for name in listed]
        return [run for run in runs if run.identity_file.is_file()]


def create_sweep(
    sweep: SweepDir,
    runs: Sequence[RunDir],
    values: Sequence[Mapping[str, str]],
    executor: str,
    *,
    max_parallel: int | None = None,
) -> None:
    """Make the sweep's folder.

    Args:
        sweep: where.
        runs: of which it consists; they need not exist yet.
        values: of the swept settings, of each run.
        executor: "slurm" or "local".
        max_parallel: how many of the runs may be at work at once; None is all.

    Raises:
        RunLocked: if there is one of that name.
        MgptError: if it cannot be made.
    """
    try:
        sweep.path.parent.mkdir(exist_ok=True, mode=0o700, parents=True)
        sweep.path.mkdir(mode=0o700)
        sweep.tasks.mkdir()
        for number, run in enumerate(runs):
            (sweep.tasks / str(number)).symlink_to(run.slurm)
        listed = [
            {"run": run.name, "values": dict(point)}
            for run, point in zip(runs, values, strict=True)
        ]
        write_json(
            sweep.file,
            {
                "name": sweep.name,
                "executor": executor,
                "created": time.time(),
                "max_parallel": max_parallel,
                "runs": listed,
            },
        )
    except FileExistsError:
        raise RunLocked(
            f"the sweep {sweep.path} exists already", fix="choose another --name"
        ) from None
    except OSError as error:
        remove_sweep(sweep)
        raise MgptError(
            f"the sweep {sweep.path} cannot be made: {error.strerror}",
            fix="give --runs-dir a writable folder on storage that all nodes share",
        ) from error


def remove_sweep(sweep: SweepDir) -> None:
    """Take the folder away; its runs stay."""
    shutil.rmtree(sweep.path, ignore_errors=True)


def remove_empty_sweeps(runs_dir: Path) -> None:
    """Forget the sweeps without any run left."""
    for name in list_sweeps(runs_dir):
        sweep = SweepDir.of(name, runs_dir)
        try:
            if not sweep.runs():
                remove_sweep(sweep)
        except NoSuchRun:
            continue  # broken, and so not known to be empty


def find_runs(names: Iterable[str], runs_dir: Path, *, no_step: str = "") -> list[RunDir]:
    """The runs of these names; a sweep's name stands for all of its runs.

    Args:
        names: of runs, also by one of their checkpoints, and of sweeps.
        runs_dir: where they are.
        no_step: for a command that would change the whole run: what to do where a checkpoint is
            named, which is refused then.

    Raises:
        NoSuchRun: with every name that is missing, and the names that exist.
    """

    def find(name: str) -> list[RunDir]:
        """The runs of one name."""
        if is_sweep(name, runs_dir):
            return SweepDir.of(name, runs_dir).runs()
        whole = find_whole_run(name, runs_dir, no_step) if no_step else None
        return [whole or find_run(name, runs_dir)]

    return list(dict.fromkeys(run for runs in find_all(names, find) for run in runs))


def chosen_runs(names: Sequence[str], runs_dir: Path) -> list[RunDir]:
    """The runs of these names as by :func:`find_runs`; without names all, newest first."""
    return find_runs(names, runs_dir) if names else list_runs(runs_dir)


def limited_sweeps(runs: Iterable[RunDir]) -> list[SweepDir]:
    """The sweeps with a concurrency limit that these runs belong to."""
    runs = set(runs)
    sweeps = [
        SweepDir.of(name, folder)
        for folder in sorted({run.path.parent for run in runs})
        for name in list_sweeps(folder)
    ]
    return [s for s in sweeps if s.max_parallel() is not None and set(s.runs()) & runs]


def is_sweep(name: str, runs_dir: Path) -> bool:
    """Whether that is a sweep's name; a run's path never is."""
    looks_like_one = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name)
    return bool(looks_like_one) and SweepDir.of(name, runs_dir).file.is_file()


def note_jobs(sweep: SweepDir, runs: Sequence[RunDir], job_id: str) -> None:
    """Write down which job works on which run."""
    write_json(sweep.file, {**read_json(sweep.file), "job_id": job_id})
    for number, run in enumerate(runs):
        task = f"{job_id}_{number}"
        note_job(run, "slurm", task, name=sweep.name, work_dir=sweep.path, sweep=sweep.name)
