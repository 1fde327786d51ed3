"""Dependencies as Slurm prints them, and what is left of them after a job's end."""

from __future__ import annotations

import pytest

from mgpt4_hpc.launch.slurm.dependencies import (
    JobName,
    after_success,
    on_successor,
    parse_dependency,
)

ALONE = JobName("17")
TASK = JobName("19", "17", "3")
LAST_TASK = JobName("17", "17", "3")
"""Slurm gives one task of an array the array's own id."""


@pytest.mark.parametrize(
    ("waits_for", "left"),
    [
        ("afterok:17(unfulfilled)", ""),
        ("afterok:17(unfulfilled),afterok:18(unfulfilled)", "afterok:18(unfulfilled)"),
        ("afterok:18(unfulfilled)?afterok:17(unfulfilled)", ""),
        ("afternotok:17(unfulfilled)", "afternotok:17(failed)"),
        (
            "afternotok:17(unfulfilled)?after:18+5(unfulfilled)",
            "afternotok:17(failed)?after:18+5(unfulfilled)",
        ),
        ("afterany:17(unfulfilled)", "afterany:17(unfulfilled)"),
        (
            "afterok:171(unfulfilled),singleton(unfulfilled)",
            "afterok:171(unfulfilled),singleton(unfulfilled)",
        ),
    ],
)
def test_what_is_left_to_wait_for(waits_for: str, left: str) -> None:
    assert str(after_success(parse_dependency(waits_for), ALONE, [])) == left


@pytest.mark.parametrize("name", [TASK, LAST_TASK])
@pytest.mark.parametrize(
    ("waits_for", "others", "left"),
    [
        ("afterok:17_3(unfulfilled)", [], ""),
        ("afterok:17_4(unfulfilled)", [], "afterok:17_4(unfulfilled)"),
        (
            "afterok:17_*(unfulfilled)",
            ["0", "4"],
            "afterok:17_0(unfulfilled),afterok:17_4(unfulfilled)",
        ),
        ("afterok:17_*(unfulfilled)", [], ""),
        ("afternotok:17_*(unfulfilled)", ["4"], "afternotok:17_*(unfulfilled)"),
    ],
)
def test_a_task_is_taken_out_of_its_array(
    name: JobName, waits_for: str, others: list[str], left: str
) -> None:
    assert str(after_success(parse_dependency(waits_for), name, others)) == left


def test_a_task_frees_its_counterpart_alone() -> None:
    waits_for = parse_dependency("aftercorr:17_*(unfulfilled)")
    assert after_success(waits_for, TASK, [], corresponds=True).terms == ()
    assert after_success(waits_for, TASK, []) == waits_for


def test_a_tasks_own_id_means_it_alone_unless_it_is_the_arrays() -> None:
    own = parse_dependency("afterok:19(unfulfilled)")
    assert after_success(own, TASK, []).terms == ()
    whole = parse_dependency("afterok:17(unfulfilled)")
    assert str(after_success(whole, LAST_TASK, ["5"])) == "afterok:17_5(unfulfilled)"


@pytest.mark.parametrize(
    ("name", "waits_for", "moved"),
    [
        (ALONE, "afterok:17(unfulfilled)", "afterok:50(unfulfilled)"),
        (ALONE, "afternotok:17(unfulfilled)?afterany:17(unfulfilled)",
         "afternotok:50(unfulfilled)?afterany:50(unfulfilled)"),
        (ALONE, "after:17(unfulfilled),afterok:18(unfulfilled)",
         "after:17(unfulfilled),afterok:18(unfulfilled)"),
        (TASK, "afterok:17_3(unfulfilled)", "afterok:50(unfulfilled)"),
        (TASK, "afterok:17_*(unfulfilled)", "afterok:17_4(unfulfilled),afterok:50(unfulfilled)"),
    ],
)  # fmt: skip
def test_who_waited_waits_for_the_successor(name: JobName, waits_for: str, moved: str) -> None:
    assert str(on_successor(parse_dependency(waits_for), name, "50", ["4"])) == moved


def test_what_nobody_knows_is_no_dependency() -> None:
    assert parse_dependency("").terms == ()
    with pytest.raises(ValueError, match="afterlife"):
        parse_dependency("afterlife=17")
