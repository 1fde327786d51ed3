"""The thread that runs the model: it answers many requests side by side, one token of each a step.

A request waits until a row of the batch is free, and joins between two steps. Checkpoints that
differ in their projector only share a batch, since the projector is used before the first token;
checkpoints with LoRA have a batch each, and their steps take turns.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from mgpt4_hpc.chat_format import Layout
from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.model.generation.answer import Answer
from mgpt4_hpc.model.generation.chat_model import ChatModel, Trained
from mgpt4_hpc.model.generation.growing_batch import GrowingBatch, Row
from mgpt4_hpc.model.generation.sampling import Sampling

T = TypeVar("T")
Event = str | Answer | Exception
"""A piece of the answer; the whole answer, which is the last event; or why there is none."""

MAX_ROWS = 16
"""Answers that grow at the same time: each step reads all weights, for one row as for 16."""
MAX_WAITING = 64
"""Requests that may wait for a row; more are refused."""

_LOG = logging.getLogger(__name__)


class Closing(Exception):
    """The server is being stopped; what was being answered is broken off."""


class Busy(Exception):
    """So many requests wait that one more would wait too long."""


@dataclass(eq=False)
class Request:
    """One answer that a client waits for.

    Attributes:
        trained: the checkpoint that answers.
        prompt: what it reads.
        features: computes the towers' features of the prompt's images, in the model's thread.
        sampling: how it answers; without beams.
        deliver: called with each event, in the model's thread; it must not block.
        stop: texts that end the answer beside the template's end symbol.
        in_pieces: deliver pieces too, and not only the whole answer.
        cancelled: no client waits for it any more.
    """

    trained: Trained
    prompt: Layout
    features: Callable[[], torch.Tensor]
    sampling: Sampling
    deliver: Callable[[Event], None]
    stop: tuple[str, ...] = ()
    in_pieces: bool = True
    cancelled: bool = False


@dataclass
class _Batch:
    """Requests that are answered in one batch, and their rows."""

    growing: GrowingBatch
    requests: dict[Row, Request] = field(default_factory=dict)


class Engine:
    """Answers requests; everything that the model computes runs in its thread.

    Args:
        chat_model: the model; no other thread may use it meanwhile.
        max_columns: columns that the key-value cache of a batch may have, of all rows together;
            a request that fits no more waits. None has no limit.
    """

    def __init__(self, chat_model: ChatModel, max_columns: int | None = None) -> None:
        self._chat_model = chat_model
        self._max_columns = max_columns
        self._changed = threading.Condition()
        self._waiting: deque[Request] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._batches: dict[str | None, _Batch] = {}
        self.closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Break off all answers, and refuse others."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def submit(self, request: Request) -> None:
        """Have a request answered; its events go to its ``deliver``.

        Raises:
            Busy: if too many wait already.
            Closing: if the server stops.
        """
        with self._changed:
            if self.closed:
                raise Closing
            if len(self._waiting) >= MAX_WAITING:
                raise Busy
            self._waiting.append(request)
            self._changed.notify_all()

    def cancel(self, request: Request) -> None:
        """Free the request's place, waiting or answered; harmless afterwards."""
        with self._changed:
            request.cancelled = True
            with suppress(ValueError):
                self._waiting.remove(request)
            self._changed.notify_all()

    def call(self, function: Callable[[], T]) -> T:
        """What the function returns or raises; it runs in the model's thread, between two steps.

        Raises:
            Closing: if the server stops.
        """
        future: Future[T] = Future()

        def run() -> None:
            """Call the function; its result or exception goes into the future."""
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001 - it is the caller's
                future.set_exception(error)

        with self._changed:
            if self.closed:
                raise Closing
            self._calls.append(run)
            self._changed.notify_all()
        while not wait([future], timeout=1).done:
            if self.closed and not self._thread.is_alive():
                raise Closing
        return future.result()

    def pieces(
        self, trained: Trained, prompt: Layout, features_NIQ: torch.Tensor, sampling: Sampling
    ) -> Generator[str, None, Answer]:
        """As ``ChatModel.stream``, for a thread that waits.

        Raises:
            Busy: if too many wait already.
            Closing: if the server stops meanwhile.
        """
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        request = Request(trained, prompt, lambda: features_NIQ, sampling, events.put)
        self.submit(request)
        try:
            while True:
                event = events.get()
                if self.closed:
                    raise Closing
                if isinstance(event, Answer):
                    return event
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.cancel(request)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if self.closed:
                    break
                calls = list(self._calls)
                self._calls.clear()
            for call in calls:
                call()
            while (request := self._next_request()) is not None:
                self._admit(request)
            for batch in self._batches.values():
                self._step(batch)
        waiting = list(self._waiting)
        for batch in self._batches.values():
            waiting += batch.requests.values()
        for request in waiting:
            _deliver(request, Closing())

    def _has_work(self) -> bool:
        rows = any(batch.requests for batch in self._batches.values())
        return bool(self.closed or self._waiting or self._calls or rows)

    def _next_request(self) -> Request | None:
        """The first of those that wait, if there is room for it."""
        with self._changed:
            if self.closed or not self._waiting:
                return None
            request = self._waiting[0]
            rows = [batch.growing for batch in self._batches.values()]
            if sum(len(batch.rows) for batch in rows) >= MAX_ROWS:
                return None
            length = self._chat_model.prompt_length(request.prompt)
            columns = sum(
                batch.columns_with(length + request.sampling.max_new_tokens) for batch in rows
            )
            any_rows = any(batch.rows for batch in rows)
            if any_rows and self._max_columns is not None and columns > self._max_columns:
                return None
            return self._waiting.popleft()

    def _admit(self, request: Request) -> None:
        try:
            batch = self._batch_of(request.trained)
            stop = (self._chat_model.format.end_symbol, *request.stop)
            row = batch.growing.join(request.prompt, request.features(), request.sampling, stop)
        except Exception as error:  # noqa: BLE001 - one request must not end the others
            _deliver(request, _logged(error))
            return
        _hand_out(request, row)
        if not row.ended:
            batch.requests[row] = request

    def _batch_of(self, trained: Trained) -> _Batch:
        """The batch of a checkpoint, which the model is made to answer as."""
        if self._chat_model.source != trained.source:
            self._chat_model.use(trained)
        key = None if trained.lora is None else trained.source.name
        if key not in self._batches:
            growing = GrowingBatch(self._chat_model.model, self._chat_model.tokenizer)
            self._batches[key] = _Batch(growing)
        return self._batches[key]

    def _step(self, batch: _Batch) -> None:
        self._forget(batch, lambda row: batch.requests[row].cancelled)
        if not batch.requests:
            return
        try:
            self._batch_of(next(iter(batch.requests.values())).trained)
            batch.growing.step()
        except Exception as error:  # noqa: BLE001 - nor one batch the server
            logged = _logged(error)
            for request in batch.requests.values():
                _deliver(request, logged)
            self._forget(batch, lambda row: True)
            return
        for row, request in batch.requests.items():
            _hand_out(request, row)
        self._forget(batch, lambda row: row.ended)

    def _forget(self, batch: _Batch, is_over: Callable[[Row], bool]) -> None:
        batch.requests = {
            row: request for row, request in batch.requests.items() if not is_over(row)
        }
        batch.growing.keep(list(batch.requests))


def _hand_out(request: Request, row: Row) -> None:
    """Deliver what is new of an answer."""
    if request.in_pieces and (piece := row.piece(last=row.ended)):
        _deliver(request, piece)
    if row.ended:
        _deliver(request, row.answer())


def _deliver(request: Request, event: Event) -> None:
    with suppress(RuntimeError):  # its event loop is closed: no client reads it any more
        request.deliver(event)


def _logged(error: Exception) -> Exception:
    if not isinstance(error, MgptError):
        _LOG.error("a request could not be answered", exc_info=error)
    return error
