"""A run on conversations mixed with captions: from images, from a cache, and what it then says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mgpt4_hpc.data.batching.batch_builder as batch_builder
from mgpt4_hpc.chat.session import ChatSession
from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import write_config
from mgpt4_hpc.data.encoding.plan import missing_from
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.model.generation.chat_model import ChatModel, find_source
from mgpt4_hpc.model.generation.sampling import Sampling
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.train.inputs.feature_encoding import Encoding
from mgpt4_hpc.train.run import run_training
from mgpt4_hpc.train.stopping.stop import NeverStop
from tests.support.conversations import write_conversations
from tests.support.runs import curve
from tests.support.tiny_world import REFERENCE, TinyWorld


def test_from_images_and_from_a_cache_it_learns_the_same_and_then_talks(
    tiny_world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talks = write_conversations(tmp_path / "talks", 24)
    sources = [
        {"name": "talks", "path": str(talks), "weight": 1},
        {"name": "cc_sbu_align", "path": str(tiny_world.align), "weight": 1},
    ]

    def config_file(name: str, **data: Any) -> Path:
        return tiny_world.write_config(
            tmp_path / f"{name}.yaml", stage=2, train__max_steps=6, train__eval_every_steps=3,
            train__eval_samples=6, model__projector=str(REFERENCE / "pretrained_minigpt4.pth"),
            text={"max_answer_tokens": 24, "max_tokens": 120, "system": "be brief"},
            data={"sources": sources, "num_workers": 0, "val_fraction": 0.2, **data},
        )  # fmt: skip

    def train(name: str, **data: Any) -> Path:
        run = RunDir(tmp_path / name)
        run.create({"name": name, "stage": 2})
        write_config(run.config_file, load_config(config_file(name, **data)))
        run_training(run, Ranks(), NeverStop(), claim={"job_id": "1"})
        return run.path

    seen = train("seen")
    cut = [value for _, value in curve(seen, "data/cut_turns")]
    assert cut and min(cut) >= 1, "long conversations lose turns, and that is counted"
    encoding = Encoding(load_config(config_file("encode")).config, tmp_path / "cache", dtype="fp32")
    encoding.run()
    assert missing_from(encoding.plan, encoding.cache) == 0

    def unwanted(*args: object, **kwargs: object) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(batch_builder, "decode_image", unwanted)
    stored = train("stored", feature_cache=str(tmp_path / "cache"))
    for tag in ("train/loss", "val/loss"):
        for (step, ours), (_, exact) in zip(curve(stored, tag), curve(seen, tag), strict=True):
            assert ours == pytest.approx(exact, rel=1e-5), (tag, step)

    chat_model = ChatModel(find_source(seen), device="cpu")
    session = ChatSession(chat_model, Sampling(max_new_tokens=4))
    session.add_image(next((tmp_path / "talks" / "images").iterdir()))
    for question in ("a red dog", "the big house"):
        for _ in session.ask(question):
            pass
    assert len(session.conversation.turns) == 2
    prompt = chat_model.prompt(session.conversation.dialogue("why"))
    texts = [chat_model.tokenizer.decode(run.ids) for run in prompt if run is not None]
    assert "be brief" in "".join(texts)
