#!/usr/bin/env python3
"""Compare this implementation with what the original MiniGPT-4 computed, quantity by quantity.

    python tools/check_reference.py tests/reference/vicuna_tiny
    python tools/check_reference.py FOLDER --path compiled
    python tools/check_reference.py FOLDER --json

FOLDER has the layout that tests/reference/README.md describes: the original's weight files at any
size, and what its code computed with them. The files come in through the importers, and the
batches, optimizer, schedule, loop and generation are the package's own; only the images enter
already normalised, as the reference holds them. Ends with 0 only if everything agrees.

--path takes another of the ways in which a step can be computed: padded instead of packed, in
micro-batches sorted by length, recomputed in the backward pass, compiled, from cached features.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    import torch

    from mgpt4_hpc.data.batching.batch import Batch
    from mgpt4_hpc.data.batching.text import TokenSequence
    from mgpt4_hpc.model.llm_files.tokenizer import TextTokenizer
    from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4

STAGES = ("stage1", "stage2")

# float32 on both sides. Gradients are relative to the largest, the rest is absolute. A projector
# after training has no tolerance of its own: AdamW divides by the gradient's size, so where that
# is nearly nothing, rounding decides; 2e-4 is what the loss curves are held to.
EMBEDDINGS, LOSS, GRADIENT, CURVE, LR, TRAINED = 5e-6, 1e-5, 1e-4, 2e-4, 1e-12, 2e-4


@dataclass(frozen=True)
class Row:
    """One compared quantity; a tolerance of 0 means that it must be equal."""

    quantity: str
    difference: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.difference <= self.tolerance  # False for NaN


@dataclass(frozen=True)
class ComputePath:
    """One way of computing the same step.

    Attributes:
        attention: of the language model, as in ``model.attention``.
        recomputed: part of its layers, as in ``model.activation_checkpointing``.
        compiled: with torch.compile.
        cached: the towers' output comes ready.
        sorted_by_length: shortest answers first, in micro-batches of two.
    """

    attention: str = "packed"
    recomputed: float = 0.0
    compiled: bool = False
    cached: bool = False
    sorted_by_length: bool = False


PATHS = {
    "packed": ComputePath(),
    "padded": ComputePath(attention="sdpa"),
    "eager": ComputePath(attention="eager"),
    "sorted": ComputePath(sorted_by_length=True),
    "recomputed": ComputePath(recomputed=1.0),
    "compiled": ComputePath(compiled=True),
    "cached": ComputePath(cached=True),
}


@dataclass
class Setup:
    """An opened reference folder and our model of it."""

    expected: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    model: MiniGPT4
    tokenizer: TextTokenizer
    start: dict[str, torch.Tensor]
    path: ComputePath


class GivenImages:
    """The model, looking at the reference's own normalised pixels whatever it is shown.

    Args:
        model: ours.
        pixels: what stands for each micro-batch's images, in the order in which they come.
    """

    def __init__(self, model: MiniGPT4, pixels: Sequence[torch.Tensor]) -> None:
        self.model, self.turns = model, cycle(pixels)
        self.answer_loss_of_features = model.answer_loss_of_features

    def answer_loss(self, _pixels: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.model.answer_loss(next(self.turns), *args, **kwargs)


def open_reference(folder: Path, path: ComputePath) -> Setup:
    """Import the folder's files as a user would, in float32."""
    from safetensors.torch import load_file

    from mgpt4_hpc.model.architecture import Architecture
    from mgpt4_hpc.model.bundle.bundle import open_bundle
    from mgpt4_hpc.model.llm_files.tokenizer import load_tokenizer
    from mgpt4_hpc.model.nn.minigpt4 import ModelOptions, build_model
    from mgpt4_hpc.model.nn.performance.compile import compile_layers

    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    architecture = Architecture.from_dict(expected["architecture"], source="expected.json")
    bundle = open_bundle(folder, architecture=architecture)
    model = build_model(
        bundle,
        ModelOptions(
            precision="fp32", attention=path.attention, activation_checkpointing=path.recomputed
        ),
    )
    if path.compiled:
        compile_layers(model)
    return Setup(
        expected,
        load_file(folder / "expected.safetensors"),
        model,
        load_tokenizer(bundle.llm_dir),
        {name: p.detach().clone() for name, p in model.llama_proj.named_parameters()},
        path,
    )


