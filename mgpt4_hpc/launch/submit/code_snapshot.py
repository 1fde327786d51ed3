"""The code that a run started with travels inside it.

Submission pickles code by reference, so a requeue next week would run the checkout of next week.
The job imports the snapshot instead.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import mgpt4_hpc
from mgpt4_hpc.errors import MgptError

PACKAGE = Path(mgpt4_hpc.__file__).resolve().parent
"""The package that this process runs."""

# Byte code comes along: what a job writes itself, no power loss spares, so it is not kept.
_LEFT_OUT = shutil.ignore_patterns("toy_world", "_configs", "_slurm")


def take_snapshot(target: Path) -> str:
    """Copy the package into ``target/mgpt4_hpc``; data that settings name by path stays outside.

    Returns:
        digest of the copied sources.

    Raises:
        MgptError: if the copy fails.
    """
    copy = target / PACKAGE.name
    try:
        shutil.copytree(PACKAGE, copy, ignore=_LEFT_OUT)
    except (OSError, shutil.Error) as error:
        raise MgptError(
            f"the code could not be copied to {copy}: {error}", fix="check space and permissions"
        ) from error
    return code_digest(copy)


def code_digest(package: Path = PACKAGE) -> str:
    """Digest of a package's Python sources, by relative name and content."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
