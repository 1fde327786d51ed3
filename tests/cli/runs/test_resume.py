"""``resume``: whether a run is free, what may change, and what is left if no job can be had."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.config.load import Resolved, settings_digest
from mgpt4_hpc.config.run_config_file import read_config
from mgpt4_hpc.data.index.index import ShardIndex, build_index
from mgpt4_hpc.errors import MgptError, SlurmRejected
from mgpt4_hpc.launch.manage.concurrency_limit import ConcurrencyLimit
from mgpt4_hpc.launch.manage.resume import Resumption
from mgpt4_hpc.launch.manage.resume_many import resume_many
from mgpt4_hpc.launch.runs.cancel_request import cancel_requested, request_cancel
from mgpt4_hpc.launch.runs.sweep_dir import SweepDir, create_sweep
from mgpt4_hpc.launch.submit.submit_run import Submitted
from mgpt4_hpc.run_dir import RunDir, read_json, write_json
from tests.cli.fakes import FakeSlurm, Mgpt4, squeue_row
from tests.cli.synthetic import Clock, attempt, make_run, submitted
from tests.support.tiny_world import TinyWorld


class Submissions:
    """Stands in for `submit_run`; notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Resolved, str, str | None]] = []
        self.succeeds: list[tuple[str, ...]] = []
        self.error: Exception | None = None

    def __call__(
        self,
        run: RunDir,
        resolved: Resolved,
        executor: str,
        *,
        dependency: str | None = None,
        succeeds: Sequence[str] = (),
    ) -> Submitted:
        for marker in (run.resubmit_needed, run.failed):
            marker.unlink(missing_ok=True)
        if self.error is not None:
            raise self.error
        self.asked.append((resolved, executor, dependency))
        self.succeeds.append(tuple(succeeds))
        return Submitted(run, executor, str(17 + len(self.asked)))


@pytest.fixture
def submissions(monkeypatch: pytest.MonkeyPatch) -> Submissions:
    stand_in = Submissions()
    monkeypatch.setattr("mgpt4_hpc.launch.manage.resume.submit_run", stand_in)
    monkeypatch.setattr("mgpt4_hpc.launch.manage.resume.preflight", lambda *_, **__: [])
    return stand_in


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = make_run(tmp_path / "runs")
    submitted(made)
    attempt(made, 1, first=1, last=20, cause="time limit", clock=Clock(1e9))
    made.resubmit_needed.write_text("Slurm did not say why\n")
    return made


def test_as_it_was(mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions) -> None:
    request_cancel(run, "17")
    before = run.config_file.read_bytes()
    ended = mgpt4("resume", "one", "--json")
    assert ended.code == 0
    assert ended.json["job_id"] == "18"
    assert ended.json["changes"] == {}
    ((_, executor, dependency),) = submissions.asked
    assert (executor, dependency) == ("slurm", None)
    assert run.config_file.read_bytes() == before
    assert not cancel_requested(run)


def test_allowed_changes_are_recorded(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions
) -> None:
    digest = read_config(run.config_file).digest
    ended = mgpt4(
        "resume", "one", "--gpus", "2", "--time", "2:00:00", "--partition", "a100-preempt",
        "--set", "launch.max_crashes=9", "--set", "launch.sbatch.reservation=x",
    )  # fmt: skip
    assert ended.code == 0
    assert "one: launch.gpus 1 -> 2" in ended.err
    assert "one: launch.time_min 1440 (1-00:00:00) -> 120 (02:00:00)" in ended.err
    stored = read_config(run.config_file)
    launch = stored.config.launch
    assert (launch.gpus, launch.time_min, launch.max_crashes) == (2, 120, 9)
    assert launch.sbatch == {"reservation": "x"}
    assert stored.origins["launch.gpus"] == "resume"
    assert stored.origins["train.lr"] == "file made.yaml"
    assert stored.digest == digest
    assert submissions.asked[0][0].config == stored.config
    assert not list(run.path.glob(".*tmp"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "lr=0.1"], "train.lr: 0.01 decides the result"),
        (["--set", "weight_decay=0.1"], "--accept-drift makes it 0.1"),
        (["--set", "seed=1"], "seed: 42 decides the result and can never change"),
        (["--set", "seed=1", "--accept-drift"], "seed: 42 decides the result"),
        (["--set", "stage=2"], "stage: 1 decides the result"),
        (["--set", "name=other"], "a run keeps its name"),
        (["--set", "lrr=1"], "did you mean train.lr?"),
        (["--set", "launch.gpus=none"], "launch.gpus"),
        (["--gpus", "9"], "launch.gpus"),
        (["--gpus", "0"], "--gpus"),
        (["--gpus", "2", "--nodes", "3"], "launch.nodes"),
        (["--partition", "a\nb"], "launch.partition"),
    ],
)
def test_forbidden_changes_change_nothing(
    mgpt4: Mgpt4,
    slurm: FakeSlurm,
    run: RunDir,
    submissions: Submissions,
    arguments: list[str],
    told: str,
) -> None:
    before = contents(run)
    ended = mgpt4("resume", "one", *arguments)
    assert ended.code == 2
    assert told in ended.err
    assert submissions.asked == []
    assert contents(run) == before


