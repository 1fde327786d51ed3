"""Settings as text: ``--set KEY=VALUE`` and the environment's ``MGPT4_*``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from mgpt4_hpc.config import keys
from mgpt4_hpc.config.yaml_file import parse_yaml
from mgpt4_hpc.errors import ConfigError

ENV_PREFIX = "MGPT4_"
_NO_SETTINGS = frozenset({"MGPT4_PYTHON"})
"""Variables of the batch scripts that are called like the last part of a setting."""

Layer = tuple[str, dict[str, Any]]
"""Origin in words, and flat settings: ``("--set", {"train.lr": "1e-4"})``."""


def parse_assignments(assignments: Iterable[str], option: str = "--set") -> dict[str, Any]:
    """``["lr=1e-4"]`` to ``{"train.lr": 1e-4}``.

    Raises:
        ConfigError: naming every assignment that has no ``=`` or no such key.
    """
    values, faults = read_assignments(assignments, option)
    if faults:
        raise ConfigError("cannot use these settings", faults=faults)
    return values


def read_assignments(
    assignments: Iterable[str], option: str = "--set"
) -> tuple[dict[str, Any], list[str]]:
    """The same, and what is wrong with the others, to be reported with the faults of the values."""
    values: dict[str, Any] = {}
    faults = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            faults.append(f"{option} {assignment!r}: write key=value")
            continue
        full, fault = keys.resolve(key.strip())
        if fault:
            faults.append(f"{option} {assignment!r}: {fault}")
            continue
        values[full] = _parse_value(full, text)
    return values, faults


def _parse_value(key: str, text: str) -> Any:
    """What ``text`` means for a setting; for a text it is itself, however much it looks like YAML.

    Otherwise ``text.end_symbol=###`` would be a comment, and ``constraint=[a|b]`` a list.
    """
    try:
        value = parse_yaml(text)
    except yaml.YAMLError:
        return text
    if not keys.is_text(key):
        return value
    return None if text.strip() in ("", "null", "~") else text


def env_layer(environ: Mapping[str, str]) -> tuple[Layer, list[str]]:
    """Settings from ``MGPT4_TRAIN__LR`` or, where the name is unambiguous, ``MGPT4_LR``.

    Also the variables with a section in their names that are no settings, as faults.
    """
    values: dict[str, Any] = {}
    faults = []
    for variable, text in environ.items():
        if not variable.startswith(ENV_PREFIX) or variable in _NO_SETTINGS:
            continue
        name = variable.removeprefix(ENV_PREFIX)
        full, fault = keys.resolve(name.lower().replace("__", "."))
        if not fault:
            values[full] = _parse_value(full, text)
        elif "__" in name:  # without a section it steers the tools, not the run
            faults.append(f"{variable}: {fault}")
    return ("environment", values), faults
