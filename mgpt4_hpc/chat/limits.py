"""What a visitor of the web page may send."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a visitor may send.

    Attributes:
        max_bytes: of an uploaded image.
        max_pixels: of an image, width times height.
        max_new_tokens: end of the slider.
    """

    max_bytes: int
    max_pixels: int
    max_new_tokens: int
