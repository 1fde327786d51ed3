"""Reading by number: right bytes, few handles, patience with servers, no patience with lies."""

from __future__ import annotations

import errno
import os
import pickle
import tarfile
from pathlib import Path

import pytest

from mgpt4_hpc.data.index.index import ScanOptions, ShardIndex, build_index
from mgpt4_hpc.data.reading.reader import PASSING, RETRY_PAUSES_S, BadSampleError, SampleReader
from mgpt4_hpc.errors import StorageTrouble
from tests.unit.data.worlds import jpeg, make_index, members, tar_bytes


class Flaky:
    """``os.pread`` that fails a number of times."""

    def __init__(self, failures: int, code: int = errno.EIO) -> None:
        self.failures = failures
        self.code = code
        self.pread = os.pread

    def __call__(self, fd: int, length: int, offset: int) -> bytes:
        if self.failures:
            self.failures -= 1
            raise OSError(self.code, os.strerror(self.code))
        return self.pread(fd, length, offset)


def a_reader(index: ShardIndex, **options: object) -> tuple[SampleReader, list[float]]:
    slept: list[float] = []
    reader = SampleReader([index], sleep=slept.append, **options)  # type: ignore[arg-type]
    return reader, slept


def test_reads_every_sample(tmp_path: Path) -> None:
    index = make_index(tmp_path, 30, 10)
    reader, _ = a_reader(index)
    for sample in (29, 0, 15, 15):
        raw = reader.read(0, sample)
        assert raw.key == f"{sample:09d}"
        assert raw.images[0] == jpeg(sample)
        assert raw.caption == f"picture number {sample}"
    copy = pickle.loads(pickle.dumps(SampleReader([index])))
    assert copy.read(0, 7).key == "000000007"


def test_prefers_the_json_and_reads_parts_that_lie_apart(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    far = [("filler.bin", bytes(200_000))]
    shard.write_bytes(
        tar_bytes(
            [
                ("1.jpg", jpeg(1)),
                ("1.txt", b"from txt"),
                *far,
                ("1.json", b'{"caption": "from json"}'),
                ("2.txt", b"only txt"),
                *far,
                ("2.jpg", jpeg(2)),
            ]
        )
    )
    build_index([shard], tmp_path / "a.index")
    reader, _ = a_reader(ShardIndex.open(tmp_path / "a.index"))
    assert reader.read(0, 0).caption == "from json"
    assert reader.read(0, 0).images[0] == jpeg(1)
    assert reader.read(0, 1).caption == "only txt"
    assert reader.read(0, 1).images[0] == jpeg(2)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_handles_do_not_leak(tmp_path: Path) -> None:
    index = make_index(tmp_path, 100, 1)
    before = open_files()
    reader, _ = a_reader(index, max_open=8)
    for _ in range(3):
        for sample in range(100):
            reader.read(0, sample)
    assert open_files() - before == 8
    reader.close()
    assert open_files() == before
    assert reader.read(0, 3).key == "000000003"
    reader.close()


def test_a_stumbling_server_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, slept = a_reader(make_index(tmp_path, 5), pauses_s=(0.1, 0.5, 2.0))
    monkeypatch.setattr(os, "pread", Flaky(3, errno.ESTALE))
    assert reader.read(0, 2).key == "000000002"
    assert slept == [0.1, 0.5, 2.0]


@pytest.mark.parametrize("number", sorted(PASSING))
def test_a_lasting_outage_is_the_storages_trouble_and_no_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    reader, slept = a_reader(make_index(tmp_path, 5))
    flaky = Flaky(len(RETRY_PAUSES_S) + 1, number)
    monkeypatch.setattr(os, "pread", flaky)
    with pytest.raises(StorageTrouble, match=r"00000\.tar cannot be read") as error:
        reader.read(0, 2)
    assert not error.value.will_repeat, "the job comes back"
    assert slept == list(RETRY_PAUSES_S) and 30 < sum(slept) < 31
    assert reader.read(0, 2).key == "000000002", "nothing is shunned for it"


def test_a_shard_that_is_gone_is_waited_for_once_and_shunned_for_a_while(tmp_path: Path) -> None:
    now = [0.0]
    index = make_index(tmp_path, 40, 10)
    reader, slept = a_reader(index, clock=lambda: now[0])
    away = [index.shard_path(number).rename(tmp_path / f"{number}") for number in range(2)]
    for sample in (2, 3, 12):
        with pytest.raises(BadSampleError, match="No such file") as error:
            reader.read(0, sample)
        assert error.value.errno == errno.ENOENT
        assert reader.read(0, 25).key == "000000025"
    waited = [*RETRY_PAUSES_S, 0.1, 0.5, 1.0, 2.0]
    assert slept == waited, "not for each sample, and not as long for another such shard"
    away[0].rename(index.shard_path(0))
    with pytest.raises(BadSampleError, match="No such file"):
        reader.read(0, 2)
    now[0] = 61.0
    assert reader.read(0, 3).key == "000000003"
    with pytest.raises(BadSampleError, match="No such file"):
        reader.read(0, 12)
    assert slept == waited, "what is known to be gone is not waited for again"


def test_a_moments_absence_is_waited_for_also_where_another_shard_is_gone(tmp_path: Path) -> None:
    index = make_index(tmp_path, 40, 10)
    away = tmp_path / "away"

    def comes_back(seconds: float) -> None:
        if away.exists():
            away.rename(index.shard_path(1))

    reader = SampleReader([index], sleep=comes_back)
    index.shard_path(0).unlink()
    with pytest.raises(BadSampleError, match="No such file"):
        reader.read(0, 2)
    index.shard_path(1).rename(away)
    assert reader.read(0, 12).key == "000000012"


def test_permission_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, slept = a_reader(make_index(tmp_path, 5))
    monkeypatch.setattr(os, "pread", Flaky(1, errno.EACCES))
    for sample in (2, 3):
        with pytest.raises(BadSampleError, match="Permission denied") as error:
            reader.read(0, sample)
        assert error.value.errno == errno.EACCES
    assert slept == []


def test_vanished_replaced_shrunk_and_altered_shards(tmp_path: Path) -> None:
    index = make_index(tmp_path, 40, 10)
    build_index([index.shard_path(n) for n in range(4)], index.path, ScanOptions(verify=True))
    index = ShardIndex.open(index.path)
    index.shard_path(0).unlink()
    index.shard_path(1).write_bytes(tar_bytes(members(range(10, 13))))
    altered = bytearray(index.shard_path(2).read_bytes())
    altered[index.locate(20).parts["jpg"].offset + 300] ^= 1
    index.shard_path(2).write_bytes(altered)
    reader, _ = a_reader(index)
    for sample, reason in (
        (5, "No such file"),
        (15, "when it was indexed"),
        (20, "CRC32"),
    ):
        with pytest.raises(BadSampleError, match=reason) as error:
            reader.read(0, sample)
        assert error.value.key == f"{sample:09d}"
        assert (error.value.errno == errno.ENOENT) == (sample == 5)
    assert reader.read(0, 21).key == "000000021"
    assert reader.read(0, 31).key == "000000031"
    os.truncate(index.shard_path(3), 2000)
    with pytest.raises(BadSampleError, match=r"has 2000 bytes, but .* when it was indexed"):
        reader.read(0, 39)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", "cannot be parsed"),
        (b'{"caption": "a dog \\ud83d runs"}', "its caption is not UTF-8"),
        (b"\xff\xfe{}", "cannot be parsed"),
    ],
)
def test_a_damaged_json_is_bad_also_beside_a_txt(tmp_path: Path, text: bytes, reason: str) -> None:
    shard = tmp_path / "a.tar"
    shard.write_bytes(tar_bytes([("1.jpg", jpeg()), ("1.json", text), ("1.txt", b"a cat")]))
    build_index([shard], tmp_path / "a.index")
    reader, _ = a_reader(ShardIndex.open(tmp_path / "a.index"))
    with pytest.raises(BadSampleError, match=reason):
        reader.read(0, 0)


