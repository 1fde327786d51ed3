"""``mgpt4 doctor``: what this site will do to a run, and which settings to use."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mgpt4_hpc.cli.main import echo_json
from mgpt4_hpc.cli.shared.options import RUNS_DIR_VARIABLES, absolute, json_option, site_option

if TYPE_CHECKING:
    from mgpt4_hpc.launch.site_check.doctor import Report
    from mgpt4_hpc.launch.site_check.doctor_slurm import Prognosis
    from mgpt4_hpc.launch.site_check.finding import Finding

_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "fault": "red"}
_MOST_COLUMNS = 110
EXIT_FAULTS = 3


@click.command("doctor", short_help="What this site will do to a run, and which settings to use.")
@click.option(
    "-p", "--partition", help="The partition to look at; otherwise all that a run could use."
)
@click.option("--account", help="Slurm account; otherwise the site profile's.")
@click.option("--qos", help="Slurm quality of service; otherwise the site profile's.")
@site_option
@click.option(
    "--runs-dir",
    "--run-dir",
    "runs_dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar=RUNS_DIR_VARIABLES,
    show_default="the site's, or runs",
    help="Folder of the run directories: its file system is tried.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu"]),
    default="auto",
    show_default=True,
    help="cpu if runs are not meant for GPUs.",
)
@json_option
@click.pass_context
def doctor_command(
    context: click.Context,
    partition: str | None,
    account: str | None,
    qos: str | None,
    site: str | None,
    runs_dir: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """What this site will do to a run, and which settings to use.

    Asks Slurm for its settings, tries the runs folder's file system, and looks at Python and the
    GPUs. Submits nothing and leaves nothing behind. Ends with 0, with 3 if a run would not work,
    and with 5 if Slurm does not answer. `mgpt4 drill` then proves it with a run.

    \b
    mgpt4 doctor
    mgpt4 doctor --partition a100-preempt --runs-dir /scratch/$USER/runs
    """
    from mgpt4_hpc.config.sites import read_site
    from mgpt4_hpc.launch.site_check.doctor import examine
    from mgpt4_hpc.launch.site_check.finding import Level
    from mgpt4_hpc.launch.submit.site_profile import choose_site

    profile = choose_site(site)
    usual = read_site(profile.path) if profile is not None else {}
    report = examine(
        absolute(runs_dir or Path(usual.get("launch.runs_dir") or "runs")),
        partition=partition,
        account=account or usual.get("launch.account"),
        qos=qos or usual.get("launch.qos"),
        device=device,
    )
    if as_json:
        echo_json(
            {
                "ok": not report.count(Level.FAULT) and report.unreachable is None,
                "faults": report.count(Level.FAULT),
                "warnings": report.count(Level.WARNING),
                "unreachable": report.unreachable.what if report.unreachable else None,
                "findings": [asdict(finding) for finding in report.findings],
                "partitions": [asdict(prognosis) for prognosis in report.prognoses],
            }
        )
    else:
        if profile is not None:
            click.echo(f"site profile {profile.name}, chosen by {profile.why}")
        _show(report)
    if report.unreachable is not None:
        raise report.unreachable
    if report.count(Level.FAULT):
        context.exit(EXIT_FAULTS)


def _show(report: Report) -> None:
    from mgpt4_hpc.launch.site_check.finding import Level

    topic = ""
    for finding in report.findings:
        if finding.topic != topic:
            topic = finding.topic
            click.secho(f"\n{topic}", bold=True)
        _show_finding(finding)
    for prognosis in report.prognoses:
        _show_prognosis(prognosis)
    faults, warnings = report.count(Level.FAULT), report.count(Level.WARNING)
    if report.unreachable is not None:
        advice = "Slurm could not be asked: what it does to a run is not known yet"
    else:
        advice = "mend the faults first" if faults else "`mgpt4 drill` proves it with a run"
    click.echo(f"\n{_counted(faults, 'fault')}, {_counted(warnings, 'warning')}; {advice}")


def _show_finding(finding: Finding) -> None:
    _show_lines(finding.level, finding.what, colour=_COLOURS[finding.level])
    if finding.fix:
        _show_lines("", f"fix: {finding.fix}")


def _show_prognosis(prognosis: Prognosis) -> None:
    click.secho(f"\nwhat happens to a run in {prognosis.partition}", bold=True)
    for event, sentence in prognosis.happens.items():
        _show_lines(event, sentence, width=14)
    options = " ".join(f"--set {key}={value}" for key, value in prognosis.settings.items())
    _show_lines("settings", options, width=14)


def _show_lines(label: str, text: str, *, width: int = 9, colour: str | None = None) -> None:
    indent = " " * (width + 2)
    columns = max(40, min(_MOST_COLUMNS, shutil.get_terminal_size().columns))
    lines = textwrap.wrap(
        text,
        columns,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    first = lines[0][len(indent) :] if lines else ""
    click.echo("  " + click.style(f"{label:<{width}}", fg=colour) + first)
    for line in lines[1:]:
        click.echo(line)


def _counted(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
