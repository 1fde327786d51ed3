"""A trained model that answers: weights, projector and conversation format of a run, put together.

Shapes: N images, C channels, H height, W width, I image tokens, Q projector's input width.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mgpt4_hpc.chat_format import ChatFormat, Layout
from mgpt4_hpc.config.run_config_file import read_config
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.errors import ConfigError, WeightsError
from mgpt4_hpc.model.bundle.bundle import Bundle, open_bundle
from mgpt4_hpc.model.bundle.export import find_projector, read_projector
from mgpt4_hpc.model.conversion.variants import require_projector_fits
from mgpt4_hpc.model.generation.answer import Answer
from mgpt4_hpc.model.generation.generate import Sampling, answer_prompts, stream
from mgpt4_hpc.model.generation.prompt_embedding import context_length, prompt_length
from mgpt4_hpc.model.llm_files.chat_template import chat_format
from mgpt4_hpc.model.llm_files.folder import original_format, own_format
from mgpt4_hpc.model.llm_files.tokenizer import load_tokenizer
from mgpt4_hpc.model.nn.lora import LORA_FILE, SavedLora, read_lora_beside, use_lora
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4, ModelOptions, build_model
from mgpt4_hpc.model.nn.precision import choose_precision
from mgpt4_hpc.model.nn.preprocess import normalise
from mgpt4_hpc.prompts import Dialogue, Template, get_template
from mgpt4_hpc.resources import resolve_path
from mgpt4_hpc.run_dir import RunDir, read_json

_WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


@dataclass(frozen=True)
class ModelSource:
    """What a model is put together from.

    Attributes:
        name: for people: run and step, or the file.
        weights: the bundle's folder.
        projector: file of ``llama_proj``; None takes the bundle's own.
        template: conversation format.
        config: settings of the run that trained it, where there is one.
        run: that run.
        step: optimizer steps behind the projector, where known.
    """

    name: str
    weights: Path
    projector: Path | None
    template: Template
    config: RunConfig | None = None
    run: RunDir | None = None
    step: int | None = None


@dataclass(frozen=True)
class Trained:
    """What training changed, read into memory.

    Attributes:
        source: where it was.
        projector: of ``llama_proj``, without prefix.
        lora: what was trained beside it, if anything.
    """

    source: ModelSource
    projector: Mapping[str, torch.Tensor]
    lora: SavedLora | None


def same_towers(first: ModelSource, second: ModelSource) -> bool:
    """Whether one model can answer for both: only what was trained differs."""

    def frozen_parts(source: ModelSource) -> tuple[object, ...]:
        """What decides all parts of the model that are not trained."""
        model = source.config.model if source.config else None
        settings = (model.vision_precision, model.ln_vision, model.llm_8bit) if model else None
        file = source.projector
        lora = file is not None and file.with_name(LORA_FILE).is_file()
        return source.weights.resolve(), settings, lora

    return frozen_parts(first) == frozen_parts(second)


def find_source(
    path: Path | None, *, weights: str | None = None, template: str | None = None
) -> ModelSource:
    """Where everything is that answers in the name of a run, checkpoint or weight file.

    Args:
        path: a run (its newest checkpoint), a checkpoint, or a projector's file; None takes the
            projector of the bundle.
        weights: the bundle; by default the one that the run was trained on.
        template: name of a conversation format; by default the run's, or for a bare file that of
            the bundle's variant.

    Raises:
        WeightsError: if the projector is missing, is none, or nothing says which bundle to use.
        ConfigError: if the run's settings are broken.
    """
    projector = None if path is None else find_projector(path)
    run = None if projector is None else _run_of(projector)
    if projector is not None and run is None:
        _require_weights(projector)
    config = None if run is None else read_config(run.config_file).config
    folder = weights or (config.model.weights if config else "")
    if not folder:
        raise WeightsError(
            f"nothing says which weights {path or 'the bundle'} belongs to",
            why="a projector is only the layer between a vision tower and a language model",
            fix="give the bundle with --weights, or a run's directory instead of a file",
        )
    chosen = get_template(template) if template else (config.template if config else None)
    bundle_folder = Path(resolve_path(folder))
    if not weights and run is not None and not bundle_folder.is_dir():
        raise WeightsError(
            f"{run.name} was trained on the bundle {bundle_folder}, which is not there",
            fix="if it was moved: --weights NEW",
        )
    return ModelSource(
        name=_name(projector, run) or bundle_folder.name,
        weights=bundle_folder,
        projector=projector,
        template=chosen or _template_of(open_bundle(bundle_folder)),
        config=config,
        run=run,
        step=_step(projector),
    )


def other_bundle(source: ModelSource, bundle: Bundle) -> str:
    """How the bundle differs from the one that the checkpoint was trained on; "" if it does not.

    A projector's file, and a checkpoint of an early release, do not record their bundle.
    """
    trained_on = _manifest(source.projector).get("meta", {}).get("bundle_digest")
    if trained_on in (None, bundle.digest):
        return ""
    return (
        f"{source.name} was trained on a bundle with the digest {trained_on}, and that of "
        f"{bundle.path} is {bundle.digest}"
    )


def with_distinct_names(sources: Sequence[ModelSource]) -> list[ModelSource]:
    """The sources under names that differ: where two have one, with their folders'."""

    def checkpoint(source: ModelSource) -> Path:
        """The file or bundle that is served."""
        return (source.projector or source.weights).resolve()

    renamed: list[ModelSource] = []
    known: dict[str, Path] = {}
    for source in sources:
        plain = source.name
        if any(
            other.name == plain and checkpoint(other) != checkpoint(source) for other in sources
        ):
            place = source.run.path if source.run else source.projector or source.weights
            plain = f"{place.absolute().parent.name}/{plain}"
        name, number = plain, 1
        while known.setdefault(name, checkpoint(source)) != checkpoint(
            source
        ):  # folders of one name as well
            number += 1
            name = f"{plain} ({number})"
        renamed.append(replace(source, name=name))
    return renamed


