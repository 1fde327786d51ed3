"""What is to be fetched: the files of a Hugging Face repository, or of a list of URLs."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from mgpt4_hpc.downloads.transport import ask_patiently
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.text_files import NotUtf8, read_utf8

WORK_FOLDER = ".fetch"
"""Work folder in a folder that is being fetched."""
CONNECTIONS = 4
"""Limit of one process at the same time."""

_REPO = re.compile(r"^[\w.-]+/[\w.-]+$")
_SHOWN = 5

Kind = Literal["dataset", "model"]


@dataclass(frozen=True)
class RemoteFile:
    """A file to be fetched.

    Attributes:
        name: where it goes, relative to the folder, with forward slashes.
        url: where it comes from.
        size: in bytes; None if the server does not send it.
        hash: ``sha256:HEX`` or ``git:HEX`` (a git blob's SHA-1); empty if unknown.
        etag: the server's name for this content, for files without a hash; may be empty.
    """

    name: str
    url: str
    size: int | None = None
    hash: str = ""
    etag: str = ""

    @property
    def key(self) -> str:
        """Key of its content: partial files of another content have another one."""
        identity = f"{self.url}\0{self.size}\0{self.hash}\0{self.etag}"
        return hashlib.sha256(identity.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Listing:
    """What a source has.

    Attributes:
        source: as it was given, for people.
        revision: the repository's commit; empty for plain URLs.
        files: to be fetched, by name.
    """

    source: str
    revision: str
    files: tuple[RemoteFile, ...]


def list_repository(
    repo: str, *, kind: Kind, revision: str | None = None, patterns: Sequence[str] = ()
) -> Listing:
    """The files of a repository of the hub, at one commit.

    Args:
        repo: ``OWNER/NAME``. HF_ENDPOINT and HF_TOKEN are the library's own.
        kind: of the repository.
        revision: a branch, tag or commit; the main branch by default.
        patterns: of names, as ``*.tar``; all files by default.

    Raises:
        DataError: if there is no such repository or file, or the hub does not answer.
    """
    if not _REPO.match(repo):
        raise DataError(f"hf:{repo} names no repository", fix="give it as hf:OWNER/NAME")
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()

    def ask() -> tuple[str, list[Any]]:
        """The revision's commit, and the entries of its files."""
        commit = str(api.repo_info(repo, repo_type=kind, revision=revision).sha)
        entries = api.list_repo_tree(repo, recursive=True, repo_type=kind, revision=commit)
        return commit, [entry for entry in entries if isinstance(entry, RepoFile)]

    commit, entries = ask_patiently(ask, f"the {kind} {repo}")
    files = [
        RemoteFile(
            name=entry.path,
            url=hf_hub_url(repo, entry.path, repo_type=kind, revision=commit),
            size=entry.size,
            hash=f"sha256:{entry.lfs.sha256}" if entry.lfs else f"git:{entry.blob_id}",
        )
        for entry in entries
    ]
    return Listing(f"hf:{repo}", commit, _chosen(f"hf:{repo}", files, patterns))


def list_urls(path: Path, patterns: Sequence[str] = ()) -> Listing:
    """The files of a list of URLs, one a line; each is called as its URL ends.

    Raises:
        DataError: if the list cannot be read, two URLs end alike, or a server does not answer.
    """
    try:
        lines = [line.strip() for line in read_utf8(path).splitlines()]
    except (OSError, NotUtf8) as error:
        raise DataError(f"the list {path} cannot be read: {error}") from None
    urls = [line for line in lines if line and not line.startswith("#")]
    wrong = [url for url in urls if not url.lower().startswith(("http://", "https://"))]
    if wrong or not urls:
        raise DataError(
            f"{path}: {wrong[0]!r} is no URL" if wrong else f"{path} names no URL",
            fix="write one a line, as https://host/00000.tar",
        )
    names = [PurePosixPath(unquote(urlsplit(url).path)).name for url in urls]
    for name, count in Counter(names).items():
        if not name or count > 1:
            raise DataError(
                f"{path}: {count} URLs end in {name!r}, which is to be the file's name",
                fix="make several lists, and fetch each into a folder of its own",
            )
    chosen = _chosen(
        str(path),
        [RemoteFile(name, url) for name, url in zip(names, urls, strict=True)],
        patterns,
    )
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return Listing("a list of URLs", "", tuple(pool.map(_asked_server, chosen)))


def _chosen(
    source: str, files: Sequence[RemoteFile], patterns: Sequence[str]
) -> tuple[RemoteFile, ...]:
    """The files with names that fit a pattern; no name leads out of the folder."""
    for file in files:
        parts = PurePosixPath(file.name).parts
        if file.name.startswith("/") or ".." in parts or parts[:1] == (WORK_FOLDER,):
            raise DataError(f"{source} has a file {file.name!r}, which leads out of the folder")
    chosen = [
        file
        for file in files
        if not patterns or any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns)
    ]
    if not chosen:
        names = [file.name for file in files]
        held = ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
        raise DataError(
            f"no file of {source} fits {', '.join(patterns) or 'anything'}",
            why=f"it has {held or 'no file'}",
            fix="give --files a pattern of these names",
        )
    return tuple(sorted(chosen, key=lambda file: file.name))


def _asked_server(file: RemoteFile) -> RemoteFile:
    """A file behind a URL, with its server's size and ETag."""
    from huggingface_hub.utils import get_session

    def ask() -> Any:
        """Headers of the server's answer; none if it does not support HEAD."""
        headers = {"Accept-Encoding": "identity"}
        answer = get_session().head(file.url, headers=headers, follow_redirects=True, timeout=30)
        if answer.status_code != 405:  # a server without HEAD sends nothing before
            answer.raise_for_status()
        return answer.headers if answer.status_code != 405 else {}

    headers = ask_patiently(ask, file.url)
    length = str(headers.get("content-length", ""))
    etag = str(headers.get("etag", ""))
    size = int(length) if length.isdigit() else None
    return RemoteFile(file.name, file.url, size, etag="" if etag.startswith("W/") else etag)
