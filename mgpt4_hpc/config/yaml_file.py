"""Settings in YAML: a file's, and the value of a single one.

Scalars mean what YAML 1.2's core schema says, and numbers are decimal: ``1e-4`` is a number,
``yes``, ``12:30:00``, ``1_000`` and ``0x10`` are texts, ``0100`` is 100. PyYAML alone follows YAML
1.1, where they are true, 45000, 1000, 16 and 64. A key that stands twice is a mistake and not a
choice.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from mgpt4_hpc.errors import ConfigError

_MOST_BYTES = 1 << 20
_MOST_NODES = 20_000
"""Values in all, each alias (``*name``) counted as what it stands for; presets have a hundred."""

_SCALARS: dict[str, tuple[str, str]] = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "null": (r"null|Null|NULL|~|", "nN~"),
    "int": (r"[-+]?[0-9]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)"
        r"|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "merge": (r"<<", "<"),
}
"""Type to the expression that its scalars match, and the characters that they begin with."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars; what is too deep, too large or given twice is an error."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - as its base declares it

    def get_single_node(self) -> yaml.Node | None:
        """The file's document; raises if it is too deep or too large."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _size(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A dictionary; raises at a key that is given twice."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # `<<: *defaults`, which what stands beside it may override
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused below, with its place
            if key in seen:
                raise _fault(f"the key {key!r} is given twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """A decimal integer; raises at one that Python refuses to convert."""
        try:
            return int(self.construct_scalar(node))
        except ValueError:  # thousands of digits, which Python does not convert
            raise _fault("a number has too many digits", node) from None


def resolve_as_1_2(kind: Any) -> None:
    """Let a loader or dumper class of PyYAML know the scalars of YAML 1.2 (too)."""
    for name, (pattern, first) in _SCALARS.items():
        kind.add_implicit_resolver(
            f"tag:yaml.org,2002:{name}",
            re.compile(f"(?:{pattern})$"),
            [*first, *([""] if name == "null" else [])],
        )


resolve_as_1_2(_Loader)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values below a node; aliases count each time, so that a few lines cannot become millions."""
    if id(node) not in known:
        known[id(node)] = _MOST_NODES  # an alias to what it stands in never ends
        below = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [p for entry in below for p in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    if known[id(node)] > _MOST_NODES:
        raise _fault(f"it stands for more than {_MOST_NODES} values", node)
    return known[id(node)]


def _fault(what: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, what, node.start_mark)


def parse_yaml(text: str) -> Any:
    """What a text stands for in YAML 1.2. Raises yaml.YAMLError if it is none."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, TypeError, KeyError) as error:  # as of `!!float yes`
        if isinstance(error, yaml.YAMLError):
            raise
        raise yaml.YAMLError(f"a tag does not fit its value: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Mapping in a YAML file. Raises ConfigError with line and column if it is none."""
    try:
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise ConfigError(
                f"{path} has {size} bytes, too many for settings", fix="give the settings' file"
            )
        loaded = parse_yaml(path.read_text(encoding="utf-8-sig"))
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
