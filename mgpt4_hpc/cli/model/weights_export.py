"""``mgpt4 weights export``: a trained model in other programs' formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from mgpt4_hpc.cli.main import say
from mgpt4_hpc.cli.shared.options import absolute, runs_dir_option
from mgpt4_hpc.cli.shared.progress import progress
from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.output_files import check_output
from mgpt4_hpc.resources import expand_toy
from mgpt4_hpc.run_reference import find_reference

if TYPE_CHECKING:
    from mgpt4_hpc.model.bundle.bundle import Bundle
    from mgpt4_hpc.model.generation.chat_model import ModelSource
    from mgpt4_hpc.model.nn.lora import SavedLora

Format = Literal["pth", "safetensors", "hf", "peft"]

_PATH = click.Path(path_type=Path)


@click.command("export")
@click.argument("source", metavar="RUN|CHECKPOINT|FILE", type=_PATH)
@click.option(
    "--format",
    "fmt",
    type=click.Choice(["pth", "safetensors", "hf", "peft"]),
    required=True,
    help="pth: the original repository's layout; hf: a folder for transformers.",
)
@click.option(
    "--out", type=_PATH, required=True, help="File or folder to write; it must not exist."
)
@click.option("--merge-lora", is_flag=True, help="Add LoRA to the language model; pth and hf.")
@click.option("--weights", help="Bundle of the frozen parts; hf.  [default: the run's]")
@runs_dir_option
def export_weights(
    source: Path, fmt: Format, out: Path, merge_lora: bool, weights: str | None, runs_dir: Path
) -> None:
    """Write what a run or checkpoint trained, bit for bit, in another program's format.

    \b
    pth          the projector as the original repository loads it, one file
    safetensors  the projector alone, one file
    hf           the whole model as a folder that transformers loads: see docs/export.md
    peft         the LoRA of a run as an adapter for that folder

    \b
    mgpt4 weights export stage2-vicuna7b --format pth --out mine.pth
    mgpt4 weights export stage2-vicuna7b --format hf --out my-minigpt4
    mgpt4 weights import --hf my-minigpt4 --out again-bundle
    """
    from mgpt4_hpc.checkpoint.store import CheckpointStore
    from mgpt4_hpc.model.bundle.export import find_projector
    from mgpt4_hpc.model.nn.lora import read_lora_beside

    if merge_lora and fmt not in ("pth", "hf"):
        raise click.UsageError("--merge-lora is for --format pth and hf")
    if weights is not None and fmt != "hf" and not merge_lora:
        raise click.UsageError(f"--weights is for --format hf; {fmt} holds nothing of the bundle")
    out = out.expanduser()
    # A file of the same kind may be the only copy of other weights: none is replaced.
    check_output(out, kind="an exported model")
    projector = find_projector(_located(source, absolute(runs_dir)))
    if (projector.parent / "manifest.json").is_file():
        CheckpointStore(projector.parent.parent).verify(projector.parent)
    lora = read_lora_beside(projector)
    if lora is None and (merge_lora or fmt == "peft"):
        raise WeightsError(
            f"{projector.parent} has no LoRA", fix="leave --merge-lora out, or use hf"
        )
    if fmt == "hf":
        _export_folder(projector, out, weights, lora if merge_lora else None)
    elif fmt == "peft":
        from mgpt4_hpc.model.huggingface.export import export_adapter

        assert lora is not None
        export_adapter(absolute(out), lora, say)
    else:
        _export_file(projector, out, fmt, weights, lora if merge_lora else None)
    click.echo(f"{projector} -> {out}")
    if lora is not None and not merge_lora and fmt != "peft":
        click.echo(
            "note: it was trained together with LoRA, which is not in the export, and is of little "
            "use without it: --merge-lora adds it to the language model (pth, hf), --format peft "
            "writes it as an adapter",
            err=True,
        )


def _export_file(
    projector: Path,
    out: Path,
    fmt: Literal["pth", "safetensors"],
    weights: str | None,
    lora: SavedLora | None,
) -> None:
    from mgpt4_hpc.model.bundle.export import export_projector, read_projector

    merged = {}
    if lora is not None:
        from mgpt4_hpc.model.huggingface.lora import merged_tensors

        bundle = _bundle(_source(projector, weights))
        merged = {f"llama_model.{key}": t for key, t in merged_tensors(bundle, lora).items()}
    export_projector(read_projector(projector), out, fmt=fmt, beside=merged)


def _export_folder(projector: Path, out: Path, weights: str | None, lora: SavedLora | None) -> None:
    from mgpt4_hpc.evaluation.model_card import model_card
    from mgpt4_hpc.model.bundle.export import read_projector
    from mgpt4_hpc.model.huggingface.export import TrainedModel, export_model, require_exportable

    source = _source(projector, weights)
    bundle = _bundle(source)
    require_exportable(bundle.architecture)
    card = model_card(
        out.name,
        bundle,
        end_symbol=source.template.end_symbol,
        run=source.run,
        step=source.step,
        merged_lora=lora is not None,
    )
    system = source.config.text.system if source.config else ""
    model = TrainedModel(bundle, read_projector(projector), source.template, system, lora)
    with progress("export", "bytes") as on_progress:
        export_model(absolute(out), model, card=card, say=say, on_progress=on_progress)


def _source(projector: Path, weights: str | None) -> ModelSource:
    """Where everything is beside the projector; a bundle's own belongs to that bundle."""
    from mgpt4_hpc.model.bundle.manifest import BUNDLE_FILE
    from mgpt4_hpc.model.generation.chat_model import find_source

    if weights is None and (projector.parent / BUNDLE_FILE).is_file():
        weights = str(projector.parent)
    return find_source(projector, weights=weights)


def _bundle(source: ModelSource) -> Bundle:
    """The frozen parts. Raises WeightsError if the projector was trained on others."""
    from mgpt4_hpc.model.bundle.bundle import open_bundle
    from mgpt4_hpc.model.generation.chat_model import other_bundle

    bundle = open_bundle(source.weights)
    if other := other_bundle(source, bundle):
        raise WeightsError(
            other,
            why="the export would be a model that nobody trained",
            fix="give the bundle that it was trained on: --weights DIR",
        )
    return bundle


def _located(source: Path, runs_dir: Path) -> Path:
    """A file or folder as it is, else the run of that name. Raises NoSuchRun if it is neither."""
    path = Path(expand_toy(str(source))).expanduser()
    return path if path.exists() else find_reference(str(source), runs_dir).path
