"""Dotted names of settings: finding them, flattening mappings, explaining faults."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mgpt4_hpc.config.schema import PATTERNS_IN_WORDS, RunConfig
from mgpt4_hpc.errors import ConfigError, did_you_mean


def sections_in(field: FieldInfo) -> list[type[BaseModel]]:
    """The sections of the schema that a field's type names."""
    kinds = [field.annotation, *get_args(field.annotation)]
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


_NEAR = 0.7
"""Likeness (difflib) from which a name is suggested: max_step is max_steps, wandb is not beta2."""
_MOST_CHARS = 200
"""Longest part of a wrong value that a message shows."""

MAPPINGS = ("launch.sbatch", "launch.env", "data.paths", "data.shares")
"""Settings that are mappings themselves: their entries are set one by one."""
_OF_NUMBERS = "data.shares."


@cache
def fields() -> dict[str, FieldInfo]:
    """Every setting by its dotted key, in the schema's order."""
    settings: dict[str, FieldInfo] = {}
    for name, field in RunConfig.model_fields.items():
        leaves = {f"{name}.{leaf}": inner for section in sections_in(field)
                  for leaf, inner in section.model_fields.items()}  # fmt: skip
        settings |= leaves or {name: field}
    return settings


def is_text(key: str) -> bool:
    """Whether a setting's value is a text (or nothing), and not something that YAML must read."""
    field = fields().get(key)
    if field is None:
        of_mapping = key.startswith(tuple(f"{mapping}." for mapping in MAPPINGS))
        return of_mapping and not key.startswith(_OF_NUMBERS)
    kind = field.annotation
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return {_plain(kind) for kind in kinds} in ({str}, {str, type(None)})


def choices(key: str) -> list[str]:
    """The values of a setting that has few of them: words of a fixed list, true or false."""
    kinds = [
        _plain(kind) for kind in (fields()[key].annotation, *get_args(fields()[key].annotation))
    ]
    words = [str(word) for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    return [*words, *(["true", "false"] if bool in kinds else [])]


def _plain(kind: Any) -> Any:
    return getattr(kind, "__origin__", kind) if hasattr(kind, "__metadata__") else kind


def resolve(key: str) -> tuple[str, str]:
    """Full dotted key of ``key``, which may be a leaf's name alone where that is unambiguous.

    Returns:
        ``(full key, "")`` or ``("", what is wrong with it)``.
    """
    known = fields()
    if key in known:
        return key, ""
    if key.startswith(tuple(f"{mapping}." for mapping in MAPPINGS)):
        return key, ""
    leaves = [full for full in known if full.rpartition(".")[2] == key]
    if len(leaves) == 1:
        return leaves[0], ""
    if leaves:
        return "", f"{key!r} is ambiguous: write {' or '.join(leaves)}"
    return "", f"unknown setting {key!r}{_suggestion(key)}"


def select(wanted: Iterable[str]) -> list[str]:
    """Full keys of settings and of whole sections, in the order given.

    Raises:
        ConfigError: naming every one that is neither.
    """
    chosen: list[str] = []
    faults: list[str] = []
    sections = [name for name in RunConfig.model_fields if _is_section(name)]
    for name in wanted:
        of_section = [key for key in fields() if key.startswith(f"{name}.")]
        full, fault = ("", "") if of_section else resolve(name)
        near = difflib.get_close_matches(name, sections, n=1)
        if fault and near:
            fault = f"unknown setting {name!r}; did you mean the section {near[0]}?"
        # One entry of a mapping is shown with the others.
        full = next((mapping for mapping in MAPPINGS if full.startswith(f"{mapping}.")), full)
        chosen += of_section or ([full] if full else [])
        faults += [fault] if fault else []
    if faults:
        raise ConfigError("no such settings", faults=faults, fix="`mgpt4 config keys` lists them")
    return list(dict.fromkeys(chosen))


def _suggestion(key: str) -> str:
    """The setting that was probably meant, if one has a name like it."""
    if "wandb" in key.lower():
        return (
            ": mgpt4 writes TensorBoard files; docs/curves.md has the line that sends them to W&B"
        )
    section, _, leaf = key.rpartition(".")
    # A shared section makes any two keys alike, so that only their last parts are compared.
    known = {
        full.rpartition(".")[2]: full
        for full in sorted(fields(), key=lambda full: full.startswith(f"{section}."))
    }
    if near := difflib.get_close_matches(leaf, known, n=1, cutoff=_NEAR):
        return f"; did you mean {known[near[0]]}?"
    mappings = MAPPINGS if "." in section else ()
    mapping = difflib.get_close_matches(section, mappings, n=1, cutoff=_NEAR)
    return f"; did you mean {mapping[0]}.{leaf}?" if mapping else ""


def flatten(nested: Mapping[str, Any]) -> dict[str, Any]:
    """``{"train": {"lr": 1}}`` to ``{"train.lr": 1}``, one level deep; lists stay whole.

    ``split_mappings`` does the same to settings that are mappings, where entries from several
    places are to be laid over one another.
    """
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}.{leaf}": leaf_value for leaf, leaf_value in value.items()})
        elif value is not None or not _is_section(str(name)):  # `train:` and nothing below
            flat[str(name)] = value
    return flat


