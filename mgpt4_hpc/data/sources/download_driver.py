"""Runs img2dataset on some shards of a download, so that each appears whole or not at all.

A script for img2dataset's own environment: it may import nothing of this package. What it adds to
img2dataset 1.47: a place in a common numbering of shards, so that several of these may work on one
download; output under another name until a shard is complete; and an end together with its parent.

    python download_driver.py ORDER.json
"""

from __future__ import annotations

import copy
import ctypes
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import img2dataset
from img2dataset.downloader import Downloader
from img2dataset.reader import Reader

OUT_VARIABLE = "MGPT4_DOWNLOAD_OUT"
"""Names the folder of finished shards; in the environment, as workers are spawned."""
_PR_SET_PDEATHSIG = 1
_PARTS = (".parquet", "_stats.json", ".tar")
"""A shard's files, in the order of their publication: where the tar is, the others are."""


def end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the request
        os._exit(1)


class PartReader(Reader):
    """Reads several files; the caller numbers their shards."""

    order: dict[str, Any]

    def __iter__(self) -> Iterator[tuple[int, str]]:
        self.done_shards = set(self.order["skip"])
        for path, first_shard in self.order["files"]:
            shards, _ = self._save_to_arrow(path, first_shard)
            yield from shards


class WholeShards(Downloader):
    """Writes each shard into a folder of its own and moves it out when it is on disk."""

    def download_shard(self, row: tuple[int, str]) -> None:
        """Download one shard; ``row`` is its number and the table of its addresses."""
        parent = multiprocessing.parent_process()
        if parent is not None and parent.pid is not None:
            end_with(parent.pid)
        work = Path(self.output_folder)
        name = f"{row[0]:0{self.oom_shard_count}d}"
        folder = work / name
        folder.mkdir(exist_ok=True)
        writer = copy.copy(self)
        writer.output_folder = str(folder)
        super(WholeShards, writer).download_shard(row)
        for part in _PARTS:
            with (folder / (name + part)).open("rb") as file:
                os.fsync(file.fileno())
        out = Path(os.environ[OUT_VARIABLE])
        for part in _PARTS:
            (folder / (name + part)).replace(out / (name + part))
        folder.rmdir()


class NoLogger:
    """In place of a process that adds up all shards every five seconds."""

    def __init__(self, *args: object) -> None:
        self.done_shards: set[int] = set()

    def start(self) -> None:
        """Nothing."""

    def join(self) -> None:
        """Nothing."""

    def terminate(self) -> None:
        """Nothing."""


def main() -> None:
    """Carry out the order in the file that is the first argument."""
    order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    end_with(order["parent"])
    PartReader.order = order
    main_module: Any = sys.modules["img2dataset.main"]  # the attribute `main` is a function
    main_module.Reader = PartReader
    main_module.Downloader = WholeShards
    main_module.LoggerProcess = NoLogger
    img2dataset.download(
        url_list=order["files"][0][0],
        input_format="parquet",
        output_folder=order["work"],
        output_format="webdataset",
        enable_wandb=False,
        **order["settings"],
    )


if __name__ == "__main__":
    main()
