"""What a run is made from; decided once, as ranks may see a network file system differently."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mgpt4_hpc.checkpoint.store import Checkpoint, CheckpointStore
from mgpt4_hpc.config.load import config_digest, settings_digest, step_settings
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.config.streams import WARNING, is_streamed, is_url
from mgpt4_hpc.data.encoding.plan import missing_from, plan_encoding, sample_order
from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.index.left_out import in_words
from mgpt4_hpc.data.reading.feature_cache import FeatureCache
from mgpt4_hpc.data.sources.prepare import prepare_source
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.model.bundle.bundle import Bundle
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.train.inputs.feature_encoding import feature_binding
from mgpt4_hpc.train.inputs.initial_weights import StartWeights, find_start_weights
from mgpt4_hpc.train.inputs.pins import check_pins, drifted, input_places, read_pins
from mgpt4_hpc.train.recorder import Recorder


@dataclass
class Inputs:
    """What rank 0 found on disk and broadcasts.

    Attributes:
        indexes: path of each source's index, by the source's name.
        start: weights to start from; None where the bundle, the seed or a checkpoint decides.
        start_content: hash of the weights that the run started from; None where it had none.
        checkpoint: to go on from; None at a fresh start.
    """

    indexes: dict[str, str]
    start: StartWeights | None
    start_content: str | None
    checkpoint: Checkpoint | None

    @property
    def restored_step(self) -> int:
        """Where the attempt begins; 0 at a fresh start."""
        return self.checkpoint.step if self.checkpoint is not None else 0


def find_inputs(
    run: RunDir,
    config: RunConfig,
    bundle: Bundle,
    store: CheckpointStore,
    recorder: Recorder,
    device: torch.device,
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
        recorder: records what was found.
        device: that will compute.
        on_progress: called after each shard that was indexed.

    Raises:
        DataError, WeightsError: something is missing or broken.
        RunLocked: something is not what it was at the run's first start.
    """
    indexes, digests = _prepare_sources(run, config, recorder, on_progress)
    features = _find_features(config, bundle, indexes, digests, device)
    start, content = _find_start(run, config, store)
    settings = check_pins(
        run,
        {
            "bundle": bundle.digest,
            "config": config_digest(config),
            "settings": settings_digest(config),
            **{f"index {name}": digest for name, digest in digests.items()},
            "projector": content,
            "features": features,
        },
        about={
            **({"projector": start.source} if start else {}),  # else as the first start noted it
            "features": config.data.feature_cache,
            "values": pinned_values(config),
            **indexes,
        },
        report=lambda what, *how: _report_drift(recorder, what, *how),
        note_changes=lambda changes: recorder.event(Kind.CHANGED, what=changes),
        places=input_places(config),
    )
    checkpoint = _find_checkpoint(run, store, settings, recorder)
    if checkpoint is None and content is not None and start is None:
        start = _start_after_all(run, config, content)
    if is_streamed(config):
        _warn_of_streams(recorder, checkpoint is not None)
    return Inputs(indexes, start, content, checkpoint)


def pinned_values(config: RunConfig) -> dict[str, Any]:
    """The settings that are compared: what decides a step, and how many steps there are."""
    names = ("max_steps", "lr_steps", "early_stop")
    values = step_settings(config)
    sources = values.pop("data.sources")
    return {
        **values,
        **{f"data.sources.{of['name']}.{leaf}": of[leaf] for of in sources for leaf in of},
        **{f"train.{name}": getattr(config.train, name) for name in names},
    }


def _find_start(
    run: RunDir, config: RunConfig, store: CheckpointStore
) -> tuple[StartWeights | None, str | None]:
    """The projector to start from and the hash of its content.

    A run with a checkpoint of its own does not need it again: only the hash is returned then.
    """
    if config.model.projector is None:
        return None, None
    accepted = run.drift_accepted.exists()
    pinned = (read_pins(run, accepted=accepted) or {}).get("projector")
    if pinned is not None and store.steps():
        return None, pinned
    start = find_start_weights(config.model.projector)
    return start, start.content


def _find_checkpoint(
    run: RunDir, store: CheckpointStore, settings: frozenset[str] | None, recorder: Recorder
) -> Checkpoint | None:
    """Remove half-written checkpoints; record and return the newest one that this run can use."""
    store.clean_stale()
    lineage = run.lineage
    checkpoint = store.load_newest(
        on_bad=lambda path, why: _report_bad(recorder, path, why),
        foreign=lambda meta: _foreign(meta, lineage, settings),
    )
    if checkpoint is not None:
        _report_restore(recorder, checkpoint)
    return checkpoint


