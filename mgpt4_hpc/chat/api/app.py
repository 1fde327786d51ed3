"""``/v1/models`` and ``/v1/chat/completions`` as a web application."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mgpt4_hpc.chat import engine
from mgpt4_hpc.chat.access_control import API_PREFIX
from mgpt4_hpc.chat.api.errors import ApiError, busy
from mgpt4_hpc.chat.api.replies import Reply, server_sent_event
from mgpt4_hpc.chat.api.request import (
    Body,
    image_pixels,
    parse_body,
    read_messages,
    too_long,
)
from mgpt4_hpc.chat.limits import Limits
from mgpt4_hpc.chat.shared_model import SharedModel
from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.model.generation.answer import Answer
from mgpt4_hpc.model.generation.sampling import Sampling

_BODY_S = 60
"""Seconds in which a request must have arrived."""
_BODY_IMAGES = 4
"""Images of the largest size that fit a request; the limit is one of bytes."""
_BODIES = 2
"""Requests of the largest size that may be in memory together."""
_CHARACTERS_PER_TOKEN = 16
"""No text with more of them than that fits: a longer token is a run of spaces."""


class Api:
    """Answers API requests with the shared model.

    Args:
        shared_model: answers.
        sampling: of requests that leave temperature, top-p or the number of tokens open.
        limits: of images and answers.
    """

    def __init__(self, shared_model: SharedModel, sampling: Sampling, limits: Limits) -> None:
        self._shared_model = shared_model
        self._sampling = sampling
        self._limits = limits
        self._models = _model_ids(shared_model.speakers)
        self._created = int(time.time())
        self._max_body = _BODY_IMAGES * limits.max_bytes * 4 // 3 + 2**20
        self._num_held = 0
        # Two: decoding an image of the largest size takes 150 MB.
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="api")

    def application(self) -> Starlette:
        """The routes (ASGI)."""
        return Starlette(
            routes=[
                Route(f"{API_PREFIX}models", self._list_models),
                Route(f"{API_PREFIX}models/{{model:path}}", self._get_model),
                Route(f"{API_PREFIX}chat/completions", self._complete, methods=["POST"]),
            ],
            exception_handlers=dict.fromkeys(
                (ApiError, MgptError, HTTPException, ClientDisconnect, Exception), _refused
            ),
        )

    async def _list_models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": list(map(self._card, self._models))})

    async def _get_model(self, request: Request) -> Response:
        model = request.path_params["model"]
        self._speaker(model)
        return JSONResponse(self._card(model))

    def _card(self, model: str) -> dict[str, Any]:
        return {"id": model, "object": "model", "created": self._created, "owned_by": "mgpt4"}

    def _speaker(self, model: str) -> str:
        if model in self._shared_model.speakers:
            return model
        if model not in self._models:
            raise ApiError(
                f"The model {model[:100]!r} does not exist; served are {', '.join(self._models)}",
                status=404,
                param="model",
                code="model_not_found",
            )
        return self._models[model]

    async def _complete(self, request: Request) -> Response:
        events: asyncio.Queue[engine.Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(event: engine.Event) -> None:
            """Pass an event of the model's thread to this request's queue."""
            loop.call_soon_threadsafe(events.put_nowait, event)

        async with self._received(request) as data:
            body, wanted = await loop.run_in_executor(self._pool, self._understand, data)
        wanted.deliver = deliver
        reply = Reply(
            body.model,
            self._shared_model.chat_model.prompt_length(wanted.prompt),
            with_usage=bool(body.stream_options and body.stream_options.include_usage),
        )
        try:
            self._shared_model.engine.submit(wanted)
        except (engine.Busy, engine.Closing):
            raise busy() from None
        gone = asyncio.ensure_future(_disconnected(request))
        begun = False
        try:
            event = await _next(events, gone)
            if isinstance(event, Answer) and not body.stream:
                return JSONResponse(reply.whole(event))
            begun = True
            return _Stream(
                _events(event, events, reply),
                lambda: self._shared_model.engine.cancel(wanted),
            )
        finally:
            gone.cancel()
            if not begun:
                self._shared_model.engine.cancel(wanted)

    @asynccontextmanager
    async def _received(self, request: Request) -> AsyncIterator[bytearray]:
        """The body, while there is room for it among those that are in memory."""
        data = bytearray()
        try:
            async with asyncio.timeout(_BODY_S):
                async for chunk in request.stream():
                    data += chunk
                    self._num_held += len(chunk)
                    if len(data) > self._max_body:
                        raise ApiError(
                            f"a request may have {self._max_body / 2**20:.0f} MiB", status=413
                        )
                    if self._num_held > _BODIES * self._max_body:
                        raise busy()
            yield data
        except TimeoutError:
            raise ApiError(f"the request took over {_BODY_S} s to arrive", status=408) from None
        finally:
            self._num_held -= len(data)

    def _understand(self, data: bytearray) -> tuple[Body, engine.Request]:
        """What is asked for, ready for the engine but for ``deliver``; raises ApiError."""
        body = parse_body(data)
        trained = self._shared_model.trained(self._speaker(body.model))
        chat_model = self._shared_model.chat_model
        context = chat_model.context_length
        asked = read_messages(
            body.messages, None if context is None else context * _CHARACTERS_PER_TOKEN
        )
        pixels = [
            torch.from_numpy(image).unsqueeze(0)
            for image in image_pixels(asked.urls, self._limits, chat_model.image_size)
        ]
        prompt = self._shared_model.prompt(asked.dialogue, trained)
        room = chat_model.max_answer_tokens(prompt)
        if room is not None and room < 1:
            raise too_long(
                f"the conversation has {chat_model.prompt_length(prompt)} tokens, and the model's "
                f"context {context}"
            )
        wanted = engine.Request(
            trained,
            prompt,
            lambda: chat_model.encode_each(pixels),
            self._sampling_of(body, room),
            lambda _: None,
            stop=body.stops,
            in_pieces=bool(body.stream),
        )
        return body, wanted

    def _sampling_of(self, body: Body, room: int | None) -> Sampling:
        """The request's settings; what it leaves open is the server's, but for the seed."""
        start = self._sampling
        limit = max(self._limits.max_new_tokens, start.max_new_tokens)
        wanted = min(body.num_tokens or start.max_new_tokens, limit)
        return replace(
            start,
            max_new_tokens=wanted if room is None else min(wanted, room),
            temperature=start.temperature if body.temperature is None else body.temperature,
            # 0 is the likeliest token alone, as any small share is.
            top_p=start.top_p if body.top_p is None else max(body.top_p, 1e-9),
            num_beams=1,
            seed=secrets.randbits(32) if body.seed is None else body.seed,
        )


async def _events(
    event: engine.Event, events: asyncio.Queue[engine.Event], reply: Reply
) -> AsyncIterator[bytes]:
    """The answer as server-sent events, ``event`` being the first."""
    yield reply.first()
    while isinstance(event, str):
        yield reply.piece(event)
        event = await events.get()
    if isinstance(event, Answer):
        yield reply.last(event)
    else:
        yield server_sent_event(_error_of(event).body())


class WithApi:
    """Passes requests below ``/v1/`` to the API and all others on (ASGI)."""

    def __init__(self, api: ASGIApp, app: ASGIApp) -> None:
        self._api, self._app = api, app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        is_api = scope["type"] == "http" and scope["path"].startswith(API_PREFIX)
        await (self._api if is_api else self._app)(scope, receive, send)


class _Stream(StreamingResponse):
    """Server-sent events; ``on_end`` is called whether or not all of them were sent."""

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


async def _refused(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = ApiError(error.detail, status=error.status_code)
    elif isinstance(error, ClientDisconnect):
        error = ApiError("the client is gone", status=499)
    return ApiError.of(error).response()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _next(events: asyncio.Queue[engine.Event], gone: asyncio.Future[None]) -> str | Answer:
    """The next event; raises ApiError if it is an error, ClientDisconnect if the client left."""
    getter: asyncio.Future[engine.Event] = asyncio.ensure_future(events.get())
    both: set[asyncio.Future[Any]] = {getter, gone}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if not getter.done():
        getter.cancel()
        raise ClientDisconnect
    event = getter.result()
    if isinstance(event, Exception):
        raise _error_of(event)
    return event


def _error_of(event: engine.Event) -> ApiError:
    if isinstance(event, engine.Closing):
        return ApiError("the server is being stopped", status=503)
    assert isinstance(event, Exception)
    return ApiError.of(event)


def _model_ids(speakers: list[str]) -> dict[str, str]:
    """An id for each checkpoint: its run's name, or with its step where a run has several."""
    runs = [speaker.partition(" ")[0] for speaker in speakers]
    return {
        run if runs.count(run) == 1 else speaker.replace(" ", "/"): speaker
        for run, speaker in zip(runs, speakers, strict=True)
    }