def test_all_faults_at_once(mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir) -> None:
    ended = mgpt4("resume", "one", "--set", "lr=1", "--set", "seed=3", "--set", "name=x")
    assert ended.code == 2
    for key in ("train.lr", "seed", "name"):
        assert f"  - {key}: " in ended.err
    ended = mgpt4("resume", "one", "--set", "lrr=1", "--set", "launch.gpus=none")
    assert ended.code == 2
    assert "--set 'lrr=1': unknown setting" in ended.err and "  - launch.gpus: " in ended.err
    ended = mgpt4("resume", "one", "--set", "lrr=1", "--set", "lr=1")
    assert "unknown setting" in ended.err and "  - train.lr: 0.01 decides" in ended.err


def test_the_same_value_is_no_change(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions
) -> None:
    ended = mgpt4("resume", "one", "--set", "lr=1e-2", "--gpus", "1", "--json")
    assert ended.code == 0
    assert ended.json["changes"] == {}


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "COMPLETING"])
def test_its_job_is_alive(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions, state: str
) -> None:
    slurm.squeue = squeue_row("17", state)
    ended = mgpt4("resume", "one")
    assert ended.code == 7
    assert "one is alive" in ended.err
    assert "(job 17)" in ended.err
    assert submissions.asked == []


def test_finished_already(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions
) -> None:
    attempt(run, 2, first=21, last=100, cause="finished")
    ended = mgpt4("resume", "one")
    assert ended.code == 0
    assert "finished already" in ended.out
    assert mgpt4("resume", "one", "--json").json["finished"] is True
    assert submissions.asked == []


def test_slurm_is_down(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions
) -> None:
    run.resubmit_needed.unlink()
    slurm.squeue = slurm.sacct = None
    assert mgpt4("resume", "one").code == 5
    assert submissions.asked == []


def test_no_such_run(mgpt4: Mgpt4) -> None:
    assert mgpt4("resume", "other").code == 6


def test_a_newer_format_is_left_alone(mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir) -> None:
    run.identity_file.write_text('{"format_version": 99}')
    assert mgpt4("resume", "one").code == 7


def test_a_refused_job_leaves_the_run_as_it_was(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions
) -> None:
    request_cancel(run, "17")
    before = contents(run)
    submissions.error = SlurmRejected("sbatch refused the job: invalid partition")
    ended = mgpt4("resume", "one", "--partition", "nonsense")
    assert ended.code == 4
    assert contents(run) == before


def test_it_waits_for_the_run_it_starts_from(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path, submissions: Submissions
) -> None:
    first = make_run(tmp_path / "runs", "first")
    submitted(first, "21")
    second = make_run(tmp_path / "runs", "second", stage=2, model__projector=str(first.path))
    submitted(second, "19")
    slurm.squeue = squeue_row("21", "RUNNING") + squeue_row(
        "19", "CANCELLED", "DependencyNeverSatisfied"
    )
    assert mgpt4("resume", "second").code == 0
    assert submissions.asked[0][2] == "afterok:21"

    attempt(first, 1, first=1, last=9, cause="crashed", job_id="21")
    slurm.squeue = slurm.squeue.replace("RUNNING", "FAILED ")
    ended = mgpt4("resume", "second")
    assert ended.code == 3
    assert f"mgpt4 resume {first.path}" in ended.err


