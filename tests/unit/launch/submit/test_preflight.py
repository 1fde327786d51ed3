"""What is seen on the login node: files, storage, memory, hooks. Nothing of torch is needed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.checkpoint import manifest as checkpoints
from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.data.index.index import ScanOptions, build_index
from mgpt4_hpc.data.index.shard_list import expand_shards
from mgpt4_hpc.errors import PreflightError
from mgpt4_hpc.launch.runs.shared_storage import file_system, not_shared
from mgpt4_hpc.launch.submit.preflight import preflight
from mgpt4_hpc.launch.submit.preflight_files import (
    checkpoint_fault,
    projector_findings,
    source_findings,
)
from mgpt4_hpc.launch.submit.preflight_memory import estimate, memory_findings, sizes_gib
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.bundle.manifest import FileRecord, LlmRecord, Manifest
from mgpt4_hpc.resources import toy_world_dir


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


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle as an import writes it, of the toy's language model and a vision side of nothing."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    toy = toy_world_dir() / "weights"
    shutil.copytree(toy / "llm", folder / "llm")
    (folder / "vision.safetensors").write_bytes(b"tower")
    files = {"vision.safetensors": FileRecord.of(folder / "vision.safetensors")}
    llm = {path.name: FileRecord.of(path) for path in sorted((folder / "llm").iterdir())}
    architecture = Architecture.from_file(toy / "architecture.json")
    made = Manifest(architecture, files, {}, LlmRecord("llm", copied=True, files=llm))
    made.write(folder / "bundle.json")
    return folder


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

MOUNTS = """\
overlay / overlay rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
fs1:/scratch /scratch lustre rw 0 0
fs2:/my\\040home /my\\040home nfs4 rw 0 0
/dev/sda1 /local ext4 rw 0 0
fs1:/new /local nfs rw 0 0
"""


@pytest.mark.parametrize("sign", ["%", "\\"])
def test_a_runs_folder_whose_logs_slurm_would_put_elsewhere_is_refused(
    sign: str, tmp_path: Path
) -> None:
    (fault,) = faults_of(config(), tmp_path / f"a{sign}b" / "runs")
    assert "which Slurm would" in fault


@pytest.mark.parametrize(
    ("path", "kind", "told"),
    [
        ("/home/me/runs", "overlay", "a disk of this machine"),
        ("/dev/shm/runs", "tmpfs", "this machine's memory"),
        ("/scratch/me/new/runs", "lustre", ""),
        ("/my home/runs", "nfs4", ""),
        ("/local/x", "nfs", ""),
        ("/localhost/x", "overlay", "a disk"),
    ],
)
def test_the_file_system_tells_what_other_nodes_see(
    path: str, kind: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: True)
    monkeypatch.setattr(Path, "resolve", lambda self: self)
    assert file_system(Path(path), MOUNTS) == kind
    why = not_shared(Path(path), MOUNTS)
    assert (told in why) if told else why == ""


# -- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu_type", "hints", "sizes"),
    [
        ("a100", [], (40, 80)),
        ("a100", ["a100_80g"], (80,)),
        ("a100", ["gpu&a100-40gb"], (40,)),
        ("nvidia_a100-sxm4-80gb", [], (80,)),
        ("a100_3g.20gb", [], (20,)),
        ("a10", [], (24,)),
        ("h100", [], (80, 94)),
        ("V100", [], (16, 32)),
        ("quadro_rtx_6000", [], (24,)),
        ("nvidia_rtx_6000_ada_generation", [], (48,)),
        ("rtx6000ada", [], (48,)),
        ("rtx_a4000", [], ()),
        ("rtx_a6000", [], (48,)),
        ("mi300", [], ()),
        ("gpu", [], ()),
    ],
)
def test_a_types_name_tells_its_memory(
    gpu_type: str, hints: list[str], sizes: tuple[int, ...]
) -> None:
    assert sizes_gib(gpu_type, hints) == sizes


def test_what_cannot_fit_is_a_fault_and_what_may_not_is_said(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = config(train__device="cuda", model__weights=str(bundle))
    found = estimate(on_gpu)
    assert found is not None and 1.5 < found.total < 8, "the toy is small"
    more = estimate(config(train__device="cuda", model__weights=str(bundle), model__llm_8bit=True))
    assert more is not None and more.weights < found.weights
    assert estimate(config(model__weights=str(bundle))) is None, "a CPU has no GPU memory"
    assert estimate(config(train__device="cuda")) is None, "the original's files tell nothing"
    assert memory_findings(on_gpu, ["a100"], []) == ([], [])

    large = type(found)(weights=60.0, trained=0.1, activations=5.0)
    monkeypatch.setattr("mgpt4_hpc.launch.submit.preflight_memory.estimate", lambda _: large)
    faults, notes = memory_findings(on_gpu, ["a100"], [])
    assert faults == [] and "a100 has 40 to 80: it may not fit" in notes[0]
    faults, notes = memory_findings(on_gpu, ["a100"], ["40g"])
    assert "needs about 67 GiB of GPU memory, a100 has 40: lower" in faults[0] and notes == []
    assert memory_findings(on_gpu, ["mi300"], []) == ([], []), "nobody knows"
    assert memory_findings(on_gpu, ["a100", "mi300"], ["40g"]) == ([], [])


# -- files -------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for path in expand_shards(toy_world_dir() / "shards" / "laion"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def with_index(shards: Path, index: Path) -> RunConfig:
    return config(data__sources=[{"name": "laion", "path": str(shards), "index": str(index)}])


def test_an_index_must_match_its_shards(shards: Path, tmp_path: Path) -> None:
    index = tmp_path / "laion.index"
    checked = with_index(shards, index)
    assert "does not exist: make it with `mgpt4 data index`" in source_findings(checked)[0][0]
    paths = expand_shards(shards)
    build_index(paths, index, ScanOptions(workers=1), name="laion")
    assert source_findings(checked)[0] == []

    extra = shards / "zzz.tar"
    extra.write_bytes(paths[0].read_bytes())
    (fault,) = source_findings(checked)[0]
    assert "lacks 1 shard (zzz.tar): make it anew" in fault
    extra.unlink()
    with paths[0].open("ab") as file:
        file.write(b"\0" * 512)
    (fault,) = source_findings(checked)[0]
    assert "1 shard changed since indexing" in fault and paths[0].name in fault
    index.write_bytes(b"no index")
    assert len(source_findings(checked)[0]) == 1


def test_a_bundle_that_changed_is_refused(bundle: Path, tmp_path: Path) -> None:
    checked = config(model__weights=str(bundle))
    assert preflight(checked, tmp_path, executor="local") == []
    (bundle / "llm" / "tokenizer.model").unlink()
    (bundle / "vision.safetensors").write_bytes(b"other one")
    faults = faults_of(checked, tmp_path)
    assert "has 9 bytes, at import it had 5" in faults[0]
    assert "tokenizer.model cannot be read" in faults[1]


def test_a_models_own_chat_template_must_be_there(bundle: Path, tmp_path: Path) -> None:
    checked = config(model__weights=str(bundle), text__template="model")
    (fault,) = faults_of(checked, tmp_path)
    assert "has no chat template: set it to vicuna_v0" in fault
    (bundle / "llm" / "chat_template.jinja").write_text("{{ messages }}")
    assert preflight(checked, tmp_path, executor="local") == []


def a_checkpoint(run: Path, step: int, data: bytes = b"projector") -> Path:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    digest = checkpoints.new_hash()
    digest.update(data)
    record = checkpoints.FileRecord(len(data), digest.hexdigest())
    manifest = checkpoints.Manifest(step, {"projector": record}, {})
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    (folder / "projector.safetensors").write_bytes(data)
    return folder


def test_stage_2_starts_from_a_checkpoint_that_verifies(tmp_path: Path) -> None:
    run = tmp_path / "one"
    run.mkdir()
    (run / "run.json").write_text("{}")
    checked = config(model__projector=str(run))
    assert "has no checkpoint yet: use --after one" in projector_findings(checked)[0][0]
    old, new = a_checkpoint(run, 5), a_checkpoint(run, 9)
    assert projector_findings(checked) == ([], [])

    (new / "projector.safetensors").write_bytes(b"projectox")
    faults, notes = projector_findings(checked)
    assert faults == []
    assert notes == [f"model.projector: {checkpoint_fault(new)}: step-00000005 is taken instead"]
    (old / "manifest.json").write_text(json.dumps({"digest": "0"}))
    assert len(projector_findings(checked)[0]) == 2
    assert "is damaged" in projector_findings(config(model__projector=str(new)))[0][0]


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
