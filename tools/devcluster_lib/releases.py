"""Slurm's releases: the machine's own, and others unpacked from Debian's archive into a cache.

Another release runs without a chroot. Its packages, with every library they need, are unpacked into
a folder, and its programs are patched to use that folder's loader and libraries. Its jobs then run
in the machine's own file system with the machine's Python, which would not start in the root of an
older Debian, whose libc is older. Nothing is mounted.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from devcluster_lib.errors import DevclusterError
from devcluster_lib.packages import (
    CLIENTS,
    DAEMONS,
    SEARCH_PATH,
    install,
    install_for,
    require_root,
)

SUITES = {"22.05": "bookworm", "24.11": "trixie", "26.05": "sid"}
"""The Debian that has each release."""
NATIVE = "native"
CHOICES = (NATIVE, *SUITES)
CACHE_VARIABLE = "MGPT4_DEVCLUSTER_CACHE"
_PACKAGES = ("slurmctld", "slurmd", "slurm-client", "slurmdbd")
# sid is the one Debian that has Apptainer; the tests of containers take it from there.
_FURTHER_PACKAGES = {"26.05": ("apptainer",)}
_APPTAINER = ("apptainer", "starter", "mksquashfs", "unsquashfs")
_PROGRAMS = frozenset({*CLIENTS, *DAEMONS}) - {"scrontab"}
"""What every release has; bookworm's packages lack scrontab."""
_PLUGINS = (
    *("accounting_storage_mysql", "accounting_storage_slurmdbd", "auth_munge", "cred_munge"),
    *("gres_gpu", "jobacct_gather_linux", "preempt_partition_prio", "priority_basic"),
    *("proctrack_linuxproc", "sched_backfill", "select_cons_tres"),
)
"""Those that the clusters' settings name."""
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# To be changed when folders made by an earlier devcluster no longer serve.
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Release:
    """A Slurm that can be started here."""

    number: str
    """Such as 24.11."""
    version: str
    """Such as 24.11.5."""
    root: Path | None
    """Where it was unpacked; None for the machine's own."""

    def program(self, name: str) -> str | None:
        """The path of one of Slurm's programs; None if the release does not have it."""
        if self.root is None:
            return shutil.which(name, path=SEARCH_PATH)
        return _unpacked_program(self.root, name)

    @property
    def plugins(self) -> Path | None:
        """PluginDir for slurm.conf; None where the compiled-in folder is right."""
        return None if self.root is None else _plugins(self.root)


def find(wanted: str) -> Release:
    """The release to start for ``--slurm wanted``; raises if it is not installed or damaged."""
    native = _native_if(wanted)
    if native is not None:
        return native
    if wanted == NATIVE:
        raise DevclusterError("this machine has no Slurm of its own", "tools/devcluster install")
    release = _unpacked(wanted)
    if release is None:
        raise DevclusterError(
            f"Slurm {wanted} is not in {_root(wanted)}, or not completely",
            f"tools/devcluster install --slurm {wanted}",
        )
    return release


def provide(wanted: str) -> Release:
    """Install the machine's packages and, if it has another Slurm, unpack the wanted release."""
    install()
    native = _native_if(wanted)
    if native is not None:
        return native
    require_root()
    install_for(("patchelf",), ("patchelf", "debian-archive-keyring"))
    with _locked(wanted):
        if _unpacked(wanted) is None:
            _make(wanted)
    return find(wanted)


def link_programs(release: Release, clients: Path, daemons: Path) -> None:
    """Fill two folders of a cluster with links to the release's programs."""
    for folder, names in ((clients, CLIENTS), (daemons, DAEMONS)):
        folder.mkdir()
        for name in names:
            path = release.program(name)
            if path is not None:
                (folder / name).symlink_to(path)


def _native_if(wanted: str) -> Release | None:
    """The machine's own release, if it is there and wanted; raises if nobody has the wanted one."""
    if wanted not in CHOICES:
        raise DevclusterError(f"there is no --slurm {wanted}", f"one of: {', '.join(CHOICES)}")
    program = shutil.which("slurmd", path=SEARCH_PATH)
    version = _version(program) if program else None
    if version is None or wanted not in (NATIVE, _number(version)):
        return None
    return Release(_number(version), version, None)


def _unpacked(number: str) -> Release | None:
    """The release in the cache; None if it is not there, not whole, or does not run."""
    root = _root(number)
    try:
        stamp = json.loads(_stamp(root).read_text())
    except (OSError, ValueError):
        return None
    program = _unpacked_program(root, "slurmd")
    version = _version(program) if program else None
    # The programs hold the folder's path: one that was moved does not serve.
    if version is None or stamp != _content_of_stamp(root, version) or not _is_whole(root):
        return None
    return Release(number, version, root)


def _is_whole(root: Path) -> bool:
    """Whether every program and plugin that a cluster needs is there."""
    files = [_unpacked_program(root, name) for name in _PROGRAMS]
    folder = next(root.glob("usr/lib/*/slurm-wlm"), root)
    return all(files) and all((folder / f"{name}.so").is_file() for name in _PLUGINS)


