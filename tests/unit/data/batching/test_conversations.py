"""Conversations: parsed, laid out against a slow reference, packed, read, cut and mutated."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgpt4_hpc.chat_format import TemplateFormat
from mgpt4_hpc.data.batching.loader import LoaderOptions, StepLoader
from mgpt4_hpc.data.batching.text import NO_LABEL, TooLongError, build_sequence
from mgpt4_hpc.data.images.decode import decode_image
from mgpt4_hpc.data.index.conversations import parse_conversation
from mgpt4_hpc.data.index.index import ScanOptions, ShardIndex, build_index
from mgpt4_hpc.data.index.scan import scan_shard
from mgpt4_hpc.data.reading.feature_cache import FeatureCache
from mgpt4_hpc.data.reading.feature_cache_file import FeatureRow, write_shard
from mgpt4_hpc.data.reading.feature_cache_reader import FeatureReader
from mgpt4_hpc.data.reading.local_copies import Stretches
from mgpt4_hpc.data.reading.reader import SampleReader
from mgpt4_hpc.data.sampling.order import SampleOrder, SourceSize
from mgpt4_hpc.data.sources.pack_conversations import pack_conversations
from mgpt4_hpc.data.sources.stats import collect_stats
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.prompts import TEMPLATES, Dialogue, Turn
from tests.unit.data.batching.conversations_cases import GOOD, Record, llava
from tests.unit.data.batching.test_text import REFERENCE, a_tokenizer
from tests.unit.data.worlds import encode, jpeg, tar_bytes, text_spec


def packed(folder: Path, images: Path, records: Sequence[Record] = GOOD) -> ShardIndex:
    file = folder / "talk.json"
    file.write_text(json.dumps(list(records)), encoding="utf-8")
    shards = pack_conversations(file, folder / "shards", images=images, samples_per_shard=4).shards
    build_index(shards, folder / "talk.index", ScanOptions(verify=True))
    return ShardIndex.open(folder / "talk.index")


# --- what a sample's ids and mask are: the reference knows records, not our code


def slow_reference(
    record: Record, template: str, tokenize: Any, slots: int
) -> tuple[list[int], list[bool], list[bool]]:
    """Ids (0 in image slots), what is learned, what is a slot; by string work alone."""
    ids, learned, image = [1], [False], [False]

    def add(words: str, is_learned: bool) -> None:
        for place, part in enumerate(words.split("\x00")):
            if place:
                ids.extend([0] * slots)
                learned.extend([False] * slots)
                image.extend([True] * slots)
            tokens = tokenize(part) if part else []
            ids.extend(tokens)
            learned.extend([is_learned] * len(tokens))
            image.extend([False] * len(tokens))

    system = record.get("system", "")
    turns = record["conversations"]
    for number in range(0, len(turns), 2):
        parts = [part.strip() for part in turns[number]["value"].split("<image>")]
        asked = parts[0]
        for part in parts[1:]:
            asked = " ".join(piece for piece in (asked, "<Img>\x00</Img>", part) if piece)
        answer = turns[number + 1]["value"].strip()
        if template == "vicuna_v0":
            begin = f"{system}###" if not number else ""
            add(f"{begin}Human: {asked} ###Assistant: ", False)
            add(answer + "###", True)
        else:
            told = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system and not number else ""
            add(f"[INST] {told}{asked} [/INST] ", False)
            add(answer + "</s>", True)
    return ids, learned, image


@pytest.mark.parametrize(
    ("template", "model", "slots"),
    [("vicuna_v0", "vicuna_tiny", 32), ("llama2", "llama2_tiny", 64)],
)
def test_ids_and_mask_are_the_slow_references(template: str, model: str, slots: int) -> None:
    tokenize = a_tokenizer(REFERENCE / model / "llm")
    spec = text_spec(
        encode=tokenize, num_image_tokens=slots, max_answer_tokens=200,
        chat_format=TemplateFormat(TEMPLATES[template], tokenize, 1),
    )  # fmt: skip
    rng = random.Random(5)
    words = [
        "the",
        "red dog",
        "###",
        "a<b",
        "\u00e9t\u00e9",
        "[INST]",
        "<ImageHere>",
        "x\n\ny",
        "{}",
    ]
    records = [record for record in GOOD if "conversations" in record]
    for _ in range(200):
        turns = []
        for number in range(2 * rng.randint(1, 5)):
            pool = words if number % 2 else [*words, "<image>", "<image>\n", " <image>"]
            turns.append(" ".join(rng.choices(pool, k=rng.randint(1, 6))))
        records.append(llava(*turns, system=rng.choice(["", "Be brief."])))
    for record in records:
        sequence = build_sequence(spec, parse_conversation(record).dialogue)
        ids, learned, image = slow_reference(record, template, tokenize, slots)
        assert sequence.input_ids.tolist() == ids
        assert sequence.image_mask.tolist() == image
        wanted = [
            token if is_learned else NO_LABEL
            for token, is_learned in zip(ids, learned, strict=True)
        ]
        assert sequence.labels.tolist() == wanted
        assert sequence.num_images == sum(image) // slots and sequence.num_cut == 0


def test_a_caption_is_a_conversation_of_one_turn() -> None:
    spec = text_spec()
    asked = build_sequence(spec, "A cat.", "What?")
    told = build_sequence(spec, Dialogue((Turn((None, "What?"), "A cat."),)))
    for name in ("input_ids", "image_mask", "labels"):
        assert (getattr(asked, name) == getattr(told, name)).all()


def test_too_long_a_conversation_is_cut_at_a_turn() -> None:
    dialogue = Dialogue(tuple(Turn((None, f"Q{n}"), "yes " * 5 + "no") for n in range(6)))
    whole = build_sequence(text_spec(), dialogue)
    one = build_sequence(text_spec(), dialogue.first(1))
    assert whole.num_cut == 0 and whole.num_images == 6
    for limit in range(len(one.input_ids), len(whole.input_ids)):
        cut = build_sequence(text_spec(max_tokens=limit), dialogue)
        kept = 6 - cut.num_cut
        assert 1 <= kept < 6 and len(cut.input_ids) <= limit
        assert (cut.input_ids == whole.input_ids[: len(cut.input_ids)]).all()
        assert cut.num_images == kept == int(cut.image_mask.sum()) // 4
        assert cut.labels[-1] == encode("#")[0], "it ends with an answer's end symbol"
        longer = build_sequence(text_spec(), dialogue.first(kept + 1))
        assert len(longer.input_ids) > limit, "no turn goes that would fit"
    with pytest.raises(TooLongError, match=f"take {len(one.input_ids)} tokens, text.max_tokens is"):
        build_sequence(text_spec(max_tokens=len(one.input_ids) - 1), dialogue)


# --- from a file to a batch


def test_what_is_packed_is_what_is_trained_on(tmp_path: Path, images: Path) -> None:
    index = packed(tmp_path, images)
    assert (index.num_samples, index.num_shards, index.quarantined) == (len(GOOD), 2, [])
    of_record = [[0], [1, 2], [], [3], [1, 0], []]
    order = SampleOrder([SourceSize(index.name, index.num_samples)], seed=3)
    loader = StepLoader(
        order, [index], text_spec(), 16, LoaderOptions(global_batch_size=6, micro_batch_size=6)
    )
    with loader:
        (batch,) = next(loader)
    shown = iter(batch.images_NCHW)
    for key, ids, mask, labels, attended in zip(
        batch.keys, batch.input_ids_BT, batch.image_mask_BT, batch.labels_BT,
        batch.attention_mask_BT, strict=True,
    ):  # fmt: skip
        number = int(key)
        for image in of_record[number]:
            wanted = decode_image((images / f"{image}.jpg").read_bytes(), 16)
            assert (next(shown).numpy() == wanted).all(), "images follow their samples"
        alone = build_sequence(text_spec(), parse_conversation(GOOD[number]).dialogue)
        assert ids[attended].tolist() == alone.input_ids.tolist()
        assert mask[attended].tolist() == alone.image_mask.tolist()
        assert labels[attended].tolist() == alone.labels.tolist()
    assert next(shown, None) is None
    assert batch.num_answer_tokens == int((batch.labels_BT != NO_LABEL).sum())


def a_shard(folder: Path, *samples: tuple[Record | None, Sequence[int]]) -> Path:
    """A tar of somebody's own: records with the images that are beside them."""
    entries = []
    for number, (record, beside) in enumerate(samples):
        for place, image in enumerate(beside):
            entries.append((f"k{number}.{f'{place}.' if place else ''}jpg", jpeg(image)))
        if record is not None:
            entries.append((f"k{number}.json", json.dumps(record).encode()))
    path = folder / "own.tar"
    path.write_bytes(tar_bytes(entries))
    return path