def test_a_finished_run_brings_back_what_waited_for_it(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path, submissions: Submissions
) -> None:
    first = make_run(tmp_path / "runs", "first")
    submitted(first, "21")
    attempt(first, 1, first=1, last=20, cause="finished", job_id="21")
    for name, job in (("removed", "19"), ("cancelled", "20")):
        second = make_run(tmp_path / "runs", name, stage=2, model__projector=str(first.path))
        submitted(second, job)
    # The controller has forgotten both; accounting as Slurm 24.11 has it.
    slurm.sacct = (
        "19|CANCELLED|0:0|None|1795360206|None assigned|None|||\n"
        "20|CANCELLED by 1000|0:0|None|1795360206|None assigned|None|||\n"
    )
    ended = mgpt4("resume", "first")
    assert ended.code == 0, ended.err
    assert [(asked[0].config.name, asked[2]) for asked in submissions.asked] == [("removed", None)]
    assert "removed, which waited for first, is job" in ended.err


def contents(run: RunDir) -> dict[str, Any]:
    """Every file of the run by its name."""
    return {
        str(path.relative_to(run.path)): path.read_bytes()
        for path in run.path.rglob("*")
        if path.is_file()
    }


# -- drift -------------------------------------------------------------------------------------


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


def test_a_sweep_s_name_stands_for_what_is_left_of_it(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path, submissions: Submissions
) -> None:
    runs = [make_run(tmp_path / "runs", f"s-{name}") for name in ("done", "alive", "lost", "odd")]
    for number, run in enumerate(runs):
        submitted(run, f"30_{number}")
    done, _, lost, odd = runs
    attempt(done, 1, first=1, last=100, cause="finished", job_id="30_0")
    for run in (lost, odd):
        attempt(run, 1, first=1, last=9, cause="crashed", job_id="30_2")
        run.failed.write_text("a crash too many\n")
    odd.config_file.write_text("stage: [")
    slurm.squeue = squeue_row("30_1", "RUNNING")
    create_sweep(SweepDir.of("s", tmp_path / "runs"), runs, [{}] * 4, "slurm")

    ended = mgpt4("resume", "s", "--set", "launch.max_crashes=9", "--json")
    assert ended.code == 2, "what is wrong with one is told in the end"
    assert str(odd.config_file) in ended.err
    assert "left alone: s-alive is alive" in ended.err
    assert [(one["run"], one["finished"], one["job_id"]) for one in ended.json] == [
        ("s-done", True, None),
        ("s-lost", False, "18"),
    ]
    assert [resolved.config.name for resolved, _, _ in submissions.asked] == ["s-lost"]
    assert read_config(lost.config_file).config.launch.max_crashes == 9


def test_what_is_wrong_with_all_runs_is_told_once(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path, submissions: Submissions
) -> None:
    runs = [make_run(tmp_path / "runs", f"s-{name}") for name in "ab"]
    for number, run in enumerate(runs):
        submitted(run, f"30_{number}")
        run.resubmit_needed.write_text("Slurm did not say why\n")
    create_sweep(SweepDir.of("s", tmp_path / "runs"), runs, [{}] * 2, "slurm")
    ended = mgpt4("resume", "s", "--set", "lr=0.1")
    assert ended.code == 2
    assert ended.err.count("decides the result") == 1
    assert "s-a could not be resumed" in ended.err and "s-b could not be resumed" in ended.err
    assert submissions.asked == []


