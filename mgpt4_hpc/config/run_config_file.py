"""The resolved configuration in a run directory: values, and their origins beside them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mgpt4_hpc import __version__
from mgpt4_hpc.config import keys
from mgpt4_hpc.config.load import Resolved
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.config.yaml_file import read_yaml, resolve_as_1_2
from mgpt4_hpc.disk import fsync_file
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.retry import PAUSES_S, retry_storage
from mgpt4_hpc.run_dir import RunDir

_HEAD = "# Resolved by mgpt4; the run reads this file at each start, up to its last line: ..."
_END = "..."
"""YAML's own mark of a document's end; a file that was cut, perhaps between two lines, lacks it."""
_ORIGIN = re.compile(r"^(?P<indent>\s*)(?P<key>[\w.-]+):.*?  # (?P<origin>[^#\n]+)$")


def write_config(path: Path, resolved: Resolved, known: Container[str] | None = None) -> None:
    """Write every setting, also the defaults, with who set it as a comment on its line.

    Args:
        path: the file.
        resolved: the settings.
        known: those that the reading code knows; a default is left out beside them. None is all.
    """
    lines = [_HEAD]
    section = ""
    dumped = keys.flatten(resolved.config.model_dump(mode="json"))
    for key, value in dumped.items():
        if known is not None and key not in known and resolved.origin(key) == "default":
            continue
        parent, _, leaf = key.rpartition(".")
        if parent != section:
            lines.append(f"{parent}:")
            section = parent
        origin = _one_line(resolved.origin(key))
        lines.append(f"{'  ' if parent else ''}{leaf}: {_inline(value)}  # {origin}")
    path.write_text("\n".join([*lines, _END, ""]), encoding="utf-8")


def new_run_facts(resolved: Resolved) -> dict[str, Any]:
    """What ``run.json`` holds of a run that is made now."""
    return {
        "name": resolved.config.name,
        "stage": resolved.config.stage,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "code_version": __version__,
        "config_digest": resolved.digest,
    }


def rewrite_config(path: Path, resolved: Resolved) -> None:
    """Put a new configuration in place of the old one, whole.

    Settings that are newer than the run's own code, which would refuse them, stay away.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write_config(temporary, resolved, known=stored_keys(path))
    fsync_file(temporary)
    temporary.replace(path)


def stored_keys(path: Path) -> frozenset[str]:
    """The settings that a run's file has: all that the code knew that made the run."""
    return frozenset(keys.flatten(read_yaml(path)))


class _OneLineDumper(yaml.SafeDumper):
    """Writes every text on one line, whatever a user wrote into it."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Other styles put a line break as a line break: the next line might look like a setting.
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


resolve_as_1_2(_OneLineDumper)  # quoted is what either version takes for a number, say
_OneLineDumper.add_representer(str, _represent_text)


def _inline(value: Any) -> str:
    text = yaml.dump(
        value, Dumper=_OneLineDumper, default_flow_style=True, width=10**9, allow_unicode=False
    )
    return str(text).removesuffix("\n").removesuffix("\n...")


def _one_line(origin: str) -> str:
    """An origin fit for a comment: a file may be called anything."""
    return "".join(c if c.isprintable() and c != "#" else "?" for c in origin)


def read_config(path: Path) -> Resolved:
    """Configuration and origins of a run.

    Raises:
        ConfigError: if the file is missing, broken or was edited into something invalid.
        RunDamaged: if it is empty or cut.
    """
    if _is_cut(path):
        raise RunDir(path.parent).damaged(path)
    nested = read_yaml(path)
    try:
        config = RunConfig.model_validate(nested)
    except ValidationError as error:
        raise ConfigError(
            f"{path} is no valid configuration of this version",
            faults=[fault for item in error.errors() for fault in keys.explain(item, {})],
            why="another version of mgpt4 made the run, or somebody changed the file by hand",
            fix="use the version that run.json names as code_version; change settings with "
            "`mgpt4 resume RUN --set key=value`, not in the file",
        ) from None
    return Resolved(config, _origins(path.read_text(encoding="utf-8")))


def _is_cut(path: Path) -> bool:
    try:
        text = path.read_bytes()
    except OSError:
        return False  # read_yaml says why
    begun = text.startswith(_HEAD.encode()[: len(text)])
    return (
        b"\0" in text or not text.strip() or (begun and not text.endswith(f"\n{_END}\n".encode()))
    )


def read_own_config(path: Path, *, pauses_s: Sequence[float] = PAUSES_S) -> Resolved:
    """The configuration of the run that this process works on: it was there when the job was made.

    Args:
        path: its file.
        pauses_s: seconds between the tries while storage stumbles.

    Raises:
        StorageTrouble: shared storage does not give it out.
        ConfigError: if it was edited into something invalid.
    """
    return retry_storage(
        lambda: read_config(path), vanished=lambda: not path.exists(), pauses_s=pauses_s
    )


def _origins(text: str) -> dict[str, str]:
    origins: dict[str, str] = {}
    section = ""
    for line in text.splitlines():
        if re.fullmatch(r"[\w-]+:", line):
            section = line[:-1] + "."
            continue
        match = _ORIGIN.match(line)
        if match and match["origin"] != "default":
            prefix = section if match["indent"] else ""
            origins[prefix + match["key"]] = match["origin"]
    return origins