def test_a_shards_bad_samples_are_quarantined_with_their_reasons(tmp_path: Path) -> None:
    two = llava("<image><image> Q", "A")
    shard = a_shard(
        tmp_path, (two, [0, 1]), (two, [0]), (two, [0, 1, 2]), (llava("Q", "A"), []),
        (llava("Q", "A"), [0]), (llava("Q"), []), ({"no": 1}, []), (None, [0, 1]),
    )  # fmt: skip
    scan = scan_shard(shard, shard.name, verify=True)
    assert scan.keys == [b"k0", b"k3"]
    assert {entry.key: entry.reason for entry in scan.quarantined} == {
        "k1": "its conversation names 2 images, and 1 are there",
        "k2": "its conversation names 2 images, and 3 are there",
        "k4": "its conversation names 0 images, and 1 are there",
        "k5": "its last question has no answer",
        "k6": "it has no image",
        "k7": "it has neither json nor txt",
    }
    assert scan.further is not None and scan.further.ends.tolist() == [1, 1]
    gap = tar_bytes([("k.jpg", jpeg()), ("k.2.jpg", jpeg()), ("k.json", json.dumps(two).encode())])
    shard.write_bytes(gap)
    (entry,) = scan_shard(shard, shard.name).quarantined
    assert entry.reason == "its images are not numbered from 1 to 1"


