"""What a run is made from; decided once, as ranks may see a network file system differently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mgpt4_hpc.checkpoint.store import Checkpoint, CheckpointStore
from mgpt4_hpc.config.load import config_digest
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.data.index import ShardIndex
from mgpt4_hpc.data.prepare import prepare_source
from mgpt4_hpc.model.bundle import Bundle
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.kinds import Kind
from mgpt4_hpc.train.drift import hold_to_pins
from mgpt4_hpc.train.recorder import SilentRecorder
from mgpt4_hpc.train.start import StartWeights, find_start_weights


@dataclass
class Inputs:
    """What rank 0 found on disk and tells the others.

    Attributes:
        indexes: path of each source's index, by the source's name.
        start: weights to start from; None where the bundle or the seed decides.
        checkpoint: to go on from; None at a fresh start.
    """

    indexes: dict[str, str]
    start: StartWeights | None
    checkpoint: Checkpoint | None


def find_inputs(
    run: RunDir,
    config: RunConfig,
    bundle: Bundle,
    store: CheckpointStore,
    recorder: SilentRecorder,
    *,
    on_progress: Callable[[], None] = lambda: None,
) -> Inputs:
    """Prepare the data, find the start weights and the newest checkpoint, hold the run to its pins.

    May be ended anywhere: what it makes appears complete or not at all.

    Args:
        run: the run.
        config: its settings.
        bundle: its weights.
        store: its checkpoints.
        recorder: told what was found.
        on_progress: called after each shard that was indexed.

    Raises:
        DataError, WeightsError: something is missing or broken.
        RunLocked: something is not what it was at the run's first start.
    """
    indexes: dict[str, str] = {}
    digests: dict[str, str] = {}
    for source in config.data.sources:
        path = prepare_source(
            source.name,
            Path(source.path),
            Path(source.index) if source.index else None,
            run.data,
            on_shard=lambda done, total: on_progress(),
        )
        indexes[source.name] = str(path)
        digests[source.name] = ShardIndex.open(path).digest
    start = find_start_weights(config.model.projector) if config.model.projector else None
    hold_to_pins(
        run,
        {
            "bundle": bundle.digest,
            "config": config_digest(config),
            **{f"index {name}": digest for name, digest in digests.items()},
            "projector": start.content if start else None,
        },
        about={"projector": start.source if start else None, **indexes},
        tell=lambda what, accepted: _report_drift(recorder, what, accepted),
    )
    store.clean_stale()
    checkpoint = store.load_newest(on_bad=lambda path, why: _report_bad(recorder, path, why))
    if checkpoint is not None:
        recorder.event(
            Kind.RESTORE,
            step=checkpoint.step,
            samples_seen=int(checkpoint.meta["samples_seen"]),
            path=checkpoint.path.name,
        )
        recorder.say(f"going on from {checkpoint.path.name}")
    return Inputs(indexes, start, checkpoint)


def _report_drift(recorder: SilentRecorder, what: list[str], accepted: bool) -> None:
    recorder.event(Kind.DRIFT, what=what, accepted=accepted)
    recorder.say(f"{'WARNING: ' if accepted else ''}going on though {'; '.join(what)}")


def _report_bad(recorder: SilentRecorder, path: Path, why: str) -> None:
    recorder.event(Kind.DAMAGED, path=path.name, reason=why)
    recorder.say(
        f"WARNING: checkpoint {path.name} is damaged ({why}); falling back to an older one"
    )
