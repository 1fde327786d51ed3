"""Which settings a resume may change, and that a refused change leaves the run as it was."""

import json
import re
import shutil
from pathlib import Path

import pytest

from mgpt4_hpc.config import keys
from mgpt4_hpc.config.load import settings_digest
from mgpt4_hpc.config.run_config_file import read_config, rewrite_config
from mgpt4_hpc.data.index.index import ShardIndex, build_index
from mgpt4_hpc.launch.job.start_check import why_leave
from mgpt4_hpc.launch.manage.changes import Overrides, _knows, change, moved_projector
from mgpt4_hpc.launch.runs.job_ref import note_job
from mgpt4_hpc.launch.runs.run_facts import read_facts
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.launch.submit.code_snapshot import PACKAGE
from mgpt4_hpc.model.bundle.bundle import bundle_digest
from mgpt4_hpc.run_dir import RunDir, read_json, write_json
from tests.cli.fakes import FakeSlurm, Mgpt4, squeue_row
from tests.cli.synthetic import Clock, attempt, make_run, submitted
from tests.support.resuming import Submissions, contents
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run, other_weights


@pytest.mark.slow
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
    ended = mgpt4("resume", "one", "--set", "launch.sbatch={}")
    assert "one: launch.sbatch {'reservation': 'x'} -> {}" in ended.err
    assert read_config(run.config_file).config.launch.sbatch == {}
    source = read_config(run.config_file).config.data.sources[0]
    shares = f"data.shares.{source.name}={source.weight:g}"
    assert mgpt4("resume", "one", "--accept-drift", "--set", shares).code == 0
    idle = mgpt4("resume", "one", "--set", "data.shares={}")
    assert idle.code == 2 and "set data.shares.SOURCE" in idle.err


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
        (["--gpus", "0"], "launch.gpus"),
        (["--time", "soon"], "launch.time_min: write minutes"),
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
    ended = mgpt4("resume", "one", "--set", "max_stpes=9")
    assert "did you mean train.max_steps" in ended.err and "--from" not in ended.err
    ended = mgpt4("resume", "one", "--set", "lrr=1", "--set", "lr=1")
    assert "unknown setting" in ended.err and "  - train.lr: 0.01 decides" in ended.err
    wrong = ("--set", "lr=banana", "--set", "seed=7", "--set", "train.max_grad_norm=9")
    ended = mgpt4("resume", "one", *wrong, "--gpus", "400")
    assert ended.code == 2
    for key in ("train.lr", "seed", "train.max_grad_norm", "launch.gpus"):
        assert ended.err.count(f"  - {key}: ") == 1, key
    assert "train.min_lr" not in ended.err, "what nobody changed"
    ended = mgpt4("resume", "one", "--set", "lr=1")
    assert "a resumed run cannot" not in ended.err and "fix: give --accept-drift, or" in ended.err


@pytest.mark.parametrize("wrong", ["lrr=1", "lr=1", "max_steps=none"])
def test_the_faults_of_files_come_with_those_of_settings(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, wrong: str
) -> None:
    for more in ((), ("--as", "two")):
        where = ("--set", "model.weights=/gone", "--executor", "local")
        ended = mgpt4("resume", "one", "--set", wrong, *where, *more)
        is_right = more and wrong == "lr=1"  # a new run may have it
        assert ended.code == (3 if is_right else 2)
        assert ended.err.count("  - model.weights /gone") == 1
        assert is_right or wrong.partition("=")[0] in ended.err


def test_the_same_value_is_no_change(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions
) -> None:
    ended = mgpt4("resume", "one", "--set", "lr=1e-2", "--gpus", "1", "--json")
    assert ended.code == 0
    assert ended.json["changes"] == {}


def finish(run: RunDir, at: int, num_worse: int = 0) -> None:
    """As today's trainer ends a run: with the number of its steps."""
    attempt(run, 2, first=21, last=at, cause="finished")
    file = run.ledger / "attempt-0002.jsonl"
    *lines, end = file.read_text().splitlines()
    ended = {**json.loads(end), "all_steps": at, "num_worse": num_worse}
    file.write_text("\n".join([*lines, json.dumps(ended), ""]))


def test_a_finished_run_gets_more_steps_and_keeps_its_schedule(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions
) -> None:
    run.resubmit_needed.unlink()
    finish(run, at=100)
    held = settings_digest(read_config(run.config_file).config)
    ended = mgpt4("resume", "one", "--set", "max_steps=100", "--json")
    assert ended.json["finished"] is True
    ended = mgpt4("resume", "one", "--set", "max_steps=+50")
    assert ended.code == 2 and "give one above 100" in ended.err
    assert submissions.asked == []
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


def test_a_run_that_an_earlier_version_finished_continues_under_another_name(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions
) -> None:
    attempt(run, 2, first=21, last=60, cause="finished")
    ended = mgpt4("resume", "one", "--set", "max_steps=200")
    assert ended.code == 2 and "give one above" not in ended.err, ended.err
    assert "fix: continue it under another name: mgpt4 resume one --as NAME --set" in ended.err
    ended = mgpt4("resume", "one", "--as", "two", "--set", "train.max_steps=200")
    assert ended.code == 0 and submissions.asked, ended.err


