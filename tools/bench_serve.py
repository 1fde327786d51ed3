"""What serving in batches is worth: `mgpt4 serve --api`, one client after the other and together.

    python tools/bench_serve.py demo/toy-stage2 --json

Answered tokens per second of 16 requests one after the other and of the same 16 at once, whether
each answer is the one it gets alone, and the time to the first token: alone, and while 15 others
generate. Temperature 0 but for those 15, which draw, so that their answers are long.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mgpt4_hpc.resources import resolve_path

QUESTION = "Describe this image in detail."
FIRST_TOKENS = 15
"""Measured in each of the two situations."""


@dataclass(frozen=True)
class Result:
    """What was measured.

    Attributes:
        alone_tokens_per_s, together_tokens_per_s: of all requests.
        equal: requests whose answer together is the one alone.
        alone_first_s, together_first_s: median seconds to the first token.
    """

    requests: int
    tokens: int
    alone_tokens_per_s: float
    together_tokens_per_s: float
    equal: int
    alone_first_s: float
    together_first_s: float

    @property
    def speedup(self) -> float:
        """Of the tokens per second."""
        return self.together_tokens_per_s / self.alone_tokens_per_s

    @property
    def delay(self) -> float:
        """Of the first token."""
        return self.together_first_s / self.alone_first_s


def body(number: int, images: Sequence[Path], **fields: Any) -> dict[str, Any]:
    """A request about one of the images."""
    data = base64.b64encode(images[number % len(images)].read_bytes()).decode()
    url = f"data:image/{images[number % len(images)].suffix[1:]};base64,{data}"
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": QUESTION},
    ]
    messages = [{"role": "user", "content": content}]
    return {"model": fields.pop("model"), "messages": messages, "temperature": 0, **fields}


def measure(url: str, images: Sequence[Path], requests: int, max_tokens: int) -> Result:
    """All numbers, from a server that is otherwise idle."""
    client = httpx.Client(timeout=600)
    model = client.get(f"{url}/models").json()["data"][0]["id"]
    fields = {"model": model, "max_tokens": max_tokens}

    def ask(number: int) -> tuple[str, int]:
        reply = client.post(f"{url}/chat/completions", json=body(number, images, **fields))
        told = reply.raise_for_status().json()
        return told["choices"][0]["message"]["content"], told["usage"]["completion_tokens"]

    def first_token(number: int) -> float:
        begun = time.perf_counter()
        asked = body(number, images, **fields, stream=True)
        with client.stream("POST", f"{url}/chat/completions", json=asked) as reply:
            for line in reply.iter_lines():
                if '"content": "' in line and '"content": ""' not in line:
                    return time.perf_counter() - begun
        raise RuntimeError("an answer without text")

    ask(0)
    begun = time.perf_counter()
    alone = [ask(number) for number in range(requests)]
    alone_s = time.perf_counter() - begun
    with ThreadPoolExecutor(requests) as pool:
        begun = time.perf_counter()
        together = list(pool.map(ask, range(requests)))
        together_s = time.perf_counter() - begun
    alone_first = [first_token(number) for number in range(FIRST_TOKENS)]
    over = threading.Event()

    def generate(number: int) -> None:
        while not over.is_set():
            asked = body(number, images, **fields, stream=True) | {"temperature": 2, "seed": number}
            with client.stream("POST", f"{url}/chat/completions", json=asked) as reply:
                for _ in reply.iter_lines():
                    if over.is_set():
                        return

    with ThreadPoolExecutor(requests) as pool:
        others = [pool.submit(generate, number) for number in range(requests - 1)]
        time.sleep(1)  # until all of them generate
        together_first = [first_token(number) for number in range(FIRST_TOKENS)]
        over.set()
        for other in others:
            other.result()
    tokens = sum(count for _, count in alone)
    return Result(
        requests=requests,
        tokens=tokens,
        alone_tokens_per_s=tokens / alone_s,
        together_tokens_per_s=sum(count for _, count in together) / together_s,
        equal=sum(one == other for one, other in zip(alone, together, strict=True)),
        alone_first_s=statistics.median(alone_first),
        together_first_s=statistics.median(together_first),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="as `mgpt4 serve` takes it")
    parser.add_argument("--images", type=Path, help="folder; default: the toy world's")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=120)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.images or Path(resolve_path("toy:heldout")) / "image"
    images = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "mgpt4_hpc.cli.main", "serve", arguments.model),
            *("--api", "--no-page", "--port", "0"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        if not url:
            sys.exit("the server did not start")
        result = measure(url, images, arguments.requests, arguments.max_tokens)
    finally:
        server.terminate()
        server.wait()
    if arguments.json:
        print(json.dumps({**asdict(result), "speedup": result.speedup, "delay": result.delay}))
        return
    print(
        f"{result.requests} requests, {result.tokens} tokens\n"
        f"one after the other  {result.alone_tokens_per_s:8.1f} tokens/s, "
        f"first token {1000 * result.alone_first_s:.0f} ms\n"
        f"together             {result.together_tokens_per_s:8.1f} tokens/s "
        f"({result.speedup:.1f}x), first token {1000 * result.together_first_s:.0f} ms "
        f"({result.delay:.1f}x)\n"
        f"{result.equal} of {result.requests} answers equal"
    )


if __name__ == "__main__":
    main()