def compare(setup: Setup) -> Iterator[Row]:
    """Every quantity of the reference, one row each."""
    for stage in STAGES:
        setup.model.llama_proj.load_state_dict(setup.start)
        batches = make_batches(setup, stage)
        yield compare_embeddings(setup, stage)
        yield compare_targets(setup, stage, batches)
        yield from compare_first_step(setup, stage, batches)
        setup.model.llama_proj.load_state_dict(setup.start)
        yield from compare_curve(setup, stage, batches)
    yield compare_greedy_tokens(setup)


def make_batches(setup: Setup, stage: str) -> list[Batch]:
    """The stage's texts as the package's own micro-batches; their pixels are placeholders."""
    import numpy as np

    from mgpt4_hpc.chat_format import TemplateFormat
    from mgpt4_hpc.data.batching.batch import collate
    from mgpt4_hpc.data.batching.text import TextSpec, build_sequence
    from mgpt4_hpc.prompts import IMAGE_TAG, PROMPT_SLOT, Dialogue, Template, Turn

    expected, arch = setup.expected, setup.model.architecture

    def format_of(prompt: str) -> TemplateFormat:
        text = prompt.replace(IMAGE_TAG, PROMPT_SLOT)
        template = Template("given", text, expected[f"{stage}.end_symbol"])
        return TemplateFormat(template, setup.tokenizer.encode, setup.tokenizer.bos_id)

    def sequence_of(answer: str, prompt: str | None) -> TokenSequence:
        if prompt is None:
            return build_sequence(spec, answer)
        given = replace(spec, chat_format=format_of(prompt))
        return build_sequence(given, Dialogue((Turn((None,), answer),)))

    spec = TextSpec(
        encode=setup.tokenizer.encode,
        bos_id=setup.tokenizer.bos_id,
        pad_id=setup.tokenizer.pad_id,
        num_image_tokens=arch.num_image_tokens,
        max_answer_tokens=expected[f"{stage}.max_text_tokens"],
        end_symbol=expected[f"{stage}.end_symbol"],
        chat_format=format_of(IMAGE_TAG),
        keep_end_symbol=False,  # the original cuts it off
    )
    answers = expected[f"{stage}.answers"]
    prompts = expected.get(f"{stage}.prompts") or repeat(None)
    sequences = [sequence_of(a, p) for a, p in zip(answers, prompts, strict=False)]
    pictures = np.zeros((len(answers), 3, arch.image_size, arch.image_size), dtype=np.uint8)
    if setup.path.cached:
        pictures = setup.model.encode_images(setup.tensors[f"{stage}.images"]).numpy()
    rows = list(range(len(answers)))
    size = len(rows)
    if setup.path.sorted_by_length:
        rows.sort(key=lambda row: len(sequences[row].input_ids))
        size = 2
    return [
        collate(
            pictures[part],
            [sequences[row] for row in part],
            spec.pad_id,
            keys=[str(row) for row in part],
            positions=part,
        )
        for part in (rows[start : start + size] for start in range(0, len(rows), size))
    ]


def given_images(setup: Setup, stage: str, batches: Sequence[Batch]) -> Any:
    """The model, with the stage's images in the order of the micro-batches."""
    pixels_NCHW = setup.tensors[f"{stage}.images"]
    return GivenImages(setup.model, [pixels_NCHW[list(batch.positions)] for batch in batches])


def num_answer_tokens(batches: Sequence[Batch]) -> int:
    """Of all micro-batches."""
    return sum(batch.num_answer_tokens for batch in batches)


def compare_embeddings(setup: Setup, stage: str) -> Row:
    """Image embeddings after ``llama_proj``."""
    features = setup.model.encode_images(setup.tensors[f"{stage}.images"])
    ours = setup.model.project(features)
    difference = largest(ours, setup.tensors[f"{stage}.image_embeds"])
    return Row(f"{stage} image embeddings", difference, EMBEDDINGS)


