"""Which settings of a run may change on the way, and what must be said for it."""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgpt4_hpc.config import keys
from mgpt4_hpc.config.load import (
    InvalidSettings,
    Resolved,
    config_digest,
    idle_clearings,
    keep_schedule,
    locate_projector,
    merge,
    settings_digest,
    unknown_paths,
)
from mgpt4_hpc.config.run_config_file import read_config, stored_keys
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.data.sources.prepare import known_difference
from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.formatting import time_limit
from mgpt4_hpc.launch.submit.code_snapshot import PACKAGE
from mgpt4_hpc.model.bundle.bundle import bundle_digest
from mgpt4_hpc.run_dir import RunDir, read_json
from mgpt4_hpc.run_reference import newest_checkpoint
from mgpt4_hpc.train.inputs.pins import read_pins

ORIGIN = "resume"
"""Origin of a setting that was changed on the way."""

ADJUSTABLE = (
    "train.lr",
    "train.min_lr",
    "train.warmup_start_lr",
    "train.warmup_steps",
    "train.weight_decay",
    "train.beta1",
    "train.beta2",
    "train.eps",
    "train.max_grad_norm",
    "train.global_batch_size",
    "train.micro_batch_size",
    "data.shares",
)
"""Settings that decide the steps to come and may change with ``--accept-drift``."""

_SCHEDULE = ("train.max_steps", "train.lr_steps")
"""What makes a run longer or shorter; may change without further ado, and is noted."""


@dataclass(frozen=True)
class Overrides:
    """What a user wants to change in a run.

    Attributes:
        values: settings by dotted key.
        faults: known faults of the options, to be reported with those of the values.
        accept: data, weights and versions may not be those that the run began with, and settings
            of :data:`ADJUSTABLE` may change.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    accept: bool = False


def change(run: RunDir, overrides: Overrides, *, free: bool = False) -> Resolved:
    """A run's configuration with some settings changed.

    Args:
        run: the run.
        overrides: the changes.
        free: settings that decide the result may change, too: it is a new run.

    Raises:
        InvalidSettings: naming every setting that may not change, or has a wrong value.
    """
    resolved = read_config(run.config_file)
    if not overrides.values and not overrides.faults:
        return resolved
    old = keys.flatten(resolved.config.model_dump(mode="json"))
    wanted = dict(overrides.values)
    faults = [*overrides.faults, *locate_projector(wanted, run.path.parent)]
    wrong, fix = frozenset[str](), ""
    try:
        changed = merge([("run", old), (ORIGIN, wanted)])
    except InvalidSettings as error:
        if error.rest is None:
            raise
        changed, wrong, fix = error.rest, error.wrong, error.fix
        faults += error.faults
    if not free:
        changed = keep_schedule(resolved.config, changed, ORIGIN)
    # A wrong setting, or its whole section, has the default here, which nobody asked for.
    different = {
        key: values
        for key, values in changed_settings(resolved, changed).items()
        if not wrong & {key.partition(".")[0], ".".join(key.split(".")[:2])}
    }
    faults += unknown_paths(wanted, [changed]) if "data.sources" not in wrong else []
    faults += idle_clearings(wanted)
    faults += _batch_faults(changed.config, "train.global_batch_size" in different)
    refusals = [] if free else _refusals(run, resolved, changed, different, overrides.accept)
    if faults:
        what, faults = "the options have faults", [*faults, *refusals]
        raise InvalidSettings(what, faults=faults, fix=fix, rest=changed, wrong=wrong)
    if refusals:
        raise _refused(refusals, changed)
    origins = {**resolved.origins, **dict.fromkeys(different, ORIGIN)}
    return Resolved(changed.config, origins)


def _refused(refusals: Sequence[str], changed: Resolved) -> InvalidSettings:
    new_run = (
        "start a new run with it: mgpt4 submit --from RUN --name NEW --set ... begins with "
        "this one's projector; --continue keeps optimizer and position too"
    )
    adjustable = all("--accept-drift" in refusal for refusal in refusals)
    return InvalidSettings(
        "this changes the result" if adjustable else "a resumed run cannot change this",
        faults=refusals,
        fix=f"give --accept-drift, or {new_run}" if adjustable else new_run,
        rest=changed,
    )


def changed_settings(old: Resolved, new: Resolved) -> dict[str, tuple[Any, Any]]:
    """Setting to (old, new) value, of those that differ."""
    before = keys.flatten(old.config.model_dump(mode="json"))
    after = keys.flatten(new.config.model_dump(mode="json"))
    return {
        key: (before.get(key), after.get(key))
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    }


def input_drift(
    run: RunDir, config: RunConfig, changes: Mapping[str, tuple[Any, Any]]
) -> list[str]:
    """What lies where weights and data are said to be now, if it is not what the run began with.

    The digest of the bundle is known here; that of shards without an index where names, sizes or
    times show that they are others. The job compares the rest. What is missing is for the preflight
    checks to name.
    """
    pinned = read_pins(run, accepted=False) or {}
    current = {}
    # The code of an older run may take other files of a folder for its digest.
    if "bundle" in pinned and "train.lr_steps" in stored_keys(run.config_file):
        with suppress(MgptError, OSError):
            current["bundle"] = bundle_digest(Path(config.model.weights))
    # A look at each shard takes time: only where they may be others.
    suspects = config.data.sources if "data.sources" in changes or run.failed.exists() else ()
    for source in suspects:
        if (key := f"index {source.name}") in pinned:
            index = Path(source.index) if source.index else None
            with suppress(MgptError, OSError):
                current[key] = (
                    known_difference(source.name, source.path, index, run.data, pinned[key])
                    or pinned[key]
                )
    return [
        f"{key} was {pinned[key]}, is {value}"
        for key, value in current.items()
        if pinned[key] != value
    ]


def moved_projector(run: RunDir) -> dict[str, str]:
    """``model.projector`` of a run that has not begun, where the folder of its runs was moved.

    A run that lay beside this one is looked for beside it.
    """
    projector = read_config(run.config_file).config.model.projector
    if projector is None or Path(projector).exists() or newest_checkpoint(run) is not None:
        return {}
    try:
        runs_dir = Path(read_json(run.slurm / "job.json")["folder"]).parent
        moved = run.path.parent / Path(projector).resolve().relative_to(runs_dir)
    except (OSError, ValueError, KeyError):
        return {}
    # The code of an older run is held to the path.
    by_content = "train.lr_steps" in stored_keys(run.config_file)
    return {"model.projector": str(moved)} if by_content and moved.exists() else {}


def describe_changes(changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Each change as a line; of a list of data sources, what differs in each."""
    lines = []
    taken_in = ("data.paths", "data.shares") if "data.sources" in changes else ()
    for key, (old, new) in changes.items():
        if key in taken_in:
            continue  # as the source's path and weight
        if key == "data.sources":
            for before, after in zip(old, new, strict=False):
                lines += [
                    f"{key}.{before['name']}.{leaf}: {value} -> {after[leaf]}"
                    for leaf, value in before.items()
                    if after.get(leaf) != value
                ]
        else:
            lines.append(f"{key} {_shown(key, old)} -> {_shown(key, new)}")
    return lines


