"""Ranks in a container: what stands between srun and the rank's Python.

The batch script and its last lines, the supervisor, stay outside, where Slurm's commands are.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from mgpt4_hpc.config.schema import ContainerConfig, RunConfig
from mgpt4_hpc.formatting import beside
from mgpt4_hpc.launch.job.launcher_script import UNSET, write_shim
from mgpt4_hpc.run_dir import RunDir


def rank_python(container: ContainerConfig) -> str:
    """The interpreter of the ranks: this one, or the container's."""
    return sys.executable if container.runtime == "none" else container.python


def write_launcher(run: RunDir, config: RunConfig | None) -> None:
    """Write the script that starts a rank's Python; with no settings, this Python and no more."""
    path = run.slurm / "python"
    if config is None:
        write_shim(path)
        return
    write_shim(
        path, rank_python(config.container), lines_inside(run, config), config.launch.stage_env
    )


def srun_options(run: RunDir, container: ContainerConfig) -> list[str]:
    """Pyxis adds options to srun; it enters the container in the task's own process."""
    if container.runtime != "pyxis":
        return []
    mounts = ",".join(m if ":" in m else f"{m}:{m}" for m in _mounts(run, container))
    return [
        f"--container-image={container.image}",
        f"--container-mounts={mounts}",
        *container.options,
    ]


def command_prefix(run: RunDir, config: RunConfig) -> str:
    """Apptainer is a command around the rank's; it execs it, and passes signals on."""
    container = config.container
    if container.runtime not in ("apptainer", "singularity"):
        return ""
    words = [container.runtime, "exec"]
    if config.train.device != "cpu":
        words.append("--nv")
    for mount in _mounts(run, container):
        words += ["--bind", mount]
    return shlex.join([*words, *container.options, container.image])


def lines_inside(run: RunDir, config: RunConfig) -> list[str]:
    """Shell lines that set the job's variables again: inside a container, or after the launcher.

    An image's own values win over the job's: with Pyxis always, with Apptainer where the image's
    definition sets them. The image's PYTHONPATH stays, behind the run's code.
    """
    exports = {
        name: f"export {name}={shlex.quote(value)}" for name, value in config.launch.env.items()
    }
    if config.container.runtime == "none":
        # The job has set them already; the launcher unsets this one for who did not ask for it.
        return [line for name, line in exports.items() if name == UNSET]
    return [
        *exports.values(),
        f'export PYTHONPATH={shlex.quote(str(run.code))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        "export PYTHONSAFEPATH=1",
    ]


_IMAGE = "put the image there, or set container.image to another file or address"


def container_findings(container: ContainerConfig) -> tuple[list[str], list[str]]:
    """Faults and notes about the image and the program that runs it.

    An image is a file unless it is the address of one that the runtime fetches. Where not even its
    folder is there, both may be on the nodes alone.
    """
    runtime, image = container.runtime, container.image
    if runtime == "none":
        return [], []
    faults, notes = [], []
    path = Path(image)
    if runtime == "pyxis":
        is_file = image.startswith(("/", "./", "../")) or path.suffix == ".sqsh"
    else:
        is_file = "://" not in image
    if not image:
        pass  # reported already
    elif is_file and not path.exists() and not path.parent.exists():
        notes.append(f"container.image: {path.parent} is not here; is {image} on the nodes?")
    elif is_file and not path.exists():
        faults.append(f"container.image {image} does not exist{beside(path)}: {_IMAGE}")
    elif is_file and not path.is_absolute():
        # The ranks start in the run's folder.
        faults.append(f"container.image {image} must be an absolute path: {path.absolute()}")
    if runtime != "pyxis" and shutil.which(runtime) is None:
        notes.append(f"container.runtime: {runtime} is not in PATH here; is it on the nodes?")
    return faults, notes


def unmounted(config: RunConfig) -> list[str]:
    """Paths in the settings that no mount covers: the ranks may not see them."""
    container = config.container
    if container.runtime == "none":
        return []
    inside = [Path(_target(mount)) for mount in container.mounts]
    wanted = {
        "model.weights": config.model.weights,
        "model.projector": config.model.projector,
        **{f"data source {source.name}": source.path for source in config.data.sources},
    }
    return [
        f"{what} {path} is in none of container.mounts"
        for what, path in wanted.items()
        if path and not any(Path(path).is_relative_to(place) for place in inside)
    ]


def _mounts(run: RunDir, container: ContainerConfig) -> list[str]:
    # The folder above it: a start from another run's checkpoint lies beside it.
    return [str(run.path.parent), *container.mounts]


def _target(mount: str) -> str:
    parts = mount.split(":")
    return parts[1] if len(parts) > 1 else parts[0]
