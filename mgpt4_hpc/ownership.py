"""May what lies in a run's folder be executed? Asked before anything of it is.

The folder holds a pickled job, a launcher and a copy of the package: a user who can write there can
run programs as its owner, at the next requeue. So everything must belong to the user (or to root,
who can do anything anyway), and no other user may be able to write or exchange it.

The batch script asks the same of its first lines, in shell, before the first Python starts.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mgpt4_hpc.errors import FatalTrainingError, UnsafeRun

_WRITE = {stat.S_IWGRP: stat.S_IXGRP, stat.S_IWOTH: stat.S_IXOTH}
"""For group and others: the bit to write, and the one to get there through the run's folder."""

_SHOWN = 5


def assert_owned(run: Path, *, user: int | None = None) -> None:
    """Refuse a run folder that others could have written to, or can.

    Args:
        run: the run's folder.
        user: owner of what is trusted; this process's user if None.

    Raises:
        UnsafeRun: naming the first files, why, and the command that mends it.
    """
    user = os.geteuid() if user is None else user
    try:
        faults = [*parent_faults(run), *_faults(run, {user, 0})]
    except OSError as error:
        raise UnsafeRun(
            f"{run} cannot be looked through for files of others: {error.strerror}",
            fix=f"chmod -R u+rwX {shlex.quote(str(run))}",
        ) from error
    if not faults:
        return
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    raise UnsafeRun(
        f"the run's folder is not safe to run from: {'; '.join(faults[:_SHOWN])}{more}",
        why="it holds code that the job executes: whoever writes there runs programs as you",
        fix="if you know how that came about and every file is as it should be: "
        f"chmod -R go-w {shlex.quote(str(run))}, and copy what is not yours; else start a new run",
    )


def parent_faults(run: Path) -> list[str]:
    """Folders above a run in which any user may exchange entries; sticky ones, as /tmp, may be.

    A folder that is still to be made is passed over.

    A group's shared project folder is common and stays allowed: what a colleague puts in the
    run's place belongs to the colleague, and is refused for that.
    """
    return [
        f"anybody may rename things in {folder} (chmod o-w {shlex.quote(str(folder))})"
        for folder in run.resolve().parents
        if folder.exists()
        and (mode := folder.stat().st_mode) & stat.S_IWOTH
        and not mode & stat.S_ISVTX
    ]


def _faults(run: Path, trusted: set[int]) -> list[str]:
    top = run.stat()
    faults = []
    # What lies inside is reached through the folder alone, so its own bits come first: files
    # made under a umask of 002 in a folder of 0700 are as safe as others.
    reachable = 0
    for write, search in _WRITE.items():
        if top.st_mode & search:
            reachable |= write
    for path, state in _everything(run):
        if state.st_uid not in trusted:
            faults.append(f"{path} belongs to user {state.st_uid}")
        elif stat.S_ISLNK(state.st_mode):
            faults += _link_faults(path, trusted)
        elif state.st_mode & (reachable if path != run else stat.S_IWGRP | stat.S_IWOTH):
            faults.append(f"others may write {path} (mode {stat.S_IMODE(state.st_mode):04o})")
    return faults


def _link_faults(path: Path, trusted: set[int]) -> list[str]:
    """A link of ours to something that others can write is as bad as the thing itself."""
    try:
        target = path.stat()
    except OSError:
        return []  # it leads nowhere
    if target.st_uid not in trusted:
        return [f"{path} leads to what belongs to user {target.st_uid}"]
    if target.st_mode & stat.S_IWOTH and not target.st_mode & stat.S_ISVTX:
        return [f"{path} leads to what anybody may write"]
    return []


def _everything(run: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The folder and all in it; what vanishes meanwhile (a checkpoint pruned) is passed over."""
    yield run, run.lstat()

    def raise_unless_vanished(error: OSError) -> None:
        """Raise what ``os.walk`` could not list, unless it was deleted."""
        if not isinstance(error, FileNotFoundError):
            raise error

    for folder, folders, files in os.walk(run, onerror=raise_unless_vanished):
        for name in [*folders, *files]:
            path = Path(folder, name)
            with suppress(FileNotFoundError):
                yield path, path.lstat()


def shell_check(folder: str) -> list[str]:
    """Lines for a batch script that end the job with 70 if a folder is not to be trusted.

    Args:
        folder: as a word of the shell, quoted as it needs; a link is followed.

    Only the shell and ``find`` from the system's own path run here: a Python would read the
    working directory or the snapshot, which are what is in doubt. The rules are those of
    :func:`assert_owned`, less the folders above.
    """
    find = 'command -p find -H "$mgpt4_folder" -ignore_readdir_race'
    return [
        "# nothing of this folder is executed before it is known to be the user's alone; of a file",
        "# that vanishes meanwhile `! -uid` is true, and -links +0 is not",
        f"mgpt4_folder={folder}",
        f'mgpt4_strange="$({find} ! -uid "$(command -p id -u)" ! -uid 0 -links +0 -print -quit',
        f"    {find} -maxdepth 0 -perm /022",
        *(
            f'    [ -z "$({find} -maxdepth 0 -perm -{search})" ] || '
            f"{find} ! -type l -perm -{write} -print -quit"
            for search, write in (("010", "020"), ("001", "002"))
        ),
        ')"',
        'if [ -n "$mgpt4_strange" ]; then',
        '    printf "error: others may write or own this, so nothing of it is run: %s\\n" '
        '"$mgpt4_strange"',
        f"    exit {FatalTrainingError.exit_code}",
        "fi",
    ]