def compare_targets(setup: Setup, stage: str, batches: Sequence[Batch]) -> Row:
    """Number of answers whose tokens differ."""
    theirs = setup.tensors[f"{stage}.regress_targets"].tolist()
    ours = {
        row: labels_T
        for batch in batches
        for row, labels_T in zip(batch.positions, batch.labels_BT.tolist(), strict=True)
    }
    assert len(ours) == len(theirs)
    wrong = sum(_learned(ours[row]) != _learned(their) for row, their in enumerate(theirs))
    return Row(f"{stage} answer targets", float(wrong), 0.0)


def compare_first_step(setup: Setup, stage: str, batches: Sequence[Batch]) -> Iterator[Row]:
    """Loss and gradients before any training."""
    import torch

    from mgpt4_hpc.train.step import forward_loss

    seen = given_images(setup, stage, batches)
    setup.model.zero_grad()
    loss = 0.0
    for batch in batches:
        part = forward_loss(seen, batch, torch.device("cpu")) / num_answer_tokens(batches)
        part.backward()
        loss += part.item()
    yield Row(f"{stage} loss", abs(loss - setup.expected[f"{stage}.loss"]), LOSS)
    for name, parameter in setup.model.llama_proj.named_parameters():
        theirs = setup.tensors[f"{stage}.grad.llama_proj.{name}"]
        assert parameter.grad is not None
        difference = largest(parameter.grad, theirs) / theirs.abs().max().item()
        yield Row(f"{stage} gradient of llama_proj.{name} (relative)", difference, GRADIENT)


def compare_curve(setup: Setup, stage: str, batches: Sequence[Batch]) -> Iterator[Row]:
    """Train as the package trains, on that one batch again and again."""
    curve = setup.expected[f"{stage}.curve"]
    ours = train_curve(setup, stage, batches, len(curve))
    lrs = [abs(mine[0] - lr) for mine, (lr, _) in zip(ours, curve, strict=True)]
    losses = [abs(mine[1] - loss) for mine, (_, loss) in zip(ours, curve, strict=True)]
    yield Row(f"{stage} learning rates of {len(curve)} steps", worst(lrs), LR)
    yield Row(f"{stage} losses of {len(curve)} steps", worst(losses), CURVE)
    for name, parameter in setup.model.llama_proj.named_parameters():
        theirs = setup.tensors[f"{stage}.trained.llama_proj.{name}"]
        yield Row(f"{stage} trained llama_proj.{name}", largest(parameter, theirs), TRAINED)


def train_curve(
    setup: Setup, stage: str, batches: Sequence[Batch], num_steps: int
) -> list[tuple[float, float]]:
    """Learning rate and loss of each step of the package's loop."""
    import torch

    from mgpt4_hpc.distributed import Ranks
    from mgpt4_hpc.telemetry import tags
    from mgpt4_hpc.train.loop import Loop, train
    from mgpt4_hpc.train.optimizer import build_optimizer
    from mgpt4_hpc.train.recorder import Recorder
    from mgpt4_hpc.train.saving import Saving
    from mgpt4_hpc.train.schedule import WarmupCosine
    from mgpt4_hpc.train.state import TrainState
    from mgpt4_hpc.train.step import StepOptions, TrainStep
    from mgpt4_hpc.train.stopping.stop import NeverStop
    from mgpt4_hpc.train.stopping.stop_schedule import Pacing

    class Curve(Recorder):
        points: list[tuple[float, float]]

        def logged(
            self, step: int, values: Mapping[str, float], buckets: Mapping[str, float], line: str
        ) -> None:
            self.points.append((values[tags.TRAIN_LR], values[tags.TRAIN_LOSS]))

    config = train_config(setup.expected, stage, sum(map(len, batches)), num_steps)
    projector = setup.model.llama_proj
    recorder = Curve()
    recorder.points = []
    step = TrainStep(
        given_images(setup, stage, batches),
        projector,
        build_optimizer(projector, config),
        WarmupCosine.from_config(config),
        StepOptions(world_size=1),
        device=torch.device("cpu"),
    )
    loop = Loop(
        state=TrainState(),
        config=config,
        batches=repeat(batches),
        step=step,
        ranks=Ranks(),
        stop=NeverStop(),
        pacing=Pacing(recorder),
        saving=Saving(),
        recorder=recorder,
    )
    train(loop)
    return recorder.points[:num_steps]


