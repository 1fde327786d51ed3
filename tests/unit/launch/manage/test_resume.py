"""What a resume checks before it submits, and what stays as it was if no job can be had."""

from mgpt4_hpc.errors import SlurmRejected
from mgpt4_hpc.launch.runs.cancel_request import request_cancel
from mgpt4_hpc.run_dir import RunDir, write_json
from tests.cli.fakes import FakeSlurm, Mgpt4
from tests.support.resuming import Submissions, contents


def test_a_refused_job_leaves_the_run_as_it_was(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions
) -> None:
    request_cancel(run, "17")
    before = contents(run)
    submissions.error = SlurmRejected("sbatch refused the job: invalid partition")
    ended = mgpt4("resume", "one", "--partition", "nonsense")
    assert ended.code == 4
    assert contents(run) == before


def test_other_library_versions_are_refused_before_the_job_waits_and_accepted_on_request(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions
) -> None:
    write_json(run.pins_file, {"version of torch": "1.0"})
    before = contents(run)
    ended = mgpt4("resume", "one")
    assert ended.code == 7
    assert "version of torch was 1.0, is " in ended.err and "--accept-drift" in ended.err
    assert submissions.asked == [] and contents(run) == before
    assert mgpt4("resume", "one", "--accept-drift").code == 0
    assert len(submissions.asked) == 1 and run.drift_accepted.exists()


def test_a_job_that_cannot_be_had_accepts_nothing(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions
) -> None:
    submissions.error = SlurmRejected("no")
    assert mgpt4("resume", "one", "--accept-drift").code == 4
    assert not run.drift_accepted.exists()