def _version(slurmd: str) -> str | None:
    """What ``slurmd -V`` prints, without the name: 22.05.8."""
    try:
        done = subprocess.run([slurmd, "-V"], text=True, capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\d+\.\d+\.\d+", done.stdout)
    return found and found[0]


def _number(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _root(number: str) -> Path:
    cache = os.environ.get(CACHE_VARIABLE) or "/var/cache/mgpt4-devcluster"
    return Path(cache).expanduser().resolve() / number


def _stamp(root: Path) -> Path:
    return root / "complete.json"


def _content_of_stamp(root: Path, version: str) -> dict:
    content = {"format": _FORMAT, "root": str(root), "version": version}
    further = _FURTHER_PACKAGES.get(_number(version))
    return {**content, "further": list(further)} if further else content


@contextlib.contextmanager
def _locked(number: str) -> Iterator[None]:
    root = _root(number)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        file = root.with_name(f"{number}.lock").open("w")
    except OSError as error:
        raise DevclusterError(
            f"the cache {root.parent} cannot be written: {error.strerror}",
            f"set {CACHE_VARIABLE} to another folder",
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(number: str) -> None:
    """Download, unpack and patch a release in its place; the stamp is written last."""
    root = _root(number)
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    packages = (*_PACKAGES, *_FURTHER_PACKAGES.get(number, ()))
    archives = _download(SUITES[number], packages, root / "apt")
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(lambda path: _run(["dpkg-deb", "-x", str(path), str(root)]), archives):
            pass
    shutil.rmtree(root / "apt")
    _patch(root)
    program = _unpacked_program(root, "slurmd")
    version = program and _version(program)
    if version is None or _number(version) != number:
        raise DevclusterError(
            f"Debian {SUITES[number]} has Slurm {version}, not {number}",
            "use one of the other releases; devcluster's table of suites is out of date",
        )
    _stamp(root).write_text(json.dumps(_content_of_stamp(root, version)))
    print(f"devcluster: Slurm {version} is in {root}", file=sys.stderr)


def _download(suite: str, packages: tuple[str, ...], folder: Path) -> list[Path]:
    """These packages and everything they depend on, down to libc; apt sees none installed."""
    (folder / "lists/partial").mkdir(parents=True)
    (folder / "cache/archives/partial").mkdir(parents=True)
    (folder / "status").touch()
    sources = folder / "sources.list"
    sources.write_text(f"deb [signed-by={_KEYRING}] {_mirror()} {suite} main\n")
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::State": folder,
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        # A mirror of sid may be days old.
        "Acquire::Check-Valid-Until": "false",
        "APT::Sandbox::User": "root",
    }
    apt_get = ["apt-get", "-q"]
    for key, value in settings.items():
        apt_get += ["-o", f"{key}={value}"]
    _run([*apt_get, "update"])
    _run([*apt_get, "install", "-y", "--no-install-recommends", "--download-only", *packages])
    return sorted((folder / "cache/archives").glob("*.deb"))


def _mirror() -> str:
    """The address from which this machine takes Debian itself."""
    fields = "$(ORIGIN)|$(LABEL)|$(REPO_URI)"
    command = ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"]
    for attempt in (1, 2):
        for line in _run(command).splitlines():
            origin, label, address = line.split("|", 2)
            # Not the security archive, nor anybody else's packages.
            if (origin, label) == ("Debian", "Debian"):
                return address
        if attempt == 1:  # A fresh machine's apt has not read its sources yet.
            _run(["apt-get", "-q", "update"])
    raise DevclusterError(
        "apt on this machine has no source for Debian itself",
        "use Debian 12 or 13, with its archive in /etc/apt/sources.list or sources.list.d",
    )


def _patch(root: Path) -> None:
    """Let the release's programs use the loader and the libraries that came with them."""
    plugins = _plugins(root)
    architecture = plugins.parent.name
    folders = [root / "usr/lib" / architecture, root / "lib" / architecture]
    loader = next(path for folder in folders for path in folder.glob("ld-linux*.so.*"))
    search = ":".join(map(str, (*folders, plugins)))
    for name in (*CLIENTS, *DAEMONS, *_APPTAINER):
        path = _unpacked_program(root, name)
        if path is not None:
            # RPATH, not RUNPATH: it also holds for what libraries and plugins need.
            settings = ["--set-interpreter", str(loader), "--force-rpath", "--set-rpath", search]
            _run(["patchelf", *settings, path])
    # Apptainer finds itself where it was unpacked, its settings below that, and mksquashfs in PATH.
    for link in ("usr/etc", "usr/var", "usr/lib/var"):
        (root / link).symlink_to(root / link.rpartition("/")[2])
    (root / "containers").mkdir()
    for name in _APPTAINER:
        path = _unpacked_program(root, name)
        if path is not None:
            (root / "containers" / name).symlink_to(path)


def _plugins(root: Path) -> Path:
    library = next(root.glob("usr/lib/*/slurm-wlm/libslurmfull.so"), None)
    if library is None:
        raise DevclusterError(f"no libslurmfull.so in {root}", f"remove {root} and install again")
    return library.parent


def _unpacked_program(root: Path, name: str) -> str | None:
    # Debian's alternatives give slurmd-wlm its usual name, on installation.
    candidates = (root / "usr" / folder / name for folder in ("bin", "sbin"))
    candidates = (*candidates, root / "usr/sbin" / f"{name}-wlm")
    candidates = (*candidates, *root.glob(f"usr/lib/*/apptainer/bin/{name}"))
    return next((str(path) for path in candidates if path.exists()), None)


def _run(command: list[str]) -> str:
    """Run a command, and return what it prints; raises with the end of its errors."""
    env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=env, text=True, capture_output=True)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()[-6:]
        shown = "".join(f"\n    {line}" for line in lines)
        words = [word for word in command if "=" not in word and word != "-o"]
        raise DevclusterError(f"{' '.join(words)} failed{shown}", "is the network there?")
    return done.stdout
