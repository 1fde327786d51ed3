"""``mgpt4 serve --api`` and OpenAI's own client, on the demo's checkpoints."""

from __future__ import annotations

import base64
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from mgpt4_hpc.chat.session import ChatSession
from mgpt4_hpc.model.generation.chat_model import ChatModel, find_source
from mgpt4_hpc.model.generation.sampling import Sampling
from mgpt4_hpc.resources import resolve_path
from tests.support.runs import ENVIRONMENT, patience
from tests.support.serving import Serving

DESCRIBE, COLOUR = "Describe this image in detail.", "What colour is it?"
LIMIT = 60
TOKEN = "open-sesame-42"


@pytest.fixture(scope="module")
def serving(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    server = Serving(
        tmp_path_factory.mktemp("api"),
        *(trained / "toy-stage2", trained / "toy-stage1", "--max-new-tokens", LIMIT),
        *("--api", "--no-page", "--max-upload-mib", 1),
        MGPT4_SERVE_TOKEN=TOKEN,
    )
    yield server
    server.close()


@pytest.fixture(scope="module")
def client(serving: Serving) -> openai.OpenAI:
    return openai.OpenAI(base_url=serving.url, api_key=TOKEN, max_retries=0, timeout=300)


@pytest.fixture(scope="module")
def alone(trained: Path) -> Alone:
    return Alone(trained)


class Alone:
    """What the checkpoints answer in ``mgpt4 chat``."""

    def __init__(self, runs: Path) -> None:
        self.sources = {name: find_source(runs / name) for name in ("toy-stage1", "toy-stage2")}
        self.chat_model = ChatModel(self.sources["toy-stage2"], device="cpu")

    def says(self, name: str, number: int, *questions: str, **sampling: Any) -> list[str]:
        self.chat_model.use(self.sources[name])
        settings = Sampling(**{"max_new_tokens": LIMIT, **sampling})
        session = ChatSession(self.chat_model, settings)
        session.add_image(scene(number))
        return ["".join(session.ask(question)) for question in questions]


def scene(number: int) -> Path:
    return Path(resolve_path("toy:heldout")) / "image" / f"{number:03d}.jpg"


def shown(*numbers: int, text: str = DESCRIBE) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    for number in numbers:
        url = f"data:image/jpeg;base64,{base64.b64encode(scene(number).read_bytes()).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def asked(client: openai.OpenAI, *messages: Any, model: str = "toy-stage2", **fields: Any) -> Any:
    fields = {"temperature": 0, **fields}
    return client.chat.completions.create(model=model, messages=list(messages), **fields)


def streamed(
    client: openai.OpenAI, *messages: Any, model: str = "toy-stage2", **fields: Any
) -> tuple[str, Any]:
    """The text, and the last chunk, which counts tokens."""
    chunks = list(
        asked(
            client, *messages, model=model, stream=True,
            stream_options={"include_usage": True}, **fields,
        )
    )  # fmt: skip
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert len(chunks) > 3 and chunks[-2].choices[0].finish_reason in ("stop", "length")
    return text, chunks[-1]


def test_the_client_gets_what_chat_answers(client: openai.OpenAI, alone: Alone) -> None:
    assert [model.id for model in client.models.list()] == ["toy-stage2", "toy-stage1"]
    assert client.models.retrieve("toy-stage1").id == "toy-stage1"
    first, again = alone.says("toy-stage2", 3, DESCRIBE, COLOUR)

    whole = asked(client, shown(3))
    assert whole.choices[0].message.content == first
    assert whole.choices[0].finish_reason == "stop" and whole.usage.completion_tokens > 5
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    text, last = streamed(client, shown(3))
    assert (text, last.usage) == (first, whole.usage)
    # A conversation, with the message object as the client returned it.
    later = {"role": "user", "content": COLOUR}
    turns = asked(client, shown(3), whole.choices[0].message, later)
    assert turns.choices[0].message.content == again
    (other,) = alone.says("toy-stage1", 3, DESCRIBE)
    assert asked(client, shown(3), model="toy-stage1").choices[0].message.content == other

    cut = asked(client, shown(3), max_tokens=4)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 4
    assert first.startswith(cut.choices[0].message.content)
    word = first.split()[5]
    stopped, _ = streamed(client, shown(3), stop=["no such text", f" {word}"])
    assert stopped == first.split(f" {word}")[0]
    (drawn,) = alone.says("toy-stage2", 3, DESCRIBE, temperature=1.5, top_p=0.8, seed=5)
    given = asked(client, shown(3), temperature=1.5, top_p=0.8, seed=5)
    assert given.choices[0].message.content == drawn != first
    sizes = [
        asked(client, message, max_tokens=10**9).usage.prompt_tokens
        for message in ({"role": "user", "content": DESCRIBE}, shown(3), shown(3, 4))
    ]
    assert sizes[1] == whole.usage.prompt_tokens and 2 * sizes[1] == sizes[0] + sizes[2]


def test_sixteen_at_once_get_what_each_gets_alone(client: openai.OpenAI, alone: Alone) -> None:
    """Of both checkpoints, streamed and not, and beside some that draw or go away."""
    speakers = ["toy-stage2" if number % 4 else "toy-stage1" for number in range(16)]
    expected = [alone.says(name, number, DESCRIBE)[0] for number, name in enumerate(speakers)]
    assert len(set(expected)) >= 12

    def ask(number: int) -> str:
        model = speakers[number]
        if number % 3 == 0:
            return streamed(client, shown(number), model=model)[0]
        return asked(client, shown(number), model=model).choices[0].message.content

    def disturb(number: int) -> None:
        stream = asked(client, shown(number), temperature=2, stream=True)
        next(iter(stream))
        stream.close()

    with ThreadPoolExecutor(20) as pool:
        disturbed = [pool.submit(disturb, number) for number in range(4)]
        assert list(pool.map(ask, range(16))) == expected
        for one in disturbed:
            one.result()


def test_errors_have_the_shape_that_clients_know(serving: Serving, client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as wrong:
        openai.OpenAI(base_url=serving.url, api_key="sk-wrong", max_retries=0).models.list()
    assert wrong.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError, match="gpt-4o") as missing:
        asked(client, shown(1), model="gpt-4o")
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="opens no address"):
        part = {"type": "image_url", "image_url": {"url": "https://example.org/cat.jpg"}}
        asked(client, {"role": "user", "content": [part]})
    with pytest.raises(openai.BadRequestError) as long:
        asked(client, shown(1, text="word " * 3000))
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as many:
        asked(client, shown(1), n=3)
    assert many.value.param == "n"


