"""Lists of URLs and names of repositories, before a server is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.downloads.listing import list_repository, list_urls
from mgpt4_hpc.errors import DataError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no URL"),
        ("# only a comment\n", "names no URL"),
        ("ftp://h/a.tar\n", "'ftp://h/a.tar' is no URL"),
        ("http://h/a.tar\nhttp://i/a.tar?x=1\n", "2 URLs end in 'a.tar'"),
        ("http://h/\n", "1 URLs end in ''"),
        ("http://h/%2E%2E\n", "leads out of the folder"),
        ("http://h/a.tar\n", r"no file of .* fits \*.zip"),
    ],
)
def test_a_list_that_cannot_be_fetched(text: str, message: str, tmp_path: Path) -> None:
    listed = tmp_path / "urls.txt"
    listed.write_text(text)
    with pytest.raises(DataError, match=message):
        list_urls(listed, ["*.zip"])


def test_what_is_no_repository() -> None:
    with pytest.raises(DataError, match="hf:OWNER/NAME"):
        list_repository("name", kind="dataset")
