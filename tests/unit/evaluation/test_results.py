"""Means, intervals and differences."""

from __future__ import annotations

import pytest

from mgpt4_hpc.evaluation.results import Evaluation, TaskResult, Told, metric_differences


def evaluation(name: str, values: list[float], images: str = "abcdefghijklmnopqrst") -> Evaluation:
    told = tuple(
        Told(image, "x", True, {"failing": value})
        for image, value in zip(images, values, strict=False)
    )
    return Evaluation(name, (TaskResult("detail", "?", told, {"whole": 0.5}),))


def test_pairs_make_a_small_difference_clear() -> None:
    hard = [float(i % 2) for i in range(20)]
    (row,) = metric_differences(evaluation("a", hard), evaluation("b", [v + 0.1 for v in hard]))
    assert (
        row.clear and row.low == pytest.approx(0.1) and row.second - row.first == pytest.approx(0.1)
    )
    (same,) = metric_differences(evaluation("a", hard), evaluation("b", hard[::-1]))
    assert not same.clear


def test_other_images_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different images"):
        metric_differences(evaluation("a", [1, 0]), evaluation("b", [1, 0], images="xy"))


def test_metrics_hold_means_and_what_is_over_all() -> None:
    (task,) = evaluation("a", [1, 0, 0, 0]).tasks
    assert task.metrics == {"failing": 0.25, "whole": 0.5}
    assert task.to_dict()["num_images"] == 4
