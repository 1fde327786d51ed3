"""Names that lie where one was looked for in vain."""

from __future__ import annotations

import difflib
from pathlib import Path

_SHOWN = 3


def beside(path: Path) -> str:
    """``; beside it lie 1.png, 1.PNG``, to be put behind "No such file"; empty if nothing is near.

    Near are the same name in other letters or with another extension, then similar names.
    """
    try:
        names = sorted(entry.name for entry in path.parent.iterdir())
    except OSError:
        return _folder_beside(path)
    stem = path.stem.casefold()
    same = [name for name in names if name.casefold().partition(".")[0] == stem.partition(".")[0]]
    near = same or difflib.get_close_matches(path.name, names, _SHOWN, cutoff=0.75)
    if not near:
        return ""
    more = " ..." if len(near) > _SHOWN else ""
    verb = "lies" if len(near) == 1 else "lie"
    return f"; beside it {verb} {', '.join(near[:_SHOWN])}{more}"


def _folder_beside(path: Path) -> str:
    """The same for the first folder on the way that is missing."""
    missing = [folder for folder in path.parents if not folder.exists()]
    return f"; {missing[-1]} does not exist{beside(missing[-1])}" if missing else ""