def _is_section(name: str) -> bool:
    field = RunConfig.model_fields.get(name)
    return field is not None and bool(sections_in(field))


def split_mappings(flat: Mapping[str, Any]) -> dict[str, Any]:
    """``{"data.paths": {"laion": "x"}}`` to ``{"data.paths.laion": "x"}``; an empty one stays."""
    split: dict[str, Any] = {}
    for key, value in flat.items():
        if key in MAPPINGS and isinstance(value, Mapping) and value:
            split.update({f"{key}.{leaf}": leaf_value for leaf, leaf_value in value.items()})
        else:
            split[key] = value
    return split


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of :func:`flatten`; deeper keys (``launch.sbatch.x``) extend a copied mapping."""
    nested: dict[str, Any] = {}
    for key, value in sorted(flat.items(), key=lambda item: item[0].count(".")):
        *parents, leaf = key.split(".")
        place = nested
        for parent in parents:
            inner = place.get(parent)
            place[parent] = dict(inner) if isinstance(inner, Mapping) else {}
            place = place[parent]
        place[leaf] = value
    return nested


def mentions(fault: str, names: Iterable[str]) -> bool:
    """Whether a sentence names one of these settings or sections; what is unknown is neither."""
    return any(
        re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", fault)
        for name in names
        if name in fields() or _is_section(name)
    )


_IN_A_LIST = re.compile(r"[\w.]+\.\d+\.")
"""Begins a fault of an entry, as a data source, whose fields are no settings by themselves."""


def suggested(faults: Iterable[str]) -> frozenset[str]:
    """The settings that unknown ones in these faults were probably meant to be."""
    pattern = re.compile(r"unknown setting.*; did you mean ([\w.]+)\?")
    found = (pattern.search(fault) for fault in faults if not _IN_A_LIST.match(fault))
    return frozenset(match[1] for match in found if match)


def explain(error: Mapping[str, Any], origins: Mapping[str, str]) -> list[str]:
    """One pydantic fault as a sentence: key, value, what is allowed, who set it.

    Settings that contradict each other are one fault to pydantic, and a line each to us.
    """
    key = ".".join(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    if not key:
        return message.splitlines()
    return [_explain_field(key, error, message, origins)]


def _explain_field(
    key: str, error: Mapping[str, Any], message: str, origins: Mapping[str, str]
) -> str:
    origin = origins.get(key) or origins.get(".".join(key.split(".")[:2]), "")
    origin_text = f" (from {origin})" if origin else ""
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"{key}: unknown setting{_suggestion(key)}{origin_text}"
    if kind == "missing":
        return f"{key}: not set, and has no default"
    if key == "launch.time_min" and isinstance(error["input"], str):
        message = "write minutes; --time also takes H:MM:SS and D-HH"
    if kind == "string_pattern_mismatch":
        message = PATTERNS_IN_WORDS.get(error["ctx"]["pattern"], message)
    if kind == "literal_error" and isinstance(error["input"], str):
        message += did_you_mean(error["input"], re.findall(r"'([^']*)'", error["ctx"]["expected"]))
    given = repr(error["input"])
    given = given if len(given) <= _MOST_CHARS else f"{given[:_MOST_CHARS]}..."
    return f"{key}: {message[0].lower()}{message[1:]}, got {given}{origin_text}"
