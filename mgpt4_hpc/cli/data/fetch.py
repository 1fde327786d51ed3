"""``mgpt4 data fetch``: ready-made shards from the Hugging Face hub, or from a list of URLs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

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
from mgpt4_hpc.formatting import counted, size_text
from mgpt4_hpc.output_files import check_folder

if TYPE_CHECKING:
    from mgpt4_hpc.downloads.fetch import FetchReport
    from mgpt4_hpc.downloads.listing import Listing

HUB = "hf:"
_SHOWN = 10


@click.command("fetch")
@click.argument("source", metavar="hf:OWNER/NAME|URLS.txt")
@out_option("Folder of the files; an unfinished one is continued.")
@click.option(
    "--files",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="Names to fetch, as 'cc3m-train-*.tar'; repeat for more. [all]",
)
@click.option("--revision", help="Branch, tag or commit of the repository. [main]")
@array_options(parts=8, time_min=24 * 60)
@json_option
def fetch_command(
    source: str,
    out: Path,
    patterns: tuple[str, ...],
    revision: str | None,
    part: Part | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Fetch ready-made shards from a data set of the Hugging Face hub, or from a list of URLs.

    A file appears when it is whole and its hash is right. After any interruption the same command
    continues where it stopped, at the same commit of the repository. Several machines may fill one
    folder. `mgpt4 data index` then reads the shards as they are.

    \b
    mgpt4 data fetch hf:pixparse/cc3m-wds --out /data/cc3m --files 'cc3m-train-*.tar'
    mgpt4 data fetch urls.txt --out /data/shards --slurm --parts 8 --partition cpu

    Private and gated data sets need HF_TOKEN. URLS.txt has one URL a line.
    """
    from mgpt4_hpc.cli.shared.progress import progress
    from mgpt4_hpc.downloads.fetch import Fetch
    from mgpt4_hpc.downloads.listing import WORK_FOLDER
    from mgpt4_hpc.launch.side_jobs.array import slice_of

    array, _ = split_array(options, cpus=2)
    check_folder(out.parent)
    listing = _listing(source, out, revision, patterns)
    fetch = Fetch(listing, out)
    if array.wanted:
        folder = out / WORK_FOLDER / "array"
        job_id = run_array(array, "mgpt4-fetch", folder, parts=len(listing.files))
        if job_id is not None:
            echo_submitted(job_id, as_json)
            return
    files = slice_of(listing.files, *part) if part is not None else listing.files
    with progress("fetching", "bytes") as on_progress:
        report = fetch.run(files, on_progress=on_progress)
    if as_json:
        echo_json(asdict(report))
    else:
        _print(report)
    if report.missing:
        raise DataError(
            f"{len(report.missing)} of {counted(report.num_asked, 'file')} could not be fetched",
            why="; ".join(f"{name}: {why}" for name, why in list(report.missing.items())[:_SHOWN]),
            fix="mend the reason and give the same command again: what is there stays",
        )


def _listing(source: str, out: Path, revision: str | None, patterns: tuple[str, ...]) -> Listing:
    """What to fetch; of a folder that was begun, at its commit."""
    from mgpt4_hpc.downloads.fetch import begun_with
    from mgpt4_hpc.downloads.listing import list_repository, list_urls

    if not source.startswith(HUB):
        if revision is not None:
            raise click.UsageError("--revision belongs to a repository, hf:OWNER/NAME")
        return list_urls(Path(source), patterns)
    begun = begun_with(out)
    if begun is not None and begun[0] == source and revision is None:
        revision = begun[1]
    repo = source.removeprefix(HUB)
    return list_repository(repo, kind="dataset", revision=revision, patterns=patterns)


def _print(report: FetchReport) -> None:
    source = f"{report.source} at {report.revision[:12]}" if report.revision else report.source
    click.echo(
        f"{report.out}: {report.num_files} of {counted(report.num_asked, 'file')} of {source}, "
        f"{size_text(report.num_bytes)}, {len(report.fetched)} fetched now"
    )
    if report.unverified:
        click.echo(
            f"{counted(len(report.unverified), 'file')} came without a hash: only sizes were "
            "compared",
            err=True,
        )
