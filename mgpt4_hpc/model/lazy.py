"""Import heavy libraries late, and quickly."""

from __future__ import annotations

import atexit
import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def garbage_collector_off() -> Iterator[None]:
    """Importing transformers makes a million long-lived objects, and the collector walks them all.

    Switching it off meanwhile saves a fifth of the import time; freezing the objects afterwards
    keeps later collections, and copies of pages in forked data workers, small.
    """
    was_on, modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            # What exists now will never be collected, a half-built model too: only if need be.
            if len(sys.modules) > modules:
                gc.freeze()
                # What is frozen when Python ends is a leak to triton, which lists it on stderr.
                atexit.register(gc.unfreeze)
            gc.enable()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars, warnings or advice from transformers while something is loaded."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
