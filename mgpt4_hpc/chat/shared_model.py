"""Many visitors and several checkpoints around one model: whoever asks has it until the answer."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from mgpt4_hpc.chat.session import ChatSession, Ways
from mgpt4_hpc.errors import ConfigError, DataError
from mgpt4_hpc.model.generation.answer import Answer
from mgpt4_hpc.model.generation.chat_model import ChatModel, Source, same_towers, tell_apart
from mgpt4_hpc.model.generation.sampling import Sampling

MAX_IMAGES = 16
"""Images of one conversation; more would not fit a context of 2,048 tokens anyway."""

PAGE = Ways(
    add="add one by the clip beside the question, or drop it there",
    anew='begin a new one with "New conversation"',
)
"""Visitors have a page, not a command line."""


class Closing(Exception):
    """The server is being stopped; what was being answered is broken off."""


@dataclass
class Visitor:
    """One person's conversation.

    Attributes:
        session: what was said, and what the towers saw.
        pictures: of each image, in order, something small to show.
        speaker: name of the checkpoint that answered so far.
    """

    session: ChatSession
    pictures: list[str] = field(default_factory=list)
    speaker: str = ""


def require_shared(sources: Sequence[Source]) -> None:
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


class SharedModel:
    """The model, and whose turn it is.

    Args:
        chat_model: the model, built for any of the sources.
        sources: checkpoints to choose from; their trained weights are read here and kept.

    Raises:
        ConfigError: if the sources cannot share a model.
        WeightsError: if one of them cannot be read, or is of another variant.
    """

    def __init__(self, chat_model: ChatModel, sources: Sequence[Source]) -> None:
        require_shared(sources)
        self._chat_model = chat_model
        self._trained = {source.name: chat_model.read(source) for source in tell_apart(sources)}
        self._turn = threading.Lock()
        self._closing = threading.Event()

    @property
    def speakers(self) -> list[str]:
        """Names of the checkpoints, in the order in which they were given."""
        return list(self._trained)

    def close(self) -> None:
        """Break off the answer that is being given, and refuse others."""
        self._closing.set()

    def visitor(self) -> Visitor:
        """A new conversation."""
        return Visitor(ChatSession(self._chat_model, Sampling(), PAGE))

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
                fix=PAGE.anew,
            )
        with self._model():
            visitor.session.add_picture(data, name)
        visitor.pictures.append(picture)

    def ask(
        self, visitor: Visitor, speaker: str, question: str, sampling: Sampling
    ) -> Generator[str, None, Answer]:
        """The answer of a checkpoint, piece by piece; nobody else is answered meanwhile.

        Another checkpoint than before begins anew with the same images: it has not said what the
        other one said.

        Raises:
            ConfigError: as ``ChatSession.ask``, or if there is no such checkpoint.
            Closing: if the server stops meanwhile.
        """
        if speaker not in self._trained:
            raise ConfigError(
                f"no checkpoint {speaker!r} is served", fix=f"choose of {', '.join(self.speakers)}"
            )
        with self._model():
            trained = self._trained[speaker]
            if self._chat_model.source != trained.source:
                self._chat_model.use(trained)
            if visitor.speaker != speaker:
                visitor.session.start_over()
                visitor.speaker = speaker
            visitor.session.sampling = sampling
            pieces = visitor.session.ask(question)
            while True:
                if self._closing.is_set():
                    raise Closing
                try:
                    yield next(pieces)
                except StopIteration as end:
                    answer: Answer = end.value
                    return answer

    @contextmanager
    def _model(self) -> Iterator[None]:
        with self._turn:
            if self._closing.is_set():
                raise Closing
            yield


def _towers(source: Source) -> str:
    settings = source.config.model if source.config else None
    if settings is None:
        return str(source.weights)
    return (
        f"{source.weights} (vision_precision {settings.vision_precision}, "
        f"ln_vision {settings.ln_vision}, llm_8bit {settings.llm_8bit})"
    )
