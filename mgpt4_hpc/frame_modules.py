"""Find the module of a stack frame without asking the file system.

torch asks ``inspect`` for the source line of each operator that it registers, and pydantic for the
docstrings below a model's fields. ``inspect.getmodule`` then resolves the path of every module that
was imported since it was last asked: 28,000 calls of lstat until a rank's first step, which on
Lustre or NFS are round trips to a metadata server. A frame knows its module's name.
"""

from __future__ import annotations

import inspect
import sys
from types import FrameType, ModuleType
from typing import Any

_search = inspect.getmodule


def module_of(object: Any, _filename: str | None = None) -> ModuleType | None:
    """What ``inspect.getmodule`` returns, which searches only where a frame's name is not proof."""
    if isinstance(object, FrameType):
        module = sys.modules.get(object.f_globals.get("__name__", ""))
        if getattr(module, "__file__", None) == object.f_code.co_filename:
            return module
    return _search(object, _filename)


inspect.getmodule = module_of