def test_an_index_of_captions_is_what_it_was(tmp_path: Path) -> None:
    from tests.unit.data.worlds import make_index

    index = make_index(tmp_path, 5)
    assert index.digest == "44d31b2b4d4b2e29f1567c4c60590847"
    assert b"more_" not in index.path.read_bytes()


def test_parts_of_an_index_and_its_stretches_hold_all_images(tmp_path: Path, images: Path) -> None:
    index = packed(tmp_path, images)
    for shard in range(index.num_shards):
        scan = index.scan_of(shard)
        again = scan_shard(index.shard_path(shard), scan.name, verify=True)
        assert scan.digest() == again.digest() and scan.keys == again.keys
    build_index([index.shard_path(0), index.shard_path(1)], index.path, ScanOptions(verify=True))
    assert ShardIndex.open(index.path).digest == index.digest
    stretches = Stretches([index])
    for sample in range(index.num_samples):
        ref, stretch = index.locate(sample), stretches.of(0, sample)
        assert len(ref.images) == len([[0], [1, 2], [], [3], [1, 0], []][sample])
        for span in (*ref.parts.values(), *ref.images):
            assert stretch.begin <= span.offset and span.offset + span.length <= stretch.end
            assert span.crc is not None


def test_a_cache_holds_several_images_or_none(tmp_path: Path) -> None:
    cache = FeatureCache.create(tmp_path / "c", {}, {"a": "d"}, "fp32", (2, 3))
    counts = (1, 0, 3, 2)
    dialogues = [Dialogue((Turn((*[None] * count, "Q"), "A"),)) for count in counts]
    rows = [
        FeatureRow(0, n, f"k{n}", dialogue, np.full((count, 2, 3), n, np.float32))
        for n, (count, dialogue) in enumerate(zip(counts, dialogues, strict=True))
    ]
    write_shard(tmp_path / "c" / "0.safetensors", rows, [], "fp32")
    cache.refresh()
    reader = FeatureReader(cache, ["a"])
    for n, count in enumerate(counts):
        sample, features = reader.read(0, n)
        assert sample.text == dialogues[n]
        assert features.shape == (count, 2, 3) and (features == n).all()
    write_shard(tmp_path / "plain.safetensors", rows[:1], [], "fp32")
    assert b"image_end" not in (tmp_path / "plain.safetensors").read_bytes()
    assert torch.from_numpy(features.copy()).shape == (2, 2, 3)


def test_stats_of_conversations(tmp_path: Path, images: Path) -> None:
    found = collect_stats(packed(tmp_path, images), encode=encode)
    talks = found.conversations
    assert talks is not None and talks.count == found.num_read == len(GOOD)
    assert (talks.turns.minimum, talks.turns.maximum) == (1, 2)
    assert (talks.images.minimum, talks.images.maximum) == (0, 2)
    assert talks.answer_tokens.maximum == len("It has whiskers.###")
    assert found.images.surplus == 2 and found.words is None


