"""What can be known on the login node before a job waits in the queue. Torch-free, in seconds."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from mgpt4_hpc.config.load import missing_start, unset_paths
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.data.prepare import is_align_folder
from mgpt4_hpc.data.shards import expand_shards
from mgpt4_hpc.errors import MgptError, PreflightError
from mgpt4_hpc.launch import slurm
from mgpt4_hpc.model.manifest import BUNDLE_FILE, Manifest
from mgpt4_hpc.model.variants import require_variant


def preflight(
    config: RunConfig,
    runs_dir: Path,
    *,
    executor: str,
    projector_follows: bool = False,
    new: bool = True,
) -> None:
    """Look for everything that would stop the job later.

    Args:
        config: of the run to be submitted.
        runs_dir: where its directory will be made.
        executor: "slurm", "local", or "none" to ask nobody.
        projector_follows: stage 2's start will come from a job before it.
        new: a new run's batch must divide; one that goes on may have uneven slices.

    Raises:
        PreflightError: with every fault at once.
        SlurmUnreachable: if the scheduler cannot be asked.
    """
    faults = [
        *unset_paths(config),
        *_weights_faults(config),
        *_source_faults(config),
        *_projector_faults(config, projector_follows),
        *_extra_faults(config),
        *(_batch_faults(config) if new else []),
        *_runs_dir_faults(runs_dir),
        *_executor_faults(config, executor),
    ]
    if faults:
        raise PreflightError("this job would fail", faults=faults)


def _weights_faults(config: RunConfig) -> list[str]:
    weights = config.model.weights
    if not weights:
        return []  # told already
    if not Path(weights).is_dir():
        return [f"model.weights {weights} is no folder: make it with `mgpt4 weights import`"]
    return _variant_faults(config, Path(weights) / BUNDLE_FILE)


def _variant_faults(config: RunConfig, manifest: Path) -> list[str]:
    if not manifest.exists():
        return []  # the original's own files tell their sizes only when they are opened
    try:
        architecture = Manifest.read(manifest).architecture
        require_variant(config.model.variant, architecture, config.model.weights)
    except MgptError as error:
        return [f"{error.what} ({error.fix})"]
    return []


def _source_faults(config: RunConfig) -> list[str]:
    faults = []
    for source in config.data.sources:
        if not source.path or is_align_folder(Path(source.path)):
            continue
        try:
            expand_shards(source.path)
        except MgptError as error:
            faults.append(f"data source {source.name}: {error.what}")
        if source.index and not Path(source.index).exists():
            faults.append(
                f"data source {source.name}: the index {source.index} does not exist: "
                "make it with `mgpt4 data index`"
            )
    return faults


def _projector_faults(config: RunConfig, projector_follows: bool) -> list[str]:
    projector = config.model.projector
    if projector_follows:
        return []
    if projector is None:
        return missing_start(config)
    path = Path(projector)
    if not path.exists():
        return [f"model.projector {projector} does not exist"]
    if (path / "run.json").exists() and not any((path / "checkpoints").glob("step-*")):
        return [
            f"model.projector: the run {projector} has no checkpoint yet: use --after {path.name}"
        ]
    return []


def _extra_faults(config: RunConfig) -> list[str]:
    """Optional packages that the settings need; jobs run in the environment that submits them."""
    faults = []
    if config.lora.rank and find_spec("peft") is None:
        faults.append("lora.rank needs peft: pip install 'mgpt4-hpc[lora]'")
    if config.model.llm_8bit and find_spec("bitsandbytes") is None:
        faults.append("model.llm_8bit needs bitsandbytes: pip install 'mgpt4-hpc[int8]'")
    return faults


def _runs_dir_faults(runs_dir: Path) -> list[str]:
    place = runs_dir
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        return [f"runs directory {runs_dir}: {place} is no folder"]
    if not os.access(place, os.W_OK | os.X_OK):
        return [f"runs directory {runs_dir} cannot be written: give --runs-dir a writable folder"]
    if "%" in str(runs_dir.absolute()):
        return [f"runs directory {runs_dir} has a % in its path, which Slurm would expand"]
    return []


def _batch_faults(config: RunConfig) -> list[str]:
    per_pass = config.launch.gpus * config.train.micro_batch_size
    if config.train.global_batch_size % per_pass == 0:
        return []
    return [
        f"train.global_batch_size {config.train.global_batch_size} is no multiple of "
        f"launch.gpus {config.launch.gpus} x train.micro_batch_size "
        f"{config.train.micro_batch_size} = {per_pass}"
    ]


def _executor_faults(config: RunConfig, executor: str) -> list[str]:
    if executor == "slurm":
        return _partition_faults(config)
    return _local_faults(config) if executor == "local" else []


def _partition_faults(config: RunConfig) -> list[str]:
    wanted = config.launch.partition
    known = slurm.partitions()
    if wanted is None:
        if any(record.get("Default") == "YES" for record in known.values()):
            return []
        return [f"no partition given and the site has no default: use one of {_names(known)}"]
    faults = []
    for name in wanted.split(","):
        if name not in known:
            faults.append(f"partition {name!r} does not exist: use one of {_names(known)}")
            continue
        limit_s = slurm.parse_duration_s(known[name].get("MaxTime", "UNLIMITED"))
        if limit_s is not None and config.launch.time_min * 60 > limit_s:
            faults.append(
                f"partition {name} allows {limit_s / 60:.0f} minutes, "
                f"--time asks for {config.launch.time_min}"
            )
        nodes = int(known[name].get("TotalNodes", "0") or 0)
        if nodes and config.launch.nodes > nodes:
            faults.append(
                f"partition {name} has {nodes} nodes, --nodes asks for {config.launch.nodes}"
            )
    return faults


def _names(known: dict[str, dict[str, str]]) -> str:
    return ", ".join(sorted(known)) or "(none)"


def _local_faults(config: RunConfig) -> list[str]:
    if config.launch.nodes > 1:
        return [f"the local executor has one node, --nodes asks for {config.launch.nodes}"]
    return []
