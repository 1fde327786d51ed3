"""Pins: settings, data, weights and library versions of a run's first start, compared at others.

A run that continues with another index or another torch is neither the old run nor a new one, and
the change would pass unnoticed. So it stops and shows the difference; the user may accept it, and
the ledger records that. Imports no torch: the login node asks too.
"""

from __future__ import annotations

import platform
import shlex
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mgpt4_hpc import __version__
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.errors import RunLocked
from mgpt4_hpc.identity import user_name
from mgpt4_hpc.run_dir import RunDir, read_json, write_json

DECISIVE = ("torch", "transformers", "timm")
"""Libraries of which any other version may compute other bits, or another model."""

NOTED = ("numpy", "pillow", "simplejpeg", "safetensors", "tokenizers")
"""Libraries whose change is worth a line and no more: their results are pinned by tests."""

_ABOUT, _NOTED = "about", "noted"
_CONFIG, _SETTINGS = "config", "settings"
"""Digests of the settings: with paths and last step as older runs have it, and without."""
_VALUES = "values"
"""Among what is kept for people: the settings themselves, to name those that changed."""
_NO_INPUTS = frozenset({_CONFIG, _SETTINGS, _ABOUT, _NOTED})
_EARLIER = "earlier configs"
"""Among what is kept for people: digests of the settings before the user accepted others."""


def decisive_versions() -> dict[str, str]:
    """Versions that a run is held to, as pins."""
    return {f"version of {name}": _version(name) for name in DECISIVE}


def noted_versions() -> dict[str, str]:
    """Versions that are compared."""
    own = {"mgpt4-hpc": __version__, "python": platform.python_version()}
    return {**{name: _version(name) for name in NOTED}, **own}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def check_pins(
    run: RunDir,
    current: Mapping[str, Any],
    about: Mapping[str, Any],
    report: Callable[[list[str], bool, bool], None],
    note_changes: Callable[[list[str]], None] = lambda changes: None,
    places: Mapping[str, str] = {},
) -> frozenset[str] | None:
    """Pin a run at its first start, and compare at every other. Called by rank 0.

    Args:
        run: the run.
        current: hashes of everything outside the run that decides its result.
        about: where these things were, for people; files may move. Under ``values`` the settings.
        report: called with differences that the run continues with, whether they are accepted
            (else they matter little), and whether to warn: settings are as the user set them.
        note_changes: called once with which settings are not those of the last start.
        places: see :func:`input_places`; for the error.

    Returns:
        Digests of the settings under which the run's checkpoints may have been made; None if a
        person accepts any for this start.

    Raises:
        RunLocked: something that decides the result is not what it was, and was not accepted.
    """
    current = {**current, **decisive_versions()}
    noted = noted_versions()
    accepted = _accepted_by(run)
    earlier: list[str] = []
    pinned = read_pins(run, accepted=accepted is not None)
    if pinned is None:
        _write(run, current, about, noted)
    else:
        minor = _differences(pinned.get(_NOTED, {}), noted, _same_keys)
        values = changed_values(pinned, about.get(_VALUES, {}))
        settings, inputs = _drift(pinned, current, values)
        changed = [*settings, *inputs]
        if changed and not _is_accepted(accepted, pinned, current):
            raise drifted(run, changed, places)
        if changed:
            by = f"accepted by {(accepted or {}).get('by', 'a person')}"
            report([*changed, by], True, bool(inputs))
        if minor:
            report(minor, False, False)
        if values:
            note_changes(values)
        earlier = list(pinned.get(_ABOUT, {}).get(_EARLIER, []))
        digests = [str(pinned[key]) for key in (_CONFIG, _SETTINGS) if key in pinned]
        earlier += [digest for digest in digests if digest not in (*earlier, *current.values())]
        about = {**about, _EARLIER: earlier} if earlier else about
        about = {**pinned.get(_ABOUT, {}), **about}
        if pinned != {**current, _NOTED: noted, _ABOUT: about}:
            _write(run, current, about, noted)
    run.drift_accepted.unlink(missing_ok=True)  # for this start, not for ever
    now = [str(current[key]) for key in (_CONFIG, _SETTINGS) if key in current]
    return None if accepted is not None else frozenset([*now, *earlier])


