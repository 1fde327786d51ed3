"""What can be known on the login node before a job waits in the queue. Torch-free, in seconds."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from mgpt4_hpc.config import keys
from mgpt4_hpc.config.missing_inputs import unset_paths
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.config.streams import WARNING, is_streamed
from mgpt4_hpc.errors import PreflightError
from mgpt4_hpc.evaluation.captions import require_libraries
from mgpt4_hpc.launch.runs.run_state import RunState
from mgpt4_hpc.launch.runs.shared_storage import nearest_existing, not_shared
from mgpt4_hpc.launch.runs.status import RunOverview, look_at
from mgpt4_hpc.launch.slurm.cluster import SlurmSite
from mgpt4_hpc.launch.slurm.sbatch_options import sbatch_faults
from mgpt4_hpc.launch.submit.container import container_findings, unmounted
from mgpt4_hpc.launch.submit.preflight_feature_cache import feature_faults
from mgpt4_hpc.launch.submit.preflight_files import (
    projector_findings,
    source_findings,
    start_findings,
    template_notes,
    weights_findings,
)
from mgpt4_hpc.launch.submit.preflight_slurm import (
    Cluster,
    admission_findings,
    ask_cluster,
    nodes_for,
)
from mgpt4_hpc.ownership import parent_faults
from mgpt4_hpc.run_dir import RunDir


def preflight(config: RunConfig, runs_dir: Path, *, executor: str) -> list[str]:
    """The notes of :func:`preflight_findings`.

    Raises:
        PreflightError: with every fault at once.
        SlurmUnreachable: if the scheduler cannot be asked.
    """
    faults, notes = preflight_findings(config, runs_dir, executor=executor)
    if faults:
        raise PreflightError("this job would fail", faults=faults)
    return notes


def preflight_findings(
    config: RunConfig,
    runs_dir: Path,
    *,
    executor: str,
    projector_follows: bool = False,
    new: bool = True,
    cluster: Cluster | None = None,
    array_tasks: int = 0,
) -> tuple[list[str], list[str]]:
    """Look for everything that would stop the job later.

    Args:
        config: of the run to be submitted.
        runs_dir: where its directory will be made.
        executor: "slurm", "local", or "none" to ask neither.
        projector_follows: stage 2's start will come from a job before it.
        new: a new run's batch must divide; one that goes on may have uneven slices.
        cluster: what Slurm said already; asked if not given.
        array_tasks: tasks of the job array that the run is one of; 0 for a job of its own.

    Returns:
        The faults, and what is worth knowing and stops nothing; a sentence each.

    Raises:
        SlurmUnreachable: if the scheduler cannot be asked.
    """
    data_faults, notes = source_findings(config)
    weights_faults, sizes = weights_findings(config)
    faults = [*unset_paths(config), *weights_faults, *data_faults, *feature_faults(config)]
    more: list[str] = []
    more_notes: list[str] = []
    if not projector_follows:
        more, more_notes = projector_findings(config, sizes)
    elif new and config.model.projector is not None:
        more, more_notes = start_findings(config, Path(config.model.projector))
    faults += [*more, *_extra_faults(config)]
    notes += more_notes
    if executor == "slurm" and cluster is None:
        cluster = ask_cluster()
    faults += _batch_faults(config, cluster.site if cluster else None) if new else []
    # Jobs that Slurm took before it was asked here must come back.
    faults += sbatch_faults(config.launch) if new and executor != "local" else []
    faults += _runs_dir_faults(runs_dir)
    hook_faults, hook_notes = _hook_findings(config)
    faults += hook_faults
    notes += hook_notes
    notes += [*unmounted(config), *template_notes(config)]
    notes += [f"this run cannot resume exactly: {WARNING}"] if is_streamed(config) else []
    if cluster is not None:
        more, more_notes = admission_findings(config, cluster, array_tasks)
        faults += more
        notes += [*more_notes, *_unshared(runs_dir)]
    elif executor == "local":
        faults += _local_faults(config)
    if executor != "none":
        more, more_notes = container_findings(config.container)
        faults += more
        notes += more_notes
    return faults, notes


def is_in_doubt(fault: str, wrong: frozenset[str]) -> bool:
    """Whether a fault may be due to the stand-in for a wrong setting.

    Args:
        fault: one of :func:`preflight_findings`.
        wrong: keys of the settings that the configuration lacks. A feature cache is bound to
            most settings.
    """
    return keys.mentions(fault, wrong) or bool(wrong and fault.startswith("data.feature_cache:"))


def _unshared(runs_dir: Path) -> list[str]:
    if why := not_shared(runs_dir):
        where = "every node of the job must see it under this name"
        return [f"the runs directory {runs_dir} {why}: {where}"]
    return []


def _extra_faults(config: RunConfig) -> list[str]:
    """Optional packages that the settings need; jobs run in the environment that submits them."""
    if config.container.runtime != "none":
        return []  # or in a container, which cannot be read from here
    faults = []
    if config.lora.rank and find_spec("peft") is None:
        faults.append("lora.rank needs peft: pip install 'mgpt4-hpc[lora]'")
    if config.model.llm_8bit and find_spec("bitsandbytes") is None:
        faults.append("model.llm_8bit needs bitsandbytes: pip install 'mgpt4-hpc[int8]'")
    if "caption" in config.train.eval_suites:
        try:
            require_libraries()
        except PreflightError as error:
            faults.append(f"train.eval_suites: {error.what}: {error.fix}")
    return faults


def _runs_dir_faults(runs_dir: Path) -> list[str]:
    place = nearest_existing(runs_dir)
    if not place.is_dir():
        return [f"runs directory {runs_dir}: {place} is no folder"]
    if not os.access(place, os.W_OK | os.X_OK):
        return [f"runs directory {runs_dir} cannot be written: give --runs-dir a writable folder"]
    path = str(runs_dir.absolute())
    if "%" in path:
        return [f"runs directory {runs_dir} has a % in its path, which Slurm would expand"]
    if "\\" in path:
        return [f"runs directory {runs_dir} has a backslash in its path, which Slurm would drop"]
    # The job refuses to run from such a place.
    return [
        f"runs directory {runs_dir}: {fault}, or give --runs-dir another folder"
        for fault in parent_faults(runs_dir / "run")
    ]


def _batch_faults(config: RunConfig, site: SlurmSite | None) -> list[str]:
    gpus, micro = config.launch.gpus, config.train.micro_batch_size
    batch, per_pass = config.train.global_batch_size, gpus * micro
    if batch % per_pass == 0:
        return []
    return [
        f"train.global_batch_size {batch} is no multiple of launch.gpus {gpus} x "
        f"train.micro_batch_size {micro} = {per_pass}: {_batch_advice(config, site)}"
    ]


def _batch_advice(config: RunConfig, site: SlurmSite | None) -> str:
    """The nearest settings that divide; first those that leave the result as it is."""
    batch, gpus = config.train.global_batch_size, config.launch.gpus
    micro, launch = config.train.micro_batch_size, config.launch
    divisors = [n for n in range(min(batch, gpus), 0, -1) if batch % n == 0]
    fewer, nodes = next(
        ((n, k) for n in divisors if (k := nodes_for(site, launch, n))), (divisors[0], launch.nodes)
    )
    of_one = batch // fewer
    smaller = next(n for n in range(min(of_one, micro), 0, -1) if of_one % n == 0)
    same = [f"--gpus {fewer}"] if fewer != gpus else []
    same += [f"--nodes {nodes}"] if nodes != launch.nodes else []
    same += [f"--set micro_batch_size={smaller}"] if smaller != micro else []
    per_pass = gpus * micro
    below = batch // per_pass * per_pass
    near = " or ".join(str(value) for value in (below, below + per_pass) if value)
    return (
        f"{' with '.join(same)} keeps it, --set global_batch_size={near} changes it and the result"
    )


def _hook_findings(config: RunConfig) -> tuple[list[str], list[str]]:
    faults, notes = [], []
    for command in config.launch.on_event:
        program = next(iter(shlex.split(command)), "")
        if not program:
            faults.append(f"launch.on_event {command!r} names no program")
        elif os.sep in program and not os.access(program, os.X_OK):
            faults.append(f"launch.on_event: {program} is no program that may be run")
        elif os.sep in program and not Path(program).is_absolute():
            faults.append(f"launch.on_event: {program} must be an absolute path, or a name in PATH")
        elif shutil.which(program) is None:
            notes.append(f"launch.on_event: {program} is not in PATH here; is it on the nodes?")
    return faults, notes


def _local_faults(config: RunConfig) -> list[str]:
    faults = []
    if config.launch.nodes > 1:
        faults.append(f"the local executor has one node, --nodes asks for {config.launch.nodes}")
    runtime = config.container.runtime
    if runtime == "pyxis":
        faults.append("container.runtime pyxis is a part of srun: use apptainer without Slurm")
    elif runtime != "none" and shutil.which(runtime) is None:
        faults.append(f"container.runtime {runtime} is not installed on this machine")
    return faults


# -- other runs -----------------------------------------------------------------------------------


def existing_faults(runs: Sequence[RunDir]) -> list[str]:
    """That folders of runs to be made are there already, and what to do with each."""
    there = [run for run in runs if run.path.exists()]
    if not there:
        return []
    rows = {row.path: row for row in look_at([r for r in there if r.identity_file.is_file()]).rows}
    return [_existing_fault(run, rows.get(str(run.path))) for run in there]


def _existing_fault(run: RunDir, row: RunOverview | None) -> str:
    if row is None:
        return f"{run.path} exists already, and is no run: --name starts another"
    if row.state is RunState.FINISHED:
        text = f"and is finished ({row.step} steps): nothing is left to do in it"
    elif row.state.is_live:
        text = (
            f"and its job {row.job_id} is alive ({row.text}): `mgpt4 logs -f {run.name}` follows "
            f"it, `mgpt4 cancel {run.name}` ends it{row.there}"
        )
    else:
        text = f"and is unfinished ({row.text}): `mgpt4 resume {run.name}` continues it"
    return f"the run {run.path} exists already, {text}; --name starts another"


def after_faults(after: RunDir, executor: str) -> list[str]:
    """Why a job behind that run would start without its projector, or never."""
    seen = look_at([after])
    row = seen.rows[0]
    trained = row.max_steps is not None and (row.checkpoint_step or 0) >= row.max_steps
    if row.state is RunState.FINISHED or trained:
        return []
    if seen.unreachable is not None:
        raise seen.unreachable
    if row.state.is_live and row.executor == executor == "slurm":
        return []
    mend = "wait for it" if row.state.is_live else f"finish it first: mgpt4 resume {after.name}"
    return [f"--after {after.name}: that run is not finished ({row.text}): {mend}"]
