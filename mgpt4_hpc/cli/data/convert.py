"""``mgpt4 data convert``: BLIP's caption lists as tables for img2dataset."""

from __future__ import annotations

from pathlib import Path

import click

from mgpt4_hpc.cli.main import echo_json
from mgpt4_hpc.cli.shared.options import SEED, Number, json_option, out_option
from mgpt4_hpc.formatting import counted
from mgpt4_hpc.output_files import check_folder


@click.command("convert")
@click.argument("src", metavar="SRC.json", type=click.Path(path_type=Path))
@out_option("Folder for the parquet files; it must not exist or be empty.")
@click.option(
    "--fraction",
    type=Number(min=0.0, max=1.0, min_open=True),
    default=1.0,
    show_default=True,
    help="Share of the rows to take.",
)
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Chooses which rows a fraction takes."
)
@click.option(
    "--rows-per-file",
    type=click.IntRange(min=1),
    default=1_000_000,
    show_default=True,
    help="A multiple of img2dataset's shard size (10,000) leaves no short shards between files.",
)
@json_option
def convert_command(
    src: Path, out: Path, fraction: float, seed: int, rows_per_file: int, as_json: bool
) -> None:
    """Convert a JSON array of {"url", "caption"} to parquet, for img2dataset.

    Reads it as a stream, so it may have any size. Rows that cannot be used are left out and
    listed in OUT/bad_rows.jsonl. The same seed and fraction take the same rows, and a smaller
    fraction takes a part of a larger one's.

    \b
    mgpt4 data convert ccs_synthetic_filtered_large.json --out cc_sbu_urls
    mgpt4 data convert laion_synthetic_filtered_large.json --out laion_urls --fraction 0.3
    """
    from mgpt4_hpc.cli.shared.progress import progress
    from mgpt4_hpc.data.sources.convert import BAD_ROWS_FILE, convert_captions

    check_folder(out.parent)
    with progress(f"converting {src.name}", "bytes") as on_progress:
        report = convert_captions(
            src,
            out,
            fraction=fraction,
            seed=seed,
            rows_per_file=rows_per_file,
            on_progress=on_progress,
        )
    if as_json:
        echo_json(report.__dict__)
        return
    click.echo(
        f"{out}: {report.num_written} of {counted(report.num_rows, 'row')} in "
        f"{counted(len(report.files), 'file')}, "
        f"{report.num_left_out} not drawn, {report.num_bad} bad"
    )
    for reason, count in report.reasons.items():
        click.echo(f"  {count} bad: {reason}")
    if report.num_bad:
        click.echo(f"all bad rows, with their numbers: {out / BAD_ROWS_FILE}", err=True)
