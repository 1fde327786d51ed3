"""Thousands of damaged tars: no crash, no hang, and no sample lost without a word."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mgpt4_hpc.data.images.decode import ImageError, decode_image
from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.index.index_file import IndexWriter
from mgpt4_hpc.data.index.scan import ShardScan, scan_shard
from mgpt4_hpc.data.reading.reader import BadSampleError, SampleReader
from mgpt4_hpc.data.tar.header import LARGE_WINDOW, SMALL_WINDOW, WindowedFile
from mgpt4_hpc.data.tar.walk import TarFault, _Walk, walk_tar
from tests.unit.data.worlds import encoded, jpeg, members, tar_bytes

PER_INDEX = 40
NUM_WALKED = 150
SAMPLES = 8


def captions() -> list[tuple[bytes, set[str]]]:
    """Img2dataset's tars, and their keys."""
    usual = members(range(SAMPLES))
    long = [("n" * 120 + name, content) for name, content in usual]
    result = []
    for entries, form, mtime in (
        (usual, tarfile.USTAR_FORMAT, 0),
        (usual, tarfile.PAX_FORMAT, 1700000000.5),
        (long, tarfile.GNU_FORMAT, 0),
        (long, tarfile.PAX_FORMAT, 0),
    ):
        keys = {name.split(".")[0] for name, _ in entries}
        result.append((tar_bytes(entries, form, mtime), keys))
    return result


def conversations() -> list[tuple[bytes, set[str]]]:
    """Tars of conversations with no image, one and several, among members that are no samples."""
    entries: list[tuple[str, bytes]] = []
    for number in range(SAMPLES):
        key, count = f"talk{number}", number % 4
        names = [f"{key}.{end}" for end in ("jpg", "1.PNG", "2.jpeg")[:count]]
        entries += [
            (name, jpeg(10 * number + at) if name.endswith("g") else png(10 * number + at))
            for at, name in enumerate(names)
        ]
        turns = [
            {"role": "user", "content": "<image>" * count + f"question {number}"},
            {"role": "assistant", "content": f"answer {number}"},
        ]
        entries.append((f"{key}.json", json.dumps({"messages": turns}).encode()))
        entries += [(f"{key}.cls", b"3"), (".hidden", b"x")] if number % 3 == 0 else []
    keys = {f"talk{number}" for number in range(SAMPLES)}
    return [(tar_bytes(entries, form), keys) for form in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT)]


def png(number: int) -> bytes:
    return encoded(Image.open(io.BytesIO(jpeg(number))), "PNG")


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to three of the damages that disks, networks and people do."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        end = max(1, len(result))
        at = rng.randrange(end)
        block = at // 512 * 512
        kind = rng.randrange(10)
        if kind == 0:
            result[at : at + 1] = bytes([result[at] ^ (1 << rng.randrange(8))]) if result else b""
        elif kind == 1:  # a header's number fields, where a flipped bit hurts most
            field = block + rng.choice((100, 124, 130, 136, 148, 156, 257))
            result[field : field + 4] = rng.randbytes(4)
        elif kind == 2:
            del result[at:]
        elif kind == 3:
            del result[at : at + rng.randrange(1, 3000)]
        elif kind == 4:
            result[at:at] = rng.randbytes(rng.randrange(1, 2000))
        elif kind == 5:  # a hole that was never written
            length = min(rng.randrange(512, 6000), end - at)
            result[at : at + length] = bytes(length)
        elif kind == 6:
            result[block : block + 512] = rng.randbytes(512)
        elif kind == 7:  # two blocks change places
            other = rng.randrange(end) // 512 * 512
            first, second = bytes(result[block : block + 512]), bytes(result[other : other + 512])
            result[block : block + 512], result[other : other + 512] = second, first
        elif kind == 8:  # two copies, one behind the other
            result += result[block:]
        else:
            result[at : at + 64] = rng.randbytes(64)
    return bytes(result)


def lost_silently(scan: ShardScan, keys: set[str], data: bytes) -> set[str]:
    named = {key.decode() for key in scan.keys} | {entry.key for entry in scan.quarantined}
    ranges = [int(key[1:]) for key in named if key[0] == "@" and key[1:].isdigit()]
    missing = keys - named
    if missing and ranges:
        return set()  # a byte range is reported whose names are beyond reading
    rest = data.rstrip(b"\0")
    # Nothing but zeros from some member on, no longer than ordinary padding: such a tar is
    # the same as one that was written shorter.
    return {key for key in missing if key.encode() + b"." in rest}


