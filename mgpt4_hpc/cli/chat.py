"""``mgpt4 chat``: a conversation about images on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mgpt4_hpc.cli.options import DurationMin, absolute, runs_dir_option
from mgpt4_hpc.cli.talking import locate, make_sampling, model_options, sampling_options


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
    help="Go on with a conversation that /save wrote.",
)
@runs_dir_option
@click.option("--slurm", is_flag=True, help="Run on a GPU node, through `srun --pty`.")
@click.option("--partition", help="With --slurm: the partition.")
@click.option(
    "--time", "time_min", type=DurationMin(), default=60, help="With --slurm: time limit. [1:00:00]"
)
@click.option("--gpus", type=click.IntRange(0), default=1, help="With --slurm: GPUs. [1]")
@click.option("--srun", multiple=True, metavar="OPTION", help="With --slurm: an option of srun.")
@click.pass_context
def chat_command(
    context: click.Context,
    images: tuple[Path, ...],
    checkpoint: str | None,
    weights: str | None,
    template: str | None,
    device: str,
    precision: str,
    resume: Path | None,
    runs_dir: Path,
    slurm: bool,
    partition: str | None,
    time_min: int,
    gpus: int,
    srun: tuple[str, ...],
    **sampling: Any,
) -> None:
    """Talk about IMAGEs with a trained model; /help lists what can be done meanwhile.

    Questions come from the terminal or from a pipe, one a line. Answers go to stdout as they
    grow, everything else to stderr.

    \b
    mgpt4 chat photo.jpg --checkpoint runs/stage2-vicuna7b
    mgpt4 chat a.jpg b.jpg --checkpoint stage2-vicuna7b --slurm --partition a100
    echo 'What is this?' | mgpt4 chat photo.jpg --checkpoint runs/stage2-vicuna7b
    """
    settings = make_sampling(**sampling)
    if slurm:
        _on_a_node(context, partition, gpus, time_min, srun)
        return
    from mgpt4_hpc.chat.session import ChatSession
    from mgpt4_hpc.chat.terminal import converse
    from mgpt4_hpc.data.picture import read_picture
    from mgpt4_hpc.model.talker import Talker

    for image in images:
        read_picture(image)  # before a model of gigabytes is loaded
    source = locate(checkpoint, absolute(runs_dir), weights=weights, template=template)
    talker = Talker(source, device=device, precision=precision)
    session = ChatSession(talker, settings)
    if resume is not None:
        session.resume(resume)
    for image in images:
        session.add_image(image)
    shown = len(session.conversation.images)
    click.echo(f"{source.name} on {talker.model.device}, {shown} image(s); /help, /quit", err=True)
    context.exit(converse(session))


def _on_a_node(
    context: click.Context, partition: str | None, gpus: int, time_min: int, srun: Sequence[str]
) -> None:
    from mgpt4_hpc.launch.interactive import become, srun_command

    arguments = _without_slurm(sys.argv[1:], context)
    become(
        srun_command(
            arguments,
            partition=partition,
            gpus=gpus,
            time_min=time_min,
            extra=srun,
            terminal=sys.stdin.isatty(),
        )
    )


def _without_slurm(arguments: Sequence[str], context: click.Context) -> list[str]:
    """The command line as it was typed, but for the options that choose the node."""
    takes_value = {"--partition", "--time", "--gpus", "--srun"}
    kept: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if word in takes_value:
            next(rest, None)
        elif word != "--slurm" and word.partition("=")[0] not in takes_value:
            kept.append(word)
    assert context.info_name in kept
    return kept
