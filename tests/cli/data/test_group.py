"""``data``: convert, index, stats, pack and check on a few samples."""

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.cli.fakes import Mgpt4
from tests.support.tiny_world import TinyWorld


@pytest.fixture
def shards(world: TinyWorld, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world.shards("laion"), tmp_path / "laion"))


def cut(shard: Path) -> None:
    """As a full disk or a killed download leaves it."""
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])


@pytest.mark.slow
def test_toy_paths(mgpt4: Mgpt4) -> None:
    told = mgpt4(
        "data",
        "stats",
        "toy:shards/laion",
        "--tokenizer",
        "toy:weights/llm",
        "--limit",
        4,
        "--json",
    ).json
    assert told["tokens"]["stage1"]["minimum"] >= 2
    assert mgpt4("data", "pack", "toy:cc_sbu_align", "--out", "packed").code == 0
    assert mgpt4("data", "check", "toy:shards/laion", "--json").json["num_samples"] > 0
    ended = mgpt4("data", "check", "toy:none")
    assert ended.code == 2
    assert "not in the toy world" in ended.err


def test_index_and_check(mgpt4: Mgpt4, shards: Path) -> None:
    made = mgpt4("data", "index", shards, "--out", "laion.index", "--json").json
    assert (made["num_samples"], made["num_shards"], made["num_quarantined"]) == (16, 2, 0)
    again = mgpt4("data", "index", shards, "--out", "laion.index", "--verify", "--decode")
    assert "16 samples in 2 shards" in again.out
    good = mgpt4("data", "check", "laion.index")
    assert good.code == 0
    assert "16 usable samples" in good.out


def test_a_shard_that_changed_since(mgpt4: Mgpt4, shards: Path) -> None:
    mgpt4("data", "index", shards, "--out", "laion.index")
    cut(shards / "00001.tar")
    ended = mgpt4("data", "check", "laion.index", "--json")
    assert ended.code == 1
    assert len(ended.json["changed_shards"]) == 1
    assert "00001.tar" in ended.err


def test_a_cut_shard_is_quarantined_by_shard_and_reason(mgpt4: Mgpt4, shards: Path) -> None:
    cut(shards / "00001.tar")
    ended = mgpt4("data", "check", shards)
    assert ended.code == 0
    assert "00001.tar" in ended.out
    assert "reason" in ended.out
    told = mgpt4("data", "check", shards, "--json").json
    assert {entry["shard"] for entry in told["quarantined"]} == {"00001.tar"}
    assert 8 <= told["num_samples"] < 16


def test_a_check_without_decoding_looks_for_captions_too(mgpt4: Mgpt4, shards: Path) -> None:
    with tarfile.open(shards / "00002.tar", "w") as tar:
        for name, data in (("1.jpg", b"no image"), ("1.json", b"{}"), ("2.jpg", b"no image"),
                           ("2.txt", b"a dog")):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    told = mgpt4("data", "check", shards, "--json").json
    assert [(entry["shard"], entry["key"]) for entry in told["quarantined"]] == [("00002.tar", "1")]
    assert "caption" in told["quarantined"][0]["reason"] and told["num_samples"] == 17


