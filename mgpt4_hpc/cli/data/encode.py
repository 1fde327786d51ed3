"""``mgpt4 data encode``: the frozen towers' output, stored once for a run and its like."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgpt4_hpc.cli.main import echo_json
from mgpt4_hpc.cli.shared.options import (
    absolute,
    json_option,
    out_option,
    runs_dir_option,
    set_option,
    site_option,
)
from mgpt4_hpc.cli.shared.slurm_array_options import (
    Part,
    array_options,
    echo_submitted,
    run_array,
    split_array,
)
from mgpt4_hpc.formatting import size_text
from mgpt4_hpc.output_files import check_folder

if TYPE_CHECKING:
    from mgpt4_hpc.train.inputs.feature_encoding import Encoding

_ASK_FROM_BYTES = 2**30


@click.command("encode")
@click.argument("config", metavar="PRESET|FILE|RUN")
@out_option("Folder of the cache; an unfinished one is continued.")
@set_option("Any setting.")
@site_option
@click.option(
    "--dtype",
    type=click.Choice(["bf16", "fp32"]),
    default="bf16",
    show_default=True,
    help="How features are stored.",
)
@click.option("--batch-size", type=click.IntRange(1), help="Images at a time. [micro_batch_size]")
@click.option(
    "--samples-per-shard",
    type=click.IntRange(1),
    default=2048,
    show_default=True,
    help="A kill costs at most these.",
)
@click.option("--dry-run", is_flag=True, help="Say how many and how large; encode nothing.")
@click.option("--yes", is_flag=True, help="Do not ask, however large.")
@array_options(parts=4, time_min=24 * 60)
@runs_dir_option
@json_option
def encode_command(
    config: str,
    out: Path,
    assignments: tuple[str, ...],
    site: str | None,
    part: Part | None,
    dry_run: bool,
    runs_dir: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Store what the frozen vision side makes of every sample that a run will read.

    The run then trains without images and without the vision tower: --set data.feature_cache=OUT.
    The settings are those of the run: its steps, seed and sources say which samples it will read.
    After a kill, or for more steps or another seed, the same command does what is missing. A cache
    fits one bundle, preprocessing and index; anything else is refused.

    \b
    mgpt4 data encode stage2-vicuna7b --set data.paths.cc_sbu_align=/data/align --out /data/features
    mgpt4 data encode stage1-vicuna7b --out /scratch/features --slurm --parts 8 --yes
    """
    from mgpt4_hpc.cli.shared.progress import progress
    from mgpt4_hpc.cli.site.config import resolve_settings

    array, options = split_array(options, cpus=8, gpus=1)
    check_folder(out.parent)
    from mgpt4_hpc.train.inputs.feature_encoding import Encoding

    encoding = Encoding(
        resolve_settings(config, assignments, site, absolute(runs_dir)).config,
        out,
        dtype=options["dtype"],
        samples_per_shard=options["samples_per_shard"],
    )
    if part is None:
        _announce(encoding)
    if dry_run:
        _print_report(encoding, as_json)
        return
    encoding.require_space()
    if part is None and not options["yes"]:
        _ask(encoding)
    if array.wanted and encoding.num_shards:
        job_id = run_array(array, "mgpt4-encode", out / ".array", parts=encoding.num_shards)
        if job_id is not None:
            echo_submitted(job_id, as_json, "--dry-run says what is there")
            return
        encoding.cache.refresh()
    else:
        with progress("encoding", "samples") as on_progress:
            encoding.run(
                batch_size=options["batch_size"],
                part=part[0] if part else 1,
                parts=part[1] if part else 1,
                on_progress=on_progress,
            )
    if part is None:
        _print_report(encoding, as_json)


def _announce(encoding: Encoding) -> None:
    """What will be written, before anything is."""
    image_tokens, width = encoding.shape
    click.echo(
        f"{encoding.config.train.max_steps} steps need {len(encoding.plan):,} samples; "
        f"{encoding.num_missing:,} are to be encoded: {encoding.num_missing:,} x {image_tokens} x "
        f"{width} {encoding.dtype} = {size_text(encoding.num_bytes)} in {encoding.out}",
        err=True,
    )


def _ask(encoding: Encoding) -> None:
    if encoding.num_bytes < _ASK_FROM_BYTES:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(
            f"{size_text(encoding.num_bytes)} would be written: say --yes if that is meant"
        )
    click.confirm("go on?", abort=True, err=True)


def _print_report(encoding: Encoding, as_json: bool) -> None:
    from mgpt4_hpc.data.encoding.plan import missing_from

    cache, plan = encoding.cache, encoding.plan
    missing = missing_from(plan, cache)
    bad = [
        {"source": cache.source_name(row.source), "key": row.key, "reason": row.reason}
        for row in cache.bad.values()
    ]
    if as_json:
        echo_json(
            {
                "cache": str(cache.folder),
                "num_needed": len(plan),
                "num_missing": missing,
                "num_encoded": cache.num_samples,
                "bytes_per_sample": encoding.bytes_per_sample,
                "num_bytes": encoding.bytes_per_sample * cache.num_samples,
                "dtype": cache.dtype,
                "bad": bad,
            }
        )
        return
    click.echo(
        f"{cache.folder}: {cache.num_samples:,} samples, {missing:,} missing, {len(bad):,} bad"
    )
    for entry in bad[:20]:
        click.echo(f"  bad: {entry['source']} {entry['key']}: {entry['reason']}", err=True)
    if not missing:
        click.echo(f"use it with: --set data.feature_cache={cache.folder}", err=True)
