"""``mgpt4 data download``: images of a list of addresses into shards."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgpt4_hpc.cli.main import echo_json, say
from mgpt4_hpc.cli.shared.options import json_option, out_option
from mgpt4_hpc.cli.shared.slurm_array_options import (
    Part,
    array_options,
    echo_submitted,
    run_array,
    split_array,
)
from mgpt4_hpc.cli.shared.tables import print_rows
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.formatting import counted, size_text
from mgpt4_hpc.output_files import check_folder

if TYPE_CHECKING:
    from mgpt4_hpc.data.sources.download import DownloadReport

_SHOWN_REASONS = 20


@click.command("download")
@click.argument(
    "sources",
    metavar="SRC.parquet|FOLDER...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
)
@out_option("Folder of the shards; an unfinished one is continued.")
@click.option(
    "--image-size", type=click.IntRange(1), default=224, show_default=True, help="Side in pixels."
)
@click.option(
    "--resize-mode",
    type=click.Choice(["border", "center_crop", "keep_ratio", "keep_ratio_largest", "no"]),
    default="border",
    show_default=True,
    help="As img2dataset has it.",
)
@click.option(
    "--encode-quality",
    type=click.IntRange(1, 100),
    default=95,
    show_default=True,
    help="Of the JPEGs.",
)
@click.option(
    "--samples-per-shard",
    "number_sample_per_shard",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    help="Addresses of a shard; those that fail leave a gap.",
)
@click.option("--url-col", default="url", show_default=True, help="Column of the addresses.")
@click.option("--caption-col", default="caption", show_default=True, help="Column of the texts.")
@click.option(
    "--processes",
    "processes_count",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Per machine.",
)
@click.option(
    "--threads",
    "thread_count",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="Per process.",
)
@click.option(
    "--timeout", type=click.IntRange(1), default=10, show_default=True, help="Seconds per server."
)
@click.option("--retries", type=click.IntRange(0), default=0, show_default=True, help="Per image.")
@click.option(
    "--env",
    "environment",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Virtual environment of img2dataset, made if absent. [~/.cache/mgpt4/img2dataset-...]",
)
@array_options(parts=16, time_min=24 * 60)
@json_option
def download_command(
    sources: tuple[Path, ...],
    out: Path,
    environment: Path | None,
    part: Part | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Download the images of parquet lists into tar shards, with img2dataset.

    img2dataset gets an environment of its own, as it pins an older webdataset. The defaults are
    the original's. A shard appears when it is whole: after a kill, or when more addresses have
    come, the same command does what is missing. Shards without any image are tried again.

    \b
    mgpt4 data download cc_sbu_urls --out /data/cc_sbu
    mgpt4 data download laion_urls --out /data/laion --slurm --parts 32 --partition cpu
    """
    from mgpt4_hpc.cli.shared.progress import progress
    from mgpt4_hpc.data.sources.download import (
        IMG2DATASET,
        WORK_FOLDER,
        Download,
        Effort,
        ImageSettings,
    )

    array, options = split_array(options, cpus=options["processes_count"])
    check_folder(out.parent)
    effort = Effort(**{field.name: options.pop(field.name) for field in fields(Effort)})
    download = Download(sources, out, ImageSettings(**options))
    # Before an array starts: its nodes may have no way to PyPI.
    python = IMG2DATASET.ensure_environment(environment, say=say)
    if array.wanted:
        folder = out / WORK_FOLDER / "array"
        job_id = run_array(array, "mgpt4-download", folder, parts=download.num_shards)
        if job_id is not None:
            echo_submitted(job_id, as_json)
            return
    else:
        with progress("downloading", "samples") as on_progress:
            at, of = part or (1, 1)
            download.run(python, effort, part=at, parts=of, on_progress=on_progress)
    if part is not None:
        return  # the whole is reported by who sees all parts end
    report = download.report()
    if as_json:
        echo_json(report.__dict__)
    else:
        _print(report)
    if not report.num_got:
        raise DataError(
            "no image was downloaded",
            why="; ".join(list(report.reasons)[:3]),
            fix="see that this machine reaches the network, then run the command again",
        )


def _print(report: DownloadReport) -> None:
    tried = max(1, report.num_tried)
    rows = [
        ("asked", f"{report.num_asked:,}", ""),
        ("tried", f"{report.num_tried:,}", f"{report.num_tried / report.num_asked:.1%}"),
        ("got", f"{report.num_got:,}", f"{report.num_got / tried:.1%}"),
    ]
    reasons = [(f"failed: {reason}", count) for reason, count in report.reasons.items()]
    if rest := sum(count for _, count in reasons[_SHOWN_REASONS:]):
        reasons[_SHOWN_REASONS:] = [("failed for other reasons", rest)]
    rows += [(f"  {reason}", f"{count:,}", f"{count / tried:.1%}") for reason, count in reasons]
    print_rows(("", ">count", ">share"), rows, folding=("",))
    there = report.num_shards - len(report.missing)
    click.echo(f"\n{report.out}: {there} of {counted(report.num_shards, 'shard')}, "
               f"{size_text(report.num_bytes)}")  # fmt: skip
    if report.empty:
        listed = ", ".join(map(str, report.empty[:5]))
        click.echo(
            f"{counted(len(report.empty), 'shard')} without an image ({listed}): run it again",
            err=True,
        )
