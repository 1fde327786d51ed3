"""A process prints on where nothing can be written, as onto a full disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PRINTS = """
import os, sys
from mgpt4_hpc.train.lossy_stdout import tolerate_lost_output
{first}
for number in range(3):
    print("step", number, flush=True)
print("x" * 100_000, file=sys.stderr)
os.write({report}, b"alive")
"""


@pytest.mark.parametrize("tolerant", [True, False])
@pytest.mark.parametrize("unbuffered", [["-u"], []])
def test_a_full_disk_under_the_log(tolerant: bool, unbuffered: list[str]) -> None:
    ours, theirs = os.pipe()
    code = PRINTS.format(first="tolerate_lost_output()" if tolerant else "", report=theirs)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, *unbuffered, "-c", code], stdout=full, stderr=full,
            pass_fds=[theirs], check=False,
        )  # fmt: skip
    os.close(theirs)
    told = os.read(ours, 10)
    os.close(ours)
    assert (told, done.returncode == 0) == ((b"alive", True) if tolerant else (b"", False))


def test_what_can_be_written_is_and_attributes_are_the_streams_own() -> None:
    code = (
        "import sys; from mgpt4_hpc.train.lossy_stdout import tolerate_lost_output as t; t(); t();"
        "print('plain'); print(sys.stdout.fileno(), sys.stdout.encoding)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "plain\n1 utf-8\n"
