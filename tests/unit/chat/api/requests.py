"""Requests of a client."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

from PIL import Image

from mgpt4_hpc.chat.api.request import parse_body

HELLO = [{"role": "user", "content": "Hello"}]


def image(side: int = 8, suffix: str = "png") -> str:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(stream, suffix)
    return f"data:image/{suffix};base64,{base64.b64encode(stream.getvalue()).decode()}"


def parsed(**fields: Any):
    return parse_body(json.dumps({"model": "m", "messages": HELLO, **fields}).encode())


def show(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
