"""``mgpt4 submit``: dry runs, sweeps, what is said of runs that exist, and what Ctrl-C leaves."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.checkpoint.store import CheckpointStore
from mgpt4_hpc.config.run_config_file import read_config
from mgpt4_hpc.errors import SlurmUnreachable
from mgpt4_hpc.launch.slurm.cluster import parse_slurm_site
from mgpt4_hpc.launch.submit import execute, plan
from mgpt4_hpc.launch.submit.preflight_slurm import Cluster
from mgpt4_hpc.launch.submit.submit_run import Submitted
from mgpt4_hpc.run_dir import RunDir, read_json
from tests.cli.fakes import FakeSlurm, Mgpt4, squeue_row
from tests.cli.synthetic import attempt, make_run, submitted
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run

PARTITIONS = "PartitionName=a100 Default=YES MaxTime=2-00:00:00 State=UP TotalNodes=1\n"
NODES = "NodeName=n1 CPUTot=64 Gres=gpu:a100:4 State=IDLE Partitions=a100\n"


@pytest.fixture
def stage1(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write_config(tmp_path_factory.mktemp("config") / "stage1.yaml", 1)


@pytest.fixture
def sbatch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Slurm that takes every job as number 42; the file to which sbatch notes its arguments."""
    folder = tmp_path_factory.mktemp("bin")
    calls = folder / "calls"
    (folder / "sbatch").write_text(
        f'#!/bin/sh\necho "$@" >> {calls}\n'
        'case "$1" in\n'
        '--test-only) echo "sbatch: Job 9 to start at 2030-01-02T03:04:05 using 8 processors on '
        'nodes n1 in partition a100" >&2;;\n'
        "--parsable) echo 42;;\n"
        "*) echo Submitted batch job 42;;\nesac\n"
    )
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    seen = Cluster(parse_slurm_site("MaxArraySize = 1001\n", PARTITIONS, NODES))
    monkeypatch.setattr(plan, "ask_cluster", lambda: seen)
    return calls


# -- dry runs ----------------------------------------------------------------------------------


def test_a_dry_run_that_would_be_refused_shows_the_script_and_says_so(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path
) -> None:
    ended = mgpt4("submit", "--config", stage1, "--dry-run", "--gpus", "8", "--partition", "a10")
    assert ended.code == 3
    assert "#SBATCH --partition=a10" in ended.out
    assert "partition 'a10' does not exist" in ended.err
    assert "train.global_batch_size 4 is no multiple" in ended.err
    assert not sbatch.exists() and list(Path().iterdir()) == []


