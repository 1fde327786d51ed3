"""Options that are one resource for Slurm: never two lines of them in one script."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.errors import PreflightError
from mgpt4_hpc.launch.side_jobs.array import ArrayJob, Wants, array_script
from mgpt4_hpc.launch.slurm.sbatch_options import sbatch_faults
from mgpt4_hpc.launch.submit.batch_script import make_executor
from mgpt4_hpc.launch.submit.preflight import preflight, preflight_findings
from mgpt4_hpc.run_dir import RunDir


def config_of(**settings: object) -> RunConfig:
    dotted = {f"launch.{name}": value for name, value in settings.items() if name != "sbatch"}
    options = settings.get("sbatch", {})
    assert isinstance(options, dict)
    dotted |= {f"launch.sbatch.{name}": value for name, value in options.items()}
    return load_config("stage1-vicuna7b", overrides=dotted).config


def lines_of(run: RunDir, config: RunConfig) -> dict[str, list[str]]:
    """Each option of the batch script with its values."""
    found: dict[str, list[str]] = {}
    script = make_executor(run, config).render("true")
    for name, value in re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize(
    ("option", "value", "setting"),
    [
        ("gres", "gpu:a100:1", "--gpus 1 and launch.gpu_type=a100"),
        ("gres", "gpu:2", "--gpus 2"),
        ("gres", "lscratch:10,gpu:a100:4", "--gpus 4 and launch.gpu_type=a100"),
        ("gres", "gpu", "launch.gpu_type"),
        ("--gres", "gres/gpu:a100:1", "--gpus 1 and launch.gpu_type=a100"),
        ("gpus", "4", "--gpus 4"),
        ("gpus", "h100:8", "--gpus 8 and launch.gpu_type=h100"),
        ("gpus_per_task", "1", "--gpus"),
        ("gpus-per-socket", "2", "--gpus"),
        ("tres-per-task", "gres/gpu:1", "--gpus"),
        ("cpus-per-gpu", "6", "launch.cpus_per_gpu=6"),
        ("tres-per-task", "cpu=4", "launch.cpus_per_gpu"),
        ("ntasks-per-gpu", "1", "launch.gpus"),
        ("tasks-per-node", "4", "launch.gpus"),
        ("ntasks-per-socket", "2", "launch.gpus"),
        ("G", "2", "long name, gpus"),
        ("N", "2", "long name, nodes"),
    ],
)
def test_what_is_set_elsewhere_is_refused_with_the_setting(
    tmp_path: Path, option: str, value: str, setting: str
) -> None:
    config = config_of(sbatch={option: value})
    with pytest.raises(PreflightError) as error:
        preflight(config, tmp_path, executor="none")
    (told,) = [fault for fault in error.value.faults if "launch.sbatch" in fault]
    assert setting in told
    # What Slurm took at its submission comes back all the same; on this machine it counts nothing.
    for accepted in ({"new": False, "executor": "none"}, {"executor": "local"}):
        faults, _ = preflight_findings(config, tmp_path, **accepted)  # type: ignore[arg-type]
        assert not any("launch.sbatch" in fault for fault in faults)


@pytest.mark.parametrize("option", ["mem", "mem-per-cpu", "mem_per_gpu"])
def test_memory_is_asked_for_once(run: RunDir, option: str) -> None:
    config = config_of(mem_gib_per_gpu=32, sbatch={option: "64G"})
    (fault,) = sbatch_faults(config.launch)
    assert "launch.mem_gib_per_gpu 32" in fault
    alone = config_of(sbatch={option: "64G"})
    assert sbatch_faults(alone.launch) == []
    memory = {name: value for name, value in lines_of(run, alone).items() if "mem" in name}
    assert memory == {option.replace("_", "-"): ["64G"]}


def test_two_options_of_ones_own_for_one_resource_are_refused() -> None:
    (fault,) = sbatch_faults(config_of(sbatch={"mem": "9G", "mem-per-cpu": "1G"}).launch)
    assert "mem, mem-per-cpu" in fault
    own = {"gpu_request": "none", "sbatch": {"gres": "gpu:2", "gpus": "2"}}
    (fault,) = sbatch_faults(config_of(**own).launch)
    assert "gres, gpus" in fault
    assert sbatch_faults(config_of(gpu_request="none", sbatch={"gres": "gpu:2"}).launch) == []
    (fault,) = sbatch_faults(config_of(exclusive=True, sbatch={"oversubscribe": "yes"}).launch)
    assert "launch.exclusive" in fault


@pytest.mark.parametrize("kind", ["a100", None])
def test_a_gres_of_another_kind_stands_beside_the_gpus(run: RunDir, kind: str | None) -> None:
    config = config_of(gpus=2, gpu_type=kind, sbatch={"gres": "lscratch:50"})
    assert sbatch_faults(config.launch) == []
    lines = lines_of(run, config)
    if kind:
        assert lines["gres"] == ["gpu:a100:2,lscratch:50"]
        assert "gpus-per-node" not in lines
    else:
        assert (lines["gres"], lines["gpus-per-node"]) == (["lscratch:50"], ["2"])


@pytest.mark.parametrize(
    ("option", "value", "ours"),
    [
        ("gres", "gpu:a100:1", "gpus-per-node"),
        ("gpus", "1", "gpus-per-node"),
        ("mem-per-cpu", "4G", "mem"),
        ("mem_per_gpu", "4G", "mem"),
        ("cpus-per-gpu", "8", "cpus-per-task"),
    ],
)
def test_an_arrays_own_line_makes_room(tmp_path: Path, option: str, value: str, ours: str) -> None:
    wants = Wants(cpus=4, gpus=1, mem_gib=16)
    job = ArrayJob("encode", ["data", "encode"], 2, tmp_path, wants)
    assert f"#SBATCH --{ours}=" in array_script(job)
    changed = Wants(cpus=4, gpus=1, mem_gib=16, sbatch={option: value})
    script = array_script(ArrayJob("encode", ["data", "encode"], 2, tmp_path, changed))
    assert f"#SBATCH --{ours}=" not in script
    assert f"#SBATCH --{option.replace('_', '-')}={value}" in script