def _shown(key: str, value: Any) -> str:
    """A setting's value; a time limit also as --time takes it and squeue shows it."""
    if key == "launch.time_min":
        return f"{value} ({time_limit(value * 60)})"
    return "(default)" if value is None else str(value)


def _refusals(
    run: RunDir,
    old: Resolved,
    new: Resolved,
    different: Mapping[str, tuple[Any, Any]],
    accept: bool,
) -> list[str]:
    known = stored_keys(run.config_file)
    faults = []
    for key, (was, wanted) in different.items():
        if key == "name":
            faults.append("name: a run keeps its name, for its folder and its curves carry it")
        elif key not in known or not _knows(run, key, wanted):
            value = f" {wanted}" if key in known else ""
            faults.append(
                f"{key}{value}: the run's own code, of an earlier version, does not know it"
            )
        elif not _is_decisive(old, new, key, by_content="train.lr_steps" in known):
            continue
        elif key in ADJUSTABLE or (key == "data.sources" and _only_shares(old, new)):
            if not accept:
                faults.append(
                    f"{key}: {was!r} decides the result; --accept-drift makes it {wanted!r} from "
                    "the run's newest checkpoint on"
                )
        elif key not in _SCHEDULE:
            faults.append(
                f"{key}: {was!r} decides the result and can never change in a run, so it cannot "
                f"become {wanted!r}"
            )
    return faults


def _knows(run: RunDir, key: str, wanted: Any) -> bool:
    """Whether the run's own code has these words in a setting's list, where it has a list."""
    schema = run.code / PACKAGE.name / "config" / "schema.py"
    text = schema.read_text(encoding="utf-8") if schema.is_file() else ""
    leaf = re.escape(key.rpartition(".")[2])
    listed = re.search(rf"^    {leaf}: [^=]*?\bLiteral\[([^]]*)\]", text, re.MULTILINE)
    words = wanted if isinstance(wanted, list) else [wanted]
    return listed is None or {*words} <= {None, *literal_eval(f"[{listed[1]}]")}


def _batch_faults(config: RunConfig, batch_changed: bool) -> list[str]:
    faults = []
    if config.launch.gpus > config.train.global_batch_size:
        faults.append(
            f"launch.gpus: {config.launch.gpus} GPUs cannot share "
            f"train.global_batch_size {config.train.global_batch_size} samples: give at most "
            f"{config.train.global_batch_size}"
        )
    if batch_changed and config.data.feature_cache is not None:
        faults.append(
            "train.global_batch_size: the samples in data.feature_cache were chosen with it"
        )
    return faults


def _only_shares(old: Resolved, new: Resolved) -> bool:
    other = {"weight": 1, "path": "", "index": None}
    before, after = (
        [source.model_copy(update=other) for source in resolved.config.data.sources]
        for resolved in (old, new)
    )
    return before == after


def _is_decisive(old: Resolved, new: Resolved, key: str, *, by_content: bool) -> bool:
    """Whether this one change alters the digest that the run is pinned to.

    A run that older code trains is pinned to paths, too.
    """
    digest = settings_digest if by_content else config_digest
    section, _, leaf = key.partition(".")
    value = getattr(new.config, section)
    if leaf:
        value = getattr(old.config, section).model_copy(update={leaf: getattr(value, leaf)})
    return digest(old.config.model_copy(update={section: value})) != digest(old.config)