def captions(folder: Path, *entries: tuple[str, bytes]) -> list[str]:
    shard = folder / "a.tar"
    shard.write_bytes(tar_bytes([("1.jpg", jpeg()), *entries]))
    build_index([shard], folder / "a.index")
    reader, _ = a_reader(ShardIndex.open(folder / "a.index"))
    try:
        return [reader.read(0, 0).caption]
    except BadSampleError as error:
        return [error.reason]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[1]", "its json has no caption"),
        (b'{"url": "x"}', "its json has no caption"),
        (b'{"caption": null}', "its json has no caption"),
        (b'{"caption": ["x"]}', "its caption is list, not text"),
        (b'{"caption": "  "}', "its caption is empty"),
        (b'{"caption": "\\u200b"}', "its caption is empty"),
    ],
)
def test_a_good_txt_stands_in_for_a_json_without_a_caption(
    tmp_path: Path, text: bytes, reason: str
) -> None:
    far = ("2.jpg", bytes(200_000))  # so that the txt lies apart from the other parts
    assert captions(tmp_path, ("1.json", text), far, ("1.txt", b"a cat")) == ["a cat"]
    assert captions(tmp_path, ("1.json", text)) == [reason]
    assert captions(tmp_path, ("1.json", text), ("1.txt", b" \n")) == [reason]
    assert captions(tmp_path, ("1.json", text), ("1.txt", b"caf\xe9")) == [reason]


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("\ufeffa red box\r\n".encode(), "a red box\r\n"),
        ("a red\ufeff box".encode(), "a red\ufeff box"),
        ("\ufeff".encode(), "its caption is empty"),
        ("\u200b\u200b".encode(), "its caption is empty"),
        ("\u3164 \u2800\ufe0f\U000e0041".encode(), "its caption is empty"),
        (b"\0", "its txt is UTF-16 without a mark, or no text at all, not UTF-8"),
        (b"\x07\x1b", "its caption is empty"),
        ("\u200b!".encode(), "\u200b!"),
        ("\u732b".encode(), "\u732b"),
        ("a red box".encode("utf-16"), "its txt is UTF-16, not UTF-8"),
        ("a red box".encode("utf-16-be"),
         "its txt is UTF-16 without a mark, or no text at all, not UTF-8"),
        ("a red box".encode("utf-32"), "its txt is UTF-32, not UTF-8"),
        ("caf\u00e9".encode("latin-1"), "its txt is not UTF-8, perhaps Latin-1 or Windows-1252"),
    ],
)  # fmt: skip
def test_marks_and_what_nobody_can_see(tmp_path: Path, text: bytes, caption: str) -> None:
    assert captions(tmp_path, ("1.txt", text)) == [caption]