def test_hostile_requests_leave_it_answering(
    serving: Serving, client: openai.OpenAI, alone: Alone, tmp_path: Path
) -> None:
    """200 of them, of every kind, from 16 clients; a slow sender holds on meanwhile."""
    from tests.integration.test_serve import make_bomb

    secret = tmp_path / "secret.jpg"
    secret.write_bytes(scene(0).read_bytes())
    secret.chmod(0)
    read_before = secret.stat().st_atime_ns
    bomb = base64.b64encode(make_bomb(tmp_path).read_bytes()).decode()
    good = shown(0)
    target = urlsplit(serving.url)
    head = {"Authorization": f"Bearer {TOKEN}"}
    endpoint = f"{serving.url}/chat/completions"

    def image(url: Any) -> dict[str, Any]:
        part = {"type": "image_url", "image_url": {"url": url}}
        return {"model": "toy-stage2", "messages": [{"role": "user", "content": [part]}]}

    fine = {"model": "toy-stage2", "messages": [good]}
    refused: list[Any] = [
        image(f"data:image/png;base64,{bomb}"),
        image("data:image/png;base64,!!!!"),
        image(f"data:image/jpeg;base64,{'A' * (2 * 2**20)}"),
        image(secret.as_uri()),
        image("http://169.254.169.254/latest/meta-data"),
        image("https://example.org/cat.jpg"),
        image(17),
        {**fine, "messages": [{"role": "user", "content": [good["content"][0]] * 1000}]},
        {**fine, "messages": [{**good, "role": "tool"}]},
        {**fine, "messages": {"role": "user"}},
        {**fine, "max_tokens": -1},
        {**fine, "max_tokens": "all"},
        {**fine, "temperature": 1e308},
        {**fine, "stop": [""] * 5000},
        {**fine, "tools": [{}]},
        {**fine, "model": "../../etc/passwd"},
        {**fine, "template": str(secret)},
        b"[" * 100_000,
        b'{"a":' * 5_000,
        b"\x00" * 1000,
        b'{"model": "toy-stage2", "max_tokens": ' + b"9" * 100_000 + b"}",
        b'{"model": "toy-stage2", "messages": [' + b"{}," * 500_000 + b"{}]}",
    ]

    def send(body: Any) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        with httpx.Client(timeout=300) as browser:
            reply = browser.post(endpoint, content=content, headers=head)
        assert 400 <= reply.status_code < 500 and "message" in reply.json()["error"], body

    def open_request(body: bytes, length: int) -> socket.socket:
        connection = socket.create_connection((target.hostname, target.port), timeout=300)
        lines = (
            "POST /v1/chat/completions HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {TOKEN}",
            f"Content-Length: {length}",
        )
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        return connection

    def go_away(number: int) -> None:
        """Disconnect: in the request, before the answer, in the answer."""
        part = number % 3
        body = json.dumps({**fine, "stream": part == 2, "temperature": 2}).encode()
        with open_request(body[: len(body) // 2] if part == 0 else body, len(body)) as connection:
            if part == 2:
                assert connection.recv(100).startswith(b"HTTP/1.1 200")

    before = serving.memory_mib
    slow = open_request(b"{", 1_000_000)
    jobs = [(send, body) for body in refused * 8] + [(go_away, number) for number in range(30)]
    assert len(jobs) >= 200
    random.Random(0).shuffle(jobs)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda job: job[0](job[1]), jobs))
    (first,) = alone.says("toy-stage2", 0, DESCRIBE)
    begun = time.monotonic()
    assert asked(client, good).choices[0].message.content == first
    assert time.monotonic() - begun < 60 * patience()
    slow.close()
    assert serving.memory_mib < before + 512
    assert secret.stat().st_atime_ns == read_before
    assert not serving.outside.read_text()
    assert serving.uploads == []
    assert "Traceback" not in serving.told, serving.told
    assert serving.process.poll() is None


def test_a_stop_in_the_middle_of_an_answer(trained: Path, tmp_path: Path) -> None:
    server = Serving(tmp_path / "s", trained / "toy-stage1", "--api", "--no-page")
    try:
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=300)
        stream = asked(client, shown(0), model="toy-stage1", stream=True, temperature=2)
        next(iter(stream))
        assert server.stop() == 0, server.told
        assert "Traceback" not in server.told and server.told.endswith("stopped\n"), server.told
        with pytest.raises((openai.APIError, httpx.HTTPError)):
            list(stream)
    finally:
        server.close()


@pytest.mark.soak
def test_what_batches_are_worth(trained: Path) -> None:
    """Three times the tokens per second, at most three times the wait for the first one."""
    told = subprocess.run(
        [sys.executable, "tools/bench_serve.py", str(trained / "toy-stage2"), "--json"],
        cwd=Path(__file__).parents[2],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    result = json.loads(told)
    assert result["equal"] == result["requests"] == 16
    assert result["speedup"] >= 3 and result["delay"] <= 3, result