def test_a_setting_without_effect_on_a_finished_run_is_printed(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions
) -> None:
    finish(run, at=100)
    before = run.config_file.read_text()
    ended = mgpt4("resume", "one", "--set", "launch.max_crashes=9")
    assert ended.code == 0 and "no effect: launch.max_crashes 5 -> 9" in ended.err
    ended = mgpt4("resume", "one", "--set", "data.val_fraction=0.1", "--set", "early_stop=3")
    assert ended.code == 2
    assert run.config_file.read_text() == before and submissions.asked == []


@pytest.mark.parametrize(
    ("changes", "last_step"),
    [
        (["early_stop=0"], 135),
        (["early_stop=5"], 135),
        (["early_stop=0", "max_steps=120"], 120),
        (["max_steps=115"], None),
        (["max_steps=300"], None),
        (["early_stop=1"], None),
        (["early_stop=2", "max_steps=300"], None),
        (["early_stop=0", "max_steps=110"], None),
    ],
)
def test_a_run_that_finished_early_continues_where_its_patience_allows_it(
    mgpt4: Mgpt4,
    slurm: FakeSlurm,
    run: RunDir,
    submissions: Submissions,
    changes: list[str],
    last_step: int | None,
) -> None:
    run.resubmit_needed.unlink()
    text = run.config_file.read_text()
    settings = {"max_steps": 135, "early_stop": 2, "eval_every_steps": 5, "val_fraction": 0.1}
    for name, value in settings.items():
        text, count = re.subn(rf"^  {name}: \S+", f"  {name}: {value}", text, flags=re.MULTILINE)
        assert count == 1
    run.config_file.write_text(text)
    finish(run, at=110, num_worse=2)
    (row,) = mgpt4("status", "one", "--json").json
    assert (row["text"], row["step"], row["max_steps"]) == ("finished early", 110, 135)
    before = run.config_file.read_bytes()
    arguments = [word for change in changes for word in ("--set", f"train.{change}")]
    ended = mgpt4("resume", "one", *arguments)
    if last_step is None:
        assert ended.code == 2 and "no step is left" in ended.err, ended.err
        why = "above 110" if "early_stop=0" in changes else "--set train.early_stop=0"
        assert why in ended.err
        assert run.config_file.read_bytes() == before and submissions.asked == []
        return
    assert ended.code == 0, ended.err
    assert submissions.asked[0][0].config.train.max_steps == last_step
    assert not run.drift_accepted.exists(), "what is computed is what was asked for at first"
    # The job's own check before srun reads this, too.
    assert not read_facts(run).finished
    assert why_leave(run, JobStart("slurm", "18", 0)) is None


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
    assert "ends at the step that" in mgpt4("resume", "one", "--set", "max_steps=20").out
    assert "goes to the new last step" in mgpt4("resume", "one", "--set", "max_steps=21").out
    mgpt4("resume", "one", "--set", "max_steps=9")
    (row,) = mgpt4("status", "one", "--json").json
    assert (row["step"], row["max_steps"], row["percent"]) == (20, 20, 100)
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


def test_a_run_of_older_code_is_written_no_value_that_it_does_not_know(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions
) -> None:
    schema = run.code / "mgpt4_hpc" / "config" / "schema.py"
    schema.parent.mkdir(parents=True)
    text = (PACKAGE / "config" / "schema.py").read_text()
    schema.write_text(text.replace('"gpus-per-node", "none"]', '"gpus-per-node"]'))
    assert mgpt4("resume", "one", "--set", "launch.gpu_request=gres").code == 0
    before = run.config_file.read_text()
    ended = mgpt4("resume", "one", "--set", "launch.gpu_request=none")
    assert ended.code == 2 and run.config_file.read_text() == before
    assert "launch.gpu_request none: the run's own code, of an earlier" in ended.err


