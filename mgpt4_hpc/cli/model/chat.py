"""``mgpt4 chat``: a conversation about images on the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mgpt4_hpc.cli.shared.model_options import (
    find_model,
    locate,
    make_sampling,
    model_options,
    sampling_options,
    say_toy,
)
from mgpt4_hpc.cli.shared.options import absolute, runs_dir_option
from mgpt4_hpc.cli.shared.srun_options import go_to_node, slurm_options, split_slurm
from mgpt4_hpc.formatting import counted


@click.command("chat", short_help="Talk with a trained model about images.")
@click.argument(
    "images", nargs=-1, metavar="[IMAGE]...", type=click.Path(dir_okay=False, path_type=Path)
)
@click.option(
    "--checkpoint",
    metavar="RUN|CHECKPOINT|FILE",
    help="Who talks; default: the projector in the bundle (--weights).",
)
@model_options
@sampling_options
@click.option(
    "--resume",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Continue a conversation that /save wrote.",
)
@runs_dir_option
@slurm_options
@click.pass_context
def chat_command(
    context: click.Context,
    /,
    images: tuple[Path, ...],
    checkpoint: str | None,
    weights: str | None,
    template: str | None,
    device: str,
    precision: str,
    resume: Path | None,
    runs_dir: Path,
    **others: Any,
) -> None:
    """Talk with a trained model, about IMAGEs or without any; /help lists the commands.

    Questions come from the terminal or from a pipe, one a line. Answers go to stdout as they
    grow, everything else to stderr.

    \b
    mgpt4 chat photo.jpg --checkpoint runs/stage2-vicuna7b
    mgpt4 chat a.jpg b.jpg --checkpoint stage2-vicuna7b --slurm --partition a100
    echo 'What is this?' | mgpt4 chat photo.jpg --checkpoint runs/stage2-vicuna7b
    """
    node, sampling = split_slurm(others)
    settings = make_sampling(**sampling)
    word = "--checkpoint RUN"

    def check() -> None:
        """What is named is there, before a node is waited for or gigabytes are loaded."""
        from mgpt4_hpc.data.images.image_file import read_picture

        find_model(checkpoint, absolute(runs_dir), weights=weights, word=word)
        for image in images:
            read_picture(image)

    if node.wanted:
        go_to_node(node, context, terminal=sys.stdin.isatty(), check=check)
        return
    check()
    source = locate(checkpoint, absolute(runs_dir), weights=weights, template=template, word=word)
    from mgpt4_hpc.chat.session import ChatSession
    from mgpt4_hpc.chat.terminal import converse
    from mgpt4_hpc.model.generation.chat_model import ChatModel

    chat_model = ChatModel(source, device=device, precision=precision)
    session = ChatSession(chat_model, settings)
    if resume is not None:
        session.resume(resume)
    for image in images:
        session.add_image(image)
    shown = len(session.conversation.images)
    click.echo(
        f"{source.name} on {chat_model.model.device}, {counted(shown, 'image')}; /help, /quit",
        err=True,
    )
    say_toy(source)
    context.exit(converse(session))
