"""Settings in a YAML file, where a key that stands twice is a mistake and not a choice."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from mgpt4_hpc.errors import ConfigError


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML where a key given twice is an error; PyYAML alone silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # `<<: *defaults`, which what stands beside it may override
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused below, with its place
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Mapping in a YAML file. Raises ConfigError with line and column if it is none."""
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except (UnicodeDecodeError, yaml.reader.ReaderError) as error:
        place = error.start if isinstance(error, UnicodeDecodeError) else error.position
        raise ConfigError(
            f"{path} is no valid YAML: byte {place} is no text in UTF-8",
            fix="give the file that holds the settings, saved as UTF-8",
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no valid YAML: {error}", fix="mend that line") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} holds no settings", fix="write `section:` and indented keys")
    return loaded