def test_marks_of_a_json(tmp_path: Path) -> None:
    record = '{"caption": "\ufeffa red box"}'
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):  # RFC 4627's encodings show by their bytes
        assert captions(tmp_path, ("1.json", record.encode(encoding))) == ["a red box"]
    latin = '{"caption": "caf\u00e9"}'.encode("latin-1")
    assert "its json is not UTF-8" in captions(tmp_path, ("1.json", latin))[0]


def test_a_forked_reader_leaves_the_parents_handles_alone(tmp_path: Path) -> None:
    reader, _ = a_reader(make_index(tmp_path, 5))
    reader.read(0, 0)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            reader.close()
            code = 0 if reader.read(0, 1).key == "000000001" else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert reader.read(0, 2).key == "000000002"


def overwrite(path: Path, data: bytes, mtime_ns: int | None = None) -> None:
    """As ``cp`` and ``rsync --inplace`` do: the same inode, and perhaps the old time."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()
    stat = path.stat()
    os.utime(path, ns=(0, stat.st_mtime_ns + 1 if mtime_ns is None else mtime_ns))


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("keeps_time", [False, True])
def test_a_shard_overwritten_by_one_of_the_same_size_is_noticed(
    tmp_path: Path, is_open: bool, keeps_time: bool
) -> None:
    index = make_index(tmp_path, 20, 10)
    shard = index.shard_path(0)
    data = shard.read_bytes()
    other = data.replace(b"000000003.", b"000000777.")  # the same sizes, another sample
    assert len(other) == len(data) and other != data
    reader, _ = a_reader(index)
    if is_open:
        assert reader.read(0, 3).key == "000000003"
    overwrite(shard, other, index.shard_mtime(0) if keeps_time else None)
    assert reader.read(0, 2).key == "000000002"
    with pytest.raises(BadSampleError, match="another member lies there"):
        reader.read(0, 3)


def test_an_open_shard_overwritten_by_one_of_another_size_is_refused(tmp_path: Path) -> None:
    index = make_index(tmp_path, 20, 10)
    reader, _ = a_reader(index)
    assert reader.read(0, 3).key == "000000003"
    overwrite(index.shard_path(0), tar_bytes(members(range(12))))
    with pytest.raises(BadSampleError, match="when it was indexed"):
        reader.read(0, 3)


def test_a_read_across_a_write_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pixels change between header and image: what was read belongs to neither version."""
    index = make_index(tmp_path, 20, 10)
    shard, real = index.shard_path(0), os.pread
    reader, slept = a_reader(index)
    reader.read(0, 2)
    old, new = shard.read_bytes(), shard.read_bytes().replace(jpeg(3), jpeg(3)[::-1])

    def torn(fd: int, length: int, offset: int) -> bytes:
        monkeypatch.setattr(os, "pread", real)
        overwrite(shard, new)
        return old[offset : offset + length // 2] + new[offset + length // 2 : offset + length]

    monkeypatch.setattr(os, "pread", torn)
    assert reader.read(0, 3).images[0] == jpeg(3)[::-1]
    assert slept == [RETRY_PAUSES_S[0]]


def test_a_shard_that_is_written_to_on_and_on_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make_index(tmp_path, 20, 10)
    reader, slept = a_reader(index)
    real = os.pread

    def written(fd: int, length: int, offset: int) -> bytes:
        data = real(fd, length, offset)
        os.utime(fd, ns=(0, os.fstat(fd).st_mtime_ns + 1))
        return data

    monkeypatch.setattr(os, "pread", written)
    with pytest.raises(StorageTrouble, match="is written to"):
        reader.read(0, 3)
    assert slept == list(RETRY_PAUSES_S)


def test_a_copy_with_another_time_is_fine(tmp_path: Path) -> None:
    names = ["plain", "n" * 95, "x" * 140, "k\u00e4se", "a/" * 60 + "deep"]
    (tmp_path / "s").mkdir()
    shard = tmp_path / "s" / "0.tar"
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        parts = [(f"{name}.{end}", content) for name in names
                 for end, content in (("jpg", jpeg(1)), ("txt", b"a dog"))]  # fmt: skip
        shard.write_bytes(tar_bytes(parts, form, 1.5))
        build_index([shard], tmp_path / "s.index")
        index = ShardIndex.open(tmp_path / "s.index")
        os.utime(shard, ns=(0, 12345))
        reader, _ = a_reader(index)
        assert [reader.read(0, number).key for number in range(5)] == names