@pytest.mark.slow
@pytest.mark.parametrize("count", [600, pytest.param(2400, marks=pytest.mark.soak)])
@pytest.mark.parametrize("sources", [captions, conversations])
def test_no_mutated_tar_crashes_loses_silently_or_pairs_wrongly(
    tmp_path: Path, sources: Callable[[], list[tuple[bytes, set[str]]]], count: int
) -> None:
    rng = random.Random(20260)
    num_damaged = num_read = 0
    scans: list[ShardScan] = []
    whole = sources()
    for number in range(count):
        data, keys = whole[number % len(whole)]
        mutated = mutate(data, rng)
        path = tmp_path / f"{number % PER_INDEX}.tar"
        path.write_bytes(mutated)
        scan = scan_shard(path, path.name, verify=number % 3 == 0)
        assert not lost_silently(scan, keys, mutated), f"tar {number}"
        num_damaged += bool(scan.quarantined)
        for entry in scan.quarantined:
            assert entry.reason
            assert entry.key.isprintable()
        spans = scan.blocks.astype(int) * 512 + scan.lengths
        assert (spans <= len(mutated)).all()
        scans.append(scan)
        if len(scans) == PER_INDEX:
            num_read += read_all(scans, tmp_path)
            scans.clear()
    assert not scans
    assert num_read > count
    assert num_damaged > count // 3, "the mutations are to be noticed at all"


def read_all(scans: list[ShardScan], folder: Path) -> int:
    """Read every indexed sample or its error; how many are whole, with what a tar holds of them."""
    out = folder / "m.index"
    with IndexWriter(out, name="m", root=folder, verified=False, decoded=False) as writer:
        for scan in scans:
            writer.add(scan)
        writer.commit()
    index = ShardIndex.open(out)
    assert index.num_samples == sum(len(scan.keys) for scan in scans)
    shards = [scan.name for scan in scans for _ in scan.keys]
    held = {scan.name: contents(folder / scan.name) for scan in scans}
    reader = SampleReader([index], pauses_s=())
    num_read = 0
    for sample_id, shard in enumerate(shards):
        try:
            sample = reader.read(0, sample_id)
            for image in sample.images:
                decode_image(image, 8)
        except (BadSampleError, ImageError) as error:
            assert str(error)
            continue
        num_read += 1
        own = held[shard]
        if own is not None:
            parts = [data for name, data in own if name.startswith(f"{sample.key}.")]
            assert set(sample.images) <= set(parts), (shard, sample.key)
            text = sample.text
            words = text if isinstance(text, str) else text.turns[-1].answer
            assert any(words.encode() in part for part in parts), (shard, sample.key)
    reader.close()
    return num_read


def contents(path: Path) -> list[tuple[str, bytes]] | None:
    """Each member's name and content as tarfile reads them; None if it gives up before the end.

    Or if names of GNU's kind stand in it: of two in a row it takes the first, GNU tar the last.
    """
    data = path.read_bytes()
    if b"@LongLink" in data:
        return None
    try:
        with tarfile.open(path) as tar:
            files = [(member.name, tar.extractfile(member)) for member in tar]
            if data[tar.offset :].strip(b"\0"):
                return None
            return [(name, file.read()) for name, file in files if file is not None]
    except (tarfile.TarError, OSError, ValueError):
        return None


@pytest.mark.slow
def test_all_walks_agree_on_mutated_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One header at a time, passing over known pax headers, or a large window at once."""
    rng = random.Random(11)
    times = [1700000000.25, 1700000001.125, 1700000002.0, 1700000003]
    entries = members(range(16))
    sources = [tar_bytes(entries, tarfile.PAX_FORMAT, times), captions()[3][0]]
    num_members = num_faults = 0
    for number in range(NUM_WALKED):
        path = tmp_path / "walked.tar"
        path.write_bytes(mutate(sources[number % 4 == 0], rng))
        with monkeypatch.context() as patch:
            patch.setattr(_Walk, "_learn", lambda *_: False)
            careful = walked(path, 512)
        assert len(careful[0]) == len(careful[1])
        for window in (512, SMALL_WINDOW, 64 * 1024, LARGE_WINDOW):
            assert walked(path, window) == careful, f"tar {number}, window {window}"
        num_members += len(careful[0])
        num_faults += len(careful[-1])
    assert num_members > NUM_WALKED * len(entries) // 2
    assert num_faults > NUM_WALKED // 2


def walked(path: Path, window: int) -> tuple[list[bytes], list[int], list[int], list[TarFault]]:
    with path.open("rb") as file:
        listing = walk_tar(WindowedFile(file.fileno(), path.stat().st_size, window))
    return listing.names, listing.offsets.tolist(), listing.lengths.tolist(), listing.faults


def test_mutated_images_raise_only_image_errors() -> None:
    rng = random.Random(7)
    (name, image), *_ = members([0])
    assert name.endswith(".jpg")
    outcomes = {True: 0, False: 0}
    for _ in range(600):
        mutated = bytearray(image)
        for _ in range(rng.randrange(1, 6)):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        try:
            pixels = decode_image(bytes(mutated[: rng.choice((len(mutated), 200))]), 8)
        except ImageError:
            outcomes[False] += 1
        else:
            outcomes[True] += 1
            assert pixels.shape == (3, 8, 8)
    assert all(outcomes.values())
