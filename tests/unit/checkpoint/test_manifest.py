import json

import pytest

from mgpt4_hpc.checkpoint.manifest import (
    DamagedCheckpointError,
    FileRecord,
    Manifest,
    _blake2b,
    _canonical,
    file_name,
)
from mgpt4_hpc.errors import CheckpointError

MANIFEST = Manifest(7, {"projector": FileRecord(10, "ab")}, {"samples_seen": 70, "best": 1.25})


def _sealed(**changes):
    body = json.loads(MANIFEST.to_bytes())
    del body["digest"]
    body.update(changes)
    body["digest"] = _blake2b(_canonical(body))
    return json.dumps(body).encode()


def test_round_trip():
    assert Manifest.from_bytes(MANIFEST.to_bytes()) == MANIFEST


def test_content_ignores_meta():
    other = Manifest(7, MANIFEST.files, {"attempt": 2})
    assert other.content == MANIFEST.content
    assert Manifest(7, {"projector": FileRecord(10, "cd")}, {}).content != MANIFEST.content


def test_every_flipped_byte_is_noticed_or_harmless():
    data = MANIFEST.to_bytes()
    for at in range(len(data)):
        flipped = data[:at] + bytes([data[at] ^ 0x04]) + data[at + 1 :]
        try:
            assert Manifest.from_bytes(flipped) == MANIFEST  # white space
        except DamagedCheckpointError:
            pass


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"3", b'"x"', b"\xff\x00", b"{}", b"[" * 99999])
def test_rubbish_is_damage(data):
    with pytest.raises(DamagedCheckpointError):
        Manifest.from_bytes(data)


def test_a_newer_format_is_not_damage():
    with pytest.raises(CheckpointError, match="format 2") as caught:
        Manifest.from_bytes(_sealed(format=2))
    assert not isinstance(caught.value, DamagedCheckpointError)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "x" * 101, "a\nb"])
def test_no_entry_leads_out_of_the_folder(name):
    with pytest.raises(ValueError):
        file_name(name)
    with pytest.raises(DamagedCheckpointError):
        Manifest.from_bytes(_sealed(files={name: {"size": 1, "blake2b": ""}}))
