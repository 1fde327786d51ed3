"""Whether a run's feature cache is what the run needs. Torch-free."""

from __future__ import annotations

from pathlib import Path

from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.model.manifest import BUNDLE_FILE, Manifest


def feature_faults(config: RunConfig) -> list[str]:
    """What is wrong with ``data.feature_cache``, as far as it can be known before the job.

    A source without an index is indexed by the job, and only then is it known which samples it
    needs: the job's own first look tells of the rest.
    """
    if config.data.feature_cache is None or not Path(config.model.weights, BUNDLE_FILE).exists():
        return []
    from mgpt4_hpc.data.feature_cache import FeatureCache, binding_of

    try:
        cache = FeatureCache(Path(config.data.feature_cache))
        manifest = Manifest.read(Path(config.model.weights) / BUNDLE_FILE)
        precision = config.model.vision_precision
        if precision == "same":
            precision = config.model.precision  # type: ignore[assignment]
        binding = binding_of(
            bundle=manifest.digest,
            image_size=manifest.architecture.image_size,
            has_qformer=bool(manifest.architecture.qformer),
            resize=config.data.resize,
            ln_vision=config.model.ln_vision,
            precision=precision,
        )
        if precision == "auto":
            del binding["vision_precision"]  # the job's GPU decides
        faults = cache.differences(binding, {})
        return [f"data.feature_cache: {fault}" for fault in faults or _missing(config, cache)]
    except MgptError as error:
        return [f"data.feature_cache: {error.what}"]


def _missing(config: RunConfig, cache: object) -> list[str]:
    """Samples that the cache lacks, if every source has an index."""
    from mgpt4_hpc.data.encode_plan import missing_from, plan_encoding, sample_order
    from mgpt4_hpc.data.feature_cache import FeatureCache
    from mgpt4_hpc.data.index import ShardIndex

    assert isinstance(cache, FeatureCache)
    if not all(source.index for source in config.data.sources):
        return []
    indexes = [ShardIndex.open(source.index or "") for source in config.data.sources]
    digests = {
        source.name: index.digest
        for source, index in zip(config.data.sources, indexes, strict=True)
    }
    if faults := cache.differences({}, digests):
        return faults
    plan = plan_encoding(config, sample_order(config, indexes))
    if missing := missing_from(plan, cache):
        return [
            f"{cache.folder} lacks {missing} of {len(plan)} samples: run `mgpt4 data encode` with "
            "these settings"
        ]
    return []
