"""What a shell's TAB offers for values: runs, presets, sites, partitions, settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import click
from click.shell_completion import CompletionItem

from mgpt4_hpc.cli.shared.options import complete_runs

Offer = Callable[[click.Context, click.Parameter, str], Iterable[str]]


def add_completion(command: click.Command) -> None:
    """Let a command's options and arguments complete their values, by their names."""
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        add_completion(inner)
    for parameter in command.params:
        names = [*parameter.opts, *str(parameter.metavar).rstrip(".").strip("[]").split("|")]
        offers = [offer for names_of_it, offer in _OFFERS if set(names) & names_of_it]
        if offers and "shell_complete" not in vars(parameter):
            complete = partial(_offered, offers, takes_file="FILE" in names, parameter=parameter)
            setattr(parameter, "shell_complete", complete)  # noqa: B010 - mypy: a method of click's


def _offered(
    offers: Iterable[Offer],
    ctx: click.Context,
    incomplete: str,
    *,
    takes_file: bool,
    parameter: click.Parameter,
) -> list[CompletionItem]:
    texts = [text for offer in offers for text in offer(ctx, parameter, incomplete)]
    items = [CompletionItem(text) for text in texts if text.startswith(incomplete)]
    return items or [CompletionItem(incomplete, type="file")] if takes_file else items


def _presets(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from mgpt4_hpc.resources import preset_names

    return preset_names()


def _sites(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from mgpt4_hpc.config.sites import list_sites

    return list(list_sites())


def _partitions(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from mgpt4_hpc.errors import MgptError
    from mgpt4_hpc.launch.slurm.commands import partition_names

    try:
        return partition_names(timeout_s=2.0)
    except MgptError:
        return []


def _settings(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Keys up to their ``=``; behind it the values of those that have few."""
    from mgpt4_hpc.config import keys

    key, equals, _ = incomplete.partition("=")
    if not equals:
        names = list(keys.fields())
        if incomplete:  # lr stands for train.lr
            leaves = [name.rpartition(".")[2] for name in names]
            names += [leaf for leaf in leaves if not keys.resolve(leaf)[1]]
        return [f"{name}=" for name in dict.fromkeys(names)]
    full, _ = keys.resolve(key)
    return [f"{key}={value}" for value in keys.choices(full)] if full else []


_OFFERS: tuple[tuple[set[str], Offer], ...] = (
    ({"RUN", "--after", "--from", "--checkpoint"}, complete_runs),
    ({"PRESET"}, _presets),
    ({"--site"}, _sites),
    ({"--partition"}, _partitions),
    ({"KEY=VALUE", "KEY=VALUE,..."}, _settings),
)
"""What to offer for an option, or for a word of a metavar."""
