"""The kernel's timer ends a process whose interpreter is blocked."""

from __future__ import annotations

import pytest

from tests.unit.train.health.hanging import run_program


@pytest.mark.slow
def test_a_hang_that_holds_the_interpreters_lock_ends_by_the_kernels_alarm() -> None:
    code, out, err = run_program(
        "import os\nctypes.PyDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)"
    )
    assert (code, out) == (-14, "")
    assert "most recent call first" in err and "in <module>" in err