def test_the_words_that_a_setting_takes_are_found_in_the_schemas_text(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.code.symlink_to(PACKAGE.parent)
    with_words = [key for key in keys.fields() if keys.choices(key) not in ([], ["true", "false"])]
    with_words.remove("launch.stop_signals")  # its words have a name of their own there
    assert "checkpoint.keep_best" in with_words
    for key in with_words:
        words = [int(word) if key == "stage" else word for word in keys.choices(key)]
        assert _knows(run, key, words) and not _knows(run, key, "another"), key


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
    assert "--set 'data.sources=[{name: NAME" in ended.err


def test_a_source_that_the_run_lacks_and_one_that_moved(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, submissions: Submissions
) -> None:
    ended = mgpt4("resume", "one", "--set", "data.paths.nothing=/x")
    assert ended.code == 2 and "no data source 'nothing', only laion" in ended.err
    ended = mgpt4("resume", "one", "--set", "data.paths.laion=/elsewhere")
    assert re.search(r"one: data.sources.laion.path: \S+ -> /elsewhere\n", ended.err), ended.err
    assert "data.paths" not in ended.err
    assert "[{" not in ended.err


def test_another_bundle_is_refused_before_the_queue_whatever_was_changed(
    mgpt4: Mgpt4,
    slurm: FakeSlurm,
    run: RunDir,
    submissions: Submissions,
    world: TinyWorld,
    tmp_path: Path,
) -> None:
    wrong = other_weights(world, tmp_path / "wrong")
    right = bundle_digest(world.weights)
    write_json(run.pins_file, {"bundle": right})
    for weights, code in ((wrong, 7), (world.weights, 0)):
        ended = mgpt4("resume", "one", "--set", f"model.weights={weights}")
        assert ended.code == code, ended.err
        if code:
            assert f"bundle was {right}, is {bundle_digest(wrong)} (model.weights={wrong})" in (
                ended.err
            )
            assert "name where they lie now: --set model.weights=PATH" in ended.err
    write_json(run.pins_file, {"bundle": "another"})
    assert mgpt4("resume", "one").code == 7, "the path is as it was, and what lies there is not"
    assert mgpt4("resume", "one", "--accept-drift").code == 0
    run.drift_accepted.unlink()
    lines = run.config_file.read_text().splitlines(keepends=True)
    run.config_file.write_text("".join(x for x in lines if not x.startswith("  lr_steps:")))
    assert mgpt4("resume", "one").code == 0, "older code may take other files for its digest"


def test_other_shards_are_refused_before_the_queue_where_a_look_shows_it(
    mgpt4: Mgpt4,
    slurm: FakeSlurm,
    run: RunDir,
    submissions: Submissions,
    world: TinyWorld,
    tmp_path: Path,
) -> None:
    own = run.data / "laion.index"
    build_index(sorted(world.shards("laion").glob("*.tar")), own, name="laion")
    held = ShardIndex.open(own).digest
    write_json(run.pins_file, {"index laion": held})
    wrong = f"data.paths.laion={world.shards('cc_sbu')}"
    copy = tmp_path / "moved"
    shutil.copytree(world.shards("laion"), copy)
    ended = mgpt4("resume", "one", "--set", wrong)
    assert (
        ended.code == 7
        and f"({wrong})" in ended.err
        and "--set data.paths.laion=PATH" in (ended.err)
    )
    assert mgpt4("resume", "one", "--set", f"data.paths.laion={copy}").code == 0
    # A start that was refused leaves the index of the wrong shards, and their path in the settings.
    build_index(sorted(world.shards("cc_sbu").glob("*.tar")), own, name="laion")
    key, _, path = wrong.partition("=")
    rewrite_config(run.config_file, change(run, Overrides({key: path})))
    run.failed.write_text("inputs changed")
    ended = mgpt4("resume", "one")
    assert ended.code == 7 and f"index laion was {held}, is {ShardIndex.open(own).digest}" in (
        ended.err
    )
    assert mgpt4("resume", "one", "--set", f"data.paths.laion={copy}").code == 0


def test_the_first_projector_is_found_where_the_folder_of_the_runs_was_moved(
    mgpt4: Mgpt4, slurm: FakeSlurm, submissions: Submissions, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    finish(make_run(old, "stage1"), at=100)
    elsewhere = make_run(tmp_path / "others", "stage1")
    for name, projector in (("two", old / "stage1"), ("three", elsewhere.path)):
        made = make_run(old, name, stage=2, model__projector=str(projector))
        note_job(made, "slurm", "17")
        note = made.slurm / "job.json"
        write_json(note, {**read_json(note), "submitted": 1e9})
    old.rename(tmp_path / "runs")
    shutil.rmtree(elsewhere.path)
    ended = mgpt4("resume", "two")
    assert ended.code == 0, ended.err
    moved = tmp_path / "runs" / "stage1"
    assert f"two: model.projector {old / 'stage1'} -> {moved}" in ended.err
    config = read_config(RunDir(tmp_path / "runs" / "two").config_file).config
    assert config.model.projector == str(moved)
    # One that lay elsewhere may be another run of that name.
    assert moved_projector(RunDir(tmp_path / "runs" / "three")) == {}


@pytest.mark.slow
@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_the_first_projector_may_be_gone_where_the_run_has_a_checkpoint(
    mgpt4: Mgpt4,
    world: TinyWorld,
    slurm: FakeSlurm,
    tmp_path: Path,
    has_checkpoint: bool,
) -> None:
    made = make_trained_run(world, tmp_path / "runs" / "one", 2, model__projector="/gone/stage1")
    submitted(made)
    if has_checkpoint:
        attempt(made, 1, first=1, last=11, cause="time limit", clock=Clock(1e9))
    else:
        shutil.rmtree(made.checkpoints)
    local = ("--executor", "local", "--dry-run")
    ended = mgpt4("resume", "one", "--set", "launch.max_crashes=9", *local)
    assert ended.code == (0 if has_checkpoint else 3), ended.err
    assert ("model.projector /gone/stage1 does not exist" in ended.err) != has_checkpoint