def train_config(expected: Mapping[str, Any], stage: str, batch_size: int, num_steps: int) -> Any:
    """The reference's optimizer and schedule as our settings."""
    from mgpt4_hpc.config.schema import TrainConfig

    schedule, optimizer = expected[f"{stage}.schedule"], expected["optimizer"]
    max_steps = schedule["max_epoch"] * schedule["iters_per_epoch"]
    if num_steps > max_steps:
        raise click.ClickException(f"{stage}.curve is longer than its schedule's {max_steps} steps")
    return TrainConfig(
        global_batch_size=batch_size,
        micro_batch_size=batch_size,
        max_steps=max_steps,
        lr=schedule["init_lr"],
        min_lr=schedule["min_lr"],
        warmup_start_lr=schedule["warmup_start_lr"],
        warmup_steps=schedule["warmup_steps"],
        beta1=optimizer["betas"][0],
        beta2=optimizer["betas"][1],
        eps=optimizer["eps"],
        weight_decay=optimizer["weight_decay"],
        log_every_steps=1,
    )


def compare_greedy_tokens(setup: Setup) -> Row:
    """Number of answers whose generated tokens differ, from the reference's trained projector."""
    from mgpt4_hpc.model.generation.generate import generate_from_features

    theirs = setup.expected["stage2.greedy_tokens"]
    names = [name for name, _ in setup.model.llama_proj.named_parameters()]
    trained = {name: setup.tensors[f"stage2.trained.llama_proj.{name}"] for name in names}
    setup.model.llama_proj.load_state_dict(trained)
    answers = generate_from_features(
        setup.model,
        setup.tokenizer,
        setup.model.encode_images(setup.tensors["stage2.images"]),
        setup.expected["stage2.prompts"],
        max_new_tokens=max(map(len, theirs)) - 1,
    )
    wrong = sum(
        list(answer.token_ids) != _generated(row, setup.tokenizer)
        for answer, row in zip(answers, theirs, strict=True)
    )
    return Row("stage2 greedy tokens", float(wrong), 0.0)


def largest(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest absolute difference; infinite if the shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    return (ours.detach() - theirs).abs().max().item()


def worst(differences: list[float]) -> float:
    """The largest, NaN if one is NaN (which ``max`` would overlook)."""
    return max(differences, key=lambda value: (value != value, value), default=0.0)


def _learned(row: list[int]) -> list[int]:
    return [token for token in row if token != -100]


def _generated(row: list[int], tokenizer: TextTokenizer) -> list[int]:
    """Without the begin token that the original's generate() puts in front, up to the end token."""
    row = row[1:] if row and row[0] == tokenizer.bos_id else row
    end = row.index(tokenizer.eos_id) + 1 if tokenizer.eos_id in row else len(row)
    return row[:end]


def print_table(folder: Path, rows: list[Row]) -> None:
    """The comparison for people."""
    width = max(len(row.quantity) for row in rows)
    click.echo(f"{folder}\n{'quantity':<{width}}  {'difference':>10}  {'tolerance':>9}")
    for row in rows:
        limit = f"{row.tolerance:.0e}" if row.tolerance else "equal"
        verdict = "" if row.ok else "  DIFFERS"
        click.echo(f"{row.quantity:<{width}}  {row.difference:>10.1e}  {limit:>9}{verdict}")


@click.command(help=(__doc__ or "").replace("\n\n    ", "\n\n\b\n    ", 1))
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--path", type=click.Choice(list(PATHS)), default="packed", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def main(folder: Path, path: str, as_json: bool) -> None:
    """See the module."""
    from mgpt4_hpc.errors import MgptError

    try:
        rows = list(compare(open_reference(folder, PATHS[path])))
    except MgptError as error:
        raise click.ClickException(str(error)) from error
    ok = all(row.ok for row in rows)
    if as_json:
        listed = [asdict(row) | {"ok": row.ok} for row in rows]
        click.echo(
            json.dumps({"folder": str(folder), "path": path, "ok": ok, "rows": listed}, indent=2)
        )
    else:
        print_table(folder, rows)
        click.echo("everything agrees" if ok else "the implementations differ")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
