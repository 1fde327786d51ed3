"""A command that starts itself on a node of the cluster."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from mgpt4_hpc.launch.slurm.srun import srun_command
from tests.cli.fakes import Mgpt4
from tests.unit.launch.submit.preflight_slurm_cases import CONFIG, NODES, PARTITIONS


def test_on_a_node_of_a_cluster_that_does_not_answer(
    mgpt4: Mgpt4, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("scontrol", "srun"):
        command = tmp_path / name
        command.write_text(
            "#!/bin/sh\necho 'Unable to contact slurm controller (connect failure)' >&2\nexit 1\n"
        )
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(sys, "argv", ["mgpt4", "chat", "--slurm"])
    ended = mgpt4("chat", "--slurm")
    assert ended.code == 5 and "cannot reach Slurm: Unable to contact" in ended.err


@pytest.fixture
def started(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> list[list[str]]:
    """The sruns that were begun, on the cluster of ``preflight_slurm_cases``."""
    bin_dir = tmp_path_factory.mktemp("bin")
    for name, text in (("config", CONFIG), ("partition", PARTITIONS), ("node", NODES)):
        (bin_dir / name).write_text(text)
    scripts = {
        "srun": "exit 9",
        "sbatch": "echo refused by sbatch >&2; exit 1",
        "scontrol": f"shift $(($# > 2)); cat {bin_dir}/$2",
    }
    for name, script in scripts.items():
        (bin_dir / name).write_text(f"#!/bin/sh\n{script}\n")
        (bin_dir / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_dir), prepend=":")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    begun: list[list[str]] = []
    monkeypatch.setattr("mgpt4_hpc.launch.slurm.srun.become", begun.append)
    return begun


@pytest.mark.slow
def test_on_a_node_it_starts_itself(
    monkeypatch: pytest.MonkeyPatch, mgpt4: Mgpt4, started: list[list[str]]
) -> None:
    Image.new("RGB", (8, 8)).save("a b.jpg")
    words = [
        "chat", "a b.jpg", "--weights", "toy:weights", "--slurm", "--partition", "a100",
        "--time=30", "--srun", "--qos=short", "--temperature", "1",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["mgpt4", *words])
    ended = mgpt4(*words)
    assert ended.code == 0, ended.err
    assert started == [
        [
            "srun", "--ntasks=1", "--cpus-per-task=4", "--time=30", "--gres=gpu:1",
            "--partition=a100", "--qos=short", sys.executable, "-P", "-m", "mgpt4_hpc.cli.main",
            "chat", "a b.jpg", "--weights", "toy:weights", "--temperature", "1",
        ]
    ]  # fmt: skip
    assert "--pty" in srun_command([])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("serve nosuchrun --slurm", 6, "'nosuchrun' is neither a run"),
        ("chat --checkpoint nosuchrun --slurm", 6, "'nosuchrun' is neither a run"),
        ("chat cat.jpg --weights toy:weights --slurm", 1, "cannot read the image cat.jpg"),
        ("compare nosuchrun other --slurm", 6, "'nosuchrun' is neither a run"),
        ("serve --weights nowhere --slurm", 1, "no bundle at"),
        ("serve x --slurm --partition gpu", 4, "'gpu' does not exist: use one of a100, cpu, lab"),
        ("serve x --slurm --partition a\nb", 4, "does not exist: use one of a100, cpu, lab"),
        ("serve x --slurm --gpus 9", 4, "has 4 GPUs at most, the job asks for 9 on each: --gpus 4"),
        ("data index . --out i.index --slurm --partition gpu", 4, "use one of a100, cpu, lab"),
        ("serve x --gpus 1", 2, "--gpus has an effect only with --slurm: add --slurm, or"),
        ("eval x --partition a100", 2, "--partition has an effect only with --slurm"),
    ],
)
def test_what_is_wrong_is_reported_before_a_node_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
    mgpt4: Mgpt4,
    started: list[list[str]],
    words: str,
    code: int,
    told: str,
) -> None:
    monkeypatch.delenv("MGPT4_WEIGHTS", raising=False)
    Path("0.tar").touch()
    monkeypatch.setattr(sys, "argv", ["mgpt4", *words.split(" ")])
    ended = mgpt4(*words.split(" "))
    assert ended.code == code and told in ended.err, ended.err
    assert started == [] and [path.name for path in Path().iterdir()] == ["0.tar"]


@pytest.mark.slow
@pytest.mark.parametrize("words", ["--gpus 9", "--srun=-pother --gpus 9", "--srun=--jobid=7"])
def test_nodes_that_are_not_looked_at_are_left_to_slurm(
    monkeypatch: pytest.MonkeyPatch, mgpt4: Mgpt4, started: list[list[str]], words: str
) -> None:
    if "--srun" not in words:
        monkeypatch.setenv("SLURM_JOB_ID", "7")  # inside an allocation
    monkeypatch.setenv("SLURM_PARTITION", "nosuch")
    command = ["chat", "--weights", "toy:weights", "--slurm", *words.split()]
    monkeypatch.setattr(sys, "argv", ["mgpt4", *command])
    ended = mgpt4(*command)
    assert ended.code == 0 and len(started) == 1, ended.err


def test_an_array_that_is_there_is_joined_whatever_its_partition_is_now(
    monkeypatch: pytest.MonkeyPatch, mgpt4: Mgpt4, started: list[list[str]]
) -> None:
    Path("0.tar").touch()
    Path("i.index.parts").mkdir()
    Path("i.index.parts/array.json").write_text("{}")
    words = ["data", "index", ".", "--out", "i.index", "--slurm", "--partition", "old"]
    monkeypatch.setattr(sys, "argv", ["mgpt4", *words])
    ended = mgpt4(*words)
    assert ended.code == 4 and "refused by sbatch" in ended.err, ended.err
