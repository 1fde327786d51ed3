"""What `mgpt4 weights import`, `check` and `export` cost at a real size, in 4 GiB of memory.

    python tools/bench_weights.py --dir DIR [--shape 7b|tiny] [--keep] [--json]

Random weights in the original's file formats: ViT-g, Q-Former, LLaMA-7B as two `.bin` (16 GB; the
bundle takes 2.4 GB more, the export 16 GB). `cat FILES | b2sum` is measured first, then the import,
the check, and the export for transformers.
Bytes read are what read() returned to the process, less what the same command reads for a toy;
written bytes likewise.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mgpt4_hpc.model.architecture import EVA_G_QFORMER, Architecture
from mgpt4_hpc.model.conversion.variants import VARIANTS
from mgpt4_hpc.model.llm_files.tensors import llama_shapes
from mgpt4_hpc.model.tower_shapes import Shapes, vision_shapes
from mgpt4_hpc.model.weight_files.torch_directory import read_directory
from mgpt4_hpc.resources import toy_world_dir
from tools.bench_startup import widen_tokenizer

LIMIT_BYTES = 4 * 1024**3
LIMITS = {
    "import_resident_gib": 4.0,
    "import_read_over_there": 1.01,
    "import_written_over_towers": 1.01,
    "import_over_b2sum": 0.6,
    "check_cpu_s": 20.0,
    "export_resident_gib": 4.0,
}
"""What issue and documentation promise: upper bounds, but for the speed."""

_MEASURED = """
import atexit, sys
from mgpt4_hpc.cli.main import main
def tell():
    sys.stderr.flush()
    print("IO " + open("/proc/self/io").read().replace("\\n", " "), file=sys.stderr, flush=True)
