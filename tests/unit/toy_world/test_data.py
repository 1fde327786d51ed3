"""The shipped data are what the seed says, hold nothing out of place and leak nothing held out."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_world import raster, scenes, shards, splits
from toy_world.captions import clean, description

from mgpt4_hpc.evaluation.scenes import COLOURS, SHAPES, main_object_right

SEED = 0
MAX_BYTES = 8_000_000


def _scene_of(record: dict) -> scenes.Scene:
    things = tuple(scenes.Thing(**thing) for thing in record["objects"])
    return scenes.Scene(things, record["background"], record["pattern"])


@pytest.fixture(scope="module")
def heldout(product: Path) -> list[dict]:
    return json.loads((product / "heldout/scenes.json").read_text())


def test_fits_the_budget(product: Path) -> None:
    assert sum(file.stat().st_size for file in product.rglob("*") if file.is_file()) <= MAX_BYTES


def test_hashes_cover_and_match_every_data_file(product: Path) -> None:
    stated = dict(
        reversed(line.split("  ", 1)) for line in (product / "SHA256SUMS").read_text().splitlines()
    )
    there = {
        file.relative_to(product).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for folder in ("shards", "cc_sbu_align", "heldout")
        for file in (product / folder).rglob("*")
        if file.is_file()
    }
    assert there == stated


def test_a_shard_is_rebuilt_bit_for_bit(product: Path) -> None:
    source = shards.SOURCES[1]
    pairs = shards.source_pairs(SEED, source)[: source.samples_per_shard]
    rebuilt = shards.shard_bytes(source.name, 0, pairs)
    assert rebuilt == (product / "shards" / source.name / "00000.tar").read_bytes()


def test_heldout_scenes_are_rebuilt_bit_for_bit(product: Path, heldout: list[dict]) -> None:
    for index, pair in enumerate(shards.heldout_pairs(SEED)):
        assert shards.heldout_record(index, pair) == heldout[index]
        assert (product / "heldout/image" / heldout[index]["image"]).read_bytes() == pair.jpeg


def test_another_seed_gives_another_world() -> None:
    source = shards.Source("laion", 1, 3, shards.SOURCES[0].write)
    one, other = (shards.source_pairs(seed, source) for seed in (SEED, SEED + 1))
    assert [pair.jpeg for pair in one] != [pair.jpeg for pair in other]


@pytest.mark.parametrize("source", shards.SOURCES, ids=lambda source: source.name)
def test_shards_have_img2datasets_layout(product: Path, source: shards.Source) -> None:
    tars = sorted((product / "shards" / source.name).glob("*.tar"))
    assert [tar.name for tar in tars] == [f"{i:05d}.tar" for i in range(source.num_shards)]
    for number, path in enumerate(tars):
        with tarfile.open(path) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar}
        keys = [f"{number:05d}{index:04d}" for index in range(source.samples_per_shard)]
        assert list(members) == [f"{key}.{kind}" for key in keys for kind in ("jpg", "json", "txt")]
        for key in keys:
            metadata = json.loads(members[f"{key}.json"])
            assert metadata["key"] == key
            assert metadata["status"] == "success"
            assert (metadata["width"], metadata["height"]) == (224, 224)
            assert metadata["url"].endswith(f"{key}.jpg")
            assert metadata["caption"] == members[f"{key}.txt"].decode()
            assert Image.open(io.BytesIO(members[f"{key}.jpg"])).size == (224, 224)


def test_aligned_pairs_have_cc_sbu_aligns_layout(product: Path) -> None:
    pairs = json.loads((product / "cc_sbu_align/filter_cap.json").read_text())["annotations"]
    images = {file.name for file in (product / "cc_sbu_align/image").iterdir()}
    assert images == {f"{pair['image_id']}.jpg" for pair in pairs}
    assert len(pairs) == shards.NUM_ALIGNED
    assert all(pair["caption"].endswith(".") for pair in pairs)


@pytest.mark.slow
def test_no_heldout_scene_is_in_anything_trained_on(heldout: list[dict]) -> None:
    held = {scenes.scene_key(_scene_of(record)) for record in heldout}
    assert len(held) == 100
    assert held == {record["key"] for record in heldout}
    counts = {s.name: s.num_shards * s.samples_per_shard for s in shards.SOURCES}
    counts |= {"cc_sbu_align": shards.NUM_ALIGNED, **splits.NUM_PRETRAINING}
    for name, count in counts.items():
        seen = {scenes.scene_key(scene) for scene in splits.training_scenes(SEED, name, count)}
        assert not seen & held, name


@pytest.mark.slow
def test_the_exclusion_is_what_keeps_them_out() -> None:
    free = scenes.scenes(scenes.stream(SEED, "vision/scenes"), splits.NUM_PRETRAINING["vision"])
    assert {scenes.scene_key(scene) for scene in free} & splits.heldout_keys(SEED)


def test_no_heldout_image_is_shipped_for_training(product: Path) -> None:
    held = {file.read_bytes() for file in (product / "heldout/image").iterdir()}
    trained = {file.read_bytes() for file in (product / "cc_sbu_align/image").iterdir()}
    for path in (product / "shards").rglob("*.tar"):
        with tarfile.open(path) as tar:
            trained |= {tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg")}
    assert len(held) == 100
    assert not held & trained


def test_the_main_object_is_the_largest_and_the_reference_names_it(heldout: list[dict]) -> None:
    for record in heldout:
        order = [scenes.SIZES.index(thing["size"]) for thing in record["objects"]]
        assert order == sorted(set(order), reverse=True)
        assert record["main"] == record["objects"][0]
        assert main_object_right(record["reference"], record)


def test_the_scorers_words_are_the_builders() -> None:
    assert set(COLOURS) == set(scenes.COLOURS)
    assert set(SHAPES) == set(scenes.SHAPES)


def test_a_key_hashes_the_facts_and_not_the_pattern() -> None:
    thing = scenes.Thing("small", "red", "ring", "top", "left")
    plain = scenes.Scene((thing,), "white", "plain")
    assert scenes.scene_key(plain) == scenes.scene_key(scenes.Scene((thing,), "white", "dotted"))
    assert scenes.scene_key(plain) != scenes.scene_key(scenes.Scene((thing,), "grey", "plain"))


def test_objects_stand_where_the_scene_says() -> None:
    thing = scenes.Thing("large", "blue", "square", "bottom", "right")
    scene = scenes.Scene((thing,), "white", "plain")
    pixels, owner = raster.draw(scene, scenes.stream(1, "x"))
    blue = (pixels[:, :, 2].astype(int) - pixels[:, :, 0]) > 100
    y, x = np.nonzero(blue)
    assert abs(y.mean() - 176) < 5
    assert abs(x.mean() - 176) < 5
    assert (owner[5, 5], owner[0, 0]) == (0, -1)


def test_every_description_is_sound() -> None:
    rng = scenes.stream(2, "texts")
    for scene in scenes.scenes(rng, 200):
        text = description(scene, rng)
        assert text.endswith(".")
        assert "#" not in text


def test_cleaning_follows_the_original() -> None:
    assert clean('Photo  7: "A RED ring" (free)!; #1 ~ *') == "photo 7 a red ring free 1"
    assert len(clean("word " * 80).split()) == 50
