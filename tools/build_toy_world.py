#!/usr/bin/env python3
"""Build the toy world that ships in ``mgpt4_hpc/toy_world``: data, pre-trained towers, figures.

The data come out bit for bit the same for the same seed. The towers are trained anew and come out
equally accurate, not identical. Vision and language are trained side by side, one thread each.

    python tools/build_toy_world.py --out /tmp/toy            # everything
    python tools/build_toy_world.py --out /tmp/toy --only data
    python tools/build_toy_world.py --out mgpt4_hpc/toy_world --only probe
    python tools/build_toy_world.py --out /tmp/toy --only questions   # for a third stage
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the probe scores with the package's own evaluation

DEFAULT_SEED = 0
HASHES = "SHA256SUMS"


def _say(text: str) -> None:
    click.echo(text, err=True)


def build_data(seed: int, out: Path) -> None:
    """Shards, aligned pairs and held-out scenes."""
    from toy_world.shards import write_data

    write_data(seed, out)


def build_questions(seed: int, out: Path) -> None:
    """Conversations for a third stage; the package does not ship them."""
    from toy_world.questions import write_questions

    write_questions(seed, out)


def build_vision(seed: int, out: Path) -> None:
    """The vision tower and the Q-Former."""
    import torch
    from toy_world.export import write_towers
    from toy_world.vision import pretrain

    torch.set_num_threads(1)
    towers, _ = pretrain(seed, log=_say)
    write_towers(towers, out / "weights")


def build_llm(seed: int, out: Path) -> None:
    """The tokenizer and the language model."""
    import torch
    from toy_world.documents import train_tokenizer
    from toy_world.export import write_llm
    from toy_world.llm import pretrain

    torch.set_num_threads(1)
    folder = out / "weights" / "llm"
    tokenizer_file = train_tokenizer(seed, folder)
    model, _ = pretrain(seed, tokenizer_file, log=_say)
    write_llm(model, tokenizer_file, folder)


def run_probe(seed: int, out: Path) -> None:
    """Train the projection in two stages for three seeds; the figures go to stdout."""
    from toy_world.probe import run

    click.echo(json.dumps(run(out, (seed, seed + 1, seed + 2), log=_say), indent=1))


PARTS: dict[str, Callable[[int, Path], None]] = {
    "data": build_data,
    "questions": build_questions,
    "vision": build_vision,
    "llm": build_llm,
    "probe": run_probe,
}


def write_hashes(out: Path) -> None:
    """SHA256SUMS over the data: what a rebuild must reproduce. Check it with sha256sum -c."""
    files = sorted(
        file
        for folder in ("shards", "cc_sbu_align", "heldout")
        for file in (out / folder).rglob("*")
        if file.is_file()
    )
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(out).as_posix()}"
        for file in files
    ]
    (out / HASHES).write_text("\n".join(lines) + "\n")


def _side_by_side(names: list[str], seed: int, out: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = {name: context.Process(target=PARTS[name], args=(seed, out)) for name in names}
    for worker in workers.values():
        worker.start()
    for worker in workers.values():
        worker.join()
    failed = [name for name, worker in workers.items() if worker.exitcode]
    if failed:
        raise click.ClickException(f"failed: {', '.join(failed)}; their errors stand above")


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write to.")
@click.option("--seed", type=int, default=DEFAULT_SEED, show_default=True)
@click.option(
    "--only",
    type=click.Choice(list(PARTS)),
    multiple=True,
    help="Build these parts only; may be repeated. Default: all but the questions.",
)
def main(out: Path, seed: int, only: tuple[str, ...]) -> None:
    parts = list(only or PARTS)
    if "data" in parts:
        build_data(seed, out)
        write_hashes(out)
    if "questions" in only:
        build_questions(seed, out)
    towers = [name for name in ("vision", "llm") if name in parts]
    if towers:
        _side_by_side(towers, seed, out)
    if "probe" in parts:
        run_probe(seed, out)


if __name__ == "__main__":
    main()
