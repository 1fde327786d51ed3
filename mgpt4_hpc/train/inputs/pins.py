"""Holding a run to what its first start found: settings, data, weights, library versions.

A run that goes on with another index or another torch is neither the old run nor a new one, and
nobody would notice. So it stops and shows the difference; a person may accept it, and the ledger
says so for ever. Imports no torch: the login node asks too.
"""

from __future__ import annotations

import platform
import shlex
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mgpt4_hpc import __version__
from mgpt4_hpc.errors import RunLocked
from mgpt4_hpc.identity import user_name
from mgpt4_hpc.run_dir import RunDir, read_json, write_json

DECISIVE = ("torch", "transformers", "timm")
"""Libraries of which any other version may compute other bits, or another model."""

NOTED = ("numpy", "pillow", "simplejpeg", "safetensors", "tokenizers")
"""Libraries whose change is worth a line and no more: their results are pinned by tests."""

_ABOUT, _NOTED = "about", "noted"
_EARLIER = "earlier configs"
"""Among what is kept for people: digests of the settings before a person accepted others."""


def decisive_versions() -> dict[str, str]:
    """Versions that a run is held to, as pins."""
    return {f"version of {name}": _version(name) for name in DECISIVE}


def noted_versions() -> dict[str, str]:
    """Versions whose change is told."""
    own = {"mgpt4-hpc": __version__, "python": platform.python_version()}
    return {**{name: _version(name) for name in NOTED}, **own}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def check_pins(
    run: RunDir,
    found: Mapping[str, Any],
    about: Mapping[str, Any],
    tell: Callable[[list[str], bool], None],
) -> frozenset[str] | None:
    """Pin a run at its first start, and compare at every other. Called by rank 0.

    Args:
        run: the run.
        found: hashes of everything outside the run that decides its result.
        about: where these things were, for people; files may move.
        tell: told of differences that the run goes on with, and whether a person accepted them
            (else they matter little).

    Returns:
        Digests of the settings under which the run's checkpoints may have been made; None if a
        person accepts any for this start.

    Raises:
        RunLocked: something that decides the result is not what it was, and nobody accepted it.
    """
    found = {**found, **decisive_versions()}
    noted = noted_versions()
    accepted = _accepted_by(run)
    earlier: list[str] = []
    pinned = read_pins(run, accepted=accepted is not None)
    if pinned is None:
        _write(run, found, about, noted)
    else:
        minor = _differences(pinned.get(_NOTED, {}), noted, _same_keys)
        changed = _differences(pinned, found, _grown)
        if changed and accepted is None:
            raise drifted(run, changed)
        if changed:
            tell([*changed, f"accepted by {accepted}"], True)
        if minor:
            tell(minor, False)
        earlier = list(pinned.get(_ABOUT, {}).get(_EARLIER, []))
        if pinned.get("config") != found.get("config"):
            earlier.append(str(pinned.get("config")))
            about = {**about, _EARLIER: earlier}
        if {**pinned, _ABOUT: None} != {**found, _NOTED: noted, _ABOUT: None}:
            _write(run, found, {**pinned.get(_ABOUT, {}), **about}, noted)
    run.drift_accepted.unlink(missing_ok=True)  # for this start, not for ever
    return None if accepted is not None else frozenset([str(found.get("config")), *earlier])


def read_pins(run: RunDir, *, accepted: bool) -> dict[str, Any] | None:
    """What the run is held to; None if its next start pins it.

    Args:
        run: the run.
        accepted: whether a person accepts what changed, also if nobody knows what.

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


def version_drift(run: RunDir, *, accepted: bool = False) -> list[str]:
    """How this environment's libraries differ from those that the run is held to.

    For the login node, before a job waits in the queue; a run without pins is free.

    Raises:
        RunDamaged: see :func:`read_pins`.
    """
    pinned = read_pins(run, accepted=accepted) or {}
    mine = {key: pinned[key] for key in decisive_versions() if key in pinned}
    return _differences(mine, decisive_versions(), _same_keys)


def drifted(run: RunDir, changed: list[str]) -> RunLocked:
    """The refusal, with the difference and the ways on."""
    return RunLocked(
        f"{run.name} cannot go on, for its inputs changed: {'; '.join(changed)}",
        why="a run continued on other inputs is neither the old run nor a new one",
        fix="restore them; or start a new run from this one's checkpoint (model.projector); or go "
        f"on in spite of it: mgpt4 resume {run.name} --accept-drift",
    )


def accept_drift(run: RunDir) -> None:
    """Let the next start go on though something changed; the ledger will name who said so."""
    write_json(run.drift_accepted, {"by": user_name(), "time": time.time()})


def _accepted_by(run: RunDir) -> str | None:
    try:
        return str(read_json(run.drift_accepted).get("by", "a person"))
    except FileNotFoundError:
        return None
    except ValueError:
        return "a person"  # made by hand with `touch`: the wish is plain


def _differences(
    pinned: Mapping[str, Any],
    found: Mapping[str, Any],
    counts: Callable[[str, Mapping[str, Any], Mapping[str, Any]], bool],
) -> list[str]:
    return [
        f"{key} was {pinned.get(key)}, is {found.get(key)}"
        for key in sorted({*pinned, *found} - {_ABOUT, _NOTED})
        if pinned.get(key) != found.get(key) and counts(key, pinned, found)
    ]


def _same_keys(key: str, pinned: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    return key in pinned and key in found


def _grown(key: str, pinned: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether the difference counts; a version that an older release did not pin is added."""
    return key in pinned or not key.startswith("version of ")


def _write(
    run: RunDir, found: Mapping[str, Any], about: Mapping[str, Any], noted: Mapping[str, str]
) -> None:
    write_json(run.pins_file, {**found, _ABOUT: dict(about), _NOTED: dict(noted)})
