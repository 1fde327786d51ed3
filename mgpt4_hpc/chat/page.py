"""The web page: a conversation, its images, the sliders, and who answers. Laid out by Gradio."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from mgpt4_hpc.chat.engine import MAX_ROWS, Busy, Closing
from mgpt4_hpc.chat.limits import Limits
from mgpt4_hpc.chat.shared_model import SharedModel, Visitor
from mgpt4_hpc.data.images.image_file import read_picture, require_few_pixels, thumbnail
from mgpt4_hpc.errors import DataError, MgptError
from mgpt4_hpc.model.generation.answer import Answer
from mgpt4_hpc.model.generation.sampling import Sampling

_PICTURE_SIDE = 256
_REFRESH_S = 0.1
"""A growing answer is sent this often: a page cannot show more, and 20 visitors share a core."""
_WAITING = 64
"""Questions that may wait for the model; more get the answer that it is busy."""
_VISITS = 200
"""Conversations kept; the oldest is forgotten for one more."""

STYLE = """
.talk .message-content { white-space: pre-wrap; overflow-wrap: anywhere }
.talk img.shown { max-width: 10rem; max-height: 10rem; border-radius: .4rem; margin: .2rem 0 }
footer { display: none !important }
"""
"""The page's own style rules; the server inserts them."""
# A page that is loaded again is another visit: browsers ask before they leave this one.
HEAD = """<script>
addEventListener("beforeunload", (event) => {
  if (document.querySelector(".talk [data-testid=user]")) event.preventDefault();
});
</script>"""
"""What the page's head needs beside Gradio's own; the server inserts it."""

Answering = Callable[..., Generator[tuple[Any, ...], None, None]]


@dataclass(frozen=True)
class _Widgets:
    """What the page consists of, as far as anything is read from or shown in it.

    Attributes:
        visitor: the visitor's conversation, None before its first question.
        talk: shows it.
        box: question and images.
        stop, reset: buttons.
        speaker: chooses who answers.
        sliders: of the sampling, in the order of ``_sampling``'s arguments.
    """

    visitor: gr.State
    talk: gr.Chatbot
    box: gr.MultimodalTextbox
    stop: gr.Button
    reset: gr.Button
    speaker: gr.Dropdown
    sliders: list[gr.components.Component]


def build_page(
    shared_model: SharedModel, start: Sampling, limits: Limits, uploads: Path
) -> gr.Blocks:
    """The page, not yet served.

    Args:
        shared_model: answers.
        start: where the sliders stand at first.
        limits: of uploads and answers.
        uploads: folder that Gradio keeps uploads in; each is deleted once it was looked at.
    """
    with gr.Blocks(title="mgpt4", analytics_enabled=False, fill_height=True) as page:
        widgets = _lay_out(shared_model.speakers, start, limits)
        _connect(widgets, _answering(shared_model, start, limits, uploads))
    # Not open: a question that is sent past the queue would not wait for its turn.
    page.queue(max_size=_WAITING, api_open=False, default_concurrency_limit=MAX_ROWS)
    page.state_session_capacity = _VISITS
    return page


def _lay_out(speakers: Sequence[str], start: Sampling, limits: Limits) -> _Widgets:
    visitor = gr.State(None)
    with gr.Row(equal_height=False):
        with gr.Column(scale=3):
            talk = gr.Chatbot(
                label="Conversation",
                elem_classes="talk",
                height="65vh",
                render_markdown=False,
                buttons=["copy", "copy_all"],
                feedback_options=None,
                placeholder="Add an image and ask about it.",
            )
            box = gr.MultimodalTextbox(
                show_label=False,
                placeholder="Ask a question; attach or drop images",
                sources=["upload"],
                file_count="multiple",
                autofocus=True,
                elem_id="question",
            )
            with gr.Row():
                stop = gr.Button("Stop", size="sm")
                reset = gr.Button("New conversation", size="sm")
        with gr.Column(scale=1, min_width=260):
            speaker = gr.Dropdown(
                speakers,
                value=speakers[0],
                label="Checkpoint",
                info="Another one starts a new conversation with the same images.",
                elem_id="speaker",
            )
            sliders = _sliders(start, limits)
    return _Widgets(visitor, talk, box, stop, reset, speaker, sliders)


def _answering(
    shared_model: SharedModel, start: Sampling, limits: Limits, uploads: Path
) -> Answering:
    """What happens to a question: its images are taken, and the answer is shown as it grows."""

    def answer(
        message: dict[str, Any], visitor: Visitor | None, speaker: str, *values: float
    ) -> Generator[tuple[Any, ...], None, None]:
        """Yield the page's values: first with the images taken, then as the answer grows."""
        visitor = visitor or shared_model.visitor()
        question = message.get("text") or ""
        whole = None
        with _told():
            refused = _take_images(
                shared_model, visitor, message.get("files") or [], limits, uploads
            )
            # The images are in the conversation now; a refused question stays to be mended.
            yield _messages(visitor), {"text": question, "files": []}, visitor
            if refused is not None:
                raise refused
            growing = _Growing(
                shared_model.ask(visitor, speaker, question, _sampling(start, *values))
            )
            for text in growing:
                yield _messages(visitor, question, text), None, visitor
            whole = growing.whole
        if whole is None:
            yield _messages(visitor), {"text": question, "files": []}, visitor
            return
        yield _messages(visitor), None, visitor
        if not whole.stopped:
            gr.Info(
                "The answer was cut off: the conversation fills the model's context."
                if visitor.session.context_is_limit
                else "The answer was cut off at the limit of tokens; the slider raises it."
            )

    return answer


