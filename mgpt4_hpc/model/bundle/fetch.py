"""Download published weights and import them (``mgpt4 weights fetch``).

The hub's files come through huggingface_hub, all others through gdown, which knows Google Drive.
Both resume. A file gets its name once its length, its hash where one is published, and its format
are right, so that a second call only does what the first could not.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.bundle.bundle import Bundle, open_bundle
from mgpt4_hpc.model.bundle.manifest import BUNDLE_FILE
from mgpt4_hpc.model.bundle.published import VARIABLE, PublishedSource
from mgpt4_hpc.model.bundle.writer import OnProgress, Say, require_free, write_bundle
from mgpt4_hpc.model.conversion.parts import Sources
from mgpt4_hpc.model.weight_files.headers import read_header
from mgpt4_hpc.model.weight_files.untrusted_files import one_line

TRIES = 6
_FIRST_PAUSE_S = 2.0
_LONGEST_PAUSE_S = 600.0
_TIMEOUT_S = 60.0
_SMALL = ("*.json", "*.model", "*.txt")
_MIRROR = f"name a mirror or a local copy in a file of sources ({VARIABLE}=FILE)"

T = TypeVar("T")


def fetch_bundle(
    parts: Mapping[str, PublishedSource],
    out: Path,
    *,
    architecture: Architecture | None = None,
    say: Say = lambda _line: None,
    on_progress: OnProgress = lambda _done, _total: None,
) -> Bundle:
    """Download what is not there yet, import it, and open the bundle.

    What is downloaded lies in ``.NAME.fetch`` beside ``out`` until the bundle is complete, and is
    then removed; a language model that was downloaded becomes part of the bundle.

    Args:
        parts: sources by part: ``vit``, ``llm``, and optionally ``qformer`` and ``projector``.
        out: the new bundle's folder.
        architecture: sizes, where the shapes do not show them.
        say: called with a line before each slow step.
        on_progress: called with the bytes of the current step, done and in all.

    Raises:
        WeightsError: with the fix, if a file cannot be had or is not what it should be; what was
            downloaded stays for the next call.
    """
    work = out.with_name(f".{out.name}.fetch")
    llm = work / "llm"
    if (out / BUNDLE_FILE).is_file() and llm.is_dir():
        llm.rename(out / "llm")  # all that a killed call had not done
    if out.exists():
        bundle = open_bundle(out)
        shutil.rmtree(work, ignore_errors=True)
        return bundle
    work.mkdir(parents=True, exist_ok=True)
    held = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    wanted = sum(source.gib for source in parts.values() if source.path is None) * 1024**3
    require_free(out.parent, int(max(0, wanted - held)))
    paths = {
        part: source.path.expanduser()
        if source.path is not None
        else _from_hub(source, llm, say)
        if source.hub is not None
        else _from_web(source, work / source.file, say, on_progress)
        for part, source in parts.items()
    }
    missing = [str(path) for path in paths.values() if not path.exists()]
    if missing:
        raise WeightsError(f"not there: {', '.join(missing)}", fix="correct the file of sources")
    own = paths["llm"] == llm
    sources = Sources(
        paths["vit"], paths["llm"], paths.get("qformer"), paths.get("projector"), architecture
    )
    bundle = write_bundle(
        out, sources, llm="move" if own else "refer", say=say, on_progress=on_progress
    )
    shutil.rmtree(work, ignore_errors=True)
    return bundle


# --- web servers and Google Drive ---------------------------------------------------------------


def _from_web(source: PublishedSource, target: Path, say: Say, on_progress: OnProgress) -> Path:
    import gdown

    if target.exists():
        return target
    assert source.url is not None
    url, raw = source.url, target.with_name(f"{target.name}.unchecked")
    say(f"downloading {target.name} from {url} ({source.licence})")

    def download() -> None:
        """Download into ``raw``; continues what an earlier call left."""
        try:
            gdown.download(
                url=url,
                output=str(raw),
                quiet=True,
                use_cookies=False,
                resume=True,
                retries=2,
                timeout=_TIMEOUT_S,
                progress=lambda done, total: on_progress(done, total or 0),
            )
        except OSError as error:
            if _status(error) == 416:  # nothing lies behind the part: it is complete, or another's
                for part in raw.parent.glob(f"{raw.name}*.part"):
                    part.unlink()
            raise

    _with_retries(download, source, say)
    try:
        _require_hash(raw, source)
        read_header(raw)
    except WeightsError:
        raw.unlink()  # it would be wrong the next time too
        raise
    raw.rename(target)
    return target


def _require_hash(path: Path, source: PublishedSource) -> None:
    """Compare with the hash of ``sources.yaml``, or with what Google's storage publishes."""
    if source.sha256:
        _compare(path, "sha256", source.sha256)
        return
    import requests

    assert source.url is not None
    try:
        answer = requests.head(source.url, timeout=_TIMEOUT_S, allow_redirects=True)
    except requests.RequestException:
        return
    length = answer.headers.get("Content-Length", "")
    if answer.ok and "x-goog-hash" in answer.headers:
        if length.isdigit() and int(length) != path.stat().st_size:
            raise WeightsError(
                f"{path} has {path.stat().st_size:,} bytes, the server has {int(length):,}",
                fix="run the same command again",
            )
        for entry in answer.headers["x-goog-hash"].replace(" ", "").split(","):
            if entry.startswith("md5="):
                _compare(path, "md5", base64.b64decode(entry[4:]).hex())