def _start_after_all(run: RunDir, config: RunConfig, content: str) -> StartWeights:
    """The projector to start from where no checkpoint can be used; it must be the pinned one."""
    start = find_start_weights(config.model.projector or "")
    if start.content != content:
        changed = [f"projector was {content}, is {start.content}"]
        raise drifted(run, changed, input_places(config))
    return start


def _prepare_sources(
    run: RunDir, config: RunConfig, recorder: Recorder, on_progress: Callable[[], None]
) -> tuple[dict[str, str], dict[str, str]]:
    """The path and the digest of each source's index, by the source's name."""
    indexes: dict[str, str] = {}
    digests: dict[str, str] = {}
    for source in config.data.sources:
        if is_url(source.path):
            indexes[source.name], digests[source.name] = source.path, f"stream of {source.path}"
            continue
        path = prepare_source(
            source.name,
            Path(source.path),
            Path(source.index) if source.index else None,
            run.data,
            on_shard=lambda done, total: on_progress(),
        )
        index = ShardIndex.open(path)
        indexes[source.name], digests[source.name] = str(path), index.digest
        if index.left_out:
            recorder.say(f"source {source.name}: left out: {in_words(index.left_out)}")
    return indexes, digests


def inputs_vanished(run: RunDir, config: RunConfig) -> bool:
    """Whether something is missing that an earlier start of this run has found."""
    if not run.pins_file.exists():
        return False
    paths = [config.model.weights, *(source.path for source in config.data.sources)]
    # A pattern or a list of shards is no path; its own error says so.
    return any(not Path(path).exists() for path in paths if path and not set(path) & set("{}*?:"))


def _foreign(
    meta: Mapping[str, Any], lineage: frozenset[str], settings: frozenset[str] | None
) -> str:
    """Why a checkpoint is not this run's; "" if it is. Older ones name no run."""
    other = meta.get("run")
    if other is not None and other not in lineage:
        return f"it is of another run, {other}"
    digest = meta.get("settings_digest", meta.get("config_digest"))
    if settings is not None and digest is not None and digest not in settings:
        return f"it was made with other settings (config digest {digest})"
    return ""


def _report_restore(recorder: Recorder, checkpoint: Checkpoint) -> None:
    recorder.event(
        Kind.RESTORE,
        step=checkpoint.step,
        samples_seen=int(checkpoint.meta["samples_seen"]),
        path=checkpoint.path.name,
    )
    recorder.say(f"resuming from {checkpoint.path.name}")


def _report_drift(recorder: Recorder, what: list[str], accepted: bool, warn: bool) -> None:
    recorder.event(Kind.DRIFT, what=what, accepted=accepted)
    recorder.say(f"{'WARNING: going on though' if warn else 'changed:'} {'; '.join(what)}")


def _warn_of_streams(recorder: Recorder, resumed: bool) -> None:
    recorder.say(f"WARNING: this run cannot resume exactly: {WARNING}")
    what = "streams cannot be resumed where they stood: they started again"
    if resumed:
        recorder.event(Kind.DRIFT, what=[what], accepted=True)


def _find_features(
    config: RunConfig,
    bundle: Bundle,
    indexes: Mapping[str, str],
    digests: Mapping[str, str],
    device: torch.device,
) -> str | None:
    """What the run's feature cache holds, once it is known to hold all that the run will ask for.

    Raises:
        DataError: if it is of something else, or incomplete.
    """
    if config.data.feature_cache is None:
        return None
    cache = FeatureCache(Path(config.data.feature_cache))
    cache.require(feature_binding(config, bundle, device), digests)
    opened = [ShardIndex.open(indexes[source.name]) for source in config.data.sources]
    plan = plan_encoding(config, sample_order(config, opened))
    if missing := missing_from(plan, cache):
        raise DataError(
            f"the feature cache {cache.folder} lacks {missing} of the {len(plan)} samples that "
            f"{config.train.max_steps} steps need",
            why="it was made for fewer steps or another order, or it is not finished",
            fix="run `mgpt4 data encode` with this run's settings: it makes what is missing",
        )
    return cache.content


def _report_bad(recorder: Recorder, path: Path, why: str) -> None:
    recorder.event(Kind.DAMAGED, path=path.name, reason=why)
    recorder.say(
        f"WARNING: checkpoint {path.name} cannot be used ({why}); falling back to an older one"
    )