def test_pack(mgpt4: Mgpt4, world: TinyWorld) -> None:
    packed = mgpt4("data", "pack", world.align, "--out", "packed", "--json").json
    assert all(Path(shard).is_file() for shard in packed["shards"])
    told = mgpt4("data", "pack", world.align, "--out", "again").out
    assert told == f"again: {packed['num_samples']} samples in 1 shard\n"
    again = mgpt4("data", "pack", world.align, "--out", "packed")
    assert again.code == 1
    assert "is not empty" in again.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["index", "nothing.tar", "--out", "x.index"],
        ["index", "{00..03}.tar", "--out", "x.index"],
        ["index", "s3://bucket/x.tar", "--out", "x.index"],
        ["pack", "nothing", "--out", "x"],
        ["convert", "nothing.json", "--out", "x"],
        ["stats", "nothing"],
        ["check", "nothing"],
        ["check", "nothing.index"],
    ],
    ids=" ".join,
)
def test_what_is_not_there(mgpt4: Mgpt4, arguments: list[str]) -> None:
    ended = mgpt4("data", *arguments)
    assert ended.code == 1
    assert ended.err.startswith("error: ")
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["index", "toy:shards/laion", "--out", "no/x.index"],
        ["pack", "toy:cc_sbu_align", "--out", "no/x"],
        ["convert", "nothing.json", "--out", "no/x"],
        ["download", "nothing.parquet", "--out", "no/x"],
        ["encode", "toy-stage2", "--out", "no/x"],
        ["stats", "toy:shards/laion", "--contact-sheet", "no/x.png"],
    ],
    ids=" ".join,
)
def test_out_in_a_folder_that_is_not_there(mgpt4: Mgpt4, arguments: list[str]) -> None:
    ended = mgpt4("data", *arguments)
    assert ended.code == 2
    assert "mkdir -p no" in ended.err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("out", ["laion/00000.tar", "keep.txt", "shards.txt", "sheet.png"])
@pytest.mark.parametrize("part", [[], ["--part", "1/2"]], ids=["whole", "part"])
def test_an_index_is_written_over_nothing_else(
    mgpt4: Mgpt4, shards: Path, out: str, part: list[str]
) -> None:
    Path("keep.txt").write_text("the only copy")
    Path("shards.txt").write_text("laion/00000.tar\nlaion/00001.tar\n")
    Path("sheet.png").touch()
    before = Path(out).read_bytes()
    ended = mgpt4("data", "index", "shards.txt", "--out", out, *part)
    assert ended.code == 2 and "is not a shard index that mgpt4 wrote" in ended.err
    assert Path(out).read_bytes() == before
    assert not Path(f"{out}.parts").exists()


def test_an_index_is_not_written_through_a_link_to_nowhere(mgpt4: Mgpt4, shards: Path) -> None:
    Path("x.index").symlink_to("unmounted/x.index")
    assert mgpt4("data", "index", shards, "--out", "x.index").code == 2
    assert Path("x.index").is_symlink()


def test_what_an_index_is_made_of(mgpt4: Mgpt4, shards: Path) -> None:
    told = mgpt4("data", "index", "nope", "--out", "x.index").err
    assert "give a folder of *.tar" in told and "cc_sbu_align" not in told
    mgpt4("data", "index", shards, "--out", "laion.index")
    told = mgpt4("data", "index", "laion.index", "--out", "x.index").err
    assert "laion.index is an index of shards" in told


def test_a_damaged_index_is_built_anew(mgpt4: Mgpt4, shards: Path) -> None:
    index = ("data", "index", shards, "--out", "laion.index")
    assert "unchanged" not in mgpt4(*index).out
    assert "2 shards unchanged" in mgpt4(*index).out
    whole = Path("laion.index").read_bytes()
    Path("laion.index").write_bytes(whole[:-8])
    assert mgpt4("data", "check", "laion.index").code == 1
    assert mgpt4(*index).code == 0
    assert Path("laion.index").read_bytes() == whole


def test_parts_are_put_together_and_nothing_else_is_removed(mgpt4: Mgpt4, shards: Path) -> None:
    index = ("data", "index", shards, "--out", "laion.index")
    for part in ("1/2", "2/2"):
        assert mgpt4(*index, "--part", part).code == 0
    mine = Path("laion.index.parts/results.csv")
    mine.write_text("mine")
    refused = mgpt4(*index)
    assert refused.code == 2 and "results.csv" in refused.err
    assert mine.read_text() == "mine" and not Path("laion.index").exists()
    mine.unlink()
    assert "2 shards unchanged" in mgpt4(*index).out
    assert not Path("laion.index.parts").exists()


def test_what_is_no_index(mgpt4: Mgpt4, tmp_path: Path) -> None:
    (tmp_path / "x.index").write_text("no index at all")
    ended = mgpt4("data", "check", "x.index")
    assert ended.code == 1
    assert "is not a usable shard index" in ended.err
