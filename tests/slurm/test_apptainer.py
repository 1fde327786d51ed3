"""A run in a real Apptainer, inside an image that is built here from a folder.

Apptainer comes with the release of Slurm that Debian's sid has (`tools/devcluster install --slurm
26.05`). The image has a shell and no Slurm; libraries and Python are the machine's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.harness import DEVCLUSTER, Cluster
from tests.slurm.jobs import preempt_contained
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm

STEPS = 150
LIBRARIES = [path for path in ("/lib", "/lib64", "/usr/lib") if Path(path).exists()]


@pytest.fixture
def search_path(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> str:
    """PATH with the unpacked Apptainer."""
    monkeypatch.syspath_prepend(DEVCLUSTER.parent)
    from devcluster_lib import errors, releases

    try:
        root = releases.find("26.05").root
    except errors.DevclusterError as error:
        give_up = pytest.fail if os.environ.get("MGPT4_REQUIRE_SLURM") == "1" else pytest.skip
        give_up(str(error))
    assert root is not None, "this machine's own Slurm is sid's: apt-get install apptainer"
    return f"{root / 'containers'}{os.pathsep}{cluster.env['PATH']}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the image is made of."""
    root = tmp_path / "folder"
    for name in ("bin", "usr/bin", "usr/lib", "lib", "lib64", "etc", "tmp", "var/tmp", "proc"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("sys", "dev", "root"):
        (root / name).mkdir()
    for name in ("passwd", "group", "hosts", "resolv.conf", "localtime"):
        (root / "etc" / name).touch()
    for name in ("sh", "env", "true"):
        shutil.copy(shutil.which(name) or name, root / "bin" / name)
    return root


def build(folder: Path, search_path: str) -> tuple[str, list[str], str]:
    """An image, the options with which it runs here, and otherwise why it does not."""
    why = ""
    # An image file wants all of root's capabilities, a folder a namespace of one's own.
    for kind, options in (([], []), (["--sandbox"], ["--userns"])):
        image = folder.with_name(f"image{len(kind)}.sif")
        binds = [word for path in LIBRARIES for word in ("--bind", path)]
        for command in (
            ["apptainer", "build", *kind, image, folder],
            ["apptainer", "exec", *options, *binds, image, "/bin/true"],
        ):
            done = subprocess.run(
                [str(word) for word in command],
                env={**os.environ, "PATH": search_path},
                capture_output=True,
                text=True,
                timeout=120,
            )
            why = "" if done.returncode == 0 else f"{command[1]}: {done.stderr[-500:]}"
            if why:
                break
        else:
            return str(image), options, ""
    return "", [], why


def python_mounts() -> list[str]:
    base = sys.base_prefix
    return [sys.prefix, str(Path(sys.executable).resolve()) if base == "/usr" else base]


def test_a_preempted_run_comes_back_from_within_an_image(
    cluster: Cluster,
    tiny_world: TinyWorld,
    search_path: str,
    folder: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    image, options, why = build(folder, search_path)
    ran = "a folder, in a user namespace" if options else "an image file"
    record_property("apptainer", f"not run: {why}" if why else ran)
    if why:
        warnings.warn(f"this machine lets no Apptainer run: {why}", stacklevel=1)
        return
    config = tiny_world.write_config(
        tmp_path / "c.yaml",
        train__max_steps=STEPS,
        train__global_batch_size=8,
        container={
            "runtime": "apptainer",
            "image": image,
            "python": sys.executable,
            "mounts": [str(tiny_world.root), *LIBRARIES, *python_mounts()],
            "options": options,
        },
    )
    preempt_contained(cluster, search_path, config, tmp_path / "runs", STEPS)