def test_a_dry_run_without_an_answer_of_slurm_shows_the_script_all_the_same(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down() -> Cluster:
        raise SlurmUnreachable("the controller is down")

    monkeypatch.setattr(plan, "ask_cluster", down)
    ended = mgpt4("submit", "--config", stage1, "--dry-run")
    assert (ended.code, "#SBATCH" in ended.out) == (5, True)
    assert "the controller is down" in ended.err


def test_auto_says_which(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = mgpt4("submit", "--config", stage1, "--dry-run")
    assert "executor: slurm, for sbatch is installed here" in ended.err
    monkeypatch.setenv("PATH", "/nowhere")
    ended = mgpt4("submit", "--config", stage1, "--dry-run")
    assert "executor: local, for there is no sbatch here" in ended.err
    assert "mgpt4_hpc.launch.local" in ended.out and "#SBATCH" not in ended.out


def test_mail_reaches_the_script_and_a_wrong_type_is_told(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path
) -> None:
    mail = ["--mail-type", "END,FAIL", "--mail-user", "me@example.org"]
    script = mgpt4("submit", "--config", stage1, "--dry-run", *mail).out
    assert "#SBATCH --mail-type=END,FAIL\n#SBATCH --mail-user=me@example.org\n" in script
    ended = mgpt4("submit", "--config", stage1, "--dry-run", "--mail-type", "FALL")
    assert ended.code == 2 and "launch.mail_type has 'FALL': use NONE, BEGIN" in ended.err


# -- asking when -------------------------------------------------------------------------------


def test_slurms_estimate_is_a_table_or_json(mgpt4: Mgpt4, stage1: Path, sbatch: Path) -> None:
    asked = mgpt4("submit", "--config", stage1, "--name", "x", "--test-only", "--json")
    (told,) = asked.json
    assert told.pop("in_s") > 0
    assert told == {
        "job": "x",
        "start": "2030-01-02T03:04:05",
        "processors": 8,
        "nodes": "n1",
        "partition": "a100",
        "after": None,
    }
    assert "2030-01-02T03:04:05" in mgpt4("submit", "--config", stage1, "--test-only").out
    assert list(Path().iterdir()) == []


def test_there_is_none_without_slurm(mgpt4: Mgpt4, stage1: Path) -> None:
    ended = mgpt4("submit", "--config", stage1, "--test-only", "--executor", "local")
    assert ended.code == 2 and "the executor is local" in ended.err


# -- sweeps ------------------------------------------------------------------------------------


def test_a_sweep_is_one_array_and_a_run_for_each_task(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path, slurm: FakeSlurm
) -> None:
    ended = mgpt4(
        "submit", "--config", stage1, "--name", "s", "--sweep", "lr=1e-2,3e-3", "--sweep",
        "seed=1,2", "--max-parallel", "3", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert [(one["run"], one["job_id"], one["values"]) for one in ended.json] == [
        ("s-lr1e-2-seed1", "42_0", {"train.lr": "1e-2", "seed": "1"}),
        ("s-lr1e-2-seed2", "42_1", {"train.lr": "1e-2", "seed": "2"}),
        ("s-lr3e-3-seed1", "42_2", {"train.lr": "3e-3", "seed": "1"}),
        ("s-lr3e-3-seed2", "42_3", {"train.lr": "3e-3", "seed": "2"}),
    ]
    sweep = Path("runs/.sweeps/s")
    assert sbatch.read_text().split() == ["--parsable", str(sweep.absolute() / "array.sbatch")]
    assert "#SBATCH --array=0-3%3" in (sweep / "array.sbatch").read_text()
    assert read_json(sweep / "sweep.json")["max_parallel"] == 3, "for its resumption"
    assert "lr: 0.003" in Path("runs/s-lr3e-3-seed1/config.yaml").read_text()
    assert (sweep / "tasks" / "2" / "job.sbatch").samefile("runs/s-lr3e-3-seed1/slurm/job.sbatch")

    slurm.squeue = "".join(squeue_row(f"42_{n}", "PENDING", "Priority") for n in range(4))
    rows = mgpt4("status", "s", "--json").json
    assert [(row["name"], row["state"]) for row in rows] == [
        (one["run"], "pending") for one in ended.json
    ]
    again = mgpt4("submit", "--config", stage1, "--name", "s", "--sweep", "lr=1e-2,3e-3")
    assert again.code == 3 and "the sweep s exists already" in again.err


def test_a_sweep_that_sbatch_refuses_leaves_nothing(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path
) -> None:
    (sbatch.parent / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: Batch job submission failed: no' >&2; exit 1\n"
    )
    ended = mgpt4("submit", "--config", stage1, "--sweep", "seed=1,2")
    assert ended.code == 4 and "sbatch refused the job" in ended.err
    assert list(Path("runs").glob("*")) == [Path("runs/.sweeps")]
    assert list(Path("runs/.sweeps").iterdir()) == []


@pytest.mark.parametrize("more", [[], ["--sweep", "seed=1,2"]], ids=["run", "sweep"])
@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("Batch job submission failed: Socket timed out on send/recv operation", True),
        ("Unable to contact slurm controller (connect failure)", False),
    ],
)
def test_a_job_that_may_have_been_accepted_keeps_its_folder(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path, more: list[str], said: str, kept: bool
) -> None:
    (sbatch.parent / "sbatch").write_text(f"#!/bin/sh\necho 'sbatch: error: {said}' >&2; exit 1\n")
    ended = mgpt4("submit", "--config", stage1, *more)
    assert ended.code == 5
    assert bool(list(Path("runs").glob("*/run.json"))) is kept
    assert ("squeue --me --name tiny-stage1" in ended.err) is kept
    if kept and not more:
        assert mgpt4("status", "tiny-stage1", "--json").json[0]["state"] == "stopped"


def test_a_dry_sweep_shows_the_array_and_its_runs(mgpt4: Mgpt4, stage1: Path, sbatch: Path) -> None:
    ended = mgpt4("submit", "--config", stage1, "--sweep", "seed=1,2", "--dry-run")
    assert "#SBATCH --array=0-1\n" in ended.out
    assert "tiny-stage1-seed2  seed=2" in ended.err
    assert subprocess.run(["bash", "-n"], input=ended.out, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--sweep", "lr=0.1,0.2", "--set", "lr=0.3"], "train.lr is given twice"),
        (["--max-parallel", "2"], "--max-parallel is given without --sweep"),
        (["--sweep", "seed=1", "--stage", "both"], "exclude each other"),
        (["--sweep", "max_steps=2,9"], "tiny-stage1-max_steps2: train.warmup_steps 4 is beyond"),
        (["--dry-run", "--wait"], "exclude each other"),
        (["--set", "data.paths.laoin=/x"], "there is no data source 'laoin', only laion, cc_sbu"),
        (["--name", "a b"], "must be at most 100 letters, digits"),
    ],
)
def test_what_contradicts_itself(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path, arguments: list[str], told: str
) -> None:
    config = [] if "both" in arguments else ["--config", stage1]
    ended = mgpt4("submit", *config, *arguments)
    assert (ended.code, told in ended.err) == (2, True), ended.err
    assert "^[A-Za-z" not in ended.err, "no regular expressions for people"
    assert list(Path().iterdir()) == []


