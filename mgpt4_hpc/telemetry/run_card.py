"""What a run is, for TensorBoard: its settings as HParams, and a text card in Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_ALWAYS = (
    "stage",
    "seed",
    "model.variant",
    "model.precision",
    "train.global_batch_size",
    "train.lr",
    "train.min_lr",
    "train.max_steps",
    "train.warmup_steps",
    "train.weight_decay",
)
"""Shown of each run, so that a sweep's table has no holes where one run kept a default."""
_LEFT_OUT = ("launch", "name", "checkpoint", "train.log_every_steps", "train.save_every_s")
"""Says nothing of the result."""


def hyperparameters(
    settings: Mapping[str, Any], changed: Sequence[str]
) -> dict[str, bool | float | str]:
    """The settings that distinguish runs: the usual ones, and all that the user set.

    Args:
        settings: every setting by its dotted key.
        changed: keys that are no defaults.
    """
    keys = [*_ALWAYS, *(key for key in changed if not _says_nothing(key))]
    values: dict[str, bool | float | str] = {}
    for key in dict.fromkeys(keys):
        value = settings.get(key)
        if isinstance(value, (bool, str)):
            values[key] = value
        elif isinstance(value, (int, float)):
            values[key] = float(value)
        # Lists and mappings are on the card: they would make no column to sort by.
    return values


def text_card(
    name: str,
    identity: Mapping[str, Any],
    start: Mapping[str, Any],
    settings: Mapping[str, Any],
    origins: Mapping[str, str],
) -> str:
    """What runs here, with which code, where, and the user's settings: in Markdown.

    Args:
        name: of the run.
        identity: of run.json.
        start: the fields of the ledger's line about this attempt's start.
        settings: every setting by its dotted key.
        origins: of each that is no default, who set it.
    """
    versions = start.get("versions") or {}
    nodes = start.get("nodes") or start.get("hostname") or ""
    code, job = identity.get("code_version"), start.get("job_id")
    facts = {
        "run": name,
        "stage": settings.get("stage"),
        "created": identity.get("created"),
        "code": code and f"mgpt4-hpc {code}",
        "config digest": identity.get("config_digest"),
        "job": job
        and f"{start.get('executor', '')} {job}, restart {start.get('restart_count', 0)}",
        "nodes": nodes if isinstance(nodes, str) else ", ".join(map(str, nodes)),
        "ranks": start.get("world_size"),
        "versions": ", ".join(f"{key} {value}" for key, value in versions.items()),
    }
    lines = ["| | |", "|---|---|"]
    lines += [f"| {key} | {_cell(value)} |" for key, value in facts.items() if value]
    lines += ["", "| setting | value | set by |", "|---|---|---|"]
    lines += [
        f"| {key} | {_cell(json.dumps(settings.get(key), ensure_ascii=False))} | {_cell(who)} |"
        for key, who in sorted(origins.items())
    ]
    return "\n".join(lines)


def _says_nothing(key: str) -> bool:
    return any(key == left_out or key.startswith(left_out + ".") for left_out in _LEFT_OUT)


def _cell(value: object) -> str:
    """Text that stays in its cell, whatever it holds: TensorBoard shows HTML as text by itself."""
    text = "".join(char if char.isprintable() else " " for char in str(value))
    return text.replace("\\", "\\\\").replace("|", "\\|")