atexit.register(tell)
sys.exit(main())
"""


def original_shapes(arch: Architecture) -> tuple[Shapes, Shapes]:
    """Tensors of `eva_vit_g.pth` (one block more than is used) and of the BLIP-2 file."""
    from dataclasses import replace

    from mgpt4_hpc.model.tower_shapes import connector_shapes

    names = (
        (".attention.attention.", ".attention.self."),
        (".crossattention.attention.", ".crossattention.self."),
        ("qformer.layernorm.", "Qformer.bert.embeddings.LayerNorm."),
        ("qformer.", "Qformer.bert."),
    )
    theirs = {}
    for key, shape in connector_shapes(arch).items():
        for ours, original in names:
            key = key.replace(ours, original)
        theirs[key] = shape
    return vision_shapes(replace(arch, vision_depth=arch.vision_depth + 1)), theirs


def write_random(path: Path, shapes: Shapes, dtype: str, *, nested: bool = False) -> None:
    """A torch file of random finite numbers, made of one block that is repeated."""
    import numpy as np
    import torch

    kind = getattr(torch, dtype)
    tensors: dict[str, Any] = {key: torch.empty(shape, dtype=kind) for key, shape in shapes.items()}
    with torch.serialization.skip_data():
        torch.save({"model": tensors} if nested else tensors, path)
    numbers = np.random.default_rng(0).standard_normal(8 * 1024**2) * 0.02
    block = memoryview(numbers.astype(dtype).tobytes())
    found = read_directory(path)
    with path.open("r+b", buffering=0) as file:
        for info in (found["model"] if nested else found).values():
            file.seek(info.start)
            for offset in range(0, info.num_bytes, len(block)):
                file.write(block[: min(len(block), info.num_bytes - offset)])
        os.fsync(file.fileno())


def make_sources(folder: Path, shape: str) -> list[str]:
    """All files; returns the arguments of the import."""
    toy = toy_world_dir() / "weights"
    if shape == "tiny":
        return ["--vit", str(toy / "eva_vit_g.pth"), "--llm", str(toy / "llm"),
                "--qformer", str(toy / "blip2_pretrained_flant5xxl.pth")]  # fmt: skip
    vit, qformer, llm = folder / "eva_vit_g.pth", folder / "blip2.pth", folder / "llm"
    if not (folder / "complete").exists():
        llm.mkdir(parents=True, exist_ok=True)
        vision, connector = original_shapes(EVA_G_QFORMER)
        write_random(vit, vision, "float16")
        write_random(qformer, connector, "float32", nested=True)
        config = VARIANTS["vicuna7b"].llm_config | {"eos_token_id": 2, "bos_token_id": 1}
        (llm / "config.json").write_text(json.dumps(config))
        shapes = llama_shapes(config, llm)
        half, parts, size = sum(map(math.prod, shapes.values())) / 2, ({}, {}), 0
        for key, numbers in shapes.items():
            parts[size > half][key] = numbers
            size += math.prod(numbers)
        files = {}
        for index, part in enumerate(parts, start=1):
            name = f"pytorch_model-0000{index}-of-00002.bin"
            write_random(llm / name, part, "float16")
            files |= dict.fromkeys(part, name)
        (llm / "pytorch_model.bin.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": files})
        )
        shutil.copyfile(toy / "llm" / "tokenizer_config.json", llm / "tokenizer_config.json")
        widen_tokenizer(toy / "llm" / "tokenizer.model", llm / "tokenizer.model", 32000)
        (folder / "complete").touch()
    return ["--vit", str(vit), "--llm", str(llm), "--qformer", str(qformer)]


def write_projector(folder: Path, bundle: Path) -> Path:
    """A projector of random numbers that fits a bundle."""
    import torch
    from safetensors.torch import save_file

    from mgpt4_hpc.model.bundle.manifest import BUNDLE_FILE, BundleManifest

    arch = BundleManifest.read(bundle / BUNDLE_FILE).architecture
    layer = torch.nn.Linear(arch.projector_in, arch.llm_dim or 0)
    path = folder / "projector.safetensors"
    save_file({f"llama_proj.{k}": t.detach() for k, t in layer.named_parameters()}, path)
    return path


def cgroup() -> Path | None:
    """A new memory cgroup of `LIMIT_BYTES`; None where none can be made."""
    for root, name in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
                       ("/sys/fs/cgroup", "memory.max")):  # fmt: skip
        group = Path(root) / f"mgpt4-bench-{os.getpid()}"
        try:
            if (Path(root) / "cgroup.procs").exists():
                group.mkdir()
                (group / name).write_text(str(LIMIT_BYTES))
                return group
        except OSError:
            if group.is_dir():
                group.rmdir()
    return None


def measured(words: list[str], group: Path | None) -> dict[str, float]:
    """One command: wall and CPU seconds, peak resident GiB, bytes read and written."""
    started = time.monotonic()

    def enter() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text("0")

    child = subprocess.Popen(
        [sys.executable, "-c", _MEASURED, *words],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=enter,
    )  # fmt: skip
    assert child.stderr is not None
    told = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"mgpt4 {' '.join(words)} ended with {child.returncode}:\n{told}")
    counts = told[told.rindex("IO ") + 3 :].split()
    return {
        "wall_s": time.monotonic() - started,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "resident_gib": usage.ru_maxrss / 1024**2,
        "read": float(counts[counts.index("rchar:") + 1]),
        "written": float(counts[counts.index("wchar:") + 1]),
    }


def b2sum_seconds(files: list[Path]) -> float:
    """Wall seconds of `cat FILES | b2sum`."""
    started = time.monotonic()
    with subprocess.Popen(["cat", *map(str, files)], stdout=subprocess.PIPE) as cat:
        subprocess.run(["b2sum"], stdin=cat.stdout, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def bench(folder: Path, shape: str) -> dict[str, float]:
    """All figures of one shape."""
    arguments = make_sources(folder, shape)
    small = ["weights", "import", *make_sources(folder, "tiny"), "--out"]
    group = cgroup()
    if group is None:
        print("no memory cgroup can be made here: measured without one", file=sys.stderr)
    try:
        toy = measured([*small, str(folder / "toy-bundle")], group)
        vit, llm, qformer = (Path(word) for word in arguments[1::2])
        files = [vit, qformer, *sorted(p for p in llm.iterdir() if not p.name.startswith("."))]
        there = sum(path.stat().st_size for path in files)
        reference_s = b2sum_seconds(files)
        out = folder / "bundle"
        imported = measured(["weights", "import", *arguments, "--out", str(out)], group)
        towers = sum(path.stat().st_size for path in out.glob("*.safetensors"))
        checked = measured(["weights", "check", str(out)], group)
        words = ["weights", "export", str(write_projector(folder, out)), "--weights", str(out)]
        exported = measured([*words, "--format", "hf", "--out", str(folder / "hf")], group)
    finally:
        for name in ("bundle", "toy-bundle", "hf"):
            shutil.rmtree(folder / name, ignore_errors=True)
        if group is not None:
            group.rmdir()
    return {
        "gigabytes": there / 1e9,
        "in_cgroup": float(group is not None),
        "b2sum_s": reference_s,
        **{f"import_{key}": imported[key] for key in ("wall_s", "cpu_s", "resident_gib")},
        "import_read_over_there": (imported["read"] - toy["read"]) / there,
        "import_written_over_towers": (imported["written"] - toy["written"]) / towers,
        "import_over_b2sum": reference_s / imported["wall_s"],
        **{f"check_{key}": checked[key] for key in ("wall_s", "cpu_s", "resident_gib")},
        **{f"export_{key}": exported[key] for key in ("wall_s", "cpu_s", "resident_gib")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="where the files are made")
    parser.add_argument("--shape", choices=["7b", "tiny"], default="7b")
    parser.add_argument("--keep", action="store_true", help="leave the made files for another run")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    folder = given.dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    needed = 36e9 if given.shape == "7b" and not (folder / "complete").exists() else 3e9
    free = shutil.disk_usage(folder).free
    if free < needed:
        print(f"skipped: {folder} has {free / 1e9:.0f} GB free, {needed / 1e9:.0f} are needed")
        return
    try:
        found = bench(folder, given.shape)
    finally:
        if not given.keep:
            shutil.rmtree(folder, ignore_errors=True)
    if given.json:
        print(json.dumps(found, indent=1))
        return
    print("| figure | value | promised |\n|---|---|---|")
    for key, value in found.items():
        sign = ">=" if key == "import_over_b2sum" else "<="
        promised = f"{sign} {LIMITS[key]}" if key in LIMITS and given.shape == "7b" else ""
        print(f"| {key} | {value:.2f} | {promised} |")


if __name__ == "__main__":
    main()