def test_a_local_sweep_goes_on_behind_a_run_that_failed(
    mgpt4: Mgpt4, stage1: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    class Process:
        """Ends at once; the second badly."""

        def wait(self) -> int:
            return 70 if len(ran) == 2 else 0

    def start(run: RunDir, *_: Any, **__: Any) -> Submitted:
        ran.append(run.name)
        return Submitted(run, "local", str(len(ran)), process=Process())  # type: ignore[arg-type]

    monkeypatch.setattr(execute, "submit_run", start)
    ended = mgpt4("submit", "--config", stage1, "--executor", "local", "--sweep", "seed=1,2,3")
    assert ended.code == 1
    assert ran == [f"tiny-stage1-seed{seed}" for seed in (1, 2, 3)]
    assert "tiny-stage1-seed2 ended with code 70" in ended.err
    assert "1 of the sweep's 3 runs did not finish" in ended.err


# -- runs that exist ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cause", "squeue", "told"),
    [
        ("finished", "", "is finished (12 steps): nothing is left to do in it"),
        (None, squeue_row("42", "RUNNING"), "`mgpt4 logs -f tiny-stage1` follows it"),
        ("crashed", "", "`mgpt4 resume tiny-stage1` goes on with it"),
    ],
)
def test_a_run_that_exists_is_told_what_it_does_and_what_to_do(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path, slurm: FakeSlurm, cause: Any, squeue: str, told: str
) -> None:
    run = make_run(Path("runs").absolute(), "tiny-stage1")
    submitted(run, "42")
    attempt(run, 1, first=1, last=12, job_id="42", cause=cause)
    slurm.squeue = squeue
    ended = mgpt4("submit", "--config", stage1)
    assert ended.code == 3
    assert told in ended.err, ended.err
    assert ("resume" in ended.err) is (cause == "crashed")
    assert not sbatch.exists()


