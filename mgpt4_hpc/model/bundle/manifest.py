"""``bundle.json``: what a bundle consists of, where it came from, and how to know it again."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.weight_files.fingerprint import WeightFileRecord, combined
from mgpt4_hpc.text_files import parse_json

FORMAT_VERSION = 1
BUNDLE_FILE = "bundle.json"
EXPORT_FOLDER = "mgpt4"
"""What `weights export --format hf` adds to a model's folder for an import."""
EXPORT_RECORD = "export.json"
"""The file in it that describes the export."""


@dataclass(frozen=True)
class LlmRecord:
    """The language model's folder: ``path`` is relative to the bundle where it was copied."""

    path: str
    copied: bool
    files: dict[str, WeightFileRecord]


@dataclass(frozen=True)
class BundleManifest:
    """Content of ``bundle.json``.

    Attributes:
        architecture: all sizes.
        files: the bundle's own weight files.
        tensors: per file, each tensor's shape and type.
        llm: the language model.
        sources: per source its files' hashes, and its keys that were used, dropped or missing.
        finite_checked: whether the import looked for NaN and infinity; bundles from before it
            could are False.
        digest: over all hashes and sizes; identifies the bundle in runs and checkpoints.
    """

    architecture: Architecture
    files: dict[str, WeightFileRecord]
    tensors: dict[str, dict[str, list[Any]]]
    llm: LlmRecord
    sources: list[dict[str, Any]] = field(default_factory=list)
    finite_checked: bool = False

    @property
    def digest(self) -> str:
        """Identity of the weights, wherever the folder lies."""
        sizes = json.dumps(self.architecture.to_dict(), sort_keys=True)
        parts = [("architecture", sizes)]
        parts += [(name, record.blake2b) for name, record in self.files.items()]
        parts += [(f"llm/{name}", record.blake2b) for name, record in self.llm.files.items()]
        return combined(parts)

    def llm_dir(self, folder: Path) -> Path:
        """Where the language model is, for a bundle in ``folder``."""
        return folder / self.llm.path

    def faults(self, folder: Path) -> list[str]:
        """Every file that is missing or not what it was, by its size and samples of its bytes."""
        llm_dir = self.llm_dir(folder)
        checked = [record.fault(folder / name) for name, record in self.files.items()]
        checked += [record.fault(llm_dir / name) for name, record in self.llm.files.items()]
        return [fault for fault in checked if fault]

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        values = {"format": FORMAT_VERSION, "digest": self.digest} | dataclasses.asdict(self)
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> BundleManifest:
        """Read it back.

        Raises:
            WeightsError: if it is damaged, edited or of a newer format.
        """
        try:
            values = parse_json(path.read_text(encoding="utf-8"))
            version = values["format"]
            if version != FORMAT_VERSION:
                raise WeightsError(
                    f"{path} has format {version}, this program reads {FORMAT_VERSION}",
                    fix="import the weights again, or use the program that wrote the bundle",
                )
            llm = values["llm"]
            manifest = cls(
                Architecture.from_dict(values["architecture"], source=str(path)),
                _records(values["files"]),
                values["tensors"],
                LlmRecord(llm["path"], llm["copied"], _records(llm["files"])),
                values["sources"],
                bool(values.get("finite_checked", False)),
            )
            recorded = values["digest"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(
                f"cannot read {path}: {type(error).__name__} {error}",
                fix="import the weights again",
            ) from error
        if recorded != manifest.digest:
            raise WeightsError(f"{path} was edited: its digest is not that of its entries")
        return manifest


def _records(values: dict[str, Any]) -> dict[str, WeightFileRecord]:
    return {name: WeightFileRecord(**record) for name, record in values.items()}
