"""A conversation with a model behind it; no screen, no keyboard.

Shapes: N images, I image tokens, Q projector's input width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from mgpt4_hpc.chat.conversation import Conversation
from mgpt4_hpc.chat_format import Layout
from mgpt4_hpc.data.images.image_file import picture_pixels, read_picture
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.model.generation.answer import Answer
from mgpt4_hpc.model.generation.chat_model import ModelSource
from mgpt4_hpc.model.generation.generate import Sampling
from mgpt4_hpc.prompts import Dialogue

MIN_ANSWER_TOKENS = 16
"""With less room than this the conversation is full; a shorter answer would be a fragment."""


@dataclass(frozen=True)
class Ways:
    """What the user can do, in the words of the interface (terminal or page).

    Attributes:
        reset: how to start a new conversation.
        add: how to add an image, where each conversation must have one; "" where none needs any.
    """

    reset: str
    add: str = ""


TERMINAL = Ways(reset="start a new one with /reset")


class Answering(Protocol):
    """What a session needs of a model: a ``ChatModel``, or a place at one that others use too."""

    @property
    def source(self) -> ModelSource:
        """The checkpoint that answers."""

    @property
    def image_size(self) -> int:
        """Side of the square that images are brought to, in pixels."""

    def encode(self, images_u8_NCHW: torch.Tensor) -> torch.Tensor:
        """See ``ChatModel.encode``."""

    def encode_each(self, images_u8_1CHW: Sequence[torch.Tensor]) -> torch.Tensor:
        """See ``ChatModel.encode_each``."""

    def prompt(self, dialogue: Dialogue) -> Layout:
        """See ``ChatModel.prompt``."""

    def max_answer_tokens(self, prompt: Layout) -> int | None:
        """See ``ChatModel.max_answer_tokens``."""

    def stream(
        self, prompt: Layout, features_NIQ: torch.Tensor, sampling: Sampling
    ) -> Generator[str, None, Answer]:
        """See ``ChatModel.stream``."""


class ChatSession:
    """Images in, questions in, answers out, piece by piece.

    Args:
        chat_model: answers.
        sampling: how it answers.
        ways: what errors advise.

    Attributes:
        context_is_limit: whether the context, and not the sampling, limits the last answer.
    """

    def __init__(self, chat_model: Answering, sampling: Sampling, ways: Ways = TERMINAL) -> None:
        self.chat_model = chat_model
        self.sampling = sampling
        self.ways = ways
        self.conversation = Conversation(chat_model.source.template)
        self.context_is_limit = False
        self._features: list[torch.Tensor] = []

    def add_image(self, path: Path) -> None:
        """Show a picture's file with the next question. Raises DataError if it is none."""
        self.add_picture(read_picture(path), str(path.absolute()))

    def add_picture(self, data: bytes, name: str) -> None:
        """Show a picture with the next question; the towers look at it once, here and now.

        Raises:
            DataError: if it cannot be decoded or has too many pixels.
        """
        pixels = torch.from_numpy(picture_pixels(data, self.chat_model.image_size, name))
        self._features.append(self.chat_model.encode(pixels.unsqueeze(0)))
        self.conversation.pending.append(name)

    def ask(self, question: str) -> Generator[str, None, Answer]:
        """The answer, piece by piece; noted in the conversation once it is complete.

        An answer that is abandoned in the middle leaves the conversation as it was.

        Raises:
            ConfigError: if the question is empty, an image is needed and there is none yet, or the
                conversation fills the language model's context.
        """
        question = question.strip()
        dialogue = self.conversation.dialogue(question)
        if not self._features and self.ways.add:
            raise ConfigError("there is no image to talk about yet", fix=self.ways.add)
        seen = self._features
        features_NIQ = torch.cat(seen) if seen else self.chat_model.encode_each([])
        prompt = self.chat_model.prompt(dialogue)
        answer = yield from self.chat_model.stream(prompt, features_NIQ, self._fitting(prompt))
        self.conversation.add(question, answer.text)
        return answer

    def reset(self) -> None:
        """Begin a new conversation, without images."""
        self.conversation.clear()
        self._features.clear()

    def start_over(self) -> None:
        """Begin a new conversation with the same images, in the format of the model in use."""
        images = self.conversation.images
        self.conversation = Conversation(self.chat_model.source.template, pending=images)

    def save(self, path: Path) -> None:
        """Write the conversation to a file; its images are kept as paths."""
        self.conversation.save(path)

    def resume(self, path: Path) -> None:
        """Continue a saved conversation; its images are read again from where they were.

        Raises:
            DataError: if the file or one of its images cannot be read.
            ConfigError: if it was held in another format.
        """
        saved = Conversation.load(path, self.chat_model.source.template)
        self.reset()
        for name in saved.images:
            self.add_image(Path(name))
        self.conversation = saved

    def _fitting(self, prompt: Layout) -> Sampling:
        """The sampling, shortened to what is left of the context."""
        room = self.chat_model.max_answer_tokens(prompt)
        self.context_is_limit = room is not None and room <= self.sampling.max_new_tokens
        return fitting(self.sampling, room, self.ways)


def fitting(sampling: Sampling, room: int | None, ways: Ways) -> Sampling:
    """The sampling with an answer no longer than ``room`` tokens; None is no limit.

    Raises:
        ConfigError: if the room is too small for an answer.
    """
    if room is None or room >= sampling.max_new_tokens:
        return sampling
    if room < MIN_ANSWER_TOKENS:
        raise ConfigError(
            f"the conversation fills the language model's context: {max(room, 0)} "
            f"tokens are left for an answer, at least {MIN_ANSWER_TOKENS} are needed",
            fix=f"{ways.reset}, or ask something shorter",
        )
    return dataclasses.replace(sampling, max_new_tokens=room)
