#!/usr/bin/env python3
"""The quick tests on every Python that is here, on the oldest and the newest allowed dependencies.

    make matrix
    python tools/matrix.py --python /usr/bin/python3.13 --resolution lowest-direct

Each combination gets a virtual environment of its own in --dir, made by uv. For aarch64 the
dependencies are resolved from wheels, and nothing runs. The table goes into docs/install.md; a line
of a combination that did not run this time stays.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "install.md"
BEGIN, END = "<!-- make matrix -->", "<!-- end -->"
RESOLUTIONS = ("lowest-direct", "highest")
SHOWN = ("torch", "transformers", "timm", "numpy", "pydantic")
TESTS = ("tests/unit", "tests/cli", "tests/reference")
HEAD = [
    "| Python | resolution | quick tests | aarch64 | " + " | ".join(SHOWN) + " | date |",
    "|" + "---|" * (len(SHOWN) + 5),
]


def uv(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run uv of this environment; a failure shows what it wrote."""
    program = Path(sys.executable).with_name("uv")
    done = subprocess.run([program, *arguments], cwd=ROOT, text=True, capture_output=True)
    if check and done.returncode:
        raise click.ClickException(f"uv {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return done


def pythons() -> list[str]:
    """Paths of the newest interpreter of each release from 3.11 on, oldest first."""
    found: dict[tuple[int, ...], tuple[tuple[int, ...], str]] = {}
    listed = uv("python", "list", "--only-installed", "--output-format", "json").stdout
    for one in json.loads(listed):
        numbers = tuple(int(part) for part in re.findall(r"\d+", one["version"])[:3])
        if numbers >= (3, 11) and numbers > found.get(numbers[:2], ((), ""))[0]:
            found[numbers[:2]] = (numbers, one["path"])
    return [path for _, (_, path) in sorted(found.items())]


def resolves_on_aarch64(python: str, resolution: str) -> bool:
    """Whether all dependencies have wheels for it."""
    where = ["--python", python, "--python-platform", "aarch64-manylinux_2_28"]
    how = ["--resolution", resolution, "--only-binary", ":all:"]
    return uv("pip", "compile", "-q", "pyproject.toml", *where, *how, check=False).returncode == 0


def try_combination(python: str, resolution: str, folder: Path) -> str:
    """Make the environment and run the tests; the table's line."""
    version = subprocess.check_output(
        [python, "-c", "import platform; print(platform.python_version())"], text=True
    ).strip()
    environment = folder / f"{version}-{resolution}"
    inside = str(environment / "bin" / "python")
    uv("venv", "-q", "--clear", "--python", python, str(environment))
    uv("pip", "install", "-q", "--python", inside, "--resolution", resolution, "-e", ".[dev]")
    listed = json.loads(uv("pip", "list", "--python", inside, "--format", "json").stdout)
    versions = {one["name"]: one["version"] for one in listed}
    select = ["-m", "not soak and not gpu and not slow", "-n", "2", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [inside, "-m", "pytest", *select, *TESTS], cwd=ROOT, text=True, capture_output=True
    )
    log = folder / f"{environment.name}.log"
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    lines = [line for line in done.stdout.splitlines() if re.search(r"\d+ (passed|failed)", line)]
    result = re.sub(r",? *\d+ warnings?| in [\d.]+s.*|=+ ?", "", lines[-1]) if lines else "no test"
    click.echo(f"{version} {resolution}: {result}, log in {log}")
    aarch64 = "resolves" if resolves_on_aarch64(python, resolution) else "does not resolve"
    cells = [version, resolution, result, aarch64, *(versions.get(name, "-") for name in SHOWN)]
    return "| " + " | ".join([*cells, date.today().isoformat()]) + " |"


def write_table(new: list[str]) -> None:
    """Put the lines into the page, in place of those of the same Python and resolution."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    table, _, after = rest.partition(END)
    rows = {}
    for line in [*table.strip().splitlines()[len(HEAD) :], *new]:
        python, resolution = [cell.strip() for cell in line.split("|")[1:3]]
        rows[python.rpartition(".")[0], resolution] = line
    text = "\n".join([BEGIN, "", *HEAD, *(rows[key] for key in sorted(rows)), "", END])
    PAGE.write_text(before + text + after, encoding="utf-8")


@click.command(help=(__doc__ or "").replace("\n\n    ", "\n\n\b\n    ", 1))
@click.option("--python", "wanted", multiple=True, help="An interpreter, instead of all.")
@click.option("--resolution", type=click.Choice(RESOLUTIONS), multiple=True, default=RESOLUTIONS)
@click.option("--dir", "folder", type=click.Path(path_type=Path), default=ROOT / "build" / "matrix")
def main(wanted: tuple[str, ...], resolution: tuple[str, ...], folder: Path) -> None:
    """See the module."""
    folder.mkdir(parents=True, exist_ok=True)
    for python in wanted or pythons():
        for each in resolution:
            write_table([try_combination(python, each, folder.resolve())])


if __name__ == "__main__":
    main()
