"""``mgpt4 data``: shards and their index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgpt4_hpc.cli.data.convert import convert_command
from mgpt4_hpc.cli.data.download import download_command
from mgpt4_hpc.cli.data.encode import encode_command
from mgpt4_hpc.cli.data.fetch import fetch_command
from mgpt4_hpc.cli.data.recaption import recaption_command
from mgpt4_hpc.cli.data.stats import echo_left_out, names_an_index, opened, stats_command
from mgpt4_hpc.cli.main import echo_json
from mgpt4_hpc.cli.shared.options import json_option, out_option
from mgpt4_hpc.cli.shared.slurm_array_options import Part, array_options, run_array, split_array
from mgpt4_hpc.cli.shared.tables import print_rows
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.formatting import counted
from mgpt4_hpc.output_files import check_folder, check_output
from mgpt4_hpc.resources import expand_toy

if TYPE_CHECKING:
    from mgpt4_hpc.data.index.index import ShardIndex
    from mgpt4_hpc.data.index.left_out import LeftOut

    _Indexed = tuple[ShardIndex, int]

Quarantine = Sequence[tuple[str, str, str]]
"""(shard, key, reason) of what training will not see."""

_workers_option = click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes."
)
_verify_option = click.option("--verify", is_flag=True, help="Also compute a CRC32 of every part.")
_decode_option = click.option(
    "--decode", is_flag=True, help="Also decode every image and parse every json."
)


@click.group("data", short_help="Shards and their index.")
def data_command() -> None:
    """Caption lists, shards and their index. Training reads plain webdataset tars as they are."""


data_command.add_command(convert_command)
data_command.add_command(download_command)
data_command.add_command(fetch_command)
data_command.add_command(recaption_command)


@data_command.command("index")
@click.argument("shards")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Index file."
)
@click.option("--name", help="Name of the source; default: the index file's.")
@_verify_option
@_decode_option
@_workers_option
@array_options(parts=64, time_min=240)
@json_option
def index_command(
    shards: str,
    out: Path,
    name: str | None,
    verify: bool,
    decode: bool,
    workers: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Index SHARDS: a folder, a brace pattern, a list file or one tar.

    Walks each tar's headers once. An index that is there is brought up to date: only new and
    changed shards are read again. A file that is no index is never written over.

    \b
    mgpt4 data index 'cc_sbu/{00000..01255}.tar' --out cc_sbu.index --workers 8
    mgpt4 data index /data/laion --out laion.index --verify --slurm --parts 64

    With --slurm each task indexes a part of the shards into OUT.parts/, and the parts are put
    together in the end. By hand: --part 1/64 and so on, then once without --part.
    """
    from mgpt4_hpc.data.index.index import ScanOptions, build_index
    from mgpt4_hpc.data.index.index_file import is_index
    from mgpt4_hpc.data.index.shard_list import expand_shards, left_out_of_folders
    from mgpt4_hpc.launch.side_jobs.array import check_parts_folder

    array, rest = split_array(options, cpus=workers)
    part: Part | None = rest["part"]
    paths = expand_shards(shards)
    check_output(out, kind="a shard index", is_own=is_index)
    parts_folder = out.with_name(f"{out.name}.parts")
    check_parts_folder(parts_folder, "[0-9]*-of-[0-9]*.index")
    if array.wanted:
        job_id = run_array(array, f"index-{out.name}", parts_folder, parts=len(paths), merge=True)
        if job_id is not None:
            _print_submitted(job_id, out, as_json)
            return
    index = partial(
        build_index,
        name=name or out.name.split(".")[0],
        options=ScanOptions(verify, decode, workers),
    )
    if part is not None:
        _print_indexed(_index_part(index, paths, out, parts_folder, part), as_json)
        return
    indexed = _index_whole(index, paths, out, parts_folder)
    _print_indexed(indexed, as_json, left_out_of_folders(shards))
    if indexed[0].quarantined and not as_json:
        click.echo(f"see what was left out: mgpt4 data check {out}", err=True)


