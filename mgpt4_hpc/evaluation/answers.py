"""Answers of a trained projector to a folder of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from mgpt4_hpc.data.images.decode import decode_image
from mgpt4_hpc.model.bundle.bundle import Bundle
from mgpt4_hpc.model.conversion.importer import import_projector
from mgpt4_hpc.model.generation.generate import Answer, generate_from_features
from mgpt4_hpc.model.llm_files.tokenizer import load_tokenizer
from mgpt4_hpc.model.nn.lora import use_lora_beside
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4, build_model
from mgpt4_hpc.model.nn.preprocess import normalise
from mgpt4_hpc.model.weight_files.untrusted_files import read_tensors


class Answerer:
    """One model that answers with several projectors; the frozen towers see each image once.

    Args:
        bundle: the frozen weights.
        images: files to be answered about.
        batch_size: images and answers at a time.
    """

    def __init__(self, bundle: Bundle, images: Sequence[Path], *, batch_size: int = 25) -> None:
        self._model: MiniGPT4 = build_model(bundle)
        self._tokenizer = load_tokenizer(bundle.llm_dir)
        self._batch_size = batch_size
        self._features_NIQ = torch.cat(
            [
                self._encode(images[i : i + batch_size], bundle)
                for i in range(0, len(images), batch_size)
            ]
        )

    def _encode(self, images: Sequence[Path], bundle: Bundle) -> torch.Tensor:
        size = bundle.architecture.image_size
        pixels = [torch.from_numpy(decode_image(path.read_bytes(), size)) for path in images]
        return self._model.encode_images(normalise(torch.stack(pixels)))

    def answers(
        self,
        projector: Path,
        prompt: str,
        *,
        stop: str,
        max_new_tokens: int,
        on_batch: Callable[[int], None] = lambda count: None,
    ) -> list[Answer]:
        """One answer per image.

        Args:
            projector: weight file of ``llama_proj``.
            prompt: full prompt with one image slot.
            stop: symbol that ends an answer.
            max_new_tokens: limit per answer.
            on_batch: called with the number of answers of each batch.
        """
        tensors, _ = import_projector(read_tensors(projector), str(projector))
        self._model.llama_proj.load_state_dict(dict(tensors))
        use_lora_beside(self._model.language_model, projector)
        found: list[Answer] = []
        for features_BIQ in self._features_NIQ.split(self._batch_size):
            found += generate_from_features(
                self._model,
                self._tokenizer,
                features_BIQ,
                [prompt] * len(features_BIQ),
                max_new_tokens=max_new_tokens,
                stop=stop,
            )
            on_batch(len(features_BIQ))
        return found
