"""What is seen on the login node: files, storage, memory, hooks. Nothing of torch is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.schema import ContainerConfig, RunConfig
from mgpt4_hpc.errors import PreflightError
from mgpt4_hpc.launch.submit.container import container_findings
from mgpt4_hpc.launch.submit.preflight import preflight, preflight_findings
from mgpt4_hpc.launch.submit.preflight_files import template_notes
from mgpt4_hpc.resources import toy_world_dir
from tests.unit.launch.submit.preflight_slurm_cases import cluster


def config(**changes: Any) -> RunConfig:
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    return load_config("toy-stage1", overrides=overrides).config


def faults_of(checked: RunConfig, folder: Path, executor: str = "local") -> list[str]:
    with pytest.raises(PreflightError) as caught:
        preflight(checked, folder, executor=executor)
    return caught.value.faults


@pytest.mark.parametrize(
    ("gpus", "batch", "micro", "told"),
    [
        (2, 12, 4, "micro_batch_size=3 keeps it, --set global_batch_size=8 or 16 changes it"),
        (8, 4, 2, "= 16: --gpus 4 with --set micro_batch_size=1 keeps it, --set "),
        (3, 4, 2, "= 6: --gpus 2 keeps it, --set global_batch_size=6 changes it and the result"),
    ],
)  # fmt: skip
def test_a_batch_that_does_not_divide_is_told_what_does(
    tmp_path: Path, gpus: int, batch: int, micro: int, told: str
) -> None:
    checked = config(
        launch__gpus=gpus, train__global_batch_size=batch, train__micro_batch_size=micro
    )
    (fault,) = (f for f in faults_of(checked, tmp_path) if "no multiple" in f)
    assert told in fault


@pytest.mark.slow
def test_the_advice_on_a_batch_fits_the_nodes(tmp_path: Path) -> None:
    checked = config(launch__gpus=6, train__global_batch_size=8, train__micro_batch_size=2)
    faults, _ = preflight_findings(checked, tmp_path, executor="slurm", cluster=cluster())
    assert any("--gpus 4 keeps it" in fault for fault in faults), faults
    checked = config(
        launch__gpus=40, train__global_batch_size=48, train__micro_batch_size=2, launch__nodes=1
    )
    faults, _ = preflight_findings(checked, tmp_path, executor="slurm", cluster=cluster())
    assert any("--gpus 8 --nodes 2" in fault for fault in faults), faults


def test_the_toy_passes_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from mgpt4_hpc.config.load import load_config\n"
        "from mgpt4_hpc.launch.submit.preflight import preflight\n"
        "preflight(load_config('toy-stage1').config, Path(sys.argv[1]), executor='local')\n"
        "assert not {'torch', 'transformers', 'timm'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)


# -- storage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", ["%", "\\"])
def test_a_runs_folder_whose_logs_slurm_would_put_elsewhere_is_refused(
    sign: str, tmp_path: Path
) -> None:
    (fault,) = faults_of(config(), tmp_path / f"a{sign}b" / "runs")
    assert "which Slurm would" in fault


# -- memory ------------------------------------------------------------------------------------


# -- files -------------------------------------------------------------------------------------


def test_a_bundle_that_changed_is_refused(bundle: Path, tmp_path: Path) -> None:
    checked = config(model__weights=str(bundle))
    assert preflight(checked, tmp_path, executor="local") == []
    (bundle / "llm" / "tokenizer.model").unlink()
    (bundle / "vision.safetensors").write_bytes(b"other one")
    faults = faults_of(checked, tmp_path)
    assert "has 9 bytes, at import it had 69" in faults[0]
    assert "tokenizer.model cannot be read" in faults[1]


def test_a_models_own_chat_template_must_be_there(bundle: Path, tmp_path: Path) -> None:
    checked = config(model__weights=str(bundle), text__template="model")
    (fault,) = faults_of(checked, tmp_path)
    assert "has no chat template: set it to vicuna_v0" in fault
    (bundle / "llm" / "chat_template.jinja").write_text("{{ messages }}")
    assert preflight(checked, tmp_path, executor="local") == []


@pytest.mark.parametrize(
    ("own", "chosen", "told"),
    [
        ("{{ '<|start_header_id|>' + role }}", "vicuna_v0", "set it to llama3, or to model"),
        ("<|im_start|>{{ role }}", "llama3", "set it to qwen, or to model"),
        ("{{ messages }}", "vicuna_v0", "set it to model"),
        ("<|start_header_id|>", "llama3", ""),
        ("<|start_header_id|>", "model", ""),
        ("[INST] <<SYS>>", "llama2", ""),
        ("[INST]", "llama2", "set it to mistral"),
        ("", "vicuna_v0", ""),
    ],
)
def test_a_format_that_is_another_models_is_noted(
    own: str, chosen: str, told: str, bundle: Path, tmp_path: Path
) -> None:
    (bundle / "llm" / "tokenizer_config.json").write_text(json.dumps({"chat_template": own}))
    notes = template_notes(config(model__weights=str(bundle), text__template=chosen))
    assert told in " ".join(notes) and bool(notes) == bool(told)
    own_words = config(model__weights=str(bundle), text__prompt="Q: {} A:", text__end_symbol="#")
    assert template_notes(own_words) == []


# -- hooks and containers ----------------------------------------------------------------------


def test_commands_that_nobody_could_run_are_told(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    told = faults_of(config(launch__on_event=(str(plain), "bin/x")), tmp_path)
    assert f"{plain} is no program that may be run" in told[0]
    assert len(told) == 2
    notes = preflight(config(launch__on_event=("no-such-tool -x",)), tmp_path, executor="local")
    assert notes == ["launch.on_event: no-such-tool is not in PATH here; is it on the nodes?"]


def test_paths_outside_of_the_containers_mounts_are_told(tmp_path: Path) -> None:
    contained = {"container__runtime": "apptainer", "container__image": "/i.sif"}
    notes = preflight(config(**contained), tmp_path, executor="none")
    assert sum("is in none of container.mounts" in note for note in notes) == 3
    mounted = config(**contained, container__mounts=(f"/elsewhere:{toy_world_dir()}",))
    assert preflight(mounted, tmp_path, executor="none") == []
    pyxis = config(**{**contained, "container__runtime": "pyxis"})
    assert "pyxis is a part of srun" in faults_of(pyxis, tmp_path)[0]


def test_an_image_and_its_runtime_are_looked_for(tmp_path: Path) -> None:
    def contained(image: object, runtime: str = "apptainer") -> RunConfig:
        return config(container__runtime=runtime, container__image=str(image))

    image = tmp_path / "mgpt4.sif"
    (tmp_path / "mgpt4.sqsh").touch()
    for runtime in ("apptainer", "singularity", "pyxis"):
        faults, _ = container_findings(contained(image, runtime).container)
        (fault,) = faults
        assert fault.startswith(
            f"container.image {image} does not exist; beside it lies mgpt4.sqsh: put the image"
        )
    assert f"container.image {image} does not exist" in faults_of(contained(image), tmp_path)[-1]
    faults, notes = container_findings(contained("/no/such/folder/i.sif").container)
    assert faults == [] and "is /no/such/folder/i.sif on the nodes?" in notes[0]
    assert "apptainer is not in PATH here" in notes[1]
    for runtime, address in (
        ("apptainer", "docker://nvcr.io/nvidia/pytorch:25.01-py3"),
        ("pyxis", "nvcr.io#nvidia/pytorch:25.01-py3"),
    ):
        assert container_findings(contained(address, runtime).container)[0] == []
    assert container_findings(config().container) == ([], [])
    nameless = ContainerConfig(runtime="apptainer")
    assert container_findings(nameless)[0] == [], "that it is not set is said already"