@data_command.command("pack")
@click.argument("src", type=click.Path(path_type=Path))
@out_option("Folder for the shards; it must not exist or be empty.")
@click.option(
    "--images",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Folder that the images of conversations are named from; default: the file's.",
)
@click.option(
    "--leave-out-bad", is_flag=True, help="Pack the good conversations though some are bad."
)
@json_option
def pack_command(
    src: Path, out: Path, images: Path | None, leave_out_bad: bool, as_json: bool
) -> None:
    """Pack conversations, pairs of images and texts, or a cc_sbu_align folder into tar shards.

    SRC is a file of conversations (LLaVA's JSON, or the messages format as JSON Lines or Parquet),
    a folder of pairs (KEY.jpg with KEY.txt or KEY.json), or one with filter_cap.json and image/.
    Every image is decoded once, and all that is bad is named at once. Training packs a folder with
    filter_cap.json by itself, and nothing else.

    \b
    mgpt4 data pack llava_instruct_150k.json --images train2017 --out llava_shards
    mgpt4 data pack my-images-and-texts --out my-pairs
    mgpt4 data pack cc_sbu_align --out cc_sbu_align_shards
    """
    from mgpt4_hpc.cli.shared.progress import progress
    from mgpt4_hpc.data.sources.pack import is_align_folder, pack_align_folder, pack_pairs

    check_folder(out.parent)
    src = Path(expand_toy(str(src)))
    if src.is_file():
        from mgpt4_hpc.data.sources.pack_conversations import pack_conversations

        with progress("packing", "bytes") as on_progress:
            packed = pack_conversations(
                src, out, images=images, leave_out_bad=leave_out_bad, on_progress=on_progress
            )
    elif images is not None or leave_out_bad:
        raise click.UsageError("--images and --leave-out-bad are for a file of conversations")
    else:
        packed = (pack_align_folder if is_align_folder(src) else pack_pairs)(src, out)
    if as_json:
        echo_json(
            {
                "out": str(out),
                "num_samples": packed.num_samples,
                "shards": [str(shard) for shard in packed.shards],
                "left_out": [asdict(entry) for entry in packed.left_out],
                "bad": list(packed.bad),
            }
        )
        return
    for fault in packed.bad:
        click.echo(f"left out: {fault}", err=True)
    echo_left_out(packed.left_out)
    samples = counted(packed.num_samples, "sample")
    click.echo(f"{out}: {samples} in {counted(len(packed.shards), 'shard')}")


@data_command.command("check")
@click.argument("what", metavar="INDEX|SHARDS")
@_verify_option
@_decode_option
@_workers_option
@json_option
def check_command(what: str, verify: bool, decode: bool, workers: int, as_json: bool) -> None:
    """Show what training will not see, by shard and reason; exit 1 if data is missing.

    For an INDEX: what it quarantined, and whether its shards are still as they were. SHARDS are
    scanned now, captions included, without writing an index; --decode reads the images.

    \b
    mgpt4 data check cc_sbu.index
    mgpt4 data check laion --decode
    """
    name, num_samples, num_shards, quarantined, changed, left_out = _look_over(
        what, verify, decode, workers
    )
    if as_json:
        echo_json(
            {
                "source": name,
                "num_samples": num_samples,
                "num_shards": num_shards,
                "changed_shards": changed,
                "quarantined": [
                    {"shard": shard, "key": key, "reason": reason}
                    for shard, key, reason in quarantined
                ],
                "left_out": [asdict(entry) for entry in left_out],
            }
        )
    else:
        _print_quarantine(quarantined)
        reasons = {reason for _, _, reason in quarantined}  # in the table above
        echo_left_out(entry for entry in left_out if entry.reason not in reasons)
        click.echo(
            f"{name}: {counted(num_samples, 'usable sample')} in {counted(num_shards, 'shard')}, "
            f"{len(quarantined)} quarantined, {counted(len(changed), 'shard')} missing or changed"
        )
    if changed:
        raise DataError(
            f"{counted(len(changed), 'shard')} missing or changed since the indexing: "
            + "; ".join(changed[:5]),
            fix="bring them back, or index them again: mgpt4 data index SHARDS --out INDEX",
        )
    if num_samples == 0:
        raise DataError(f"{name} has no usable sample", fix="see the reasons above")


