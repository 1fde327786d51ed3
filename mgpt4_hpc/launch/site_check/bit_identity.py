"""Whether two runs came to the same result to the last bit, and if not, where they part."""

from __future__ import annotations

from pathlib import Path

from mgpt4_hpc.launch.site_check.trial_run import recorded_steps
from mgpt4_hpc.run_dir import RunDir

_FILES = ("projector.safetensors", "optimizer.safetensors")
_MOST_TENSORS = 3


def bit_differences(first: RunDir, second: RunDir) -> list[str]:
    """Sentences about what differs; none if every loss and every bit of the end are equal.

    Losses are those in the ledgers, the end is the newest checkpoint's projector and optimizer.
    """
    different = []
    if (sentence := _first_other_loss(first, second)) is not None:
        different.append(sentence)
    checkpoint, other = _newest(first), _newest(second)
    if checkpoint is None or other is None:
        missing = first if checkpoint is None else second
        return [*different, f"{missing.name} has no checkpoint to compare"]
    if checkpoint.name != other.name:
        return [
            *different,
            f"{first.name} ended with {checkpoint.name}, {second.name} with {other.name}",
        ]
    for name in _FILES:
        different += _tensor_differences(checkpoint / name, other / name)
    return different


def _first_other_loss(first: RunDir, second: RunDir) -> str | None:
    losses, others = (
        {r["step"]: r["loss"] for r in recorded_steps(run)} for run in (first, second)
    )
    if losses.keys() != others.keys():
        alone = sorted(losses.keys() ^ others.keys())
        return f"{len(alone)} steps have a loss in one run alone, the first is step {alone[0]}"
    for step in sorted(losses):
        if losses[step] != others[step]:
            return (
                f"the losses part at step {step}: {losses[step]!r} in {first.name}, "
                f"{others[step]!r} in {second.name}"
            )
    return None


def _newest(run: RunDir) -> Path | None:
    return max(run.checkpoints.glob("step-*"), default=None)


def _tensor_differences(file: Path, other_file: Path) -> list[str]:
    import numpy as np
    from safetensors.numpy import load_file

    first, second = load_file(file), load_file(other_file)
    if first.keys() != second.keys():
        names = ", ".join(sorted(first.keys() ^ second.keys())[:_MOST_TENSORS])
        return [f"{file.name} holds other tensors: {names}"]
    different = []
    for name, value in sorted(first.items()):
        other = second[name]
        if value.dtype != other.dtype or value.shape != other.shape:
            different.append(f"{file.name}: {name} is {value.shape} and {other.shape}")
        elif value.tobytes() != other.tobytes():
            # By bytes: a zero and a negative zero compare as equal numbers, and NaNs never do.
            bits, others = (
                np.frombuffer(x.tobytes(), np.uint8).reshape(x.size, -1) for x in (value, other)
            )
            unequal = int((bits != others).any(axis=1).sum())
            furthest = float(np.max(np.abs(value.astype(np.float64) - other.astype(np.float64))))
            different.append(
                f"{file.name}: {name} differs in {unequal} of {value.size} numbers, "
                f"by {furthest:.3g} at most"
            )
    if len(different) > _MOST_TENSORS:
        different[_MOST_TENSORS:] = [
            f"{file.name}: {len(different) - _MOST_TENSORS} more tensors differ"
        ]
    return different
