"""What several test files share."""

from pathlib import Path

from tests.cli.fakes import Mgpt4


def refused(mgpt4: Mgpt4, code: int, *arguments: object) -> str:
    """What ``submit`` says when it refuses; the folder must stay empty."""
    ended = mgpt4("submit", "--executor", "local", *arguments)
    assert ended.code == code, ended.err
    assert ended.out == ""
    assert list(Path().iterdir()) == []
    return ended.err
