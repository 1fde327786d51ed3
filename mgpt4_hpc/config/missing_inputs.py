"""Files that a run needs and its configuration does not name, each with its fix."""

from __future__ import annotations

from pathlib import Path

from mgpt4_hpc.config.schema import RunConfig

_START_FILES = ("projector.safetensors", "pretrained_minigpt4.pth")
"""Files of a projector in a bundle, and among the original's own files."""


def missing_start(config: RunConfig) -> list[str]:
    """Stage 2 without a projector to start from would train in silence, and for nothing."""
    if config.stage == 1 or config.model.projector is not None:
        return []
    if any((Path(config.model.weights) / name).exists() for name in _START_FILES):
        return []
    return [
        "stage 2 starts from stage 1's projector, and none is given: use --after RUN, "
        "--stage both, or --set model.projector=RUN|CHECKPOINT|FILE.pth"
    ]


def unset_paths(config: RunConfig) -> list[str]:
    """What a preset leaves to the site and is still missing, each with its fix."""
    faults = []
    if not config.model.weights:
        faults.append(
            "model.weights is not set: give the bundle that `mgpt4 weights import` made "
            "(--set model.weights=DIR), or toy:weights to try things out"
        )
    faults += [
        f"the data source {source.name} has no path: --set data.paths.{source.name}=DIR, "
        "or data.paths in a site profile"
        for source in config.data.sources
        if not source.path
    ]
    return faults