def _compare(path: Path, kind: str, wanted: str) -> None:
    with path.open("rb", buffering=0) as file:
        digest = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False))
    if digest.hexdigest() != wanted.lower():
        raise WeightsError(
            f"{path.name}: its {kind} is {digest.hexdigest()}, {wanted} is published",
            why="the download is damaged, or the file is not the one that was published",
            fix="run the same command again",
        )


# --- the Hugging Face hub -----------------------------------------------------------------------


def _from_hub(source: PublishedSource, folder: Path, say: Say) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    complete = folder.with_name("llm.complete")
    if complete.exists():
        return folder
    assert source.hub is not None
    say(f"downloading {source.hub} ({source.licence})")
    if not sys.stderr.isatty():
        disable_progress_bars()

    info = _with_retries(
        lambda: HfApi().model_info(source.hub, files_metadata=True, timeout=_TIMEOUT_S), source, say
    )
    files = {entry.rfilename: entry for entry in info.siblings or []}
    kind = "*.safetensors" if any(n.endswith(".safetensors") for n in files) else "*.bin"

    def download() -> str:
        """Download the listed revision's weights and small files into ``folder``."""
        return snapshot_download(
            source.hub,
            revision=info.sha,
            local_dir=folder,
            allow_patterns=[*_SMALL, kind],
            max_workers=4,
        )

    _with_retries(download, source, say)
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            continue
        wrong = entry.size is not None and path.stat().st_size != entry.size
        try:
            if wrong:
                raise WeightsError(
                    f"{name} has {path.stat().st_size:,} bytes, the hub has {entry.size:,}",
                    fix="run the same command again",
                )
            if entry.lfs is not None:
                _compare(path, "sha256", entry.lfs.sha256)
        except WeightsError:
            path.unlink()
            raise
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub's notes on what it resumes
    complete.touch()
    return folder


# --- servers that stumble or refuse ---------------------------------------------------------------


def _with_retries(action: Callable[[], T], source: PublishedSource, say: Say) -> T:
    """What ``action`` returns, tried again while the server is busy or the connection breaks.

    Raises:
        WeightsError: if the server refuses, or the last try fails too.
    """
    import gdown
    from huggingface_hub.errors import HTTPError  # of whichever HTTP client the hub's library has

    pause_s = _FIRST_PAUSE_S
    for number in range(1, TRIES + 1):
        try:
            return action()
        except (OSError, HTTPError, gdown.exceptions.DownloadError) as error:
            if (refusal := _refusal(source, error)) is not None:
                raise refusal from error
            if number == TRIES:
                raise WeightsError(
                    f"{source.place} cannot be downloaded: {one_line(error)}",
                    fix=f"run the same command again, it resumes; or {_MIRROR}",
                ) from error
            asked = _headers(error).get("Retry-After", "")
            pause_s = min(_LONGEST_PAUSE_S, float(asked)) if asked.isdigit() else pause_s
            say(f"{one_line(error)}; again in {pause_s:.0f} s")
            time.sleep(pause_s)
            pause_s *= 2
    raise AssertionError("unreachable")


def _refusal(source: PublishedSource, error: Exception) -> WeightsError | None:
    """The error for an answer that will not change; None where trying again may help."""
    import gdown
    from huggingface_hub.errors import OfflineModeIsEnabled

    status = _status(error)
    if isinstance(error, OfflineModeIsEnabled):
        return WeightsError(
            "HF_HUB_OFFLINE is set, so nothing is downloaded", fix="unset it, on a login node"
        )
    if isinstance(error, gdown.exceptions.FileURLRetrievalError):
        return WeightsError(
            f"{source.place}: {one_line(error)}", why="Google Drive limits downloads", fix=_MIRROR
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
        return WeightsError(
            f"cannot write the download: {error.strerror}",
            fix="free some space, or give --out on another file system; what is there is kept",
        )
    if status in (401, 403) and source.gated:
        return WeightsError(
            f"{source.hub} is given to accounts that accepted its licence ({source.licence})",
            fix=f"accept it on {source.gated}, then set HF_TOKEN to a token of that account "
            "(https://huggingface.co/settings/tokens) for this command: mgpt4 stores it nowhere",
        )
    if 400 <= status < 500 and status not in (408, 416, 429):
        return WeightsError(f"{source.place}: the server answers {status}", fix=_MIRROR)
    return None


def _status(error: Exception) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0))


def _headers(error: Exception) -> Mapping[str, str]:
    return getattr(getattr(error, "response", None), "headers", None) or {}
