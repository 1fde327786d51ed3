"""Streams: every sample once an epoch among all consumers, the mixture exact, faults told."""

from __future__ import annotations

import http.server
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from mgpt4_hpc.config.schema import SourceConfig
from mgpt4_hpc.data.batching.loader import LoaderOptions
from mgpt4_hpc.data.batching.url_stream import StreamLoader, StreamReader
from mgpt4_hpc.data.reading.reader import BadSampleError
from mgpt4_hpc.errors import DataError
from tests.unit.data.worlds import text_spec, write_shards


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serves ``tmp_path`` on the loopback interface."""
    handler = partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http_server.server_address[1]}"
        http_server.shutdown()
        thread.join()


def stream(name: str, path: str, weight: int = 1) -> SourceConfig:
    return SourceConfig(name=name, path=path, weight=weight)


def readers(source: SourceConfig, world_size: int, start: int = 0) -> list[StreamReader]:
    return [
        StreamReader(
            [source], seed=1, start_position=start, rank=rank, world_size=world_size, num_workers=0
        )
        for rank in range(world_size)
    ]


@pytest.mark.parametrize(("shards", "world_size"), [(4, 2), (2, 3)])
def test_an_epoch_has_each_sample_once(tmp_path: Path, shards: int, world_size: int) -> None:
    write_shards(tmp_path / "a", 24, 24 // shards)
    source = stream("a", f"pipe:cat {tmp_path}/a/{{00000..{shards - 1:05d}}}.tar")
    keys = [
        reader.read(0, 0).key for reader in readers(source, world_size)
        for _ in range(24 // world_size)
    ]  # fmt: skip
    assert Counter(keys) == Counter(f"{number:09d}" for number in range(24))


def test_another_start_shuffles_anew_and_the_same_does_not(tmp_path: Path) -> None:
    write_shards(tmp_path / "a", 24, 4)
    source = stream("a", f"pipe:cat {tmp_path}/a/{{00000..00005}}.tar")
    first, again, later = (
        [reader.read(0, 0).key for _ in range(24)]
        for (reader,) in (readers(source, 1), readers(source, 1), readers(source, 1, start=48))
    )
    assert first == again
    assert first != later
    assert sorted(first) == sorted(later)


@pytest.mark.slow
def test_a_loader_over_http_mixes_exactly(tmp_path: Path, server: str) -> None:
    write_shards(tmp_path / "a", 20, 5)
    write_shards(tmp_path / "b", 8, 8)
    for path in (tmp_path / "b").iterdir():
        path.rename(tmp_path / "b.tar")
    sources = [
        stream("a", server + "/a/{00000..00003}.tar", 3),
        stream("b", server + "/b.tar"),
    ]
    with StreamLoader(
        sources,
        text_spec(),
        16,
        LoaderOptions(global_batch_size=8, micro_batch_size=4, num_workers=2),
        granularity=1,
    ) as loader:
        batches = [batch for _ in range(3) for batch in next(loader)]
        assert loader.position == 24
    assert [len(batch) for batch in batches] == [4] * 6
    # Keys 0 to 7 are in both; the twelve others show that three of four come from `a`.
    assert sum(int(key) >= 8 for batch in batches for key in batch.keys) > 8


@pytest.mark.slow
def test_broken_shards_are_told_and_left(tmp_path: Path, server: str) -> None:
    first, second = write_shards(tmp_path / "a", 12, 6)
    first.write_bytes(first.read_bytes()[:4000])
    (reader,) = readers(stream("a", server + "/a/{00000..00002}.tar"), 1)
    good, bad = [], []
    for _ in range(12):
        try:
            good.append(reader.read(0, 0).key)
        except BadSampleError as error:
            bad.append(str(error.shard))
    assert set(good) >= {f"{number:09d}" for number in range(6, 12)}
    assert any("00002" in url for url in bad)  # which is not there
    assert second.exists()


def test_nothing_in_a_whole_epoch_is_an_end(tmp_path: Path) -> None:
    (reader,) = readers(stream("a", f"pipe:cat {tmp_path}/none.tar"), 1)
    with pytest.raises((DataError, BadSampleError)):
        reader.read(0, 0)
    with pytest.raises(DataError, match="no sample in a whole epoch"):
        for _ in range(5):
            with pytest.raises(BadSampleError):
                reader.read(0, 0)


def test_a_node_without_curl_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    for program in ("bash", "sh"):
        (tmp_path / "bin" / program).symlink_to(f"/bin/{program}")
    (reader,) = readers(stream("web", "http://127.0.0.1:9/00000.tar"), 1)
    with pytest.raises(DataError, match=r"source web .*curl is not installed on this node"):
        for _ in range(5):
            with pytest.raises(BadSampleError):
                reader.read(0, 0)
