"""Site profiles in a folder of the test."""

from __future__ import annotations

from pathlib import Path


def write(folder: Path, name: str, text: str = "launch: {partition: p}\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path
