"""``mgpt4 config``: which settings there are, what they are, and who set them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgpt4_hpc.cli.main import echo_json
from mgpt4_hpc.cli.shared.options import (
    absolute,
    json_option,
    runs_dir_option,
    set_option,
    site_option,
)
from mgpt4_hpc.cli.shared.tables import print_rows
from mgpt4_hpc.cli.site.config_import import import_command
from mgpt4_hpc.errors import ConfigError

if TYPE_CHECKING:
    from mgpt4_hpc.config.load import Resolved


@click.group("config", short_help="Presets and settings.")
def config_command() -> None:
    """Presets and settings: list, show, and explain where each value comes from."""


config_command.add_command(import_command)


@config_command.command("keys")
@json_option
def keys_command(as_json: bool) -> None:
    """Every setting with its default, its type and what it means.

    \b
    mgpt4 config keys
    """
    from mgpt4_hpc.config.describe import describe_keys

    described = describe_keys()
    if as_json:
        echo_json([asdict(setting) for setting in described])
        return
    columns = ("key", "default", "type", "meaning")
    rows = [(item.key, item.default_text, item.type, item.doc) for item in described]
    print_rows(columns, rows, folding=columns[1:])


@config_command.command("presets")
@json_option
def presets_command(as_json: bool) -> None:
    """The presets that --config takes.

    \b
    mgpt4 config presets
    """
    from mgpt4_hpc.config.describe import describe_presets

    presets = describe_presets()
    if as_json:
        echo_json(
            [{"name": name, "path": str(path), "about": about} for name, path, about in presets]
        )
        return
    rows = [(name, about) for name, _, about in presets]
    print_rows(("preset", "about"), rows, folding=("about",))


@config_command.command("schema")
def schema_command() -> None:
    """The JSON Schema of config files and site profiles, by which editors complete YAML.

    \b
    mgpt4 config schema > mgpt4.schema.json
    """
    from mgpt4_hpc.config.describe import json_schema

    echo_json(json_schema())


@config_command.command("show")
@click.argument("what", metavar="PRESET|FILE|RUN")
@set_option()
@site_option
@runs_dir_option
@json_option
def show_command(
    what: str, assignments: tuple[str, ...], site: str | None, runs_dir: Path, as_json: bool
) -> None:
    """The resolved settings as YAML, defaults included; usable as a --config file.

    \b
    mgpt4 config show stage1-vicuna7b --set max_steps=5000 > mine.yaml
    """
    resolved = resolve_settings(what, assignments, site, absolute(runs_dir))
    values = resolved.config.model_dump(mode="json")
    if as_json:
        echo_json(values)
        return
    import yaml

    click.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), nl=False)


@config_command.command("explain")
@click.argument("what", metavar="PRESET|FILE|RUN")
@click.argument("wanted", metavar="[KEY]...", nargs=-1)
@set_option()
@site_option
@runs_dir_option
@json_option
def explain_command(
    what: str,
    wanted: tuple[str, ...],
    assignments: tuple[str, ...],
    site: str | None,
    runs_dir: Path,
    as_json: bool,
) -> None:
    """Each setting, its value, and who set it: flag, environment, site, file, default, resume.

    KEY is a setting or a section, as lr, train.lr or launch; without one all are shown.

    \b
    mgpt4 config explain stage1-vicuna7b lr launch.partition
    """
    from mgpt4_hpc.config import keys

    resolved = resolve_settings(what, assignments, site, absolute(runs_dir))
    values = keys.flatten(resolved.config.model_dump(mode="json"))
    chosen = keys.select(wanted) if wanted else list(values)
    rows = [(key, values[key], _origin(resolved, key)) for key in chosen]
    if as_json:
        echo_json([{"key": key, "value": value, "origin": origin} for key, value, origin in rows])
        return
    import json

    cells = [(key, json.dumps(value, ensure_ascii=False), origin) for key, value, origin in rows]
    print_rows(("key", "value", "set by"), cells, folding=("value",))


@config_command.command("sites")
@json_option
def sites_command(as_json: bool) -> None:
    """The site profiles that --site takes, and which holds here.

    \b
    mgpt4 config sites
    """
    from mgpt4_hpc.config.describe import first_comment
    from mgpt4_hpc.config.sites import list_sites
    from mgpt4_hpc.launch.submit.site_profile import choose_site

    chosen = choose_site(None)
    rows = [
        {
            "name": name,
            "path": str(path),
            "about": first_comment(path),
            "chosen_by": chosen.why if chosen is not None and chosen.path == path else None,
        }
        for name, path in list_sites().items()
    ]
    if as_json:
        echo_json(rows)
        return
    cells = [[row[key] or "-" for key in ("name", "chosen_by", "about", "path")] for row in rows]
    print_rows(("site", "chosen by", "about", "path"), cells, folding=("about", "path"))


def resolve_settings(
    what: str, assignments: tuple[str, ...], site: str | None, runs_dir: Path
) -> Resolved:
    """Settings of a preset, a file or a run, as ``PRESET|FILE|RUN`` on a command line names them.

    Prints, on stderr, where the environment replaces what the file has.

    Raises:
        ConfigError: if there is none, or a run's were to be changed.
    """
    from mgpt4_hpc.config.assignments import read_assignments
    from mgpt4_hpc.config.load import find_config
    from mgpt4_hpc.config.run_config_file import read_config
    from mgpt4_hpc.errors import NoSuchRun
    from mgpt4_hpc.launch.submit.site_profile import choose_site, load_here
    from mgpt4_hpc.resources import preset_names
    from mgpt4_hpc.run_reference import find_run

    overrides, faults = read_assignments(assignments)
    if what not in preset_names():
        try:
            run = find_run(what, runs_dir)
        except NoSuchRun:
            pass
        else:
            if assignments or site:
                raise ConfigError(
                    f"{what} is a run: its settings are fixed",
                    fix=f"`mgpt4 resume {what} --set ...` changes those that may change",
                )
            return read_config(run.config_file)
    find_config(what)
    resolved = load_here(what, overrides, faults, choose_site(site))
    for note in resolved.notes:
        click.echo(note, err=True)
    return resolved


def _origin(resolved: Resolved, key: str) -> str:
    # One entry of a mapping, as launch.sbatch.nice, may have been set by another hand.
    deeper: dict[str, Any] = {
        full: origin for full, origin in resolved.origins.items() if full.startswith(key + ".")
    }
    origins = {resolved.origins[key]} if key in resolved.origins else set()
    return ", ".join(sorted(origins | set(deeper.values()))) or "default"
