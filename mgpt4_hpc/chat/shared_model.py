"""Many visitors and several checkpoints around one model, which answers them side by side."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mgpt4_hpc.chat.engine import Engine
from mgpt4_hpc.chat.session import ChatSession, Ways
from mgpt4_hpc.chat_format import Layout
from mgpt4_hpc.errors import ConfigError, DataError
from mgpt4_hpc.model.generation.answer import Answer
from mgpt4_hpc.model.generation.chat_model import (
    ChatModel,
    ModelSource,
    Trained,
    same_towers,
    with_distinct_names,
)
from mgpt4_hpc.model.generation.sampling import Sampling
from mgpt4_hpc.prompts import Dialogue

MAX_IMAGES = 16
"""Images of one conversation; more would not fit a context of 2,048 tokens anyway."""

_CACHE_SHARE = 0.4
"""Share of free memory for the cache: joins and leaves copy a layer, and prompts need room."""

PAGE = Ways(
    add="attach one to the question, or drop it there",
    reset='start a new one with "New conversation"',
)
"""Visitors have a page, not a command line."""


@dataclass
class Visitor:
    """One person's conversation.

    Attributes:
        session: what was said, and what the towers saw.
        pictures: of each image, in order, something small to show.
        speaker: name of the checkpoint that answered so far.
        turn: held while it is answered: a conversation has one question at a time.
    """

    session: ChatSession
    pictures: list[str] = field(default_factory=list)
    speaker: str = ""
    turn: threading.Lock = field(default_factory=threading.Lock)


def require_shared(sources: Sequence[ModelSource]) -> None:
    """Raises ConfigError unless one model can answer for all of the sources."""
    first = sources[0]
    for other in sources[1:]:
        if not same_towers(first, other):
            raise ConfigError(
                f"{first.name} and {other.name} cannot share one model: "
                f"{_towers(first)} is not {_towers(other)}",
                why="only the projector, and LoRA of one kind, can be changed while it runs",
                fix="serve them apart, on two ports",
            )


class Place:
    """A session's place at the model that all share (``session.Answering``)."""

    def __init__(self, shared_model: SharedModel, trained: Trained) -> None:
        self._shared_model = shared_model
        self.trained = trained

    @property
    def source(self) -> ModelSource:
        """See ``session.Answering``."""
        return self.trained.source

    @property
    def image_size(self) -> int:
        """See ``session.Answering``."""
        return self._shared_model.chat_model.image_size

    def encode(self, images_u8_NCHW: torch.Tensor) -> torch.Tensor:
        """See ``session.Answering``."""
        shared_model = self._shared_model
        return shared_model.engine.call(lambda: shared_model.chat_model.encode(images_u8_NCHW))

    def encode_each(self, images_u8_1CHW: Sequence[torch.Tensor]) -> torch.Tensor:
        """See ``session.Answering``."""
        shared_model = self._shared_model
        return shared_model.engine.call(lambda: shared_model.chat_model.encode_each(images_u8_1CHW))

    def prompt(self, dialogue: Dialogue) -> Layout:
        """See ``session.Answering``."""
        return self._shared_model.prompt(dialogue, self.trained)

    def max_answer_tokens(self, prompt: Layout) -> int | None:
        """See ``session.Answering``."""
        return self._shared_model.chat_model.max_answer_tokens(prompt)

    def stream(
        self, prompt: Layout, features_NIQ: torch.Tensor, sampling: Sampling
    ) -> Generator[str, None, Answer]:
        """See ``session.Answering``. With beams, other answers stand still meanwhile."""
        engine, chat_model = self._shared_model.engine, self._shared_model.chat_model
        if sampling.num_beams == 1:
            return (yield from engine.pieces(self.trained, prompt, features_NIQ, sampling))

        def answer() -> Answer:
            """The whole answer, from this visitor's checkpoint."""
            chat_model.use(self.trained)
            return chat_model.answers([prompt], [features_NIQ], sampling)[0]

        whole = engine.call(answer)
        yield whole.text
        return whole


