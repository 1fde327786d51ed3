"""Which settings, weights and folder a submission uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.config.run_config_file import read_config
from mgpt4_hpc.run_dir import RunDir
from tests.cli.fakes import FakeSlurm, Mgpt4
from tests.cli.synthetic import attempt
from tests.support.keeping import begun
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run


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


@pytest.mark.slow
def test_faults_of_settings_files_and_machine_come_together(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path
) -> None:
    wrong = [
        *("train.lr=5", "no_such=1", "text.template=llama9", "train.micro_batch_size=0"),
        *("eval_every_steps=5", "data.paths.laion=/no/laion", "data.paths.other=/x"),
        *("model.weights=/no/weights", "container.runtime=apptainer", "container.image=/no/x.sif"),
    ]
    flags = [part for setting in wrong for part in ("--set", setting)]
    ended = mgpt4("submit", "--config", stage1, "--stage", "2", *flags, "--executor", "local")
    assert ended.code == 2
    for told in (
        *("train.lr: ", "'no_such'", "text.template: must be one of vicuna_v0", "micro_batch_size"),
        *("eval_every_steps needs data.val_fraction", "'/no/laion' does not exist", "'other'"),
        *("/no/weights is no folder", "apptainer is not installed", "/no/x.sif on the nodes?"),
        "is for stage 1: choose",
    ):
        assert ended.err.count(told) == 1, (told, ended.err)
    assert "no multiple" not in ended.err, "a wrong batch size is not guessed at"
    none = mgpt4("submit", "--config", stage1, "--set", "data.sources=[]", *flags)
    assert "'other'" not in none.err and "'/no/laion'" not in none.err
    docker = mgpt4("submit", "--config", stage1, *flags, "--set", "container.runtime=docker")
    assert docker.err.count("container.") == 1, docker.err


@pytest.mark.parametrize(
    ("arguments", "told", "not_told"),
    [
        (["--sweep", "lr=1e-3,banana", "--sweep", "seeed=1,2"],
         ["tiny-stage1-lrbanana: train.lr", "did you mean seed?"], []),
        (["--set", "container.runtime=aptainer"], ["did you mean apptainer?",
          "text.template vicuna_v0 is another model's format: set it to"], []),
        (["--set", "data.val_fracton=0.1", "--set", "eval_every_steps=2"],
         ["did you mean data.val_fraction?"], ["needs data.val_fraction"]),
        (["--set", "train.max_epochs=1"], ["has no index"], ["warmup_steps"]),
        (["--set", "text.template=llama9"], ["must be one of"], ["another model's format"]),
        (["--gpus", "many", "--nodes", "0", "--time", "soon", "--set", "lr=x"],
         ["launch.gpus: ", "got 'many' (from flag)", "launch.nodes: ", "train.lr: ",
          "launch.time_min: write minutes; --time also takes H:MM:SS"], ["no multiple"]),
    ],
)  # fmt: skip
def test_a_fault_neither_hides_others_nor_brings_what_follows_from_it(
    mgpt4: Mgpt4, world: TinyWorld, arguments: list[str], told: list[str], not_told: list[str]
) -> None:
    config = world.write_config(Path("tiny.yaml"), 1)
    (world.weights / "llm" / "chat_template.jinja").write_text("<|im_start|>")
    try:
        ended = mgpt4("submit", "--executor", "local", "--config", config, *arguments)
    finally:
        (world.weights / "llm" / "chat_template.jinja").unlink()
    assert ended.code == 2
    assert all(text in ended.err for text in told), ended.err
    assert not any(text in ended.err for text in not_told), ended.err


def test_wrong_settings_are_reported_although_slurm_is_silent(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path, slurm: FakeSlurm, tmp_path: Path
) -> None:
    before = begun(tmp_path / "runs", "before", "11")
    before.heartbeat.unlink()
    (before.checkpoints / "step-00000005").rename(before.path / "none")
    Path("runs/tiny-stage1").mkdir()
    slurm.squeue = slurm.sacct = None
    command = ("submit", "--config", stage1, "--after", "before")
    assert mgpt4(*command).code == 5
    wrong = ("--set", "data.sources=[{nam: x}]", "--set", "data.feature_cache=/no/cache")
    ended = mgpt4(*command, *wrong)
    assert ended.code == 2 and "data.sources" in ended.err, ended.err
    assert "exists already" in ended.err and "feature_cache" not in ended.err


@pytest.mark.slow
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


def test_a_variable_that_replaces_what_the_file_has_is_named(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MGPT4_WEIGHTS", str(tmp_path))
    replaced = f"model.weights is {tmp_path} as the environment has it (MGPT4_*), and not "
    for command in (
        ("submit", "--dry-run", "--config", stage1),
        ("config", "show", stage1),
        ("config", "explain", stage1, "model.weights"),
        ("data", "encode", stage1, "--out", "features", "--dry-run"),
    ):
        ended = mgpt4(*command)
        assert ended.err.count(replaced) == 1, (command, ended.err)
        assert replaced not in ended.out, "it is YAML, JSON or a table"
        assert replaced not in mgpt4(*command, "--set", f"model.weights={tmp_path}").err


@pytest.mark.slow
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
    fault = (
        "--stage 2 was asked for, one@12 is for stage 1: leave --stage out, or begin stage 2 with "
    )
    assert (
        fault + "--stage 2 --after one@12"
        in mgpt4("submit", "--from", "one@12", "--stage", "2").err
    )
    assert mgpt4("submit", "--config", "toy-stage1", "--continue").code == 2


@pytest.mark.slow
def test_the_projector_of_a_step_is_found_in_the_folder_of_the_runs(
    mgpt4: Mgpt4, world: TinyWorld, sbatch: Path, slurm: FakeSlurm, tmp_path: Path
) -> None:
    for folder, step in (("runs", 13), ("elsewhere", 12)):
        make_trained_run(world, tmp_path / folder / "one", 1, step=step)
    config = world.write_config(tmp_path / "two.yaml", 2)
    command = ("submit", "--config", config, "--set", "model.projector=one@12")
    assert mgpt4(*command).code == 2, "runs/one has no such step"
    ended = mgpt4(*command, "--runs-dir", "elsewhere", "--name", "two")
    assert ended.code == 0, ended.err
    stored = read_config(Path("elsewhere/two/config.yaml")).config
    found = tmp_path / "elsewhere" / "one" / "checkpoints" / "step-00000012"
    assert stored.model.projector == str(found)


@pytest.mark.slow
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
