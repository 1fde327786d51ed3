"""A child does not outlive its parent, also one that is killed."""

from __future__ import annotations

import os
import subprocess
import sys

CHILD = """
import os, time
from mgpt4_hpc.parent_death import die_with
die_with({parent})
print(os.getpid(), flush=True)
time.sleep(600)
"""


def test_a_child_ends_with_its_killed_parent() -> None:
    child = CHILD.format(parent="os.getppid()")
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0
        process.kill()
        assert process.stdout.read() == b"", "the pipe closes when the child has ended"


def test_a_child_whose_parent_is_gone_ends_at_once() -> None:
    command = [sys.executable, "-c", CHILD.format(parent=os.getppid())]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
