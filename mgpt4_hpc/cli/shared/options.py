"""Options that several commands share."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from mgpt4_hpc.launch.slurm.commands import parse_duration_s
from mgpt4_hpc.run_dir import SWEEPS

RUNS_DIR_VARIABLES = ("MGPT4_RUNS_DIR", "MGPT4_LAUNCH__RUNS_DIR")
"""The first that is set counts; the second is the setting's own."""

F = TypeVar("F", bound=Callable[..., Any])

SEED = click.IntRange(0, 2**63 - 1)
"""Type of each ``--seed``: what every generator takes."""


class Number(click.FloatRange):
    """Type of each option that takes a float: within its bounds, never nan or infinite."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number; a usage error where it is none."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator for several options, which ``--help`` lists in this order."""
    return lambda function: reduce(lambda inner, option: option(inner), options[::-1], function)


def refuse_without_slurm() -> None:
    """Raise UsageError if the command line has an option that only --slurm reads, without it."""
    context = click.get_current_context()
    for option in context.command.params:
        if (
            isinstance(option, click.Option)
            and (option.help or "").startswith("With --slurm:")
            and context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        ):
            raise click.UsageError(
                f"{option.opts[0]} has an effect only with --slurm: add --slurm, or leave it out"
            )


def sbatch_pairs(options: Iterable[str]) -> dict[str, str]:
    """Values of ``--sbatch``, each as KEY=VALUE. Raises UsageError for anything else."""
    pairs = {}
    for option in options:
        key, equals, value = option.lstrip("-").partition("=")
        if not (key and equals):
            raise click.UsageError(f"--sbatch {option!r} is not KEY=VALUE, as --sbatch nice=100")
        pairs[key] = value
    return pairs


def without_options(
    arguments: Sequence[str], take_value: Collection[str], flags: Collection[str]
) -> list[str]:
    """A command line as it was typed, but for some options; behind a ``--`` all are names."""
    kept: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if word == "--":
            return [*kept, word, *rest]
        if word in take_value:
            next(rest, None)
        elif word not in flags and word.partition("=")[0] not in take_value:
            kept.append(word)
    return kept


def _default_runs_dir() -> Path:
    """The site's folder, if its profile names one, else ``runs``."""
    from mgpt4_hpc.launch.submit.site_profile import choose_site

    site = choose_site(None)
    return (site.runs_dir if site is not None else None) or Path("runs")


runs_dir_option: Callable[[F], F] = click.option(
    "--runs-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar=RUNS_DIR_VARIABLES,
    default=_default_runs_dir,
    show_default="the site's, or runs",
    help="Folder of the run directories, on storage that all nodes share.",
)

site_option: Callable[[F], F] = click.option(
    "--site",
    metavar="NAME|FILE",
    help="Site profile; else MGPT4_SITE, else the one named like the cluster.",
)


def set_option(doc: str = "Any setting, as lr=1e-4; repeat for more.") -> Callable[[F], F]:
    """``--set``, which arrives as ``assignments``; ``doc`` says what a command lets it change."""
    return click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help=doc)


def out_option(doc: str) -> Callable[[F], F]:
    """``--out``, the folder that a command fills."""
    folder = click.Path(file_okay=False, path_type=Path)
    return click.option("--out", type=folder, required=True, help=doc)


executor_option: Callable[[F], F] = click.option(
    "--executor",
    type=click.Choice(["auto", "slurm", "local"]),
    default="auto",
    show_default=True,
    help="auto is Slurm where sbatch is installed.",
)

json_option: Callable[[F], F] = click.option(
    "--json", "as_json", is_flag=True, help="Machine-readable output on stdout."
)


def complete_runs(ctx: click.Context, argument: click.Parameter, incomplete: str) -> list[str]:
    """Names of the runs that begin so, for a shell's TAB; reads two folders and nothing else.

    Where a command takes several runs, a sweep's name stands for all of its own.
    """
    named = [ctx.params.get("runs_dir"), *map(os.environ.get, RUNS_DIR_VARIABLES), "runs"]
    folder = Path(next(filter(None, named))).expanduser()
    given = {name for value in ctx.params.values() if isinstance(value, tuple) for name in value}
    places = {folder: "run.json"}
    if argument.nargs == -1:
        places[folder / SWEEPS] = "sweep.json"
    names = [name for place, file in places.items() for name in _folders(place, file, incomplete)]
    return sorted(set(names) - given)


def _folders(place: Path, file: str, prefix: str) -> list[str]:
    """Folders that begin so and hold that file; a shell's reply is a line per name."""
    try:
        with os.scandir(place) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(prefix)]
    except OSError:
        return []
    return [name for name in names if name.isprintable() and (place / name / file).is_file()]


class DurationMin(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """A time limit in Slurm's forms, as whole minutes."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Minutes of ``90``, ``24:00:00`` or ``1-12``."""
        if isinstance(value, int):
            return value
        try:
            # sbatch reads a bare number as minutes; "MM:SS" is minutes and seconds.
            seconds = parse_duration_s(str(value))
        except ValueError:
            seconds = None
        if not seconds or seconds < 60:
            self.fail(f"{value!r} is no time limit: write minutes, H:MM:SS or D-HH", param, ctx)
        return int(seconds // 60)


class SettingType(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """Type of an option that is a setting: a wrong value is reported with all wrong settings.

    Args:
        of: the type of the right values.
    """

    def __init__(self, of: click.ParamType) -> None:  # type: ignore[type-arg]
        self.of = of
        self.name = of.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The right value, or a wrong one as it was given, which no configuration takes."""
        try:
            return self.of.convert(value, param, ctx)
        except click.BadParameter:
            return value


where_options: Callable[[F], F] = together(
    click.option(
        "--time", "time_min", type=SettingType(DurationMin()), help="Time limit of one attempt."
    ),
    click.option("--partition", help="Slurm partition."),
    click.option("--account", help="Slurm account."),
    click.option("--qos", help="Slurm quality of service."),
    click.option("--constraint", help="Node features."),
    click.option("--exclude", help="Nodes to keep away from."),
)
"""Where and for how long a run's job may run."""


def given_runs_dir(context: click.Context) -> Path | None:
    """The folder that a flag gave; a variable's is a setting like others, and below them all."""
    source = context.get_parameter_source("runs_dir")
    if source is not click.core.ParameterSource.COMMANDLINE:
        return None
    return absolute(context.params["runs_dir"])


def absolute(path: Path) -> Path:
    """``path`` made absolute without following links, as shared storage is often a link."""
    return Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 - resolve() would follow links
