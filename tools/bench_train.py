#!/usr/bin/env python3
"""How fast a training step is, beside the original's way of doing it and beside the hardware.

    python tools/bench_train.py --shape cpu40m --stage 1 --device cpu --baseline reference
    python tools/bench_train.py --shape vicuna7b --stage 1 --device cuda --precision bf16 \\
        --baseline reference --json
    torchrun --nproc-per-node 2 tools/bench_train.py --shape cpu40m --stage 1 --device cpu
    python tools/bench_train.py --config run.yaml --device cuda       # real weights and shards

With --shape the model has random weights of the real sizes, made on the device, and the batches
random pixels and tokens with the lengths that captions have (tools/bench/synthetic.py). The step
is the package's own. `--baseline reference` races it against the original's choices
(tools/bench/baseline.py): same process, same weights, same batches, in turns, so that whatever
else the machine does hits both.

`mfu` is what the task needs (no padding, nothing computed twice) per second, over the rate of a
large matrix product measured in the same run in the same numeric type. `flop_efficiency` is the
needed over the executed operations. `parts_s` comes from separate steps that wait for the device
between the parts; `data_wait`, `all_reduce`, `logging` and `checkpoint_stall` in it are averages
per step of the package's own loop, with real curves, ledger and checkpoints.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]


@click.command(help=(__doc__ or "").replace("\n\n    ", "\n\n\b\n    ", 1))
@click.option("--shape", help="Random weights of these sizes: vicuna7b, cpu40m, ...")
@click.option("--config", "config_path", type=click.Path(exists=True, path_type=Path))
@click.option("--stage", type=click.IntRange(1, 2), default=1, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), help="Default: device's.")
@click.option("--batch-size", type=click.IntRange(1), help="Per rank; default: the original's.")
@click.option("--synthetic", is_flag=True, help="With --config: random batches, real weights.")
@click.option("--baseline", type=click.Choice(["reference"]), help="Race against this.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=10, show_default=True, help="Per round.")
@click.option("--warmup", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--attention", type=click.Choice(["packed", "sdpa", "eager"]), default="packed",
    show_default=True,
)  # fmt: skip
@click.option("--activation-checkpointing", type=click.FloatRange(0, 1), default=0.0)
@click.option("--compile", "compiled", is_flag=True, help="torch.compile the layers.")
@click.option("--cuda-graphs/--no-cuda-graphs", default=True, show_default=True)
@click.option("--cached-features", is_flag=True, help="Vision features come from a cache.")
@click.option("--deterministic/--no-deterministic", default=True, show_default=True)
@click.option("--threads", type=click.IntRange(0), default=0, help="0: as a run would choose.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def main(shape: str | None, config_path: Path | None, as_json: bool, **options: Any) -> None:
    """See the module."""
    if (shape is None) == (config_path is None):
        raise click.UsageError("give one of --shape and --config")
    if config_path is not None:
        _refuse_what_a_config_says(options)
    from bench.race import race
    from bench.shapes import SHAPES
    from bench.subject import Settings

    if shape is not None and shape not in SHAPES:
        raise click.UsageError(f"--shape {shape}: use one of {', '.join(SHAPES)}")
    if options["precision"] is None:
        options["precision"] = "bf16" if options["device"] == "cuda" else "fp32"
    report = race(Settings(shape=shape, config_path=config_path, **options))
    if int(os.environ.get("RANK", 0)):
        return
    report = {"command": _command(), **report}
    click.echo(json.dumps(report, indent=1) if as_json else _table(report))


def _refuse_what_a_config_says(options: dict[str, Any]) -> None:
    source = click.get_current_context().get_parameter_source("stage")
    if source is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--stage: with --config its own stage is measured")
    if options["batch_size"] is not None and not options["synthetic"]:
        raise click.UsageError("--batch-size: set train.micro_batch_size, or add --synthetic")


def _command() -> str:
    return " ".join(["tools/bench_train.py", *sys.argv[1:]])


def _table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['machine']}, torch {report['versions']['torch']}, load {report['load_1min']}"
    ]
    for name, value in report.items():
        if name == "parts_s":
            lines += [f"{'  ' + part:<28} {seconds:.4f} s" for part, seconds in value.items()]
        elif isinstance(value, float):
            lines.append(f"{name:<28} {value:,.4g}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
