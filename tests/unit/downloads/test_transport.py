"""Which errors of a request are tried again, and how they are reported."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest

from mgpt4_hpc.downloads import transport
from mgpt4_hpc.errors import DataError
from tests.cli.fakes import replace_sleep


class Refused(Exception):
    """An answer with a status, as the HTTP library raises it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.parametrize(
    ("error", "fatal", "other_content", "reason"),
    [
        (Refused(404), True, False, "HTTP 404"),
        (Refused(503), False, False, "HTTP 503"),
        (Refused(416), False, True, "HTTP 416"),
        (OSError(errno.ENOSPC, "No space left"), True, False, "No space left"),
        (OSError(errno.ECONNRESET, "reset"), False, False, "reset"),
        (OSError("consistency check failed"), False, True, "OSError: consistency check failed"),
        (transport.OtherContent("8 bytes, not 9"), False, True, "8 bytes, not 9"),
        (TimeoutError("read\nmore"), False, False, "TimeoutError: read"),
    ],
)
def test_errors(error: Exception, fatal: bool, other_content: bool, reason: str) -> None:
    assert transport.is_fatal(error) is fatal
    assert transport.is_another_content(error) is other_content
    assert transport.reason_of(error) == reason


def test_a_server_that_fails_for_a_while_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    replace_sleep(monkeypatch, "mgpt4_hpc.downloads.transport", pauses.append)
    answers = iter([Refused(503), TimeoutError(), "listed"])

    def ask() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert transport.ask_patiently(ask, "the dataset a/b") == "listed" and len(pauses) == 2
    answers = iter([Refused(401)])
    with pytest.raises(DataError, match="the dataset a/b cannot be listed: HTTP 401") as caught:
        transport.ask_patiently(ask, "the dataset a/b")
    assert "HF_TOKEN" in str(caught.value) and len(pauses) == 2
    answers = iter([Refused(500)] * 9)
    with pytest.raises(DataError, match="reaches the network"):
        transport.ask_patiently(ask, "the dataset a/b")
