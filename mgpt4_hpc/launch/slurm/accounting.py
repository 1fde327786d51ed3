"""What Slurm's accounting says: the accounts that this user may charge, and other tables."""

from __future__ import annotations

import getpass
import os
import pwd
from collections.abc import Iterable
from dataclasses import dataclass

from mgpt4_hpc.launch.slurm.commands import run_slurm


@dataclass(frozen=True)
class Association:
    """An account that the user may charge.

    Attributes:
        account: its name.
        partition: where; empty is everywhere.
        qos: that may be used with it.
    """

    account: str
    partition: str = ""
    qos: frozenset[str] = frozenset()


def slurm_user() -> str:
    """The submitting user as Slurm sees it: the process's owner, whatever su left in $USER."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container that does not know its user
        return getpass.getuser()


def read_associations() -> tuple[Association, ...]:
    """Those of this user.

    Raises:
        SlurmUnreachable, SlurmRejected: the accounting does not answer.
    """
    user = f"user={slurm_user()}"
    return parse_associations(ask_sacctmgr("associations", user, "format=account,partition,qos"))


def parse_associations(rows: Iterable[list[str]]) -> tuple[Association, ...]:
    """From rows of account, partition and QOS; rows of another length say something else."""
    return tuple(
        Association(row[0], row[1], frozenset(filter(None, row[2].split(","))))
        for row in rows
        if len(row) == 3 and row[0]
    )


def require_sacct() -> None:
    """Ask accounting for jobs of this minute. Raises SlurmUnreachable or SlurmRejected."""
    run_slurm(["sacct", "--noheader", "--allocations", "--starttime=now-1minutes"])


def ask_sacctmgr(*words: str) -> list[list[str]]:
    """Rows of ``sacctmgr show``, which may change nothing.

    Raises:
        SlurmUnreachable, SlurmRejected: the accounting does not answer.
    """
    text = run_slurm(["sacctmgr", "--noheader", "--parsable2", "--readonly", "show", *words])
    return [line.split("|") for line in text.splitlines()]
