"""Options of sbatch that people add, and those of ours that ask for the same resource.

Slurm takes several options as one resource: GPUs by gres or by --gpus and its relatives, memory by
--mem, --mem-per-cpu or --mem-per-gpu, cores by task or by GPU, tasks by number, node or GPU (the
manual of sbatch calls them mutually exclusive, or lets one override another in silence).
"""

from __future__ import annotations

from collections.abc import Mapping

from mgpt4_hpc.config.schema import LaunchConfig

_MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")
_GPUS = ("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket")
_CORES = ("cpus-per-task", "cpus-per-gpu")
_TASKS = ("ntasks", "ntasks-per-node", "tasks-per-node", "ntasks-per-gpu", "ntasks-per-core",
          "ntasks-per-socket")  # fmt: skip
_SHORT = {
    "A": "account", "c": "cpus-per-task", "C": "constraint", "d": "dependency", "D": "chdir",
    "e": "error", "G": "gpus", "J": "job-name", "L": "licenses", "n": "ntasks", "N": "nodes",
    "o": "output", "p": "partition", "q": "qos", "t": "time", "w": "nodelist", "x": "exclude",
}  # fmt: skip


def plain_name(option: str) -> str:
    """An option as sbatch's manual writes it, without the dashes in front."""
    return option.lstrip("-").replace("_", "-")


def sbatch_faults(launch: LaunchConfig) -> list[str]:
    """Options in ``launch.sbatch`` that Slurm would take for a resource that is set elsewhere."""
    faults = []
    options = {plain_name(option): value for option, value in launch.sbatch.items()}
    for name, value in options.items():
        asked = f"launch.sbatch.{name} {value}".rstrip()
        if name in _SHORT:
            faults.append(f"{asked}: write the option's long name, {_SHORT[name]}")
        kinds = _resources(name, value)
        if "gpus" in kinds and launch.gpu_request != "none":
            faults.append(
                f"{asked} asks for GPUs once more, and Slurm takes one request: leave it out and "
                f"set {_gpu_settings(name, value, launch)}; or launch.gpu_request=none, to ask in "
                "this way alone"
            )
        if "cores" in kinds:
            cores = value if value.isdigit() else "N"
            faults.append(f"{asked}: leave it out and set launch.cpus_per_gpu={cores}")
        if "tasks" in kinds:
            faults.append(f"{asked}: each GPU has one task: set launch.gpus and launch.nodes")
        if "memory" in kinds and launch.mem_gib_per_gpu is not None:
            faults.append(
                f"{asked} asks for memory once more, beside launch.mem_gib_per_gpu "
                f"{launch.mem_gib_per_gpu}: set that one, or set it to null"
            )
        if name in ("oversubscribe", "share", "exclusive") and launch.exclusive:
            faults.append(f"{asked} contradicts launch.exclusive: set one of them")
    for kind in ("memory", "gpus"):
        rivals = [name for name, value in options.items() if kind in _resources(name, value)]
        if len(rivals) > 1 and (kind == "memory" or launch.gpu_request == "none"):
            faults.append(
                f"launch.sbatch has {', '.join(rivals)}, which Slurm takes as one resource: "
                "give one of them"
            )
    return faults


def without_rivals(ours: Mapping[str, object], users: Mapping[str, str]) -> dict[str, object]:
    """Our options and the user's, without those of ours that ask for what a user's asks for."""
    taken = {kind for name, value in users.items() for kind in _resources(plain_name(name), value)}
    kept = {
        name: value
        for name, value in ours.items()
        if value is None or not taken & _resources(name, str(value))
    }
    return kept | {plain_name(name): value for name, value in users.items()}


def _resources(name: str, value: str) -> set[str]:
    """What an option asks for: of "gpus", "memory", "cores" and "tasks"."""
    if name == "gres":
        return {"gpus"} if _gres_gpus(value) else set()
    if name in ("tres-per-task", "tres-per-job", "tres-per-node"):
        words = value.replace("=", ":").replace(",", ":").split(":")
        kinds = {"gres/gpu": "gpus", "cpu": "cores", "mem": "memory"}
        return {kinds[word] for word in words if word in kinds}
    groups = {"gpus": _GPUS, "memory": _MEMORY, "cores": _CORES, "tasks": _TASKS}
    return {kind for kind, names in groups.items() if name in names}


def _gres_gpus(value: str) -> list[list[str]]:
    """The fields of each entry of a gres that names GPUs: ``gpu``, perhaps type and count."""
    entries = [entry.strip().split(":") for entry in value.split(",")]
    return [fields for fields in entries if fields[0].removeprefix("gres/") == "gpu"]


def _gpu_settings(name: str, value: str, launch: LaunchConfig) -> str:
    """The settings that ask for the same GPUs."""
    fields = _gres_gpus(value)[0][1:] if name == "gres" else value.split(":")
    count = next((int(field) for field in fields if field.isdigit()), None)
    kind = next((field for field in fields if field and not field[0].isdigit()), None)
    if count is None or name not in ("gres", "gpus"):
        return "--gpus, --nodes and launch.gpu_type"
    total = f"--gpus {count * (launch.nodes if name == 'gres' else 1)}"
    return f"{total} and launch.gpu_type={kind}" if kind else total