class _Growing:
    """The answer so far, as often as a page can show it; in the end ``whole`` is all of it."""

    def __init__(self, pieces: Generator[str, None, Answer]) -> None:
        self._pieces = pieces
        self.whole: Answer | None = None

    def __iter__(self) -> Iterator[str]:
        text, shown_at = "", 0.0
        while True:
            try:
                text += next(self._pieces)
            except StopIteration as end:
                self.whole = end.value
                return
            if time.monotonic() - shown_at >= _REFRESH_S:
                shown_at = time.monotonic()
                yield text


def _connect(widgets: _Widgets, answer: Answering) -> None:
    visitor, talk, box = widgets.visitor, widgets.talk, widgets.box
    asked = box.submit(
        answer,
        [box, visitor, widgets.speaker, *widgets.sliders],
        [talk, box, visitor],
        concurrency_id="model",
        concurrency_limit=1,
        show_progress="minimal",
        show_progress_on=talk,
        api_name="ask",
    )
    widgets.stop.click(
        lambda visitor: [] if visitor is None else _messages(visitor),
        visitor,
        talk,
        cancels=asked,
        queue=False,
        api_name=False,
    )
    for forget in (widgets.reset.click, talk.clear):
        forget(
            lambda: (None, [], None),
            None,
            [visitor, talk, box],
            cancels=asked,
            queue=False,
            api_name=False,
        )


def _sliders(start: Sampling, limits: Limits) -> list[gr.components.Component]:
    return [
        gr.Slider(
            0, 2, start.temperature, step=0.05, label="Temperature", info="0: the likeliest word."
        ),
        gr.Slider(0.05, 1, start.top_p, step=0.05, label="Top-p"),
        gr.Slider(1, 2, start.repetition_penalty, step=0.05, label="Repetition penalty"),
        gr.Slider(
            1, max(8, start.num_beams), start.num_beams, step=1, label="Beams",
            info="At temperature 0 only.",
        ),
        gr.Slider(
            1, max(limits.max_new_tokens, start.max_new_tokens), start.max_new_tokens, step=1,
            label="Longest answer, in tokens",
        ),
        gr.Number(start.seed, precision=0, minimum=0, label="Seed"),
    ]  # fmt: skip


def _sampling(
    start: Sampling,
    temperature: float,
    top_p: float,
    repetition_penalty: float,
    num_beams: float,
    max_new_tokens: float,
    seed: float | None,
) -> Sampling:
    return Sampling(
        max_new_tokens=int(max_new_tokens),
        temperature=float(temperature),
        top_p=float(top_p),
        num_beams=int(num_beams),
        repetition_penalty=float(repetition_penalty),
        seed=start.seed if seed is None else int(seed),
    )


def _take_images(
    shared_model: SharedModel, visitor: Visitor, files: list[str], limits: Limits, uploads: Path
) -> MgptError | None:
    """Look at the uploaded files and delete them; the first that cannot be used is returned."""
    refused: MgptError | None = None
    for file in map(Path, files):
        try:
            if not file.resolve().is_relative_to(uploads):
                raise DataError(f"{file.name} was not uploaded here")
            data = read_picture(file, max_bytes=limits.max_bytes)
            require_few_pixels(data, limits.max_pixels, file.name)
            shared_model.show(visitor, data, file.name, "")
            visitor.pictures[-1] = thumbnail(data, _PICTURE_SIDE)
        except MgptError as error:
            refused = refused or error
        finally:
            if file.resolve().is_relative_to(uploads):
                file.unlink(missing_ok=True)
    return refused


def _messages(visitor: Visitor, question: str = "", growing: str = "") -> list[dict[str, Any]]:
    """The conversation for Gradio; what people and models say is text, never markup."""
    talk = visitor.session.conversation
    pictures = iter(visitor.pictures)
    shown: list[dict[str, Any]] = []

    def add_message(role: str, text: str, num_images: int = 0) -> None:
        """Append a message with the next images; one without text and images is left out."""
        content: list[Any] = [
            gr.HTML(f'<img class="shown" alt="image" src="{next(pictures)}">')
            for _ in range(num_images)
        ]
        content += [escape(text, quote=False)] if text else []
        if content:
            shown.append({"role": role, "content": content})

    for turn in talk.turns:
        add_message("user", turn.question, len(turn.images))
        add_message("assistant", turn.answer or "(no answer)")
    add_message("user", question.strip(), len(talk.pending))
    add_message("assistant", growing)
    return shown


@contextmanager
def _told() -> Iterator[None]:
    """Faults become a note on the page. ``gr.Error`` would hide the conversation behind itself."""
    try:
        yield
    except MgptError as error:
        said = escape(str(error)).replace("\n", "<br>")
        gr.Warning(said, duration=20, title="Not answered")
    except Closing:
        gr.Warning("The server is being stopped.", title="Not answered")
    except Busy:
        gr.Warning("Too many questions wait already. Try again soon.", title="Not answered")
