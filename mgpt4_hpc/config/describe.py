"""The settings and presets as text: one source for `mgpt4 config`, the documentation and tests."""

from __future__ import annotations

import json
import re
import types
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mgpt4_hpc.config import keys
from mgpt4_hpc.config.schema import RunConfig, SourceConfig
from mgpt4_hpc.resources import configs_dir, preset_names

_BOUNDS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
_NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "none"}


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        key: dotted.
        type: in words, with its bounds or choices.
        default: as JSON would have it; None if there is none or it is none.
        required: whether there is no default.
        doc: the schema's line about it.
    """

    key: str
    type: str
    default: Any
    required: bool
    doc: str

    @property
    def default_text(self) -> str:
        """The default for people."""
        return "(required)" if self.required else json.dumps(self.default, ensure_ascii=False)


def describe_keys() -> list[Setting]:
    """Every setting, in the schema's order; the fields of a source as ``data.sources[].name``."""
    settings: list[Setting] = []
    for key, field in keys.fields().items():
        settings.append(_setting(key, field))
        for inner in keys.sections_in(field):
            settings += [
                _setting(f"{key}[].{leaf}", leaf_field)
                for leaf, leaf_field in inner.model_fields.items()
            ]
    return settings


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a file with settings: a config file or a site profile.

    No setting is required, as a file may leave any to another one; a data source is complete.
    """
    schema = RunConfig.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        if section["title"] != SourceConfig.__name__:
            section.pop("required", None)
        for field in section["properties"].values():
            field.pop("title", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "mgpt4 settings",
    }


def describe_presets() -> list[tuple[str, Path, str]]:
    """(name, file, first comment line) of each preset."""
    folder = configs_dir()
    paths = {name: folder / f"{name}.yaml" for name in preset_names()}
    return [(name, path, first_comment(path)) for name, path in paths.items()]


def first_comment(path: Path) -> str:
    """The first sentence of a YAML file's comments, which says what it is for; "" without any."""
    comments = [
        line.lstrip("#").strip()
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("#") and not line.startswith("# yaml-language-server:")
    ]
    paragraph = " ".join(takewhile(bool, dropwhile(lambda line: not line, comments)))
    return re.split(r"(?<=\.)\s", paragraph, maxsplit=1)[0]


def _setting(key: str, field: FieldInfo) -> Setting:
    default = field.get_default(call_default_factory=False)
    required = default is PydanticUndefined and field.default_factory is None
    if default is PydanticUndefined:
        default = None
    if isinstance(default, tuple):
        default = list(default)
    type_text = _type_name(field.annotation) + _bounds(field.metadata)
    return Setting(key, type_text, default, required, " ".join((field.description or "").split()))


def _type_name(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " | ".join(str(choice) for choice in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(choice) for choice in inner)
    if origin is tuple:
        return f"list of {_type_name(inner[0])}"
    if origin is dict:
        return f"mapping of {_type_name(inner[0])} to {_type_name(inner[1])}"
    metadata = getattr(kind, "__metadata__", None)
    if metadata is not None:
        return _type_name(kind.__origin__) + _bounds(metadata)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "section"
    return _NAMES.get(kind, getattr(kind, "__name__", str(kind)))


def _bounds(metadata: Any) -> str:
    bounds = []
    for item in metadata:
        parts = item.metadata if isinstance(item, FieldInfo) else [item]
        for part in parts:
            bounds += [
                f"{sign} {getattr(part, name)}"
                for name, sign in _BOUNDS
                if getattr(part, name, None) is not None
            ]
    return f" {' and '.join(bounds)}" if bounds else ""
