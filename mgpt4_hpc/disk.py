"""What must survive a power cut."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def fsync_folder(folder: Path) -> None:
    """Return once the entries of a folder would survive a power cut. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network and FUSE filesystems know no fsync of a folder. They order metadata on their
        # server, and failing here would mean that nothing is ever written there.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
