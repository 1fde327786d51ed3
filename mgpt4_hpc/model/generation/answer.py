"""An answer while it grows: where it ends, and which part of its text can be shown already."""

from __future__ import annotations

from dataclasses import dataclass

from mgpt4_hpc.model.llm_files.tokenizer import TextTokenizer

_INCOMPLETE = "\ufffd"
"""What bytes decode to that are not yet a whole character."""


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
        text: without the stop symbol and what follows it.
        stopped: whether it ended by itself, not by the limit.
        token_ids: every generated id, those of the stop symbol included.
    """

    text: str
    stopped: bool
    token_ids: tuple[int, ...]


class GrowingAnswer:
    """Takes tokens one by one until the answer ends.

    Args:
        tokenizer: turns them into text.
        stop: text that ends the answer beside the end token, or several; empty for none.
    """

    def __init__(self, tokenizer: TextTokenizer, stop: str | tuple[str, ...] = "") -> None:
        self.tokenizer = tokenizer
        self.stops = tuple(filter(None, (stop,) if isinstance(stop, str) else stop))
        self.tokens: list[int] = []
        self.stopped = False
        self._shown = ""

    def take(self, token: int) -> None:
        """Append a token unless the answer has ended; notice its end."""
        if self.stopped:
            return
        self.tokens.append(token)
        ended = token == self.tokenizer.eos_id
        # The whole answer is decoded: some tokens change their text with what stands before them.
        self.stopped = ended or bool(self.stops and self._first_stop(self._decoded()) is not None)

    def answer(self) -> Answer:
        """The answer as far as it goes."""
        text = self._decoded()
        text = text[: self._first_stop(text)]
        return Answer(text.strip(), self.stopped, tuple(self.tokens))

    def piece(self, last: bool = False) -> str:
        """Text that was not handed out before and that no later token can take back.

        What may be the beginning of a stop text, of a character, or white space at the end
        waits for what follows it. The pieces together are ``answer().text``.

        Args:
            last: no token will follow: hand out the rest.
        """
        text = self.answer().text if last or self.stopped else self._settled()
        new = text[len(self._shown) :]
        self._shown += new
        return new

    def _first_stop(self, text: str) -> int | None:
        """Where the first of the stop texts begins, if any does."""
        return min((text.index(stop) for stop in self.stops if stop in text), default=None)

    def _decoded(self) -> str:
        tokens = self.tokens
        if tokens and tokens[-1] == self.tokenizer.eos_id:
            tokens = tokens[:-1]
        return self.tokenizer.decode(tokens)

    def _settled(self) -> str:
        # Bytes in a row decode together: one that does not fit makes all of them unreadable.
        end = len(self.tokens)
        while end and self.tokenizer.is_byte(self.tokens[end - 1]):
            end -= 1
        text = self.tokenizer.decode(self.tokens[:end]).rstrip(_INCOMPLETE)
        begun = [
            length
            for stop in self.stops
            for length in range(1, min(len(stop), len(text)) + 1)
            if stop.startswith(text[-length:])
        ]
        return text[: len(text) - max(begun, default=0)].strip()
