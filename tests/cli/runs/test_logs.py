"""``logs``: which file, which part of it, and following across requeues."""

from pathlib import Path

import pytest

from mgpt4_hpc.run_dir import RunDir, write_json
from tests.cli.fakes import FakeSlurm, Mgpt4, replace_sleep, squeue_row
from tests.cli.synthetic import attempt, make_run, submitted

START = "submitit INFO (2026-11-22 15:26:43,760) - Starting with JobEnvironment(job_id=17)\n"


def one_start(number: int, text: str, rank: int = 0) -> str:
    where = f"rank {rank} of 2, process 3{number} on node1, cuda"
    return f"{START}15:26:44 === one: attempt {number}, {where} ===\n{text}\n"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = make_run(tmp_path / "runs")
    submitted(made)
    attempt(made, 1, first=1, last=5, cause="preempted")
    attempt(made, 2, first=6, last=9, restart_count=1)
    log(made, "17_0", one_start(1, "first") + one_start(2, "second"))
    log(made, "17_1", START + "rank one, first\n" + START + "rank one, second\n")
    log(made, "16_0", "an older job\n")
    return made


def log(run: RunDir, name: str, text: str) -> None:
    (run.slurm / f"{name}_log.out").write_text(text)


@pytest.mark.usefixtures("run")
class TestPrint:
    def test_newest_job_and_rank_0(self, mgpt4: Mgpt4) -> None:
        ended = mgpt4("logs", "one")
        assert ended.code == 0
        assert ended.out == one_start(1, "first") + one_start(2, "second")

    def test_the_newest_run_by_default(self, mgpt4: Mgpt4) -> None:
        ended = mgpt4("logs")
        assert "first" in ended.out
        assert ended.err == "log of one\n"

    def test_last_lines(self, mgpt4: Mgpt4) -> None:
        assert mgpt4("logs", "one", "-n", "1").out == "second\n"
        assert mgpt4("logs", "one", "-n", "0").out == ""
        assert mgpt4("logs", "one", "--attempt", "1", "-n", "1").out == "first\n"

    @pytest.mark.parametrize(("number", "text"), [(1, "first"), (2, "second")])
    def test_one_attempt(self, mgpt4: Mgpt4, number: int, text: str) -> None:
        assert mgpt4("logs", "one", "--attempt", number).out == one_start(number, text)

    def test_one_attempt_of_another_rank(self, mgpt4: Mgpt4) -> None:
        out = mgpt4("logs", "one", "--attempt", "2", "--rank", "1").out
        assert out == START + "rank one, second\n"

    def test_no_such_attempt(self, mgpt4: Mgpt4) -> None:
        ended = mgpt4("logs", "one", "--attempt", "3")
        assert ended.code == 2
        assert "its attempts: 1, 2" in ended.err

    def test_no_such_rank(self, mgpt4: Mgpt4) -> None:
        ended = mgpt4("logs", "one", "--rank", "7")
        assert ended.code == 2
        assert "use one of the ranks of job 17: 0, 1" in ended.err

    def test_an_attempt_cannot_be_followed(self, mgpt4: Mgpt4) -> None:
        assert mgpt4("logs", "one", "--attempt", "1", "-f").code == 2


def test_attempts_of_a_plain_batch_script(mgpt4: Mgpt4, run: RunDir) -> None:
    """As in a successor and an array: without submitit a rank's banner tells them apart."""
    for rank in (0, 1):
        first, second = (one_start(n, f"of {n}", rank).replace(START, "") for n in (1, 2))
        log(run, f"17_{rank}", first + second)
        asked = ("logs", "one", "--rank", rank, "--attempt")
        assert (mgpt4(*asked, 1).out, mgpt4(*asked, 2).out) == (first, second)
    log(run, "17_1", "rank one of an earlier version\n")
    ended = mgpt4("logs", "one", "--attempt", "2", "--rank", "1")
    assert ended.code == 1
    assert "mgpt4 logs one --rank 1" in ended.err


def test_the_log_of_a_job_whose_successor_waits(mgpt4: Mgpt4, run: RunDir) -> None:
    log(run, "17_0", one_start(1, "first"))
    write_json(run.slurm / "job.json", {"job_id": "50", "succeeds": ["16", "17"]})
    assert mgpt4("logs", "one").out.endswith("first\n")
    log(run, "50_0", one_start(2, "second"))
    assert mgpt4("logs", "one").out.endswith("second\n")


def test_no_log_yet(mgpt4: Mgpt4, tmp_path: Path) -> None:
    make_run(tmp_path / "runs")
    ended = mgpt4("logs", "one")
    assert ended.code == 1
    assert "has no log yet" in ended.err


def test_no_run_at_all(mgpt4: Mgpt4) -> None:
    assert mgpt4("logs").code == 6


def test_follow_across_a_new_job_until_finished(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pause brings the next chapter: more lines, a resumed run's new job, its end."""
    slurm.squeue = squeue_row("17", "RUNNING", restarts=1)
    monkeypatch.setattr("mgpt4_hpc.cli.runs.logs._LOOK_EVERY_S", 0.0)
    path = run.slurm / "17_0_log.out"

    def more() -> None:
        with path.open("a") as file:
            file.write("third\n")

    def resumed() -> None:
        submitted(run, "18", age_s=0)
        log(run, "18_0", one_start(3, "fourth"))
        slurm.squeue = squeue_row("18", "RUNNING")

    def finished() -> None:
        attempt(run, 3, first=10, last=100, job_id="18", cause="finished")

    chapters = iter([more, resumed, finished])
    replace_sleep(monkeypatch, "mgpt4_hpc.cli.runs.logs", lambda seconds: next(chapters)())
    ended = mgpt4("logs", "one", "-f", "-n", "1")
    assert ended.code == 0
    assert ended.out == "second\nthird\n" + one_start(3, "fourth")
    assert "one: finished" in ended.err


def test_follow_ends_when_the_run_has_failed(mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir) -> None:
    run.failed.write_text("too many crashes\n")
    slurm.squeue = squeue_row("17", "FAILED")
    ended = mgpt4("logs", "one", "-f")
    assert ended.code == 0
    assert "failed: too many crashes" in ended.err
    assert ended.out.endswith("second\n")
