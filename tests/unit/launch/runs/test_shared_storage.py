"""Tests of ``launch/runs/shared_storage.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.launch.runs.shared_storage import file_system, not_shared

MOUNTS = """\
overlay / overlay rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
fs1:/scratch /scratch lustre rw 0 0
fs2:/my\\040home /my\\040home nfs4 rw 0 0
/dev/sda1 /local ext4 rw 0 0
fs1:/new /local nfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind", "told"),
    [
        ("/home/me/runs", "overlay", "a disk of this machine"),
        ("/dev/shm/runs", "tmpfs", "this machine's memory"),
        ("/scratch/me/new/runs", "lustre", ""),
        ("/my home/runs", "nfs4", ""),
        ("/local/x", "nfs", ""),
        ("/localhost/x", "overlay", "a disk"),
    ],
)
def test_the_file_system_tells_what_other_nodes_see(
    path: str, kind: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: True)
    monkeypatch.setattr(Path, "resolve", lambda self: self)
    assert file_system(Path(path), MOUNTS) == kind
    why = not_shared(Path(path), MOUNTS)
    assert (told in why) if told else why == ""
