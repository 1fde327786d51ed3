"""Real downloads with img2dataset in its own environment, from a server on this machine."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpt4_hpc.data.images.decode import decode_rgb
from mgpt4_hpc.data.index.index import ScanOptions, ShardIndex, build_index
from mgpt4_hpc.data.index.shard_list import expand_shards
from mgpt4_hpc.data.reading.reader import SampleReader
from mgpt4_hpc.data.sources.download import IMG2DATASET
from tests.support.image_server import ImageServer, image_server
from tests.support.img2dataset import img2dataset_environment
from tests.support.runs import REPO, patience, wait_until
from tests.support.shown import assert_schema

pyarrow = pytest.importorskip("pyarrow")
FEW = ["--samples-per-shard", "10", "--processes", "2", "--threads", "16"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IMG2DATASET.variable, str(img2dataset_environment()))


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with image_server() as server:
        yield server


def write_list(path: Path, urls: list[str]) -> Path:
    from pyarrow import parquet

    table = pyarrow.table({"url": urls, "caption": [f"caption of {url}" for url in urls]})
    parquet.write_table(table, path)
    return path


def mgpt4(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mgpt4_hpc.cli.main", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPO,
    )


def run(*words: object) -> tuple[int, dict, str]:
    out, err = (process := mgpt4(*words)).communicate(timeout=120 * patience())
    return process.returncode, json.loads(out) if out else {}, err


def captions(out: Path) -> list[str]:
    """Of all samples, read as training reads them; every image decodes to 224x224."""
    build_index(expand_shards(out), out.with_suffix(".index"), ScanOptions(decode=True))
    index = ShardIndex.open(out.with_suffix(".index"))
    assert index.quarantined == []
    reader = SampleReader([index])
    samples = [reader.read(0, number) for number in range(index.num_samples)]
    reader.close()
    assert all(decode_rgb(sample.images[0]).shape == (224, 224, 3) for sample in samples)
    assert len({sample.key for sample in samples}) == len(samples)
    return [sample.caption for sample in samples]


def assert_nothing_half_written(out: Path) -> None:
    """Beside whole shards there is the plan and the hidden work folder, which holds logs only."""
    for tar in out.glob("*.tar"):
        assert json.loads((out / f"{tar.stem}_stats.json").read_text())["count"]
        assert build_index([tar], out.parent / "one.index")[0].quarantined == []
    beside = {path.name for path in out.iterdir()} - {"download.json", ".download"}
    assert {name[:5] for name in beside} == {tar.stem for tar in out.glob("*.tar")}


def test_what_a_bad_web_answers_is_told_and_the_rest_is_trained_on(
    server: ImageServer, tmp_path: Path
) -> None:
    kinds = ["good"] * 5 + ["gone", "slow", "cut", "page", "good"]
    urls = [server.url(kinds[number % 10], number) for number in range(45)]
    lists = tmp_path / "urls"
    lists.mkdir()
    write_list(lists / "00000.parquet", urls[:25])
    write_list(lists / "00001.parquet", urls[25:])
    out = tmp_path / "shards"
    # Time enough for a good answer: the server shares a busy machine with those who ask.
    seconds = ("--timeout", round(2 * patience()))
    command = ("data", "download", lists, "--out", out, *FEW, *seconds, "--json")
    # In two parts, as the tasks of an array do it, then as a whole for the report.
    assert run(*command, "--part", "2/2")[0] == 0
    assert run(*command, "--part", "1/2")[0] == 0
    code, report, err = run(*command)
    assert code == 0, err
    assert_schema("data download", report)
    assert_nothing_half_written(out)
    good = [url for url in urls if "/good/" in url]
    assert (report["num_asked"], report["num_tried"], report["num_got"]) == (45, 45, len(good))
    assert report["num_bytes"] == sum(tar.stat().st_size for tar in out.glob("*.tar"))
    reasons = Counter(report["reasons"])
    assert reasons["HTTP Error 404: Not Found"] == 4
    assert sum(n for reason, n in reasons.items() if "timed out" in reason) == 4
    assert reasons["Image decoding error"] == 8 and reasons.total() == 16
    # Five shards: of 10, 10, 5, 10 and 10 rows; numbered over both files.
    assert [shard.stem for shard in expand_shards(out)] == [f"{n:05d}" for n in range(5)]
    assert sorted(captions(out)) == sorted(f"caption of {url}" for url in good)
    before = Counter(server.asked)
    assert run(*command)[0] == 0 and server.asked == before, "nothing was left to do"


def test_killed_and_started_again_it_has_each_image_once(
    server: ImageServer, tmp_path: Path
) -> None:
    # The first shard is quick; of the other two half is held back until the first kill.
    urls = [server.url("good" if n < 15 else "held", n) for n in range(30)]
    source, out = write_list(tmp_path / "list.parquet", urls), tmp_path / "shards"
    command = ("data", "download", source, "--out", out, *FEW, "--timeout", "60", "--json")
    process = mgpt4(*command)
    wait_until(lambda: (out / "00000.tar").exists() and server.asked["/held/29"], 60, "a shard")
    assert not (out / "00001.tar").exists(), "a shard appears when it is whole"
    process.terminate()
    process.communicate(timeout=60 * patience())
    assert_nothing_half_written(out)

    server.gate.set()
    process = mgpt4(*command)
    wanted = server.asked.total() + random.Random(3).randint(1, 20)
    wait_until(lambda: server.asked.total() >= wanted or process.poll() is not None, 60, "requests")
    process.kill()
    process.communicate(timeout=60 * patience())
    assert_nothing_half_written(out)

    code, report, err = run(*command)
    assert (code, report["num_got"], report["missing"]) == (0, 30, []), err
    assert_nothing_half_written(out)
    assert not list((out / ".download").glob("*.work"))
    assert server.asked["/good/3"] == 1, "a finished shard is not fetched again"
    assert sorted(captions(out)) == sorted(f"caption of {url}" for url in urls)


def test_no_network_is_an_error_and_is_tried_again(server: ImageServer, tmp_path: Path) -> None:
    urls = [server.url("gone", n) for n in range(3)]
    source, out = write_list(tmp_path / "list.parquet", urls), tmp_path / "shards"
    for tries in (1, 2):
        code, report, err = run("data", "download", source, "--out", out, *FEW, "--json")
        assert code == 1 and "no image was downloaded" in err and "404" in err
        assert report["empty"] == [0]
        assert server.asked["/gone/1"] == tries
