"""An import reads each byte once, leaves nothing behind, and writes what other people can read."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mgpt4_hpc.checkpoint.store import CheckpointStore
from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import write_config
from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.bundle import writer
from mgpt4_hpc.model.bundle.bundle import open_bundle
from mgpt4_hpc.model.bundle.manifest import BundleManifest
from mgpt4_hpc.model.bundle.writer import write_bundle
from mgpt4_hpc.model.conversion.parts import original_sources
from mgpt4_hpc.model.estimates.bundle_check import check_bundle
from mgpt4_hpc.model.weight_files.fingerprint import WeightFileRecord
from mgpt4_hpc.model.weight_files.headers import read_header
from mgpt4_hpc.run_dir import RunDir


def test_modes_are_those_of_the_umask(sources, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        bundle = write_bundle(tmp_path / "bundle", sources, llm="copy")
    finally:
        os.umask(old)
    for path in [bundle.path, *bundle.path.rglob("*")]:
        wanted = 0o750 if path.is_dir() else 0o640
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_a_projector_that_a_run_trained_with_another_language_model_is_noted(
    sources, weights: Path, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "one")
    run.create({"name": "one", "stage": 1})
    overrides = {"model.weights": str(weights)}
    write_config(run.config_file, load_config("toy-stage1", overrides=overrides))
    sizes = open_bundle(weights).architecture
    tensors = {"weight": torch.zeros(sizes.llm_dim, sizes.projector_in)}
    tensors["bias"] = torch.zeros(sizes.llm_dim)
    named = {f"llama_proj.{name}": tensor for name, tensor in tensors.items()}
    checkpoint = CheckpointStore(run.checkpoints).commit(5, {"projector": named}, {})
    started = replace(sources, projector=checkpoint / "projector.safetensors")
    lines: list[str] = []
    write_bundle(tmp_path / "same", started, say=lines.append)
    assert not any("another language model" in line for line in lines)
    file = weights / "llm" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    write_bundle(tmp_path / "other", started, say=lines.append)
    assert lines[-1].startswith("note: the projector of") and "another language" in lines[-1]


@pytest.mark.slow
def test_records_are_of_what_was_written(sources, toy: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", sources, llm="copy")
    manifest = BundleManifest.read(bundle.path / "bundle.json")
    for name, record in manifest.files.items():
        assert record == WeightFileRecord.of(bundle.path / name)
        header = read_header(bundle.path / name)
        assert manifest.tensors[name] == {k: [i.dtype, *i.shape] for k, i in header.items()}
    for name, record in manifest.llm.files.items():
        assert (
            record
            == WeightFileRecord.of(toy / "llm" / name)
            == WeightFileRecord.of(bundle.llm_dir / name)
        )
    digest = hashlib.blake2b((toy / "eva_vit_g.pth").read_bytes(), digest_size=16).hexdigest()
    assert manifest.sources[0]["files"]["eva_vit_g.pth"]["blake2b"] == digest
    assert check_bundle(bundle.path, full=True).ok


@pytest.mark.slow
@pytest.mark.parametrize("mixed", [False, True])
def test_odd_tensors_are_copied_too(mixed: bool, toy: Path, tmp_path: Path) -> None:
    """Of another type, with shared or turned storage, and with NaN among those."""
    weights = tmp_path / "weights"
    shutil.copytree(toy, weights)
    path = weights / "eva_vit_g.pth"
    tensors = {k: t.clone() for k, t in torch.load(path, weights_only=True).items()}
    key = "blocks.0.attn.qkv.weight"
    tensors[key] = tensors[key].T.contiguous().T
    shared = torch.stack([tensors["blocks.0.norm1.weight"]] * 2)
    tensors["blocks.0.norm1.weight"], tensors["blocks.0.norm2.weight"] = shared[0], shared[0]
    if mixed:
        tensors["blocks.1.norm1.bias"] = tensors["blocks.1.norm1.bias"].double()
        tensors["blocks.1.mlp.fc1.bias"] = tensors["blocks.1.mlp.fc1.bias"].bfloat16()
    torch.save(tensors, path)
    written = write_bundle(tmp_path / "bundle", original_sources(weights)).vision_state()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in written.items())
    assert {t.dtype for t in written.values()} == {t.dtype for t in tensors.values()}
    tensors[key][0, 0] = float("nan")
    torch.save(tensors, path)
    with pytest.raises(WeightsError, match=r"eva_vit_g\.pth: blocks\.0\.attn\.qkv\.weight"):
        write_bundle(tmp_path / "again", original_sources(weights))
    assert not list(tmp_path.glob(".*")) and not (tmp_path / "again").exists()


# --- room, interruptions, neighbours ------------------------------------------------------------


def test_room_is_looked_at_first(sources, tmp_path: Path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10, 9, 2_300_000))
    with pytest.raises(WeightsError, match=r"2,300,000 bytes free, the bundle takes") as caught:
        write_bundle(tmp_path / "bundle", sources, llm="copy")
    assert "without --copy" in str(caught.value)
    assert not list(tmp_path.iterdir())
    write_bundle(tmp_path / "bundle", sources)


_LIMITED = """
import resource, signal, sys
from mgpt4_hpc.cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (900_000, 900_000))
sys.exit(main())
"""


@pytest.mark.slow
def test_a_disk_that_takes_no_more_ends_without_a_traceback(toy: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: write() fails in the middle."""
    words = ["weights", "import", "--vit", toy / "eva_vit_g.pth", "--llm", toy / "llm", "--qformer",
             toy / "blip2_pretrained_flant5xxl.pth", "--out", tmp_path / "bundle"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, *map(str, words)], capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"error: cannot write {tmp_path / 'bundle'}: File too large" in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_a_killed_import_left_is_removed_by_the_next(sources, tmp_path: Path) -> None:
    left = tmp_path / ".bundle.tmp-12345678"
    left.mkdir()
    (left / ".lock").touch()
    (left / "vision.safetensors").write_bytes(b"half")
    with (left / ".lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(WeightsError, match="another import writes"):
            write_bundle(tmp_path / "bundle", sources)
    other = tmp_path / ".bundle2.tmp-12345678"
    other.mkdir()
    said: list[str] = []
    write_bundle(tmp_path / "bundle", sources, say=said.append)
    assert not left.exists() and other.exists()
    assert any(str(left) in line for line in said)
    assert open_bundle(tmp_path / "bundle")


def test_where_locks_do_not_work_it_is_only_named(sources, tmp_path: Path, monkeypatch) -> None:
    def unsupported(*_arguments: object) -> None:
        raise OSError(38, "Function not implemented")

    left = tmp_path / ".bundle.tmp-12345678"
    left.mkdir()
    (left / ".lock").touch()
    monkeypatch.setattr(writer.fcntl, "flock", unsupported)
    said: list[str] = []
    write_bundle(tmp_path / "bundle", sources, say=said.append)
    assert left.exists() and any(str(left) in line for line in said)


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_no_bundle(toy: Path, tmp_path: Path) -> None:
    """SIGKILL while the files are read, then the same import again."""
    slow = (
        "import sys, time\nfrom mgpt4_hpc.model.weight_files import one_pass\n"
        "real = one_pass._fill\n"
        "def fill(*a):\n    real(*a); print('reading', flush=True); time.sleep(0.05)\n"
        "one_pass._fill = fill\n"
        "from pathlib import Path; from mgpt4_hpc.model.conversion.parts import original_sources\n"
        "from mgpt4_hpc.model.bundle.writer import write_bundle\n"
        "write_bundle(Path(sys.argv[2]), original_sources(Path(sys.argv[1])))"
    )
    out = tmp_path / "bundle"
    child = subprocess.Popen(
        [sys.executable, "-c", slow, str(toy), str(out)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait(60)
    child.stdout.close()
    assert not out.exists() and len(list(tmp_path.glob(".bundle.tmp-*"))) == 1
    write_bundle(out, original_sources(toy))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert check_bundle(out).ok
    assert load_file(out / "vision.safetensors")
