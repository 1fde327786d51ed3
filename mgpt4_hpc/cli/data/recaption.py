"""``mgpt4 data recaption``: other captions for shards that exist."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from mgpt4_hpc.cli.data.stats import echo_left_out
from mgpt4_hpc.cli.main import echo_json
from mgpt4_hpc.cli.shared.options import json_option, out_option
from mgpt4_hpc.cli.shared.slurm_array_options import (
    Part,
    array_options,
    echo_submitted,
    run_array,
    split_array,
)
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.formatting import counted
from mgpt4_hpc.output_files import check_folder

if TYPE_CHECKING:
    from mgpt4_hpc.data.sources.caption_table import By, TableReport
    from mgpt4_hpc.data.sources.recaption import RecaptionReport


@click.command("recaption")
@click.argument("shards")
@click.option(
    "--captions",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="BLIP's JSON array, or JSON Lines, Parquet, CSV or TSV.",
)
@click.option(
    "--by", type=click.Choice(["url", "key"]), required=True, help="What joins them to samples."
)
@out_option("Folder of the new shards; an unfinished one is continued.")
@click.option("--size", type=click.IntRange(1), help="Letterbox images to this side. [as they are]")
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes."
)
@array_options(parts=32, time_min=240)
@json_option
def recaption_command(
    shards: str,
    captions: Path,
    by: str,
    out: Path,
    size: int | None,
    workers: int,
    part: Part | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Give SHARDS other captions: the same images, joined to a list by url or key.

    The list has `caption` and `url` (joined to the `url` of each KEY.json) or `key`. A sample that
    the list does not name is left out and counted. A shard appears when it is whole, and the same
    command does what is missing.

    \b
    mgpt4 data recaption cc_sbu --captions ccs_filtered.json --by url --out cc_sbu_blip
    mgpt4 data recaption /data/cc12m --captions blip.parquet --by key --out /data/blip --size 224 \\
        --slurm --parts 8 --partition cpu
    """
    from mgpt4_hpc.cli.shared.progress import progress
    from mgpt4_hpc.data.index.shard_list import expand_shards
    from mgpt4_hpc.data.sources.caption_table import build_table
    from mgpt4_hpc.data.sources.recaption import WORK_FOLDER, begin_recaption, recaption, report_of
    from mgpt4_hpc.launch.side_jobs.array import slice_of

    array, _ = split_array(options, cpus=workers)
    paths = expand_shards(shards)
    check_folder(out.parent)
    joined_by = cast("By", by)
    folder = begin_recaption(paths, captions, joined_by, out, size)
    with progress("reading captions", "bytes") as on_progress:  # once, before the tasks of an array
        table = build_table(captions, joined_by, folder, on_progress=on_progress)
    if array.wanted:
        parts_folder = out / WORK_FOLDER / "array"
        job_id = run_array(array, "mgpt4-recaption", parts_folder, parts=len(paths))
        if job_id is not None:
            echo_submitted(job_id, as_json)
            return
    own_shards = slice_of(paths, *part) if part is not None else paths
    with progress("recaptioning", "shards") as on_progress:
        recaption(own_shards, table, out, size=size, workers=workers, on_shard=on_progress)
    report = report_of(own_shards, table, out)
    if as_json:
        echo_json({**asdict(report), "captions": asdict(table.report)})
    else:
        _print(report, table.report)
    if not report.num_matched:
        raise DataError(
            f"none of the {report.num_samples} samples has a caption in {captions}",
            why="; ".join(map(str, report.left_out[:3])),
            fix="see what the list and the samples are called, and choose --by",
        )


def _print(report: RecaptionReport, table: TableReport) -> None:
    echo_left_out(report.left_out)
    bad = sum(table.reasons.values())
    click.echo(
        f"{table.captions}: {table.num_captions:,} captions, {table.num_repeated:,} repeated, "
        f"{bad:,} bad rows"
    )
    share = report.num_matched / max(1, report.num_samples)
    click.echo(
        f"{report.out}: {report.num_matched:,} of {report.num_samples:,} samples ({share:.1%}) in "
        f"{counted(report.num_shards, 'shard')}"
    )
