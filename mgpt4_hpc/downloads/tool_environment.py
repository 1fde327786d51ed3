"""Programs in virtual environments of their own, made where they are first used.

img2dataset pins an older webdataset than training needs. lmms-eval pins some seventy packages.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mgpt4_hpc.errors import DataError
from mgpt4_hpc.output_files import lock

_OURS = "mgpt4_hpc_packages.pth"
_INSTALLING = ".mgpt4-installing"
"""In an environment while it is made here: only such a one may be removed."""
_QUIET = {
    "WANDB_MODE": "disabled",
    "NO_ALBUMENTATIONS_UPDATE": "1",  # it asks PyPI for a newer one at each import
    "PYTHONSAFEPATH": "1",  # a driver's neighbours are modules of ours
    "PYTHONNOUSERSITE": "1",
}


@dataclass(frozen=True)
class Tool:
    """A program from PyPI.

    Attributes:
        name: of its distribution.
        version: the one that our code was written for.
        also: further requirements.
        sees_ours: whether it uses our packages where they suit it, such as a torch of gigabytes,
            rather than install its own.
        option: of the command that names another environment; "" if only the variable does.
    """

    name: str
    version: str
    also: tuple[str, ...] = ()
    sees_ours: bool = False
    option: str = ""

    @property
    def variable(self) -> str:
        """Names an environment that is there already."""
        return f"MGPT4_{self.name.upper().replace('-', '_')}_ENV"

    @property
    def other(self) -> str:
        """How a person names another environment."""
        return self.option or self.variable

    def default_environment(self, environ: Mapping[str, str] = os.environ) -> Path:
        """Where the environment is kept, on a file system that all nodes see in most clusters."""
        if environ.get(self.variable):
            return Path(environ[self.variable]).expanduser().absolute()
        cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
        name = f"{self.name}-{self.version}"
        if self.sees_ours:  # packages that another installation of ours may not have
            name += f"-{hashlib.blake2b(sys.prefix.encode(), digest_size=4).hexdigest()}"
        return Path(cache).expanduser().absolute() / "mgpt4" / name

    def ensure_environment(
        self, folder: Path | None = None, *, say: Callable[[str], None] = lambda text: None
    ) -> Path:
        """The Python of an environment with the tool, made where there is none.

        Args:
            folder: a virtual environment; one that has the tool is used as it is. None is the
                default.
            say: called before the installation, which takes minutes.

        Raises:
            DataError: if it cannot be made, or the folder is there without the tool or with another
                version of it; with the commands to make it by hand.
        """
        folder = (folder or self.default_environment()).absolute()
        python = folder / "bin" / "python"
        found = self._installed(python)
        # A process that installs it now may have installed the tool and not yet all of it.
        if found is None or (folder / _INSTALLING).exists():
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                with folder.with_name(folder.name + ".lock").open("w") as file:
                    lock(file, wait=True)  # tasks that start together wait for the first
                    found = self._installed(python)
                    if found is None:
                        say(f"installing {self.name} {self.version} into {folder}")
                        self._install(folder)
                        found = self._installed(python)
            except OSError as error:
                raise self._cannot_make(folder, error.strerror or str(error)) from error
        if found != self.version:
            raise DataError(
                f"{folder} has {self.name} {found or '(none)'}, needed is {self.version}",
                fix=f"{self._install_command(python)}, or name another with {self.other}",
            )
        with suppress(OSError):
            (folder / _INSTALLING).unlink(missing_ok=True)
        return python

    def _installed(self, python: Path) -> str | None:
        """Version of the tool there; None if there is none, or if that Python does not start."""
        ask = f"import importlib.metadata as m; print(m.version({self.name!r}))"
        try:
            asked = subprocess.run(
                [str(python), "-c", ask],
                capture_output=True,
                text=True,
                check=False,
                env=tool_variables(),
            )
        except OSError:
            return None
        return asked.stdout.strip() if asked.returncode == 0 else None

    def _install(self, folder: Path) -> None:
        python = str(folder / "bin" / "python")
        if (folder / _INSTALLING).exists():  # its installation was killed
            shutil.rmtree(folder)
        elif folder.exists() and any(folder.iterdir()):
            raise DataError(
                f"{folder} has no {self.name}, or its Python does not start on "
                f"{socket.gethostname()}",
                fix=f"{self._install_command(python)}, or name another with {self.other}, "
                "or remove it",
            )
        folder.mkdir(exist_ok=True)
        (folder / _INSTALLING).touch()
        self._run([sys.executable, "-m", "venv", str(folder)], folder)
        if self.sees_ours:
            where = "import sysconfig; print(sysconfig.get_path('purelib'))"
            packages = Path(self._run([python, "-c", where], folder).strip())
            ours = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
            # Python puts these folders behind the environment's own.
            (packages / _OURS).write_text("".join(f"{path}\n" for path in ours))
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        self._run([*pip, *self._requirements], folder)

    def _run(self, command: list[str], folder: Path) -> str:
        """A step of the installation; what it printed."""
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=tool_variables()
        )
        if done.returncode != 0:
            told = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise self._cannot_make(folder, "; ".join(told[-3:]))
        return done.stdout

    def _cannot_make(self, folder: Path, why: str) -> DataError:
        return DataError(
            f"{self.name}'s environment {folder} cannot be made: {why}",
            why="it needs the network, and Python's venv and pip",
            fix=f"make it where there is a network and name it with {self.other}: "
            f"python3 -m venv DIR && {self._install_command('DIR/bin/python')}",
        )

    def _install_command(self, python: Path | str) -> str:
        """For a shell."""
        return shlex.join([str(python), "-m", "pip", "install", *self._requirements])

    @property
    def _requirements(self) -> list[str]:
        return [f"{self.name}=={self.version}", *self.also]


def tool_variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables for programs of such environments: none of ours, and no telemetry."""
    kept = {key: value for key, value in environ.items() if not key.startswith("PYTHON")}
    return {**kept, **_QUIET}
