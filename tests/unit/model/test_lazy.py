"""Settings of other libraries are as before once an import is over."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from mgpt4_hpc.model.lazy import garbage_collector_off, quiet_transformers


def test_the_garbage_collector_is_on_again_also_after_an_error() -> None:
    with pytest.raises(ImportError), garbage_collector_off():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with garbage_collector_off():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


ENDING = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count()))  # runs last
from mgpt4_hpc.model.lazy import garbage_collector_off
with garbage_collector_off():
    import colorsys
print(gc.get_freeze_count() > 0)
"""


def test_nothing_is_frozen_when_python_ends() -> None:
    """A library with a leak check there would list it all."""
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["True", "0"], "")


def test_transformers_warns_again_afterwards() -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with pytest.raises(OSError), quiet_transformers():
        assert logging.get_verbosity() == logging.ERROR and not logging.is_progress_bar_enabled()
        raise OSError
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
