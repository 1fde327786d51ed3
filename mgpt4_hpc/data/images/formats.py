"""Names' extensions of image files: which are read, in shards, folders and streams."""

from __future__ import annotations

from pathlib import Path

USUAL = ("jpg", "jpeg", "png", "webp")
"""What samples are usually stored as: two of them with one key are a fault."""
FURTHER = ("gif", "bmp", "dib", "tif", "tiff", "jfif", "jpe", "avif", "jp2", "apng", "tga", "ico",
           "ppm", "pgm", "pbm", "pnm")  # fmt: skip
"""Read by Pillow as well, where no image of the usual kinds has the same key: masks and previews
often lie beside a sample's image."""
READ = USUAL + FURTHER
UNREAD = ("heic", "heif", "jxl", "svg", "psd", "eps", "pdf", "raw", "dng", "cr2", "nef", "arw",
          "exr", "hdr")  # fmt: skip
"""Images all the same, so that their absence is named as such."""


def suffix_of(name: str) -> str:
    """Lower-case extension of a file's name, without the dot; empty if it has none."""
    stem, dot, extension = name.rpartition(".")
    return extension.lower() if dot and stem else ""


class ImageFolder:
    """The images of a folder by stem: ``1`` finds ``1.jpg``, ``1.PNG`` or whatever lies there.

    Args:
        folder: listed once.

    Raises:
        OSError: if it cannot be listed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._of_stem: dict[str, list[str]] = {}
        for entry in folder.iterdir():
            if suffix_of(entry.name) in READ:
                self._of_stem.setdefault(entry.name.rpartition(".")[0], []).append(entry.name)

    def find(self, stem: str) -> list[Path]:
        """The images of that name: one if all is well. ``STEM.jpg`` comes before all others."""
        names = sorted(self._of_stem.get(stem, []))
        if f"{stem}.jpg" in names:
            names = [f"{stem}.jpg"]
        return [self.folder / name for name in names]
