"""A chat completion request: from its JSON to a conversation, pixels and sampling settings.

Unknown fields of the request are refused and unknown fields of a message ignored, as OpenAI does.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mgpt4_hpc.chat.api.errors import ApiError
from mgpt4_hpc.chat.limits import Limits
from mgpt4_hpc.chat.shared_model import MAX_IMAGES
from mgpt4_hpc.data.images.decode import Pixels
from mgpt4_hpc.data.images.image_file import picture_pixels, require_few_pixels
from mgpt4_hpc.prompts import Dialogue, Piece, Turn

T = TypeVar("T")
Few = Annotated[list[T], Field(max_length=1024, fail_fast=True)]

_MAX_VALUES = 50_000
"""JSON values of a request. A parser needs up to 30 times the bytes of many small ones."""
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_SHOWN = 200
"""Characters of an error's message that may come from the request."""
_WITHOUT_EFFECT = frozenset(
    {"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"}
)
_AT_DEFAULT_ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Parameters of OpenAI's that are accepted at values that ask for nothing."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Text(_Part):
    type: Literal["text"]
    text: str


class _Url(_Part):
    url: str


class _Image(_Part):
    type: Literal["image_url"]
    image_url: _Url


class _Message(_Part):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Few[Annotated[_Text | _Image, Field(discriminator="type")]] | None = None


class _StreamOptions(_Part):
    include_usage: bool | None = None


class Body(BaseModel):
    """The request's JSON; null stands for a field that is left out."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str
    messages: Few[_Message]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None

    @property
    def num_tokens(self) -> int | None:
        """Longest answer that is asked for."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


@dataclass
class Asked:
    """What the messages say.

    Attributes:
        dialogue: the conversation, its last question open.
        urls: of its images, in their order.
    """

    dialogue: Dialogue
    urls: list[str] = field(default_factory=list)


def parse_body(data: bytes | bytearray) -> Body:
    """The fields of a request. Raises ApiError with the first that is wrong."""
    if data.count(b",") + data.count(b"[") + data.count(b"{") > _MAX_VALUES:
        raise ApiError(f"a request may have {_MAX_VALUES:,} JSON values at most")
    try:
        body = Body.model_validate_json(bytes(data))
    except ValidationError as error:
        raise _first_fault(error) from None
    for name, value in (body.model_extra or {}).items():
        shown = name[:_SHOWN]
        if name in _AT_DEFAULT_ONLY:
            if value is not None and value not in _AT_DEFAULT_ONLY[name]:
                raise ApiError(
                    f"Unsupported value: '{shown}' is not supported by this server",
                    param=shown,
                    code="unsupported_value",
                )
        elif name not in _WITHOUT_EFFECT:
            raise ApiError(f"Unknown parameter: '{shown}'.", param=shown, code="unknown_parameter")
    return body


def _first_fault(error: ValidationError) -> ApiError:
    """The fault deepest in the request: of a union, pydantic lists one for each of its types."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    fault = max(reversed(faults), key=lambda fault: len(fault["loc"]))
    # Without the names of a union's types.
    names = [str(name) for name in fault["loc"] if name != "str" and "[" not in str(name)]
    param = ".".join(names)[:_SHOWN] or None
    message = f"Invalid value for '{param}': {fault['msg']}" if param else fault["msg"]
    return ApiError(message[: 2 * _SHOWN], param=param)


def read_messages(messages: Sequence[_Message], max_characters: int | None) -> Asked:
    """The conversation. Messages of one role in a row count as one.

    Args:
        messages: as they came.
        max_characters: of all texts together: more cannot fit the model's context.

    Raises:
        ApiError: if they are none that the model could have had.
    """
    asked = Asked(Dialogue(()))
    system: list[str] = []
    turns: list[tuple[list[Piece], list[str]]] = []
    for number, message in enumerate(messages):
        param = f"messages.{number}"
        pieces = _pieces(message, asked.urls, param)
        if message.role == "user":
            if not turns or turns[-1][1]:
                turns.append(([], []))
            turns[-1][0].extend(pieces)
        elif None in pieces:
            raise ApiError("only the user shows images", param=param)
        elif message.role != "assistant":
            if turns:
                raise ApiError("the system message comes first", param=param)
            system += [piece for piece in pieces if piece]
        elif not turns:
            raise ApiError("the first turn is the user's", param=param)
        else:
            turns[-1][1].append(" ".join(piece for piece in pieces if piece))
    if not turns or turns[-1][1] or not turns[-1][0]:
        raise ApiError("the last message must be a question of the user", param="messages")
    if len(asked.urls) > MAX_IMAGES:
        raise ApiError(f"a conversation may have {MAX_IMAGES} images", param="messages")
    texts = system + [text for pieces, said in turns for text in (*pieces, *said) if text]
    if max_characters is not None and sum(map(len, texts)) > max_characters:
        raise too_long("the messages are longer than the model's context")
    asked.dialogue = Dialogue(
        tuple(Turn(tuple(pieces), " ".join(said) if said else None) for pieces, said in turns),
        "\n".join(system),
    )
    return asked


def too_long(message: str) -> ApiError:
    """The conversation does not fit the model's context."""
    return ApiError(message, param="messages", code="context_length_exceeded")


def image_pixels(urls: Sequence[str], limits: Limits, size: int) -> list[Pixels]:
    """uint8[3, size, size] of each image. No address is ever opened.

    Raises:
        ApiError: if one is no data URL, or no base64.
        DataError: if one is no image, or has too many bytes or pixels.
    """
    sizes = []
    for number, url in enumerate(urls, start=1):
        name = f"image {number}"
        header = _DATA_URL.match(url)
        if header is None:
            raise ApiError(
                f"{name} is no data URL: send data:image/jpeg;base64,...; this server opens no "
                "address",
                param="messages",
                code="invalid_image_url",
            )
        if (len(url) - header.end()) * 3 // 4 > limits.max_bytes + 2:
            raise ApiError(
                f"{name} is too large, images may have {limits.max_bytes / 2**20:g} MiB",
                param="messages",
            )
        try:
            data = base64.b64decode(url[header.end() :], validate=True)
        except ValueError:
            raise ApiError(
                f"{name} is no base64", param="messages", code="invalid_base64"
            ) from None
        require_few_pixels(data, limits.max_pixels, name)
        sizes.append(picture_pixels(data, size, name))
    return sizes


def _pieces(message: _Message, urls: list[str], param: str) -> list[Piece]:
    """Texts, and None for each image, whose URL is appended."""
    if message.content is None:
        if message.role == "assistant":
            return [""]
        raise ApiError("content is missing", param=f"{param}.content")
    content = message.content
    parts = [_Text(type="text", text=content)] if isinstance(content, str) else content
    pieces: list[Piece] = []
    for part in parts:
        if isinstance(part, _Image):
            urls.append(part.image_url.url)
            pieces.append(None)
        # Stripped, as a question in `mgpt4 chat` is.
        elif text := part.text.strip():
            pieces.append(text)
    return pieces or ([""] if message.role == "assistant" else [])
