"""Jobs that can never start are cancelled and submitted again."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.run_dir import write_json
from tests.cli.fakes import FakeSlurm, Mgpt4
from tests.support.keeping import begun
from tests.support.resuming import Submissions


@pytest.mark.parametrize(("jobs", "again"), [(3, True), (4, False)])
def test_jobs_that_never_begin_come_to_an_end(
    mgpt4: Mgpt4,
    slurm: FakeSlurm,
    tmp_path: Path,
    submissions: Submissions,
    jobs: int,
    again: bool,
) -> None:
    run = begun(tmp_path / "runs", "one", "11")
    line = [str(11 + n) for n in range(jobs + 1)]
    write_json(
        run.slurm / "job.json", {"job_id": line[-1], "submitted": 1.5e9, "succeeds": line[:-1]}
    )
    slurm.sacct = f"{line[-1]}|FAILED|1:0|1|2|n1|None|||\n"
    ended = mgpt4("keep")
    assert bool(submissions.asked) is again
    assert ("its last 4 jobs ended before a rank started" in ended.err) is not again