# -- Ctrl-C ------------------------------------------------------------------------------------


def test_ctrl_c_while_waiting_says_what_goes_on(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mgpt4_hpc.launch.runs.wait.wait_for_runs", interrupted)
    ended = mgpt4("submit", "--config", stage1, "--wait")
    assert ended.code == 130
    runs = Path("runs").absolute()
    assert "tiny-stage1  slurm job 42" in ended.err
    assert f"mgpt4 logs -f tiny-stage1 --runs-dir {runs}" in ended.err
    assert f"mgpt4 cancel tiny-stage1 --runs-dir {runs}" in ended.err


def test_ctrl_c_before_sbatch_says_that_nothing_was_submitted(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Submitted:
        raise KeyboardInterrupt

    monkeypatch.setattr(execute, "create_run", interrupted)
    ended = mgpt4("submit", "--config", stage1)
    assert ended.code == 130 and "nothing was submitted" in ended.err
    assert not sbatch.exists()


# -- explaining --------------------------------------------------------------------------------


def test_explain_shows_what_is_asked_for(mgpt4: Mgpt4, stage1: Path) -> None:
    def keys(*wanted: str) -> list[str]:
        return [row["key"] for row in mgpt4("config", "explain", stage1, *wanted, "--json").json]

    assert keys("lr", "seed") == ["train.lr", "seed"]
    assert keys("container") == [
        f"container.{leaf}" for leaf in ("runtime", "image", "mounts", "python", "options")
    ]
    assert keys("launch.env.NCCL_DEBUG") == ["launch.env"]
    assert mgpt4("config", "explain", stage1, "lrr").code == 2


def test_the_sites_runs_are_where_every_command_looks(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Path("site.yaml").absolute()
    site.write_text(f"launch: {{runs_dir: {Path('elsewhere').absolute()}, partition: a100}}\n")
    monkeypatch.setenv("MGPT4_SITE", str(site))
    ended = mgpt4("submit", "--config", stage1)
    assert ended.code == 0, ended.err
    assert "site profile site, chosen by MGPT4_SITE" in ended.err
    assert Path("elsewhere/tiny-stage1/run.json").is_file()
    slurm.squeue = squeue_row("42", "PENDING")
    assert [row["name"] for row in mgpt4("status", "--json").json] == ["tiny-stage1"]
    (told,) = mgpt4("config", "explain", stage1, "launch.partition", "--json").json
    assert (told["value"], told["origin"]) == ("a100", "site site")


@pytest.mark.parametrize(
    ("flag", "variable", "expected"),
    [
        (None, None, "file"),
        (None, "MGPT4_LAUNCH__RUNS_DIR", "variable"),
        (None, "MGPT4_RUNS_DIR", "variable"),
        (["--set", "launch.runs_dir=set"], "MGPT4_RUNS_DIR", "set"),
        (["--runs-dir", "option"], "MGPT4_RUNS_DIR", "option"),
    ],
)
def test_the_runs_lie_where_explain_says(
    mgpt4: Mgpt4,
    world: TinyWorld,
    sbatch: Path,
    monkeypatch: pytest.MonkeyPatch,
    flag: list[str] | None,
    variable: str | None,
    expected: str,
) -> None:
    config = world.write_config(Path("config.yaml"), 1, launch__runs_dir="file")
    if variable is not None:
        monkeypatch.setenv(variable, "variable")
    ended = mgpt4("submit", "--config", config, *(flag or []))
    assert ended.code == 0, ended.err
    assert Path(expected, "tiny-stage1", "run.json").is_file()
    if flag is None:
        (told,) = mgpt4("config", "explain", config, "launch.runs_dir", "--json").json
        assert told["value"] == expected


# -- from another run, and behind one ------------------------------------------------------------


def test_a_run_from_another_has_its_settings_and_its_weights(
    mgpt4: Mgpt4,
    world: TinyWorld,
    sbatch: Path,
    slurm: FakeSlurm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = make_trained_run(world, tmp_path / "runs" / "one", 1, train__lr=0.003)
    monkeypatch.setenv("MGPT4_TRAIN__LR", "0.5")
    ended = mgpt4("submit", "--from", "one", "--set", "weight_decay=0.1", "--json")
    assert ended.code == 0, ended.err
    assert [job["run"] for job in ended.json] == ["one-2"]
    config = read_config(Path("runs/one-2/config.yaml")).config
    assert (config.train.lr, config.train.weight_decay) == (0.003, 0.1)
    assert config.model.projector == str(one.checkpoints / "step-00000012")
    ended = mgpt4("submit", "--from", "one@12", "--name", "two", "--sweep", "lr=0.1,0.2", "--json")
    assert ended.code == 0 and len(ended.json) == 2
    for wrong, code in (
        (["one@13"], 6), (["other"], 6), (["one", "--config", "toy-stage1"], 2),
        (["one", "--after", "one"], 2), (["one", "--stage", "2"], 2),
    ):  # fmt: skip
        assert mgpt4("submit", "--from", *wrong).code == code
    assert mgpt4("submit", "--config", "toy-stage1", "--continue").code == 2


def test_a_run_that_continues_another_has_its_state_and_an_identity_of_its_own(
    mgpt4: Mgpt4, world: TinyWorld, sbatch: Path, slurm: FakeSlurm, tmp_path: Path
) -> None:
    one = make_trained_run(world, tmp_path / "runs" / "one", 1, step=9)
    CheckpointStore(one.checkpoints).commit(12, {"projector": {}}, {"samples_seen": 12})
    one.record_identity()
    submitted(one, "17")
    (one.slurm / "17_0_log.out").write_text("its log")
    before = sorted(one.path.rglob("*"))
    ended = mgpt4(
        "submit", "--from", "one@9", "--continue", "--name", "two", "--set", "max_steps=40"
    )
    assert ended.code == 0, ended.err
    two = RunDir(Path("runs/two").absolute())
    assert [path.name for path in two.checkpoints.iterdir()] == ["step-00000009"]
    assert two.run_id != one.run_id and one.run_id in two.lineage
    assert (two.code / "mgpt4_hpc").is_dir() and not list(two.slurm.glob("*log*"))
    train = read_config(two.config_file).config.train
    assert (train.max_steps, train.lr_steps) == (40, 12)
    assert sorted(one.path.rglob("*")) == before


def test_a_second_stage_takes_over_bundle_and_conversation_format(
    mgpt4: Mgpt4, world: TinyWorld, sbatch: Path, slurm: FakeSlurm, tmp_path: Path
) -> None:
    format_ = {"text__prompt": "<user>{}<bot>", "text__end_symbol": "</s>"}
    make_trained_run(world, tmp_path / "runs" / "one", 1, step=13, **format_)
    attempt(RunDir(tmp_path / "runs" / "one"), 1, first=1, last=12, cause="finished")
    sources = f"data.paths.cc_sbu_align={world.align}"
    ended = mgpt4("submit", "--config", "toy-stage2", "--set", sources, "--after", "one")
    assert ended.code == 0, ended.err
    assert f"as in one: model.weights {world.weights}" in ended.err
    config = read_config(Path("runs/toy-stage2/config.yaml")).config
    assert (config.model.weights, config.text.prompt) == (str(world.weights), "<user>{}<bot>")
    other = ("--name", "two", "--set", "text.prompt=###{}", "--set", "text.end_symbol=###")
    assert (
        mgpt4(
            "submit", "--config", "toy-stage2", "--set", sources, "--after", "one@13", *other
        ).code
        == 0
    )
    config = read_config(Path("runs/two/config.yaml")).config
    assert config.text.prompt == "###{}"
    assert (config.model.projector or "").endswith("one/checkpoints/step-00000013")
