"""Images of a list of addresses into shards, by img2dataset in an environment of its own.

A download is a folder::

    OUT/
      download.json                          what is downloaded, and how: fixed by the first start
      00000.tar 00000.parquet 00000_stats.json   a shard; it appears whole, the tar last
      .download/                             logs, and shards that are being written

Shard numbers follow from the input files alone: any number of parts may work on one folder, and
a later one does what is missing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mgpt4_hpc.data.sources.convert import require_packages
from mgpt4_hpc.downloads.tool_environment import Tool, tool_variables
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.output_files import lock
from mgpt4_hpc.run_dir import read_json, write_json
from mgpt4_hpc.text_files import last_lines

PLAN_FILE = "download.json"
WORK_FOLDER = ".download"
_FORMAT = "mgpt4-download-1"
_DRIVER = Path(__file__).with_name("download_driver.py")
IMG2DATASET = Tool(
    "img2dataset",
    "1.47.0",
    # It imports a module that Python 3.13 no longer has.
    also=("standard-imghdr; python_version >= '3.13'",),
    option="--env",
)
"""The driver replaces parts of it, so this is the version that it was written for."""
_OUT_VARIABLE = "MGPT4_DOWNLOAD_OUT"  # as the driver has it, which cannot be imported here
_POLL_S = 0.2
_LOOK_EVERY_S = 10.0
"""Pause between looks for new shards, so that polling does not load a shared file system."""
_SHARD_DIGITS = 5
_MOST_SHARDS = 10**_SHARD_DIGITS


@dataclass(frozen=True)
class ImageSettings:
    """What decides the shards' content; the defaults are the original's.

    Attributes:
        url_col, caption_col: columns of the input.
        number_sample_per_shard: addresses per shard.
        image_size, resize_mode, encode_quality, encode_format: see img2dataset.
    """

    url_col: str = "url"
    caption_col: str = "caption"
    number_sample_per_shard: int = 10_000
    image_size: int = 224
    resize_mode: str = "border"
    encode_quality: int = 95
    encode_format: str = "jpg"


@dataclass(frozen=True)
class Effort:
    """How hard is tried; img2dataset's defaults, processes and threads as the original's.

    Attributes:
        processes_count, thread_count: processes, and threads of each.
        timeout: seconds without a byte after which a server is given up.
        retries: further tries per image.
    """

    processes_count: int = 16
    thread_count: int = 128
    timeout: int = 10
    retries: int = 0


@dataclass(frozen=True)
class InputFile:
    """One parquet file, and the number of its first shard."""

    path: Path
    num_rows: int
    first_shard: int


@dataclass
class DownloadReport:
    """What a download folder holds.

    Attributes:
        num_asked: rows of the input.
        num_tried: rows of the shards that are there.
        num_got: images in them.
        num_bytes: size of the tars.
        reasons: failures by reason, the most frequent first.
        missing: numbers of shards that are not there.
        empty: numbers of shards that are there without an image.
    """

    out: str
    num_asked: int
    num_shards: int
    num_tried: int = 0
    num_got: int = 0
    num_bytes: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)


class Download:
    """One download folder, new or resumed.

    Args:
        sources: parquet files, or folders of them.
        out: the folder.
        settings: must be the same at every start.

    Raises:
        DataError: if the input cannot be read, or is not what the folder was begun with.
    """

    def __init__(self, sources: Sequence[Path], out: Path, settings: ImageSettings) -> None:
        self.out = out.absolute()
        self.settings = settings
        self.files = _input_files(sources, settings)
        self.num_shards = sum(
            -(-file.num_rows // settings.number_sample_per_shard) for file in self.files
        )
        if self.num_shards > _MOST_SHARDS:
            raise DataError(
                f"{self.num_shards} shards are more than {_MOST_SHARDS}",
                fix="raise --samples-per-shard, or download in several folders",
            )
        self._begin()

    def _begin(self) -> None:
        plan = {
            "format": _FORMAT,
            "settings": asdict(self.settings),
            "inputs": [{"name": f.path.name, "rows": f.num_rows} for f in self.files],
        }
        path = self.out / PLAN_FILE
        try:
            self.out.mkdir(exist_ok=True)
            (self.out / WORK_FOLDER).mkdir(exist_ok=True)
            if path.exists():
                _require_same(self.out, read_json(path), plan)
            elif any(self.out.glob("*.tar")):
                raise DataError(
                    f"{self.out} has shards of something else",
                    fix="give --out a folder of its own",
                )
            else:
                write_json(path, plan)
        except (OSError, ValueError) as error:
            raise DataError(f"cannot use the folder {self.out}: {error}") from error

    @property
    def num_asked(self) -> int:
        """Rows of the input."""
        return sum(file.num_rows for file in self.files)

    def shards_of(self, part: int, parts: int) -> range:
        """Numbers of the shards that part ``part`` of 1 ... ``parts`` sees to."""
        return range((part - 1) * self.num_shards // parts, part * self.num_shards // parts)

    def rows_of(self, shards: range) -> int:
        """Rows of the input in these shards."""
        size = self.settings.number_sample_per_shard
        total = 0
        for file in self.files:
            low = max(shards.start - file.first_shard, 0) * size
            high = max(shards.stop - file.first_shard, 0) * size
            total += min(high, file.num_rows) - min(low, file.num_rows)
        return total

    def run(
        self,
        python: Path,
        effort: Effort,
        *,
        part: int = 1,
        parts: int = 1,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Download what a part is missing; returns when nothing more can be had.

        Args:
            python: of the environment with img2dataset.
            effort: may differ from start to start.
            part: which part of the shards, from 1.
            parts: of how many; they may run at the same time on several machines.
            on_progress: called with (rows done, rows in all) of the part, now and then.

        Raises:
            DataError: if img2dataset fails, or another process does this part.
        """
        own_shards = self.shards_of(part, parts)
        name = f"{own_shards.start:0{_SHARD_DIGITS}d}-{own_shards.stop:0{_SHARD_DIGITS}d}"
        folder = self.out / WORK_FOLDER
        with _alone(folder / f"{name}.lock"), contextlib.ExitStack() as stack:
            # A killed start leaves its folder, even where it had written the last shard.
            for leftover in folder.glob(f"{name}.*.work"):
                shutil.rmtree(leftover, ignore_errors=True)
            done = {shard for shard in own_shards if self._got(shard)}
            show = (
                self._row_counter(own_shards, on_progress)
                if on_progress is not None
                else lambda: None
            )
            show()
            todo = [shard for shard in own_shards if shard not in done]
            if not todo:
                return
            work = tempfile.mkdtemp(prefix=f"{name}.", suffix=".work", dir=folder)
            stack.callback(shutil.rmtree, work, ignore_errors=True)
            order = self._order(todo, Path(work), effort)
            log = folder / f"{name}.log"
            code = self._drive(python, order, log, show)
        if code != 0:
            raise DataError(
                f"img2dataset ended with code {code}: {last_lines(log)}",
                fix=f"read {log}, then run the same command again: it goes on",
            )
        lost = [shard for shard in todo if not self._stats_file(shard).exists()]
        if lost:
            raise DataError(
                f"{len(lost)} of {len(own_shards)} shards could not be written: {last_lines(log)}",
                fix=f"read {log}, then run the same command again: it does only these",
            )

    def report(self) -> DownloadReport:
        """Add up the shards that are there."""
        report = DownloadReport(str(self.out), self.num_asked, self.num_shards)
        reasons: Counter[str] = Counter()
        for shard in range(self.num_shards):
            stats = self._stats(shard)
            if stats is None:
                report.missing.append(shard)
                continue
            report.num_tried += stats["count"]
            report.num_got += stats["successes"]
            if not stats["successes"]:
                report.empty.append(shard)
            reasons.update(stats["status_dict"])
            report.num_bytes += self._tar(shard).stat().st_size
        del reasons["success"]
        counted = reasons.total()
        if unexplained := report.num_tried - report.num_got - counted:
            reasons["(not told by img2dataset)"] += unexplained
        report.reasons = dict(reasons.most_common())
        return report

    def _order(self, todo: Sequence[int], work: Path, effort: Effort) -> Path:
        wanted = set(todo)
        files, skip = [], []
        for file, following in zip(self.files, [*self.files[1:], None], strict=True):
            stop = following.first_shard if following is not None else self.num_shards
            shards = range(file.first_shard, stop)
            if wanted.isdisjoint(shards):
                continue
            files.append((str(file.path), file.first_shard))
            skip += [shard for shard in shards if shard not in wanted]
        path = work / "order.json"
        settings = {**asdict(self.settings), **asdict(effort), "oom_shard_count": _SHARD_DIGITS}
        # A short list needs no more processes than it has shards.
        settings["processes_count"] = min(effort.processes_count, len(todo))
        write_json(
            path,
            {
                "parent": os.getpid(),
                "files": files,
                "skip": skip,
                "work": str(work / "shards"),
                "settings": settings,
            },
        )
        (work / "shards").mkdir()
        return path

    def _drive(self, python: Path, order: Path, log: Path, show: Callable[[], None]) -> int:
        environ = {**tool_variables(), _OUT_VARIABLE: str(self.out)}
        with log.open("ab") as output:
            process = subprocess.Popen(
                [str(python), str(_DRIVER), str(order)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environ,
                start_new_session=True,
            )
        try:
            shown_at = time.monotonic()
            while process.poll() is None:
                time.sleep(_POLL_S)
                if time.monotonic() - shown_at > _LOOK_EVERY_S:
                    show()
                    shown_at = time.monotonic()
            show()
            return process.returncode
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _tar(self, shard: int) -> Path:
        return self.out / f"{shard:0{_SHARD_DIGITS}d}.tar"

    def _stats_file(self, shard: int) -> Path:
        return self.out / f"{shard:0{_SHARD_DIGITS}d}_stats.json"

    def _stats(self, shard: int) -> dict[str, Any] | None:
        """What img2dataset counted; None unless the shard is there."""
        if not self._tar(shard).exists():
            return None
        try:
            return read_json(self._stats_file(shard))
        except (OSError, ValueError):
            return None

    def _got(self, shard: int) -> bool:
        """Whether a shard is there with an image; without any it is worth another try."""
        stats = self._stats(shard)
        return stats is not None and stats["successes"] > 0

    def _row_counter(
        self, shards: range, on_progress: Callable[[int, int], None]
    ) -> Callable[[], None]:
        """A function that reports the rows of the finished shards; each is looked for once."""
        missing = {shard: self.rows_of(range(shard, shard + 1)) for shard in shards}
        total = self.rows_of(shards)

        def show() -> None:
            """Report (rows done, rows in all)."""
            for shard in [shard for shard in missing if self._tar(shard).exists()]:
                del missing[shard]
            on_progress(total - sum(missing.values()), total)

        return show


def _input_files(sources: Sequence[Path], settings: ImageSettings) -> list[InputFile]:
    require_packages("downloading", "pyarrow")
    from pyarrow import ArrowException, parquet

    paths: list[Path] = []
    for source in sources:
        parquets = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
        if not parquets:
            raise DataError(
                f"the folder {source} has no *.parquet", fix="make them with: mgpt4 data convert"
            )
        paths += parquets
    files: list[InputFile] = []
    first = 0
    for path in paths:
        try:
            metadata = parquet.read_metadata(path)
        except (OSError, ArrowException) as error:
            raise DataError(
                f"{path} is no parquet file that can be read: {error}",
                fix="make it with: mgpt4 data convert",
            ) from None
        absent = {settings.url_col, settings.caption_col} - set(metadata.schema.names)
        if absent:
            raise DataError(
                f"{path} has no column {', '.join(sorted(absent))}; "
                f"it has {', '.join(metadata.schema.names)}",
                fix="name its columns with --url-col and --caption-col",
            )
        files.append(InputFile(path.absolute(), metadata.num_rows, first))
        first += -(-metadata.num_rows // settings.number_sample_per_shard)
    if not first:
        raise DataError("the input has no row", fix="see what mgpt4 data convert left out")
    return files


def _require_same(out: Path, begun: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise DataError unless a download may go on; more input files at the end are welcome."""
    if begun.get("format") != _FORMAT:
        raise DataError(f"{out / PLAN_FILE} is of another program", fix="give another --out")
    faults = [
        f"{key} was {begun['settings'].get(key)!r}, is {value!r}"
        for key, value in now["settings"].items()
        if begun["settings"].get(key) != value
    ]
    before = begun["inputs"]
    if now["inputs"][: len(before)] != before:
        faults.append("the input files are other ones, or have other rows")
    if faults:
        raise DataError(
            f"{out} was begun otherwise: {'; '.join(faults)}",
            why="its shards would not fit together",
            fix="give the same again, or another --out",
        )
    if len(now["inputs"]) > len(before):
        write_json(out / PLAN_FILE, now)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock, where the file system has locks."""
    with path.open("w") as file:
        if not lock(file):
            raise DataError(
                f"another process does this part of {path.parent.parent}",
                fix="wait for it, or end it first",
            )
        yield
