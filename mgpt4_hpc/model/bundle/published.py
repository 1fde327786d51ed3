"""Where the published weights are: ``sources.yaml``, and what a site puts in its place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from mgpt4_hpc.errors import ConfigError, did_you_mean

VARIABLE = "MGPT4_WEIGHT_SOURCES"
_BUILT_IN = Path(__file__).with_name("sources.yaml")
_NAME = "mgpt4/weight-sources.yaml"


class PublishedSource(BaseModel):
    """One entry of the file, which documents its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str | None = None
    hub: str | None = None
    path: Path | None = None
    file: str = ""
    gib: float = 0.0
    sha256: str = ""
    licence: str = ""
    gated: str = ""

    @model_validator(mode="after")
    def _one_place(self) -> PublishedSource:
        if sum(value is not None for value in (self.url, self.hub, self.path)) != 1:
            raise ValueError("a source has exactly one of url, hub and path")
        if self.url is not None and (not self.file or "/" in self.file):
            raise ValueError("a source with a url needs the name of its file")
        return self

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return self.url or str(self.path or "") or f"https://huggingface.co/{self.hub}"


class Published(BaseModel):
    """Content of a file of sources: which parts a variant has, and where they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variants: dict[str, dict[str, str]] = {}
    sources: dict[str, PublishedSource] = {}

    def parts(self, variant: str) -> dict[str, PublishedSource]:
        """A variant's sources by part: vit, qformer, llm, projector. Raises ConfigError."""
        if variant not in self.variants:
            known = ", ".join(self.variants)
            raise ConfigError(
                f"no variant {variant!r}{did_you_mean(variant, self.variants)}",
                fix=f"the variants are: {known}",
            )
        return {part: self.sources[name] for part, name in self.variants[variant].items()}


def read_published(environ: Mapping[str, str] = os.environ) -> Published:
    """The built-in sources, with the entries of the first site file that exists in their place.

    Raises:
        ConfigError: if a file cannot be read, has unknown keys, or a variant names no source.
    """
    values = _read(_BUILT_IN)
    for path in _site_files(environ):
        site = _read(path)
        for table in ("variants", "sources"):
            values[table] = values.get(table, {}) | (site.pop(table, None) or {})
        values |= site  # what is left is unknown, and named below
        break
    try:
        published = Published(**values)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError("the sources of the weights are wrong", faults=faults) from None
    lost = {name for parts in published.variants.values() for name in parts.values()}
    if lost := lost - set(published.sources):
        raise ConfigError(f"a variant names sources that are not there: {sorted(lost)}")
    return published


def _site_files(environ: Mapping[str, str]) -> list[Path]:
    if given := environ.get(VARIABLE):
        if not Path(given).is_file():
            raise ConfigError(f"{VARIABLE}: there is no file {given}")
        return [Path(given)]
    own = Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "/"), ".config"))
    return [path for path in (own / _NAME, Path("/etc") / _NAME) if path.is_file()]


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a table of variants and sources")
    return values
