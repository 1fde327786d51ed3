"""Whether a run's feature cache is what the run needs. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.model.bundle.manifest import BUNDLE_FILE, BundleManifest


def feature_faults(config: RunConfig) -> list[str]:
    """What is wrong with ``data.feature_cache``, as far as it can be known before the job.

    A source without an index is indexed by the job, and only then is it known which samples it
    needs: the job's own first look reports the rest.
    """
    if config.data.feature_cache is None:
        return []
    from mgpt4_hpc.data.reading.feature_cache import FeatureCache

    try:
        cache = FeatureCache(Path(config.data.feature_cache))
        faults = cache.differences(_known_binding(config), {}) or _missing(config, cache)
    except MgptError as error:
        faults = [error.what]
    return [f"data.feature_cache: {fault}" for fault in faults]


def _known_binding(config: RunConfig) -> dict[str, Any]:
    """What the features must have been made with, as far as it is known here."""
    from mgpt4_hpc.data.reading.feature_cache import binding_of

    precision: str = config.model.vision_precision
    if precision == "same":
        precision = config.model.precision
    bundle_file = Path(config.model.weights) / BUNDLE_FILE
    bundle = BundleManifest.read(bundle_file) if bundle_file.exists() else None
    binding = binding_of(
        bundle=bundle.digest if bundle else "",
        image_size=bundle.architecture.image_size if bundle else 0,
        has_qformer=bundle is None or bool(bundle.architecture.qformer),
        resize=config.data.resize,
        ln_vision=config.model.ln_vision,
        precision=precision,
    )
    unknown = [] if precision != "auto" else ["vision_precision"]  # the job's GPU decides
    if bundle is None:  # the original's own files are checked when they are opened
        unknown += ["bundle", "image_size", "ln_vision"]
    return {key: value for key, value in binding.items() if key not in unknown}


def _missing(config: RunConfig, cache: object) -> list[str]:
    """Samples that the cache lacks, if every source has an index."""
    from mgpt4_hpc.data.encoding.plan import missing_from, plan_encoding, sample_order
    from mgpt4_hpc.data.index.index import ShardIndex
    from mgpt4_hpc.data.reading.feature_cache import FeatureCache

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