data_command.add_command(stats_command)
data_command.add_command(encode_command)

Checked = tuple[str, int, int, Quarantine, list[str], list["LeftOut"]]


def _look_over(what: str, verify: bool, decode: bool, workers: int) -> Checked:
    from mgpt4_hpc.data.index.index import ScanOptions
    from mgpt4_hpc.data.index.shard_list import left_out_of_folders

    is_index = names_an_index(what)
    options = ScanOptions(verify=verify, decode=decode, texts=True, workers=workers)
    with opened(what, options) as index:
        name, changed = (index.name, index.check_shards()) if is_index else (what, [])
        left_out = [*index.left_out, *left_out_of_folders(what)]
        return name, index.num_samples, index.num_shards, index.quarantined, changed, left_out


def _print_quarantine(quarantined: Quarantine) -> None:
    if not quarantined:
        return
    # A truncated tar costs a thousand samples for one reason: a row, and one of its keys.
    counts = Counter((shard, reason) for shard, _, reason in quarantined)
    example = {(shard, reason): key for shard, key, reason in reversed(quarantined)}
    rows = [(*place, count, example[place]) for place, count in sorted(counts.items())]
    print_rows(("shard", "reason", ">count", "first"), rows, folding=("shard", "reason"))
    click.echo()


def _index_part(
    index: Callable[..., _Indexed], paths: Sequence[Path], out: Path, folder: Path, part: Part
) -> _Indexed:
    """One part's shards into a file of its own; what the whole index had serves again."""
    from mgpt4_hpc.cli.shared.progress import progress
    from mgpt4_hpc.launch.side_jobs.array import slice_of

    target = folder / f"{part[0]}-of-{part[1]}.index"
    with progress("indexing", "shards") as on_progress:
        return index(
            list(slice_of(paths, *part)),
            target,
            reuse=[*_parts_in(folder), out],
            on_shard=on_progress,
        )


def _index_whole(
    index: Callable[..., _Indexed], paths: Sequence[Path], out: Path, folder: Path
) -> _Indexed:
    """All shards, the parts put together; their folder is not needed after that."""
    import shutil

    from mgpt4_hpc.cli.shared.progress import progress

    with progress("indexing", "shards") as on_progress:
        indexed = index(
            paths, out, reuse=_parts_in(folder), may_be_empty=False, on_shard=on_progress
        )
    if folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
    return indexed


def _parts_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.index"))


def _print_indexed(indexed: _Indexed, as_json: bool, of_folders: Sequence[LeftOut] = ()) -> None:
    index, num_reused = indexed
    left_out = [*index.left_out, *of_folders]
    if as_json:
        echo_json(
            {
                "index": str(index.path),
                "num_samples": index.num_samples,
                "num_shards": index.num_shards,
                "num_reused": num_reused,
                "num_ignored": index.num_ignored,
                "num_quarantined": len(index.quarantined),
                "left_out": [asdict(entry) for entry in left_out],
            }
        )
        return
    echo_left_out(left_out)
    click.echo(
        f"{index.path}: {counted(index.num_samples, 'sample')} in "
        f"{counted(index.num_shards, 'shard')}, {len(index.quarantined)} quarantined"
        + (f", {counted(num_reused, 'shard')} unchanged" if num_reused else "")
    )


def _print_submitted(job_id: str, out: Path, as_json: bool) -> None:
    if as_json:
        echo_json({"index": str(out), "job_id": job_id})
    else:
        click.echo(f"submitted; job {job_id} writes {out} when all parts are done")
