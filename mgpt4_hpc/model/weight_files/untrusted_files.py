"""Read tensors from files that other people wrote, trusting none of them.

A ``.pth`` is a zip with a pickle inside. It is only ever read with ``weights_only=True``, which
refuses every global that is not a tensor's, and mapped into memory instead of read, so that a
2 GiB file costs what is used of it. Older files (before torch 1.6) have no zip and are read whole.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from codecs import BOM_UTF8
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgpt4_hpc.errors import WeightsError

if TYPE_CHECKING:
    import torch

LFS_PREFIX = b"version https://git-lfs"
"""How a git-lfs pointer file begins; the real content was never downloaded."""

_SAVE_TABLE = "download the published file again, or save the model's state_dict() alone"
_PAGES = (b"<!doctype", b"<html", b"<?xml")


def require_real_file(path: Path) -> None:
    """Refuse a missing file, an empty one, a git-lfs pointer and a saved web page.

    Raises:
        WeightsError: naming which it is.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        target = f" (a link to {path.readlink()})" if path.is_symlink() else ""
        raise WeightsError(
            f"cannot read {path}{target}: {error.strerror or error}",
            fix="put the file itself there, readable for you",
        ) from error
    if not head:
        raise WeightsError(f"{path} is empty", fix="copy or download it again")
    if head.startswith(LFS_PREFIX):
        raise WeightsError(
            f"{path} is a git-lfs pointer, not the file itself ({path.stat().st_size} bytes)",
            why="the repository was cloned without git-lfs, which fetches the large files",
            fix="run `git lfs pull` in that folder, or download the file by itself",
        )
    if head.removeprefix(BOM_UTF8).lstrip()[:9].lower().startswith(_PAGES):
        raise WeightsError(f"{path} is a web page, not weights", fix="download the file itself")


def read_pth(path: Path) -> dict[str, Any]:
    """Contents of a torch file, on the CPU, memory-mapped where its format allows.

    Raises:
        WeightsError: if it is truncated, no torch file, or holds anything but tensors and plain
            values (nothing is executed).
    """
    import torch

    require_real_file(path)
    try:
        mapped = zipfile.is_zipfile(path)
        with warnings.catch_warnings():
            # Of unusual pickles: torch either reads one, or says below why it does not.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise pickle_fault(path, str(error)) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise broken_file(path, error) from None
    if not isinstance(content, dict):
        raise no_table(path, content)
    return content


def no_table(path: Path, content: object) -> WeightsError:
    """The error for a torch file with something else than names and their tensors."""
    return WeightsError(
        f"{path} holds a {type(content).__name__}, not a table of tensors", fix=_SAVE_TABLE
    )


def pickle_fault(path: Path, message: str) -> WeightsError:
    """The error for what a restricted reader refused, or for plain damage: both are one type."""
    named = re.search(r"GLOBAL (\S+)", message)
    other = re.search(r"Unsupported [^\n]+", message)
    if named is None and other is None:
        return broken_file(path, message)
    reason = named[1] if named else other[0] if other else ""
    damaged = "" if named else ", or is damaged"
    return WeightsError(
        f"{path} holds more than tensors and plain values{damaged}: {reason}",
        why="loading such a file can run any code; it was refused, and nothing was run",
        fix="ask its author for a safetensors file, or for one with tensors only",
    )


def broken_file(path: Path, error: object) -> WeightsError:
    """The error for a file that its format's reader cannot read."""
    first_line = (str(error).splitlines() or [repr(error)])[0]
    return WeightsError(
        f"{path} is truncated or not a torch file ({path.stat().st_size:,} bytes): {first_line}",
        fix="compare its size with the source's and download it again",
    )


def tensors_of(content: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    """The table of tensors in a checkpoint: under ``model`` as the original saves, or flat.

    Takes tensors and their descriptions (``headers.TensorInfo``) alike.

    A ``module.`` in front of every key, DDP's, is taken off.

    Raises:
        WeightsError: if a value is not a tensor, or there is none.
    """
    table = content.get("model", content)
    if not isinstance(table, Mapping) or not table:
        raise WeightsError(
            f"{path}: no table of tensors, neither under 'model' nor at the top", fix=_SAVE_TABLE
        )
    strange = [key for key, value in table.items() if not hasattr(value, "is_floating_point")]
    if strange:
        raise WeightsError(f"{path}: these entries are not tensors: {strange[:8]}", fix=_SAVE_TABLE)
    if all(str(key).startswith("module.") for key in table):
        return {str(key).removeprefix("module."): value for key, value in table.items()}
    return {str(key): value for key, value in table.items()}


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, memory-mapped.

    Raises:
        WeightsError: if the file is missing, truncated or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require_real_file(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path} is truncated or not a safetensors file: {error}",
            fix="compare its size with the source's and download it again",
        ) from None


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of one weight file, by its suffix: ``.safetensors``, otherwise a torch file."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return tensors_of(read_pth(path), path)


def load_error(what: str, error: Exception) -> WeightsError:
    """The error for whatever a library raises while it loads ``what``; raise it from ``error``."""
    return WeightsError(
        f"cannot load {what}: {one_line(error)}",
        fix="`mgpt4 weights check` examines the files; `mgpt4 version` names the libraries",
    )


def one_line(error: BaseException) -> str:
    """An exception of a library as one line: its type where the text alone says little."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}" if text else type(error).__name__