# --- mutated files


def mutate_record(record: Record, rng: random.Random) -> None:
    """One thing that people, exporters and editors do to a record."""
    name = "conversations" if "conversations" in record else "messages"
    turns = record.get(name)
    odd = rng.choice(
        [None, "", 7, [], {}, "\ud83d", "<image>", "x" * 50, True, [[[]]], {"type": 1}]
    )
    kind = rng.randrange(8)
    if kind == 0 or not isinstance(turns, list) or not turns:
        record[rng.choice(["image", "images", name, "system", "id"])] = odd
    elif kind == 1:
        del turns[rng.randrange(len(turns))]
    elif kind == 2:
        rng.shuffle(turns)
    elif kind == 3:
        turns.insert(rng.randrange(len(turns) + 1), copy.deepcopy(rng.choice([*turns, odd])))
    elif kind == 4:
        record.pop(rng.choice(list(record)), None)
    else:
        turn = rng.choice(turns)
        if isinstance(turn, dict) and turn:
            turn[rng.choice(list(turn))] = odd


def mutated(rng: random.Random) -> bytes:
    """A file of a few records, damaged in its records or in its bytes."""
    records = copy.deepcopy(rng.sample(GOOD, 3))
    for _ in range(rng.choice((0, 1, 1, 2))):
        mutate_record(rng.choice(records), rng)
    if rng.random() < 0.5:
        data = bytearray(json.dumps(records).encode())
    else:
        data = bytearray("\n".join(map(json.dumps, records)).encode())
    for _ in range(rng.choice((0, 0, 1, 2))):
        at = rng.randrange(max(1, len(data)))
        change = rng.randrange(4)
        if change == 0:
            del data[at:]
        elif change == 1:
            del data[at : at + rng.randrange(1, 40)]
        elif change == 2:
            data[at : at + 1] = rng.randbytes(1)
        else:
            data[at:at] = rng.choice(
                [b"\xff", b"\xef\xbb\xbf", b"{", b"]", b'"', b"\\ud83d", b"\n"]
            )
    return bytes(data)


def records_in(data: bytes) -> Iterator[Any]:
    """What a plain parser finds; nothing where it finds no whole values."""
    try:
        words = data.decode("utf-8-sig")
        if words.lstrip().startswith("["):
            yield from json.loads(words)
            return
        for line in words.split("\n"):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError:
                    yield None
    except ValueError:
        return


@pytest.mark.slow
@pytest.mark.parametrize("count", [120, pytest.param(5000, marks=pytest.mark.soak)])
def test_a_mutated_file_ends_in_a_clean_error_or_in_right_samples(
    tmp_path: Path, images: Path, count: int
) -> None:
    rng = random.Random(19)
    good = bad = 0
    for number in range(count):
        data = mutated(rng)
        file = tmp_path / "talk.json"
        file.write_bytes(data)
        out = tmp_path / f"out{number}"
        try:
            made = pack_conversations(file, out, images=images, leave_out_bad=True)
        except DataError as error:
            assert str(error) and not out.exists()
            bad += 1
            continue
        found = list(records_in(data))
        assert made.num_samples + len(made.bad) == len(found)
        build_index(made.shards, tmp_path / "talk.index")
        index = ShardIndex.open(tmp_path / "talk.index")
        assert index.quarantined == [] and index.num_samples == made.num_samples
        reader = SampleReader([index])
        for sample_id in range(index.num_samples):
            sample = reader.read(0, sample_id)
            record = found[int(sample.key)]
            listed = record.get("images") or record.get("image") or []
            listed = [listed] if isinstance(listed, str) else listed
            assert sample.images == tuple((images / name).read_bytes() for name in listed)
            assert isinstance(sample.text, Dialogue)
            answers = [turn.answer for turn in sample.text.turns]
            said = [
                turn.get("value", turn.get("content"))
                for turn in record.get("conversations") or record.get("messages")
            ]
            told = [
                "".join(str(piece.get("text") or "") for piece in part)
                if isinstance(part, list)
                else part
                for part in said
            ]
            assert all(answer and answer in [str(t).strip() for t in told] for answer in answers)
            build_sequence(text_spec(), sample.text)
            good += 1
        reader.close()
    assert good > count / 2 and bad > count / 20
