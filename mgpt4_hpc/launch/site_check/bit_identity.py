"""Whether two runs came to the same result to the last bit, and if not, where they part."""

from __future__ import annotations

from pathlib import Path

from mgpt4_hpc.launch.site_check.trial_run import told_steps
from mgpt4_hpc.run_dir import RunDir

_FILES = ("projector.safetensors", "optimizer.safetensors")
_MOST_TENSORS = 3


def differences(first: RunDir, second: RunDir) -> list[str]:
    """Sentences about what differs; none if every loss and every bit of the end are equal.

    Losses are those in the ledgers, the end is the newest checkpoint's projector and optimizer.
    """
    found = []
    if (sentence := _first_other_loss(first, second)) is not None:
        found.append(sentence)
    one, two = _newest(first), _newest(second)
    if one is None or two is None:
        missing = first if one is None else second
        return [*found, f"{missing.name} has no checkpoint to compare"]
    if one.name != two.name:
        return [*found, f"{first.name} ended with {one.name}, {second.name} with {two.name}"]
    for name in _FILES:
        found += _tensor_differences(one / name, two / name)
    return found


def _first_other_loss(first: RunDir, second: RunDir) -> str | None:
    one, two = ({r["step"]: r["loss"] for r in told_steps(run)} for run in (first, second))
    if one.keys() != two.keys():
        alone = sorted(one.keys() ^ two.keys())
        return f"{len(alone)} steps have a loss in one run alone, the first is step {alone[0]}"
    for step in sorted(one):
        if one[step] != two[step]:
            return (
                f"the losses part at step {step}: {one[step]!r} in {first.name}, "
                f"{two[step]!r} in {second.name}"
            )
    return None


def _newest(run: RunDir) -> Path | None:
    return max(run.checkpoints.glob("step-*"), default=None)


def _tensor_differences(one: Path, two: Path) -> list[str]:
    import numpy as np
    from safetensors.numpy import load_file

    first, second = load_file(one), load_file(two)
    if first.keys() != second.keys():
        names = ", ".join(sorted(first.keys() ^ second.keys())[:_MOST_TENSORS])
        return [f"{one.name} holds other tensors: {names}"]
    found = []
    for name, value in sorted(first.items()):
        other = second[name]
        if value.dtype != other.dtype or value.shape != other.shape:
            found.append(f"{one.name}: {name} is {value.shape} and {other.shape}")
        elif value.tobytes() != other.tobytes():
            # By bytes: a zero and a negative zero compare as equal numbers, and NaNs never do.
            bits, others = (
                np.frombuffer(x.tobytes(), np.uint8).reshape(x.size, -1) for x in (value, other)
            )
            unequal = int((bits != others).any(axis=1).sum())
            furthest = float(np.max(np.abs(value.astype(np.float64) - other.astype(np.float64))))
            found.append(
                f"{one.name}: {name} differs in {unequal} of {value.size} numbers, "
                f"by {furthest:.3g} at most"
            )
    if len(found) > _MOST_TENSORS:
        found[_MOST_TENSORS:] = [f"{one.name}: {len(found) - _MOST_TENSORS} more tensors differ"]
    return found