def changed_values(pinned: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """Which settings are not those of the last start; none where an older release pinned it."""
    return _differences(pinned.get(_ABOUT, {}).get(_VALUES, {}), values, _same_keys)


def repin_values(run: RunDir, values: Mapping[str, Any]) -> None:
    """Note settings that changed while the run trains, so that the next start finds none new."""
    pinned = read_json(run.pins_file)
    write_json(run.pins_file, {**pinned, _ABOUT: {**pinned.get(_ABOUT, {}), _VALUES: values}})


def _drift(
    pinned: Mapping[str, Any], current: Mapping[str, Any], values: list[str]
) -> tuple[list[str], list[str]]:
    """What decides the result and is not what it was: settings by name, where known; inputs."""
    inputs = _differences(
        {key: value for key, value in pinned.items() if key not in _NO_INPUTS},
        {key: value for key, value in current.items() if key not in _NO_INPUTS},
        _grown,
    )
    digest = _SETTINGS if _SETTINGS in pinned else _CONFIG
    if pinned.get(digest) == current.get(digest):
        return [], inputs
    digests = f"config was {pinned.get(_CONFIG)}, is {current.get(_CONFIG)}"
    return [digests, *values], inputs


def _is_accepted(
    accepted: Mapping[str, Any] | None, pinned: Mapping[str, Any], current: Mapping[str, Any]
) -> bool:
    """Whether the user accepts what changed: all of it, or the settings alone."""
    if accepted is None or accepted.get(_SETTINGS) is None:
        return accepted is not None
    return accepted[_SETTINGS] == current.get(_SETTINGS) and not _drift(pinned, current, [])[1]


def read_pins(run: RunDir, *, accepted: bool) -> dict[str, Any] | None:
    """What the run is held to; None if its next start pins it.

    Args:
        run: the run.
        accepted: whether the user accepts what changed, also if that is unknown.

    Raises:
        RunDamaged: the file is empty or cut, and a checkpoint was made under it.
    """
    try:
        return read_json(run.pins_file)
    except FileNotFoundError:
        return None
    except ValueError:
        if accepted or not any(run.checkpoints.glob("step-*")):
            return None
        raise run.damaged(
            run.pins_file,
            "restore it from a backup; if data, weights and libraries are what they were: "
            f"`mgpt4 resume {shlex.quote(str(run.path))} --accept-drift` pins the run to what is "
            "there now",
        ) from None


def version_drift(run: RunDir) -> list[str]:
    """How this environment's libraries differ from those that the run is held to.

    For the login node, before a job waits in the queue; a run without pins is free.

    Raises:
        RunDamaged: see :func:`read_pins`.
    """
    pinned = read_pins(run, accepted=False) or {}
    pinned_versions = {key: pinned[key] for key in decisive_versions() if key in pinned}
    return _differences(pinned_versions, decisive_versions(), _same_keys)


def input_places(config: RunConfig) -> dict[str, str]:
    """The setting that names where each input lies, as ``model.weights=/bundle``, by its pin."""
    return {
        "bundle": f"model.weights={config.model.weights}",
        "projector": f"model.projector={config.model.projector}",
        "features": f"data.feature_cache={config.data.feature_cache}",
        **{
            f"index {source.name}": f"data.sources={source.index}"
            if source.index
            else f"data.paths.{source.name}={source.path}"
            for source in config.data.sources
        },
    }


def drifted(run: RunDir, changed: list[str], places: Mapping[str, str] = {}) -> RunLocked:
    """The error with what changed, where that lies, and how to continue."""
    found = [
        place
        for key, place in places.items()
        if any(text.startswith(f"{key} was ") for text in changed)
    ]
    where = f" ({', '.join(found)})" if found else ""
    options = " ".join(dict.fromkeys(_option(place.partition("=")[0]) for place in found))
    named = f", or name where they lie now: {options}" if found else ""
    return RunLocked(
        f"{run.name} cannot go on, for its inputs changed: {'; '.join(changed)}{where}",
        why="a run continued on other inputs is neither the old run nor a new one",
        fix=f"restore them{named}; or start a new run from this one's checkpoint "
        "(model.projector); or go on in spite of it: "
        f"mgpt4 resume {run.name} --accept-drift",
    )


def _option(setting: str) -> str:
    if setting == "data.sources":  # the setting of an index's path
        return "--set 'data.sources=[{name: NAME, path: PATH, index: INDEX}, ...]'"
    return f"--set {setting}=PATH"


def accept_drift(run: RunDir, settings: str | None = None) -> None:
    """Let the next start go on though something changed; the ledger will name who said so.

    ``settings`` is the digest of those that are accepted, where nothing else may differ.
    """
    marker = {"by": user_name(), "time": time.time(), _SETTINGS: settings}
    write_json(run.drift_accepted, marker)


def _accepted_by(run: RunDir) -> dict[str, Any] | None:
    try:
        return read_json(run.drift_accepted)
    except FileNotFoundError:
        return None
    except ValueError:
        return {}  # made by hand with `touch`, without content


def _differences(
    pinned: Mapping[str, Any],
    current: Mapping[str, Any],
    counts: Callable[[str, Mapping[str, Any], Mapping[str, Any]], bool],
) -> list[str]:
    return [
        f"{key} was {pinned.get(key)}, is {current.get(key)}"
        for key in sorted({*pinned, *current} - {_ABOUT, _NOTED})
        if pinned.get(key) != current.get(key) and counts(key, pinned, current)
    ]


def _same_keys(key: str, pinned: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    return key in pinned and key in current


def _grown(key: str, pinned: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Whether the difference counts; a version that an older release did not pin is added."""
    return key in pinned or not key.startswith("version of ")


def _write(
    run: RunDir, current: Mapping[str, Any], about: Mapping[str, Any], noted: Mapping[str, str]
) -> None:
    write_json(run.pins_file, {**current, _ABOUT: dict(about), _NOTED: dict(noted)})
