"""``mgpt4 weights``: import other people's weights, export ours, look a bundle over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mgpt4_hpc.cli.main import echo_json, say
from mgpt4_hpc.cli.model.weights_export import export_weights
from mgpt4_hpc.cli.shared.options import absolute, json_option
from mgpt4_hpc.cli.shared.progress import progress
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.formatting import beside, counted, shell_word
from mgpt4_hpc.output_files import check_folder
from mgpt4_hpc.resources import expand_toy

if TYPE_CHECKING:
    from mgpt4_hpc.model.bundle.bundle import Bundle
    from mgpt4_hpc.model.bundle.published import Published
    from mgpt4_hpc.model.estimates.bundle_check import BundleCheck

_PATH = click.Path(path_type=Path)


@click.group("weights", short_help="Fetch, import, export and check weights.")
def weights_command() -> None:
    """Fetch or import weights into a bundle, check a bundle, export a trained projector."""


@weights_command.command("fetch")
@click.argument("variant", required=False)
@click.option("--out", type=_PATH, help="The new bundle's folder.")
@click.option("--list", "listed", is_flag=True, help="Show variants, sources, licences.")
@click.option("--architecture", type=_PATH, help="JSON file of sizes, for unpublished models.")
@json_option
def fetch_weights(
    variant: str | None, out: Path | None, listed: bool, architecture: Path | None, as_json: bool
) -> None:
    """Download a published model's weights and import them; resumes after any interruption.

    Run it where the network is, on a login node; nothing else of mgpt4 weights uses one. Sources
    can be replaced by a mirror or a local folder: MGPT4_WEIGHT_SOURCES=FILE. A gated model
    wants HF_TOKEN, which is stored nowhere.

    \b
    mgpt4 weights fetch --list
    mgpt4 weights fetch vicuna7b --out /data/fetched-bundle
    """
    from mgpt4_hpc.model.architecture import Architecture
    from mgpt4_hpc.model.bundle.fetch import fetch_bundle
    from mgpt4_hpc.model.bundle.published import read_published

    published = read_published()
    if listed:
        _list_sources(published, as_json)
        return
    if variant is None or out is None:
        raise click.UsageError(f"give one of {', '.join(published.variants)}, and --out DIR")
    parts = published.parts(variant)
    sizes = Architecture.from_file(architecture) if architecture else None
    out = absolute(out)
    check_folder(out.parent)
    with progress("fetch", "bytes") as on_progress:
        bundle = fetch_bundle(parts, out, architecture=sizes, say=say, on_progress=on_progress)
    _show_bundle(bundle, as_json)


@weights_command.command("import")
@click.option(
    "--hf", type=_PATH, help="A folder of `weights export --format hf`, instead of all parts."
)
@click.option(
    "--vit",
    type=_PATH,
    help="eva_vit_g.pth, or a folder of Hugging Face's BLIP-2.",
)
@click.option(
    "--qformer",
    type=_PATH,
    help="blip2_pretrained_flant5xxl.pth, or a BLIP-2 folder; leave it out for Llama 2.",
)
@click.option("--llm", type=_PATH, help="Language model's folder in Hugging Face layout.")
@click.option(
    "--vicuna-delta",
    type=_PATH,
    nargs=2,
    metavar="BASE DELTA",
    help="Instead of --llm: LLaMA's folder, and Vicuna v0's published difference to it.",
)
@click.option("--projector", type=_PATH, help="pretrained_minigpt4.pth, to start from.")
@click.option("--out", type=_PATH, required=True, help="The new bundle's folder.")
@click.option("--copy", is_flag=True, help="Copy the language model instead of referring to it.")
@click.option(
    "--quick", is_flag=True, help="Do not look for NaN and infinity; the bundle notes it."
)
@click.option("--architecture", type=_PATH, help="JSON file of sizes, for unpublished models.")
@json_option
def import_weights(
    hf: Path | None,
    vit: Path | None,
    qformer: Path | None,
    llm: Path | None,
    vicuna_delta: tuple[Path, Path] | None,
    projector: Path | None,
    out: Path,
    copy: bool,
    quick: bool,
    architecture: Path | None,
    as_json: bool,
) -> None:
    """Write a bundle; every key of every source is used, dropped for a reason, or an error.

    \b
    mgpt4 weights import --vit eva_vit_g.pth --qformer blip2_pretrained_flant5xxl.pth \\
          --llm vicuna-7b --out /data/vicuna7b-bundle
    """
    from mgpt4_hpc.model.architecture import Architecture
    from mgpt4_hpc.model.bundle.writer import write_bundle
    from mgpt4_hpc.model.conversion.parts import Sources

    if hf is not None:
        if any((vit, qformer, llm, vicuna_delta, projector, copy, architecture)):
            raise click.UsageError("--hf brings all parts: it goes with --out and --quick alone")
        _show_bundle(_import_export(hf, out, quick), as_json)
        return
    if vit is None:
        raise click.UsageError("give --vit, or --hf")
    if (llm is None) == (vicuna_delta is None):
        raise click.UsageError("give either --llm or --vicuna-delta")
    given = (vit, qformer, llm, projector, architecture, *(vicuna_delta or ()))
    out = absolute(out)
    _require_paths(out, given)
    sizes = Architecture.from_file(architecture) if architecture else None
    base, model = vicuna_delta or (None, llm)
    assert model is not None
    sources = Sources(vit, model, qformer, projector, sizes, base)
    with progress("import", "bytes") as on_progress:
        bundle = write_bundle(
            out,
            sources,
            llm="copy" if copy else "refer",
            finite=not quick,
            say=say,
            on_progress=on_progress,
        )
    _show_bundle(bundle, as_json)


def _require_paths(out: Path, given: Iterable[Path | None]) -> None:
    """Raises ConfigError with every source that is not there, and why nothing can be written."""
    faults = [
        f"{path} does not exist{beside(path)}" for path in given if path and not path.exists()
    ]
    if out.exists():
        faults.append(f"{out} exists already: choose another name for --out, or remove it first")
    elif not out.parent.is_dir():
        faults.append(
            f"the folder {out.parent} does not exist: mkdir -p {shell_word(str(out.parent))}"
        )
    if faults:
        raise ConfigError("nothing was imported", faults=faults)


def _import_export(folder: Path, out: Path, quick: bool) -> Bundle:
    from mgpt4_hpc.model.huggingface.reimport import import_export

    out = absolute(out)
    _require_paths(out, [folder])
    with progress("import", "bytes") as on_progress:
        return import_export(
            out, absolute(folder), finite=not quick, say=say, on_progress=on_progress
        )


weights_command.add_command(export_weights)


@weights_command.command("check")
@click.argument("bundle", type=_PATH)
@click.option("--full", is_flag=True, help="Read every byte; look for NaN and infinity everywhere.")
@click.option("--architecture", type=_PATH, help="JSON file of sizes, for unpublished models.")
@json_option
@click.pass_context
def check_weights(
    context: click.Context, bundle: Path, full: bool, architecture: Path | None, as_json: bool
) -> None:
    """Check a bundle without building the model: shapes, hashes, tokenizer, memory.

    \b
    mgpt4 weights check /data/vicuna7b-bundle
    mgpt4 weights check toy:weights --json
    """
    from mgpt4_hpc.errors import WeightsError
    from mgpt4_hpc.model.architecture import Architecture
    from mgpt4_hpc.model.estimates.bundle_check import check_bundle

    sizes = Architecture.from_file(architecture) if architecture else None
    bundle = Path(expand_toy(str(bundle))).expanduser()
    check = check_bundle(bundle, full=full, architecture=sizes)
    if as_json:
        echo_json(check.to_dict())
    else:
        _print_check(check)
    if not check.ok:
        context.exit(WeightsError.exit_code)


def _list_sources(published: Published, as_json: bool) -> None:
    if as_json:
        echo_json({name: {part: source.model_dump(mode="json", exclude_defaults=True)
                          for part, source in published.parts(name).items()}
                   for name in published.variants})  # fmt: skip
        return
    for name in published.variants:
        parts = published.parts(name)
        click.echo(f"{name}  {sum(source.gib for source in parts.values()):.1f} GiB")
        for part, source in parts.items():
            gated = f"; accept it on {source.gated}" if source.gated else ""
            click.echo(f"  {part:<10}{source.gib:>5.1f} GiB  {source.place}")
            click.echo(f"  {'':<21}{source.licence}{gated}")


def _show_bundle(bundle: Bundle, as_json: bool) -> None:
    if not as_json:
        _print_bundle(bundle)
        return
    echo_json(
        {
            "path": str(bundle.path),
            "digest": bundle.digest,
            "architecture": bundle.architecture.to_dict(),
            "llm": str(bundle.llm_dir),
            "sources": [asdict(report) for report in bundle.reports],
        }
    )


def _print_bundle(bundle: Bundle) -> None:
    click.echo(f"{bundle.path}  digest {bundle.digest}")
    for report in bundle.reports:
        name = report.source or "no Q-Former file"
        click.echo(
            f"  {name}: {len(report.used)} tensors used, {len(report.dropped)} dropped, "
            f"{len(report.missing)} filled in"
        )
        for reason in sorted({*report.dropped.values(), *report.missing.values()}):
            click.echo(f"    {reason}")
    click.echo(f"  language model: {bundle.llm_dir}")


def _print_check(check: BundleCheck) -> None:
    facts = check.facts
    if "llm" in facts:
        click.echo(f"vision side      {facts['vision_side']}")
        click.echo(f"language model   {facts['llm']['model']}, {facts['llm']['path']}")
        shape = facts["projector"]
        click.echo(
            f"projector        {shape[1]} -> {shape[0]}" if shape else "projector        none"
        )
        click.echo(f"digest           {facts['digest']}")
    if check.memory:
        click.echo("\nGiB per GPU (bf16)     micro-batch   plain   recomputing activations")
        by_batch: dict[tuple[str, int], dict[bool, float]] = {}
        for row in check.memory:
            place = by_batch.setdefault((row["stage"], row["micro_batch_size"]), {})
            place[row["activation_checkpointing"]] = row["total_gib"]
        for (stage, batch), total in by_batch.items():
            click.echo(f"  {stage:<20} {batch:>11}   {total[False]:>5}   {total[True]:>5}")
    for note in check.notes:
        click.echo(f"\nnote: {note}")
    for fault in check.faults:
        click.echo(f"\nfault: {fault}")
    click.echo("\nok" if check.ok else f"\n{counted(len(check.faults), 'fault')}")
