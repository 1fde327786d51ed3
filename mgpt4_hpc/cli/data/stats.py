"""``mgpt4 data stats``: what a source is like, in numbers and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mgpt4_hpc.cli.main import echo_json
from mgpt4_hpc.cli.shared.options import SEED, json_option
from mgpt4_hpc.cli.shared.tables import print_rows, visible
from mgpt4_hpc.errors import ConfigError, DataError
from mgpt4_hpc.output_files import check_output, is_own_png
from mgpt4_hpc.resources import expand_toy

if TYPE_CHECKING:
    from mgpt4_hpc.data.index.index import ScanOptions, ShardIndex
    from mgpt4_hpc.data.index.left_out import LeftOut
    from mgpt4_hpc.data.sources.stats import Duplicates, SourceStats, Spread

_SHARD_SUFFIXES = {".tar", ".txt", ".lst", ".list"}
"""A file with one of these is a shard or a list of shards; any other is taken for an index."""
_SHOWN = 3
_WIDTH = 60


@click.command("stats")
@click.argument("what", metavar="INDEX|SHARDS")
@click.option(
    "--tokenizer",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="LLM_DIR",
    help="Also count tokens, with this language model's tokenizer.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=100_000,
    show_default=True,
    help="Samples to read, spread over the source; 0 reads all.",
)
@click.option(
    "--contact-sheet",
    "sheet",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.png",
    help="Also draw 24 random samples with their captions.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Chooses the samples.")
@json_option
def stats_command(
    what: str, tokenizer: Path | None, limit: int, sheet: Path | None, seed: int, as_json: bool
) -> None:
    """Show caption lengths, image sizes and duplicates; draw a contact sheet.

    Tokens are those of the answer with its end symbol, and the share that each stage's default
    limit (32 and 160) cuts. Duplicates are equal bytes among the samples read.

    \b
    mgpt4 data stats cc_sbu.index --contact-sheet cc_sbu.png
    mgpt4 data stats cc_sbu_align_shards --tokenizer vicuna-7b --limit 0
    """
    from mgpt4_hpc.cli.shared.progress import progress
    from mgpt4_hpc.data.index.shard_list import left_out_of_folders
    from mgpt4_hpc.data.sources.contact_sheet import write_contact_sheet
    from mgpt4_hpc.data.sources.stats import collect_stats

    if sheet is not None:
        if sheet.suffix.lower() != ".png":
            raise ConfigError(f"--contact-sheet {sheet} is a PNG", fix="end its name in .png")
        check_output(sheet, kind="a contact sheet", is_own=is_own_png)
    encode = None
    if tokenizer is not None:
        from mgpt4_hpc.model.llm_files.tokenizer import load_tokenizer

        encode = load_tokenizer(expand_toy(str(tokenizer))).encode
    left_out = left_out_of_folders(what)
    with opened(what) as index:
        left_out = [*index.left_out, *left_out]
        if sheet is not None:
            write_contact_sheet(index, sheet, seed=seed)
        with progress("reading samples", "samples") as on_progress:
            stats = collect_stats(
                index, encode=encode, limit=limit, seed=seed, on_progress=on_progress
            )
    if as_json:
        echo_json(
            {
                **asdict(stats),
                "left_out": [asdict(entry) for entry in left_out],
                "contact_sheet": sheet,
            }
        )
    else:
        _print(stats)
        echo_left_out(left_out)
        if sheet is not None:
            click.echo(f"contact sheet: {sheet}")
        if tokenizer is None:
            click.echo("for lengths in tokens: --tokenizer LLM_DIR", err=True)
    if not stats.num_read:
        raise DataError(f"{what}: no sample can be read", fix=f"mgpt4 data check {what}")


def echo_left_out(entries: Iterable[LeftOut]) -> None:
    """A line for each reason why something that lies in shards or folders is not used."""
    for entry in entries:
        click.echo(f"left out: {visible(entry)}")


def names_an_index(what: str) -> bool:
    """Whether an argument INDEX|SHARDS is an index."""
    return Path(what).is_file() and Path(what).suffix not in _SHARD_SUFFIXES


@contextmanager
def opened(what: str, options: ScanOptions | None = None) -> Iterator[ShardIndex]:
    """The index, or a passing one of shards, which are scanned by ``options``."""
    from tempfile import gettempdir

    from mgpt4_hpc.cli.shared.progress import progress
    from mgpt4_hpc.data.index.index import ScanOptions, ShardIndex, build_index
    from mgpt4_hpc.data.index.shard_list import expand_shards
    from mgpt4_hpc.data.index.temporary_output import scratch_beside

    if names_an_index(what):
        yield ShardIndex.open(what)
        return
    paths, name = expand_shards(what), Path(what).name
    with scratch_beside(Path(gettempdir()) / "mgpt4-shards") as folder:
        made, scan = folder / "source.index", options or ScanOptions()
        with progress("reading", "shards") as on_progress:
            index, _ = build_index(paths, made, scan, name=name, on_shard=on_progress)
        yield index


def _print(stats: SourceStats) -> None:
    from mgpt4_hpc.data.sources.stats import LIMITS, MAX_TOKENS, MAX_WORDS

    click.echo(
        f"{stats.name}: {stats.num_read} of {stats.num_samples} samples read, "
        f"{stats.num_quarantined} quarantined, {sum(stats.unreadable.values())} unreadable"
    )
    for reason, count in stats.unreadable.items():
        click.echo(f"  {count} unreadable: {reason}")
    rows = []

    def row(name: str, spread: Spread | None, cut: str = "") -> None:
        """Add a row unless nothing was counted; ``cut`` is the text of the last column."""
        if spread is not None:
            numbers = (spread.minimum, spread.p5, spread.median, f"{spread.mean:.1f}")
            rows.append((name, *numbers, spread.p95, spread.maximum, cut))

    row("words", stats.words, f"{stats.over_max_words:.1%} over {MAX_WORDS} (stage 1)")
    for stage, name in (("stage1", "tokens in stage 1"), ("stage2", "tokens in stage 2")):
        share = stats.truncated.get(stage, 0.0)
        row(name, stats.tokens.get(stage), f"{share:.1%} over {LIMITS[stage]}")
    if (talks := stats.conversations) is not None:
        row("turns", talks.turns)
        row("images", talks.images)
        row("tokens", talks.tokens, f"{talks.cut:.1%} over {MAX_TOKENS}, cut at a turn")
        over = f"{talks.truncated_answers:.1%} over {LIMITS['stage2']}"
        row("tokens of an answer", talks.answer_tokens, over)
    row("width", stats.width)
    row("height", stats.height)
    row("image bytes", stats.image_bytes)
    print_rows(("", ">min", ">5%", ">median", ">mean", ">95%", ">max", "cut"), rows)
    common = ", ".join(f"{width}x{height} ({n})" for width, height, n in stats.sizes[:_SHOWN])
    click.echo(f"most frequent sizes: {common or 'none'}")
    if stats.bad_images:
        click.echo(f"images without a readable header: {stats.bad_images}")
    _print_duplicates("images", stats.images)
    _print_duplicates("captions", stats.captions)


def _print_duplicates(name: str, duplicates: Duplicates | None) -> None:
    if duplicates is None:
        return
    click.echo(f"duplicate {name}: {duplicates.surplus} ({duplicates.share:.2%} of those read)")
    for entry in duplicates.largest[:_SHOWN]:
        click.echo(f"  {entry.count} times: {entry.key} in {entry.shard}: {_short(entry.caption)}")


def _short(caption: str) -> str:
    """One line of a caption, without what a terminal would obey."""
    shown = "".join(char if char.isprintable() else " " for char in caption[: _WIDTH + 1])
    return shown if len(shown) <= _WIDTH else shown[: _WIDTH - 3] + "..."
