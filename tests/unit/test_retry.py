"""Storage that stumbles is given time; what is really wrong is told at once."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import read_config, read_own_config, write_config
from mgpt4_hpc.errors import ConfigError, DataError, MgptError, StorageTrouble
from mgpt4_hpc.retry import PAUSES_S, TRANSIENT, is_transient, retry_storage


def stumble(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Storage:
    """Fails some times, with whatever it is given, then works."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.tries = 0

    def __call__(self) -> str:
        self.tries += 1
        if self.failures:
            raise self.failures.pop(0)
        return "read"


@pytest.mark.parametrize("number", sorted(TRANSIENT))
def test_what_passes_is_tried_again(number: int) -> None:
    storage, slept = Storage(stumble(number), stumble(number)), list[float]()
    assert retry_storage(storage, sleep=slept.append, say=lambda _: None) == "read"
    assert slept == list(PAUSES_S[:2])


def test_what_lasts_becomes_trouble_that_brings_the_job_back() -> None:
    storage = Storage(*[stumble(errno.ESTALE)] * 20)
    with pytest.raises(StorageTrouble, match="Stale file handle") as caught:
        retry_storage(storage, sleep=lambda _: None, say=lambda _: None)
    assert not caught.value.will_repeat
    assert storage.tries == len(PAUSES_S) + 1


@pytest.mark.parametrize(
    "error", [DataError("broken"), FileNotFoundError(2, "x"), stumble(errno.ENOSPC), ValueError()]
)
def test_what_stays_wrong_is_told_at_once(error: Exception) -> None:
    storage = Storage(error)
    with pytest.raises(type(error)):
        retry_storage(storage, sleep=lambda _: pytest.fail("slept"))
    assert storage.tries == 1


def test_an_error_of_ours_is_judged_by_what_it_came_from() -> None:
    def read() -> None:
        try:
            raise stumble(errno.EIO)
        except OSError:
            raise DataError("the index cannot be read") from None

    with pytest.raises(DataError) as caught:
        read()
    assert is_transient(caught.value)
    assert not is_transient(DataError("truncated"))


def test_a_folder_that_went_away_is_waited_for(tmp_path: Path) -> None:
    config = tmp_path / "mount" / "config.yaml"
    away = tmp_path / "away"
    config.parent.mkdir()
    write_config(config, load_config("stage1-vicuna7b"))
    config.parent.rename(away)
    with pytest.raises(ConfigError):
        read_config(config)  # what the login node asks for is there, or not
    resolved = retry_storage(
        lambda: read_config(config),
        vanished=lambda: not config.exists(),
        sleep=lambda _: away.rename(config.parent),
        say=lambda _: None,
    )
    assert resolved.config.stage == 1


def test_settings_that_are_wrong_are_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("stage: 9\n")
    with pytest.raises(MgptError, match="no valid configuration"):
        read_own_config(tmp_path / "config.yaml", pauses_s=(0.0,))
    assert "again in" not in capsys.readouterr().out