class ChatModel:
    """Answers prompts with images; texts in, texts out.

    Args:
        source: what to put together.
        device: ``auto`` is the GPU where there is one.
        precision: as ``build_model``; ``auto`` is float32 on a CPU, else bf16 or fp16.

    Attributes:
        source: as given, or as of the last ``use``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        model, tokenizer: the parts.

    Raises:
        WeightsError: if weights are missing, broken, or of another variant than the projector.
    """

    def __init__(
        self, source: ModelSource, *, device: str = "auto", precision: str = "auto"
    ) -> None:
        self.bundle: Bundle = open_bundle(source.weights)
        config = source.config
        target = _device(device)
        self.precision = choose_precision(precision, target)
        self.model = build_model(
            self.bundle,
            ModelOptions(
                precision=self.precision,
                vision_precision=config.model.vision_precision if config else "same",
                ln_vision=config.model.ln_vision if config else "bundle",
                llm_8bit=config is not None and config.model.llm_8bit,
                attention="sdpa",
            ),
            device=target,
        )
        self.tokenizer = load_tokenizer(self.bundle.llm_dir)
        self.source = source
        self._formats: dict[Template, ChatFormat] = {}
        self.use(source)

    @classmethod
    def from_training_model(cls, model: MiniGPT4, bundle: Bundle, source: ModelSource) -> ChatModel:
        """One that answers with a model that is being trained."""
        chat_model = cls.__new__(cls)
        chat_model.bundle = bundle
        chat_model.model = model
        chat_model.tokenizer = load_tokenizer(bundle.llm_dir)
        chat_model.source = source
        chat_model._formats = {}
        return chat_model

    @property
    def image_size(self) -> int:
        """Side of the square that images are brought to, in pixels."""
        return self.bundle.architecture.image_size

    def read(self, source: ModelSource) -> Trained:
        """What was trained on these weights, into memory: a run deletes its old checkpoints.

        Raises:
            WeightsError: if it is missing, broken, or of another variant than the weights.
        """
        lora = read_lora_beside(source.projector or source.weights / "none")
        if source.projector is None:
            own = self.bundle.projector_state()
            if own is None:
                raise WeightsError(
                    f"{source.weights} has no trained projector",
                    fix="give a run or a checkpoint, or import one with "
                    "`mgpt4 weights import --projector pretrained_minigpt4.pth`",
                )
            return Trained(source, own, lora)
        state = dict(read_projector(source.projector))
        require_projector_fits(
            self.bundle.architecture,
            self.bundle.architecture.llm_dim or 0,
            tuple(state["weight"].shape),
            str(source.projector),
        )
        return Trained(source, state, lora)

    def use(self, trained: ModelSource | Trained) -> None:
        """Answer with another projector of the same weights, and its LoRA, from now on."""
        if isinstance(trained, ModelSource):
            trained = self.read(trained)
        self.model.llama_proj.load_state_dict(dict(trained.projector))
        use_lora(self.model.language_model, trained.lora)
        self.source = trained.source

    @property
    def format(self) -> ChatFormat:
        """How the model that answers was taught to read conversations."""
        return self.format_of(self.source)

    def format_of(self, source: ModelSource) -> ChatFormat:
        """How the checkpoint was taught to read conversations."""
        if source.template not in self._formats:
            self._formats[source.template] = chat_format(source.template, self.tokenizer)
        return self._formats[source.template]

    def prompt(self, dialogue: Dialogue, source: ModelSource | None = None) -> Layout:
        """A conversation whose last question is open, as the model reads it.

        Args:
            dialogue: the conversation.
            source: the checkpoint that will answer; None is the one in use.
        """
        source = source or self.source
        if source.config is not None and source.config.text.system and not dialogue.system:
            dialogue = Dialogue(dialogue.turns, source.config.text.system)
        return self.format_of(source).lay_out(dialogue)

    def encode(self, images_u8_NCHW: torch.Tensor) -> torch.Tensor:
        """The towers' features (N, I, Q) of uint8 pixels of the model's image size."""
        return self.model.encode_images(normalise(images_u8_NCHW, self.model.device))

    def encode_each(self, images_u8_1CHW: Sequence[torch.Tensor]) -> torch.Tensor:
        """As ``encode``, one image after the other, as a conversation does; there may be none."""
        sizes = self.bundle.architecture
        none = torch.empty(0, sizes.num_image_tokens, sizes.projector_in)
        return torch.cat([none.to(self.model.device), *map(self.encode, images_u8_1CHW)])

    def answers(
        self,
        prompts: Sequence[Layout],
        features: Sequence[torch.Tensor],
        sampling: Sampling,
        *,
        seeds: Sequence[int] | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> list[Answer]:
        """As ``generate.answer_prompts``, ended by the template's end symbol."""
        return answer_prompts(
            self.model,
            self.tokenizer,
            list(zip(prompts, features, strict=True)),
            sampling,
            stop=self.format.end_symbol,
            seeds=seeds,
            between=between,
        )

    def stream(
        self, prompt: Layout, features_NIQ: torch.Tensor, sampling: Sampling
    ) -> Generator[str, None, Answer]:
        """As ``generate.stream``, ended by the template's end symbol."""
        stop = self.format.end_symbol
        return stream(self.model, self.tokenizer, prompt, features_NIQ, sampling, stop=stop)

    def max_answer_tokens(self, prompt: Layout) -> int | None:
        """Tokens that an answer to the prompt may have at most; None if the model has no limit."""
        limit = self.context_length
        return None if limit is None else limit - self.prompt_length(prompt)

    @property
    def context_length(self) -> int | None:
        """Positions that the language model was made for; None if it does not say."""
        return context_length(self.model)

    def prompt_length(self, prompt: Layout) -> int:
        """Positions that a prompt takes, images included."""
        return prompt_length(prompt, self.bundle.architecture.num_image_tokens)


def _require_weights(file: Path) -> None:
    """Refuse a file that holds no projector, whatever else is missing."""
    try:
        read_projector(file)
    except WeightsError as error:
        if file.suffix in _WEIGHT_SUFFIXES:
            raise
        raise WeightsError(
            f"{file} is no weight file",
            why=error.what,
            fix="give a run, a checkpoint (RUN/checkpoints/step-N) or a projector's file",
        ) from None


def _run_of(projector: Path) -> RunDir | None:
    """The run of ``RUN/checkpoints/step-N/projector.safetensors``."""
    run = RunDir(projector.absolute().parent.parent.parent)
    return run if run.identity_file.is_file() and run.config_file.is_file() else None


def _name(projector: Path | None, run: RunDir | None) -> str:
    if projector is None:
        return ""
    return f"{run.name} {projector.parent.name}" if run else projector.name


def _step(projector: Path | None) -> int | None:
    step = _manifest(projector).get("step")
    return step if isinstance(step, int) else None


def _manifest(projector: Path | None) -> dict[str, Any]:
    """The manifest of a projector's checkpoint; empty if it lies in none."""
    try:
        return read_json(projector.parent / "manifest.json") if projector is not None else {}
    except (OSError, ValueError):
        return {}


def _template_of(bundle: Bundle) -> Template:
    return get_template(own_format(bundle.llm_dir) or original_format(bundle.architecture))


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "there is no GPU here", fix="start this on a GPU node (--slurm), or use --device cpu"
        )
    return device