def test_what_holds_for_all_runs_of_a_sweep_is_noted_once(
    mgpt4: Mgpt4,
    slurm: FakeSlurm,
    tmp_path: Path,
    submissions: Submissions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    note = "the runs directory is on a local disk"
    monkeypatch.setattr("mgpt4_hpc.launch.manage.resume.preflight", lambda *_, **__: [note])
    runs = [make_run(tmp_path / "runs", f"s-{name}") for name in "abc"]
    create_sweep(SweepDir.of("s", tmp_path / "runs"), runs, [{}] * 3, "slurm")
    ended = mgpt4("resume", "s", "--gpus", "2", "--executor", "slurm")
    assert len(submissions.asked) == 3 and ended.err.count(note) == 1
    assert ended.err.count("launch.gpus 1 -> 2") == 3, "a change is told of each run"


def test_a_sweep_keeps_how_many_may_be_at_work(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path, submissions: Submissions
) -> None:
    runs = [make_run(tmp_path / "runs", f"s-{name}") for name in "abcde"]
    for number, run in enumerate(runs):
        submitted(run, f"30_{number}")
    sweep = SweepDir.of("s", tmp_path / "runs")
    create_sweep(sweep, runs, [{}] * 5, "slurm", max_parallel=2)
    slurm.squeue = squeue_row("30_1", "RUNNING")

    ended = mgpt4("resume", "s")
    assert ended.code == 0 and "s: at most 2 at once" in ended.err
    # One place is free; who comes next waits for what runs, and then for those before.
    waits = [dependency for _, _, dependency in submissions.asked]
    assert waits == [None, "afterany:30_1", "afterany:18", "afterany:19"]

    submissions.asked.clear()
    assert mgpt4("resume", "s", "--max-parallel", "3").code == 0
    assert [dependency for *_, dependency in submissions.asked][:2] == [None, None]
    assert sweep.max_parallel() == 3, "and so at the next time"

    submissions.asked.clear()
    alone = mgpt4("resume", "s-a", "--json")
    assert alone.code == 0 and alone.json["run"] == "s-a" and "s: at most 3 at once" in alone.err
    slurm.squeue = "".join(squeue_row(f"30_{number}", "RUNNING") for number in (1, 2, 3))
    assert mgpt4("resume", "s-a").code == 0
    assert [dependency for *_, dependency in submissions.asked] == [None, "afterany:30_1"]
    refused = mgpt4("resume", "s-a", "--max-parallel", "3")
    assert refused.code == 2 and "--max-parallel 3 is for sweeps" in refused.err


@pytest.mark.parametrize(
    ("most", "live", "rows"),
    [
        (2, [], [[], [], ["n0"], ["n1"], ["n2"]]),
        (2, ["a"], [[], ["a"], ["n0"], ["n1"]]),
        (2, ["a", "b", "c"], [["a", "b"], ["a", "b", "c"], ["n0"], ["n1"]]),
        (1, ["a", "b"], [["a", "b"], ["n0"], ["n1"]]),
    ],
)
def test_whose_turn_it_is(most: int, live: list[str], rows: list[list[str]]) -> None:
    limit = ConcurrencyLimit(most, live)
    for number, expected in enumerate(rows):
        assert list(limit.next) == expected
        limit.take(f"n{number}")


def test_several_runs_here_follow_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once would share this machine's GPUs."""
    runs = [make_run(tmp_path, name) for name in "abc"]
    told: list[str] = []

    def resume(run: RunDir, *_: Any, **__: Any) -> Resumption:
        told.append(f"begin {run.name}")
        return Resumption(run, False, Submitted(run, "local", "1"))

    def wait(waited: Sequence[RunDir], **_: Any) -> None:
        told.append(f"end {waited[0].name}")
        if waited[0].name == "a":
            raise MgptError("a did not finish")

    monkeypatch.setattr("mgpt4_hpc.launch.manage.resume_many.resume_run", resume)
    monkeypatch.setattr("mgpt4_hpc.launch.manage.resume_many.wait_for_runs", wait)
    done, errors = resume_many(runs, {}, "local", say=told.append)
    assert told == ["begin a", "end a", "begin b", "end b", "begin c"]
    assert [one.run for one in done] == runs
    assert [error.what for error in errors] == ["a did not finish"]


# -- going further -----------------------------------------------------------------------------


def finish(run: RunDir, at: int) -> None:
    """As today's trainer ends a run: with the number of its steps."""
    attempt(run, 2, first=21, last=at, cause="finished")
    file = run.ledger / "attempt-0002.jsonl"
    *lines, end = file.read_text().splitlines()
    file.write_text("\n".join([*lines, json.dumps({**json.loads(end), "all_steps": at}), ""]))


def test_a_finished_run_gets_more_steps_and_keeps_its_schedule(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions
) -> None:
    run.resubmit_needed.unlink()
    finish(run, at=100)
    held = settings_digest(read_config(run.config_file).config)
    for fewer in ("100", "50"):
        ended = mgpt4("resume", "one", "--set", f"max_steps={fewer}", "--json")
        assert ended.json["finished"] is True and submissions.asked == []
    ended = mgpt4("resume", "one", "--set", "max_steps=300")
    assert ended.code == 0, ended.err
    assert "the cosine has 100 steps" in ended.err
    config = read_config(run.config_file).config
    assert (config.train.max_steps, config.train.lr_steps) == (300, 100)
    assert settings_digest(config) == held and not run.drift_accepted.exists()
    (row,) = mgpt4("status", "one", "--json").json
    assert row["state"] != "finished", "it has 200 steps to go"
    # Another length of the cosine changes the steps to come, and nothing else may have changed.
    ended = mgpt4("resume", "one", "--set", "max_steps=400", "--set", "lr_steps=400")
    assert ended.code == 0, ended.err
    config = read_config(run.config_file).config
    assert read_json(run.drift_accepted)["settings"] == settings_digest(config) != held


@pytest.mark.parametrize("state", ["RUNNING", "PENDING"])
def test_a_job_that_waits_or_trains_is_given_more_steps(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions, state: str
) -> None:
    slurm.squeue = squeue_row("17", state)
    ended = mgpt4("resume", "one", "--set", "max_steps=300", "--json")
    assert ended.code == 0, ended.err
    assert (ended.json["job_id"], ended.json["finished"]) == ("17", False)
    assert read_config(run.config_file).config.train.max_steps == 300
    assert submissions.asked == []
    assert "its slurm job 17" in mgpt4("resume", "one", "--set", "max_steps=200").out
    for more in (["--set", "max_steps=400", "--gpus", "2"], ["--set", "lr_steps=10"]):
        assert mgpt4("resume", "one", *more).code == 7, "only a new job reads that"


def test_what_decides_the_steps_to_come_changes_when_a_person_accepts_it(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions
) -> None:
    changes = ["--set", "lr=0.001", "--set", "global_batch_size=4", "--set", "data.shares.laion=3"]
    ended = mgpt4("resume", "one", *changes)
    assert ended.code == 2 and submissions.asked == []
    for key in ("train.lr", "train.global_batch_size", "data.s"):
        assert key in ended.err
    assert "mgpt4 submit --from RUN" in ended.err
    ended = mgpt4("resume", "one", *changes, "--accept-drift")
    assert ended.code == 0, ended.err
    config = read_config(run.config_file).config
    assert (config.train.lr, config.data.sources[0].weight) == (0.001, 3)


def test_a_run_of_older_code_is_written_nothing_that_it_does_not_know(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions
) -> None:
    lines = run.config_file.read_text().splitlines(keepends=True)
    older = [line for line in lines if not line.startswith(("  lr_steps:", "  shares:"))]
    run.config_file.write_text("".join(older))
    assert mgpt4("resume", "one", "--set", "launch.max_crashes=9").code == 0
    text = run.config_file.read_text()
    assert "max_crashes: 9" in text and "lr_steps" not in text and "shares" not in text
    ended = mgpt4("resume", "one", "--set", "max_steps=200")
    assert ended.code == 2 and "train.lr_steps: the run's own code" in ended.err
    ended = mgpt4("resume", "one", "--set", "model.weights=/elsewhere")
    assert ended.code == 2 and "model.weights" in ended.err


def test_paths_are_where_to_look_and_content_is_compared(
    mgpt4: Mgpt4,
    slurm: FakeSlurm,
    run: RunDir,
    submissions: Submissions,
    world: TinyWorld,
    tmp_path: Path,
) -> None:
    moved = ["--set", "model.weights=/new/weights", "--set", "data.paths.laion=/new/laion"]
    assert mgpt4("resume", "one", *moved).code == 0
    assert read_config(run.config_file).config.data.sources[0].path == "/new/laion"
    shards = sorted(world.shards("laion").glob("*.tar"))
    for number, held_to, code in ((1, None, 0), (2, "another", 7)):
        index = tmp_path / f"{number}.index"
        build_index(shards, index, name="laion")
        write_json(run.pins_file, {"index laion": held_to or ShardIndex.open(index).digest})
        source = f"[{{name: laion, path: {world.shards('laion')}, index: {index}}}]"
        ended = mgpt4("resume", "one", "--set", f"data.sources={source}")
        assert ended.code == code, ended.err
    assert "index laion was another" in ended.err


def test_a_checkpoint_is_no_run_to_resume_or_remove(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions
) -> None:
    (run.checkpoints / "step-00000020").mkdir(exist_ok=True)
    (run.checkpoints / "step-00000020" / "manifest.json").write_text("{}")
    for command in ("resume", "rm"):
        for name in ("one@20", "one/checkpoints/step-20", "one/checkpoints/step-00000020"):
            ended = mgpt4(command, name)
            assert ended.code == 6 and "is one checkpoint" in ended.err
    for command in ("status", "history", "usage", "logs", "config show"):
        whole, part = (mgpt4(*command.split(), name) for name in ("one", "one@20"))
        assert (part.code, part.out.replace("one@20", "one")) == (whole.code, whole.out)
