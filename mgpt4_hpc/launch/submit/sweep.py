"""Sweeps: from settings and their values to runs, and the batch script of their array.

Each task of the array is preempted, requeued, cancelled and resumed by itself, by its own id
``JOB_TASK``; ``sweep_dir`` shows the folder.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from mgpt4_hpc.config import keys
from mgpt4_hpc.config.assignments import parse_assignments
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.config.yaml_file import parse_yaml
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.launch.runs.sweep_dir import SweepDir
from mgpt4_hpc.launch.submit.batch_script import BatchExecutor, make_executor, slurm_parameters
from mgpt4_hpc.launch.submit.integrity import seal, seal_lines
from mgpt4_hpc.ownership import shell_check
from mgpt4_hpc.run_dir import RunDir

_MOST_NAME_CHARS = 100
_ALIKE = ("launch", "container")
"""Sections that decide what the tasks of an array ask for, in which they must be alike."""


@dataclass(frozen=True)
class Axis:
    """One swept setting: its key, and each value as typed and as meant."""

    key: str
    texts: tuple[str, ...]
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Point:
    """One combination: settings by key, and the texts that were typed for them."""

    overrides: Mapping[str, Any]
    texts: Mapping[str, str]


def parse_axes(options: Sequence[str], fixed: Iterable[str] = ()) -> list[Axis]:
    """``["lr=1e-4,3e-5", "seed=1,2"]`` as axes.

    Args:
        options: each a setting and its values, with commas between; values that hold commas
            themselves are written as a YAML list, ``key=[[a, b], [c]]``.
        fixed: settings that flags give one value already.

    Raises:
        ConfigError: naming every option that cannot be swept so.
    """
    axes: list[Axis] = []
    faults: list[str] = []
    taken = set(fixed)
    for option in options:
        name, equals, listed = option.partition("=")
        key, fault = keys.resolve(name.strip())
        texts = _split(listed)
        if not equals or not texts:
            fault = "write key=value,value"
        elif not fault and (key in ("name", "stage") or key.partition(".")[0] in _ALIKE):
            fault = f"{key} cannot be swept: the runs of a sweep are alike in it"
        elif not fault and key in taken:
            fault = f"{key} is given twice"
        elif not fault and len(set(texts)) < len(texts):
            fault = "a value is given twice"
        if fault:
            faults.append(f"--sweep {option!r}: {fault}")
            continue
        taken.add(key)
        values = tuple(parse_assignments([f"{key}={text}"], "--sweep")[key] for text in texts)
        axes.append(Axis(key, texts, values))
    if faults:
        raise ConfigError("cannot sweep so", faults=faults, fix="as --sweep lr=1e-4,9e-5")
    return axes


def _split(listed: str) -> tuple[str, ...]:
    if listed.lstrip().startswith("["):
        try:
            items = parse_yaml(listed)
        except yaml.YAMLError:
            return ()
        return tuple(item if isinstance(item, str) else _flow(item) for item in items)
    texts = tuple(text.strip() for text in listed.split(","))
    return texts if all(texts) else ()


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9)
    return str(text).removesuffix("\n").removesuffix("\n...")


def points(axes: Sequence[Axis]) -> list[Point]:
    """Every combination; the last axis changes fastest."""
    combinations = itertools.product(*(zip(a.texts, a.values, strict=True) for a in axes))
    return [
        Point(
            {axis.key: value for axis, (_, value) in zip(axes, chosen, strict=True)},
            {axis.key: text for axis, (text, _) in zip(axes, chosen, strict=True)},
        )
        for chosen in combinations
    ]


def run_names(sweep: str, all_points: Sequence[Point]) -> list[str]:
    """A name for each run that shows its values, as far as a name can; all differ."""
    names: list[str] = []
    for number, point in enumerate(all_points):
        parts = [_in_a_name(key.rpartition(".")[2], text) for key, text in point.texts.items()]
        name = "-".join([sweep, *parts])
        if len(name) > _MOST_NAME_CHARS or name in names:
            end = f"-{number:04d}"
            name = name[: _MOST_NAME_CHARS - len(end)] + end
        names.append(name)
    return names


def _in_a_name(leaf: str, text: str) -> str:
    last = text.rstrip("/").rpartition("/")[2] or "none"
    return leaf + re.sub(r"[^A-Za-z0-9_.-]+", "-", last).rstrip("-")


# -- scripts ----------------------------------------------------------------------------------


def render_array(
    sweep: SweepDir,
    config: RunConfig,
    count: int,
    *,
    max_parallel: int | None = None,
    dependency: str | None = None,
) -> str:
    """The batch script of an array of ``count`` tasks; each hands over to its run's script.

    Args:
        sweep: its folder, which need not exist yet.
        config: of any of the runs: they ask for the same.
        count: number of tasks.
        max_parallel: tasks that may run at once; None is all.
        dependency: Slurm's, of the whole array.
    """
    parameters = slurm_parameters(RunDir(sweep.path), config, dependency)
    parameters["additional_parameters"] |= {
        # In any task's folder: Slurm follows the link to the run's own.
        "array": f"0-{count - 1}" + (f"%{max_parallel}" if max_parallel else ""),
        "output": str(sweep.tasks / "%a" / "%A_%a_0_log.out"),
    }
    tasks = shlex.quote(str(sweep.tasks))
    task = f'{tasks}/"$SLURM_ARRAY_TASK_ID"'
    # The link leads to the run's slurm folder; who gets there is for the run's own to say.
    check = [*shell_check(shlex.quote(str(sweep.path))), *shell_check(f"{task}/..")]
    check += seal_lines(RunDir(sweep.path), f"{task}/..")
    parameters |= {"job_name": sweep.name, "setup": check, "teardown": None, "use_srun": False}
    executor = BatchExecutor(folder=sweep.path, python="")
    executor.update_parameters(**parameters)
    return executor.render(f"exec bash {task}/job.sbatch")


def render_task(run: RunDir, config: RunConfig) -> str:
    """The batch script of one run of an array, as it would be submitted alone.

    What an array's task calls itself differs: its logs are named by ``JOB_TASK``. Nothing is
    pickled, for the array's id is not known before its first task may start.
    """
    executor = make_executor(run, config)
    command = f"{executor.python} -u -m mgpt4_hpc.launch.task {shlex.quote(str(run.path))}"
    return executor.render(command).replace("/%j_", "/%A_%a_")


def write_scripts(
    sweep: SweepDir, array_script: str, tasks: Sequence[tuple[RunDir, RunConfig]]
) -> None:
    """Write the array's script and each run's. Raises OSError."""
    for run, config in tasks:
        script = run.slurm / "job.sbatch"
        script.write_text(render_task(run, config), encoding="utf-8")
        seal(run, script)
    sweep.script.write_text(array_script, encoding="utf-8")
