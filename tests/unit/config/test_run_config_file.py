"""A run's config.yaml gives back what was stored, whatever a user wrote into it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpt4_hpc.config.load import Resolved, load_config
from mgpt4_hpc.config.run_config_file import read_config, write_config
from mgpt4_hpc.errors import ConfigError

HOSTILE = [
    "a\nb",
    "x\n  max_steps: 7  # flag\ny",
    "# flag",
    "a  # flag",
    "'\"\\ {}: [] , & * ! | > % @ `",
    "\t\x00\x07\x7f\x85\u2028\ufeff\U0001f600\ud800",
    "...",
    "---",
    "a\n...\n",
    "null",
    "1e-4",
    "yes",
    "",
    " ",
    "é",
]


def store(tmp_path: Path, resolved: Resolved) -> tuple[Resolved, str]:
    path = tmp_path / "config.yaml"
    write_config(path, resolved)
    return read_config(path), path.read_text(encoding="utf-8")


def test_values_and_origins_come_back(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("launch: {partition: p, sbatch: {nice: '1'}}\n")
    resolved = load_config(
        "stage2-vicuna7b", site=site, environ={"MGPT4_SEED": "3"}, overrides={"train.lr": 7e-5}
    )
    again, text = store(tmp_path, resolved)
    assert again.config == resolved.config
    assert again.digest == resolved.digest
    for key in ("seed", "train.lr", "launch.partition", "launch.sbatch", "train.beta1", "stage"):
        assert again.origin(key) == resolved.origin(key), key
    assert "\nseed: 3  # environment\n" in text
    assert "  partition: p  # site site\n" in text
    assert "  beta1: 0.9  # default\n" in text


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_texts_stay_on_their_line(tmp_path: Path, hostile: str) -> None:
    plain = load_config("stage2-vicuna7b")
    text = plain.config.text.model_copy(update={"instructions": (hostile, "b")})
    resolved = Resolved(plain.config.model_copy(update={"text": text}), plain.origins)
    again, stored = store(tmp_path, resolved)
    assert again.config == resolved.config
    assert again.origin("train.max_steps") == plain.origin("train.max_steps")
    _, before = store(tmp_path, plain)
    assert len(stored.splitlines()) == len(before.splitlines())


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(max_size=30), max_size=3))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    plain = _plain()
    text = plain.config.text.model_copy(update={"instructions": tuple(texts)})
    resolved = Resolved(plain.config.model_copy(update={"text": text}), plain.origins)
    again, _ = store(tmp_path_factory.mktemp("any"), resolved)
    assert again.config == resolved.config


_PLAIN: list[Resolved] = []


def _plain() -> Resolved:
    if not _PLAIN:
        _PLAIN.append(load_config("stage2-vicuna7b"))
    return _PLAIN[0]


@pytest.mark.parametrize("name", ["a#b.yaml", "a\nseed: 9 # flag", "ü.yaml", "x\udc80y", "a  # b"])
def test_a_file_may_be_called_anything(tmp_path: Path, name: str) -> None:
    plain = _plain()
    resolved = Resolved(plain.config, {**plain.origins, "seed": f"file {name}"})
    again, _ = store(tmp_path, resolved)
    assert again.config == resolved.config
    assert again.origin("seed").startswith("file ")


def test_an_edit_into_something_invalid_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_config(path, _plain())
    path.write_text(path.read_text().replace("seed: 42", "seed: -1"))
    with pytest.raises(ConfigError, match="mgpt4 resume RUN --set"):
        read_config(path)
