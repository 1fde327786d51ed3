"""``faithful: true`` is the sum of the switches, and every value shows where it came from."""

from __future__ import annotations

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.original_quirks import ORIGINAL_VALUES
from mgpt4_hpc.config.run_config_file import read_config, write_config
from mgpt4_hpc.errors import ConfigError


def value(config, key: str):
    section, _, leaf = key.partition(".")
    return getattr(getattr(config, section), leaf)


def test_it_sets_every_switch_and_says_so(tmp_path) -> None:
    resolved = load_config("stage1-vicuna7b", overrides={"faithful": True})
    for key, original in ORIGINAL_VALUES.items():
        assert value(resolved.config, key) == original
        assert resolved.origin(key) == "faithful"
    assert resolved.config.data.granularity == 64, "a source is drawn per batch of a rank"
    path = tmp_path / "config.yaml"
    write_config(path, resolved)
    assert "  keep_end_symbol: false  # faithful\n" in path.read_text()
    again = read_config(path)
    assert again.config == resolved.config and again.origin("model.precision") == "faithful"


def test_off_by_default_and_then_nothing_is_the_original_s_quirk() -> None:
    resolved = load_config("stage2-vicuna7b")
    assert not resolved.config.faithful
    differs = {k for k, v in ORIGINAL_VALUES.items() if value(resolved.config, k) != v}
    assert differs == set(ORIGINAL_VALUES) - {"data.resize", "train.max_grad_norm"}


def test_contradictions_are_told_all_at_once() -> None:
    overrides = {"faithful": True, "model.precision": "bf16", "text.keep_end_symbol": True}
    with pytest.raises(ConfigError) as caught:
        load_config("stage2-vicuna7b", overrides=overrides)
    assert "model.precision is 'bf16', but faithful: true means 'fp16'" in str(caught.value)
    assert "text.keep_end_symbol is True, but faithful: true means False" in str(caught.value)


def test_agreeing_with_it_is_no_contradiction() -> None:
    overrides = {"faithful": True, "text.keep_end_symbol": False}
    resolved = load_config("stage2-vicuna7b", overrides=overrides)
    assert resolved.origin("text.keep_end_symbol") == "flag"


def test_a_run_older_than_a_switch_can_go_on(tmp_path) -> None:
    path = tmp_path / "config.yaml"
    write_config(path, load_config("stage2-vicuna7b", overrides={"faithful": True}))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "parse_control_tokens" not in line))
    assert not read_config(path).config.text.parse_control_tokens
