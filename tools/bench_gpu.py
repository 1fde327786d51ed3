#!/usr/bin/env python3
"""Everything that is measured and tested on a GPU, by one command.

    python tools/bench_gpu.py --out gpu-figures
    python tools/bench_gpu.py --out gpu-figures --shape vicuna13b --no-baseline

Runs `pytest -m gpu`, then `tools/bench_train.py` for each shape and stage, as configured and with
--compile, then `tools/bench_startup.py` for the first shape. Each part is a process of its own and
leaves NAME.json (or the tests' NAME.txt) in --out; one that failed leaves NAME.log instead and
does not keep the others from running. What is there already is not measured again, so a call that
was cut off is given once more. Prints the tables of docs/performance.md; ends with 1 if one failed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from bench.shapes import SHAPES  # noqa: E402

TESTS = "gpu-tests"
STARTUP = "startup"
_STAGES = (1, 2)


@dataclass(frozen=True)
class Part:
    """One process and the file that its output becomes.

    Attributes:
        name: of the file, without its ending.
        arguments: of Python.
        ending: of the file.
    """

    name: str
    arguments: tuple[str, ...]
    ending: str = ".json"


def plan(
    shapes: Sequence[str], device: str, scratch: Path, *, baseline: bool, options: Sequence[str]
) -> Iterator[Part]:
    """The parts, the most important first; the last leaves a model of its size in ``scratch``."""
    if device == "cuda":
        yield Part(TESTS, ("-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests")), ".txt")
    bench = str(ROOT / "tools" / "bench_train.py")
    against = ("--baseline", "reference") if baseline else ()
    for shape in shapes:
        for stage in _STAGES:
            for compiled in ("", "--compile"):
                words = (bench, "--shape", shape, "--stage", str(stage), "--device", device)
                words += (*against, *options, *([compiled] if compiled else []), "--json")
                yield Part(_name(shape, stage, bool(compiled)), words)
    bench = str(ROOT / "tools" / "bench_startup.py")
    words = (bench, "--shape", shapes[0], "--dir", str(scratch), "--device", device)
    if not shapes[0].startswith("tiny"):  # which has fewer tokens than the data
        yield Part(STARTUP, (*words, "--json"))


def _name(shape: str, stage: int, compiled: bool) -> str:
    return f"{shape}-stage{stage}{'-compile' if compiled else ''}"


def perform(part: Part, out: Path) -> bool:
    """Run it, unless its file is there; whether the file is there now."""
    result, log = out / f"{part.name}{part.ending}", out / f"{part.name}.log"
    if result.exists():
        return True
    click.echo(f"{part.name} ...", err=True)
    with log.open("w") as errors:
        done = subprocess.run(
            [sys.executable, *part.arguments], stdout=subprocess.PIPE, stderr=errors, check=False
        )
        if done.returncode:
            errors.write(done.stdout.decode(errors="replace"))
            return False
    result.write_bytes(done.stdout)
    log.unlink()
    return True


def tables(out: Path, shapes: Sequence[str]) -> str:
    """What has been measured so far, as docs/performance.md shows it."""
    head = [
        "",
        "| model, stage | | samples/s | step (median, p95) | MFU | memory "
        "| baseline | its memory | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    # By machine: calls that went on with each other may have had different cards.
    rows: dict[str, list[str]] = {}
    for shape in shapes:
        for stage in _STAGES:
            for compiled in (False, True):
                file = out / f"{_name(shape, stage, compiled)}.json"
                if file.exists():
                    found = json.loads(file.read_text())
                    rows.setdefault(_about(found), []).append(_row(found))
    text = "\n".join("\n".join([about, *head, *found, ""]) for about, found in rows.items())
    startup = out / f"{STARTUP}.json"
    if startup.exists():
        found = json.loads(startup.read_text())
        spent = ", ".join(f"{name} {s:.1f}" for name, s in found["buckets_s"].items() if s > 0.05)
        text += f"\nStart-up of {found['shape']} ({found['bundle_gib']:.1f} GiB): "
        text += f"{found['start_s']:.1f} s to the first step, of which {spent}.\n"
    tests = out / f"{TESTS}.txt"
    if tests.exists():
        text += f"\n`pytest -m gpu`: {tests.read_text().strip().splitlines()[-1].strip('= ')}\n"
    return text


def _about(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return f"{found['date']}, {found['machine']}, {versions}, {found['precision']}"


def _row(found: dict[str, Any]) -> str:
    cells = [
        f"{found['shape']}, {found['stage']}",
        "`compile`" if found["compile"] else "as configured",
        f"{found['samples_per_s']:.3g}",
        f"{found['step_s_median'] * 1e3:.0f}, {found['step_s_p95'] * 1e3:.0f} ms",
        f"{found['mfu']:.0%}",
        f"{found['peak_memory_gib']:.1f} GiB",
    ]
    if "ratio_to_baseline" in found:
        cells += [
            f"{found['baseline_samples_per_s']:.3g}/s, "
            f"{found['baseline_step_s_median'] * 1e3:.0f} ms",
            f"{found['baseline_peak_memory_gib']:.1f} GiB",
            f"**{found['ratio_to_baseline']:.2f}**",
        ]
    else:
        cells += ["-", "-", "-"]
    return f"| {' | '.join(cells)} |"


@click.command(help=(__doc__ or "").replace("\n\n    ", "\n\n\b\n    ", 1))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option(
    "--shape", "shapes", multiple=True, type=click.Choice(list(SHAPES)),
    default=["vicuna7b", "llama2-7b"], show_default=True,
)  # fmt: skip
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cuda", show_default=True)
@click.option("--baseline/--no-baseline", default=True, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=10, show_default=True, help="Per round.")
def main(
    out: Path, shapes: tuple[str, ...], device: str, baseline: bool, rounds: int, steps: int
) -> None:
    """See the module."""
    out.mkdir(parents=True, exist_ok=True)
    options = ("--rounds", str(rounds), "--steps", str(steps))
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as scratch:
        parts = plan(shapes, device, Path(scratch), baseline=baseline, options=options)
        failed = [part.name for part in parts if not perform(part, out)]
    click.echo(tables(out, shapes))
    if failed:
        raise click.ClickException(
            f"{', '.join(failed)} failed: read {out}/NAME.log, then give the same command again"
        )


if __name__ == "__main__":
    main()