class SharedModel:
    """The model with its checkpoints, shared by all visitors.

    Args:
        chat_model: the model, built for any of the sources.
        sources: checkpoints to choose from; their trained weights are read here and kept.

    Attributes:
        chat_model: the model; only the engine's thread computes with it.
        engine: answers.

    Raises:
        ConfigError: if the sources cannot share a model.
        WeightsError: if one of them cannot be read, or is of another variant.
    """

    def __init__(self, chat_model: ChatModel, sources: Sequence[ModelSource]) -> None:
        require_shared(sources)
        self.chat_model = chat_model
        self._trained = {
            source.name: chat_model.read(source) for source in with_distinct_names(sources)
        }
        self._tokenizing = threading.Lock()
        self.engine = Engine(chat_model, max_columns(chat_model))

    @property
    def speakers(self) -> list[str]:
        """Names of the checkpoints, in the order in which they were given."""
        return list(self._trained)

    def close(self) -> None:
        """Break off the answers that are being given, and refuse others."""
        self.engine.close()

    def visitor(self) -> Visitor:
        """A new conversation."""
        first = next(iter(self._trained.values()))
        return Visitor(ChatSession(Place(self, first), Sampling(), PAGE))

    def trained(self, speaker: str) -> Trained:
        """A checkpoint by its name. Raises ConfigError if it is not served."""
        if speaker not in self._trained:
            raise ConfigError(
                f"no checkpoint {speaker!r} is served", fix=f"choose of {', '.join(self.speakers)}"
            )
        return self._trained[speaker]

    def prompt(self, dialogue: Dialogue, trained: Trained) -> Layout:
        """As ``ChatModel.prompt``; threads take turns, since tokenizers cannot be shared."""
        with self._tokenizing:
            return self.chat_model.prompt(dialogue, trained.source)

    def show(self, visitor: Visitor, data: bytes, name: str, picture: str) -> None:
        """Add an image to the next question.

        Args:
            visitor: whose.
            data: the compressed image.
            name: for messages.
            picture: what the page shows of it.

        Raises:
            DataError: if it cannot be used, or is one too many.
        """
        if len(visitor.pictures) >= MAX_IMAGES:
            raise DataError(
                f"{name} is one image too many: a conversation may have {MAX_IMAGES}",
                fix=PAGE.reset,
            )
        visitor.session.add_picture(data, name)
        visitor.pictures.append(picture)

    def ask(
        self, visitor: Visitor, speaker: str, question: str, sampling: Sampling
    ) -> Generator[str, None, Answer]:
        """The answer of a checkpoint, piece by piece.

        Another checkpoint than before begins a new conversation with the same images: the earlier
        answers are not its own.

        Raises:
            ConfigError: as ``ChatSession.ask``, or if there is no such checkpoint.
            Busy: if too many wait already.
            Closing: if the server stops meanwhile.
        """
        trained = self.trained(speaker)
        with visitor.turn:
            if visitor.speaker != speaker:
                visitor.session.chat_model = Place(self, trained)
                visitor.session.start_over()
                visitor.speaker = speaker
            visitor.session.sampling = sampling
            return (yield from visitor.session.ask(question))


def max_columns(chat_model: ChatModel) -> int | None:
    """Columns of the key-value cache that fit the GPU's free memory; None on a CPU."""
    device = chat_model.model.device
    if device.type != "cuda":
        return None
    config: Any = chat_model.model.language_model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    column = 2 * config.num_hidden_layers * heads * width * chat_model.model.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * _CACHE_SHARE) // column


def _towers(source: ModelSource) -> str:
    settings = source.config.model if source.config else None
    if settings is None:
        return str(source.weights)
    return (
        f"{source.weights} (vision_precision {settings.vision_precision}, "
        f"ln_vision {settings.ln_vision}, llm_8bit {settings.llm_8bit})"
    )
