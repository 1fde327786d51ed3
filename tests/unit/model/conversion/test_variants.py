"""Settings for one published model refuse the weights of another, and of no other kind."""

from __future__ import annotations

import dataclasses

import pytest

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.conversion.variants import VARIANTS, find_variant, require_variant


@pytest.mark.parametrize("name", list(VARIANTS))
def test_each_is_found_by_its_sizes(name: str) -> None:
    found = find_variant(VARIANTS[name].architecture)
    assert found is VARIANTS[name]
    require_variant(name, VARIANTS[name].architecture, "bundle")
    require_variant("any", VARIANTS[name].architecture, "bundle")


def test_another_published_model_is_refused_by_name() -> None:
    with pytest.raises(WeightsError) as caught:
        require_variant("vicuna7b", VARIANTS["vicuna13b"].architecture, "/data/bundle")
    assert "/data/bundle are of vicuna13b, these settings are for vicuna7b" in str(caught.value)
    assert "model.variant=any" in str(caught.value)


def test_a_model_of_ones_own_passes(vicuna) -> None:
    wider = dataclasses.replace(VARIANTS["vicuna7b"].architecture, llm_dim=3072)
    for own in (vicuna.bundle.architecture, wider):
        assert find_variant(own) is None
        require_variant("vicuna7b", own, "bundle")
