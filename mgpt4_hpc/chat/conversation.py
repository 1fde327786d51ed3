"""A conversation about images: what was said, and how the language model gets to read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgpt4_hpc import prompts
from mgpt4_hpc.errors import ConfigError, DataError
from mgpt4_hpc.output_files import check_output
from mgpt4_hpc.prompts import Dialogue, Template
from mgpt4_hpc.run_dir import write_json
from mgpt4_hpc.text_files import parse_json

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ChatTurn:
    """A question and its answer.

    Attributes:
        question: what the person wrote.
        answer: what the model said, without its end symbol.
        images: names of the images that were shown with the question.
    """

    question: str
    answer: str
    images: tuple[str, ...] = ()


@dataclass
class Conversation:
    """Turns so far, with one language model.

    Attributes:
        template: the format that it is held in.
        turns: what was said.
        pending: names of images that go with the next question.
    """

    template: Template
    turns: list[ChatTurn] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)

    @property
    def images(self) -> list[str]:
        """Names of all images, in the order in which the model sees them."""
        return [name for turn in self.turns for name in turn.images] + self.pending

    def dialogue(self, question: str) -> Dialogue:
        """Everything said so far and the question; its images stand before each question.

        Raises:
            ConfigError: if the question is empty.
        """
        if not question.strip():
            raise ConfigError("the question is empty", fix="ask something about the image")
        asked = [(len(turn.images), turn.question, turn.answer) for turn in self.turns]
        return Dialogue(
            tuple(
                prompts.Turn((*[None] * num_images, text), answer)
                for num_images, text, answer in [*asked, (len(self.pending), question, None)]
            )
        )

    def add(self, question: str, answer: str) -> ChatTurn:
        """Note a turn; the pending images belong to it."""
        turn = ChatTurn(question, answer, tuple(self.pending))
        self.turns.append(turn)
        self.pending = []
        return turn

    def clear(self) -> None:
        """Forget everything."""
        self.turns.clear()
        self.pending.clear()

    def save(self, path: Path) -> None:
        """Write the conversation as JSON; an earlier one in that file is replaced.

        Raises:
            ConfigError: if its folder is missing, or it holds anything else.
            DataError: if it cannot be written.
        """
        check_output(path, kind="a conversation", is_own=_holds_conversation)
        try:
            write_json(path, self.to_dict())
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}") from error

    def to_dict(self) -> dict[str, Any]:
        """The conversation as JSON values."""
        return {
            "format_version": FORMAT_VERSION,
            "template": self.template.name,
            "turns": [
                {"question": turn.question, "answer": turn.answer, "images": list(turn.images)}
                for turn in self.turns
            ],
            "pending": list(self.pending),
        }

    @classmethod
    def load(cls, path: Path, template: Template) -> Conversation:
        """A saved conversation, to be continued in ``template``.

        Raises:
            DataError: if the file is missing, or no conversation.
            ConfigError: if it was held in another format.
        """
        try:
            name, turns, pending = _read(path)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is no saved conversation", fix="give a file written by /save"
            ) from error
        if name != template.name:
            raise ConfigError(
                f"{path} was held in the format {name}, this model speaks {template.name}",
                why="it would read its own earlier answers as something else",
                fix="use the checkpoint that the conversation was held with",
            )
        return cls(template, turns, pending)


def _read(path: Path) -> tuple[str, list[ChatTurn], list[str]]:
    """Format, turns and pending images of a file; raises whatever reading and parsing raise."""
    saved = parse_json(path.read_text(encoding="utf-8"))
    turns = [
        ChatTurn(str(turn["question"]), str(turn["answer"]), tuple(map(str, turn["images"])))
        for turn in saved["turns"]
    ]
    return saved["template"], turns, [str(image) for image in saved["pending"]]


def _holds_conversation(path: Path) -> bool:
    try:
        _read(path)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True
