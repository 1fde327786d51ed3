"""``mgpt4 report``: a run's curves and attempts as one picture and one page."""

from __future__ import annotations

from pathlib import Path

import click

from mgpt4_hpc.cli.main import echo_json
from mgpt4_hpc.cli.runs.history import ending_of, goodput_line, steps_of
from mgpt4_hpc.cli.shared.options import absolute, complete_runs, json_option, runs_dir_option
from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.formatting import counted
from mgpt4_hpc.output_files import check_output, is_own_page, is_own_png
from mgpt4_hpc.run_reference import find_run
from mgpt4_hpc.telemetry.goodput import goodput
from mgpt4_hpc.telemetry.ledger import read_changes, read_ledgers

_COLUMNS = ("attempt", "job", "steps", "replayed", "saves", "minutes", "ended")


@click.command("report", short_help="A run's curves and attempts as a picture and a page.")
@click.argument("name", metavar="RUN", shell_complete=complete_runs)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=".",
    show_default=True,
    help="Folder for NAME.png and NAME.html; made where missing.",
)
@runs_dir_option
@json_option
def report_command(name: str, out: Path, runs_dir: Path, as_json: bool) -> None:
    """Draw a run: loss, learning rate, throughput, goodput, and where each attempt's time went.

    Reads the run's TensorBoard folder and ledger, also while it trains. The page holds the
    picture, and the scores and answers of evaluated checkpoints side by side (`mgpt4 eval RUN
    --every-checkpoint`), so that one file can be sent around.

    \b
    mgpt4 report stage1-vicuna7b --out reports
    """
    from mgpt4_hpc.evaluation.checkpoints import checkpoint_tables
    from mgpt4_hpc.launch.runs.run_facts import origin_of
    from mgpt4_hpc.telemetry.report import Table, draw_report, read_curves, report_page

    run = find_run(name, absolute(runs_dir))
    run.identity()
    attempts, changes = read_ledgers(run.ledger), read_changes(run.ledger)
    if not attempts:
        raise MgptError(f"{run.name} has not started yet", fix=f"see: mgpt4 status {run.name}")
    out.mkdir(parents=True, exist_ok=True)
    picture, page = out / f"{run.name}.png", out / f"{run.name}.html"
    check_output(picture, kind="a picture of a run", is_own=is_own_png)
    check_output(page, kind="a page of a run", is_own=is_own_page)
    total = goodput(attempts)
    curves = read_curves(run.tensorboard)
    origin = origin_of(run)
    facts = [*([f"{run.name} {origin}"] if origin else []), goodput_line(total)]
    png = draw_report(
        run.name,
        curves,
        attempts,
        changes,
        f"goodput {total.without_queue:.1%} of the time on nodes, "
        f"{counted(len(attempts), 'attempt')}",
    )
    rows = [
        (
            attempt.number,
            attempt.job_id or "-",
            steps_of(attempt),
            attempt.steps_replayed,
            attempt.saves,
            f"{attempt.seconds / 60:.1f}",
            ending_of(run, attempt),
        )
        for attempt in attempts
    ]
    tables = [Table("Attempts", _COLUMNS, rows)]
    if changes:
        rows_of_changes = [(change.attempt, change.step, change.what) for change in changes]
        tables.append(Table("Changes of settings", ("attempt", "step", "change"), rows_of_changes))
    tables += checkpoint_tables(run)
    picture.write_bytes(png)
    page.write_text(report_page(run.name, png, facts, tables), encoding="utf-8")
    if as_json:
        echo_json({"run": run.name, "png": str(picture), "html": str(page)})
    else:
        click.echo(f"{picture}\n{page}")
