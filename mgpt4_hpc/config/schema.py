"""Every setting, one documented field each. Unknown keys are refused.

Names follow the design's table: counts begin with ``num_`` or say what they count, quantities
carry their unit (``_s``, ``_min``, ``_gib``), and ``step`` always means optimizer step.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mgpt4_hpc.config.consistency import consistency_faults
from mgpt4_hpc.prompts import (
    CUSTOM,
    MODEL_TEMPLATE,
    STAGE1_END_SYMBOL,
    STAGE2_INSTRUCTIONS,
    TEMPLATES,
    Template,
    get_template,
)
from mgpt4_hpc.stop_signals import StopSignal

_MOST = 2**31 - 1
Positive = Annotated[int, Field(gt=0, le=_MOST)]
NonNegative = Annotated[int, Field(ge=0, le=_MOST)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
_Rate = Annotated[float, Field(ge=0, le=1)]
"""A learning rate or decay: beyond 1 an optimizer step only ruins the weights."""
_Seconds = Annotated[float, Field(gt=0, le=1e9)]

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"
_NUMBER = re.compile(r"[-+]?[0-9]{1,20}(?:\.[0-9]{0,20})?(?:[eE][-+]?[0-9]{1,3})?", re.ASCII)
"""A number that stands in quotes."""
_SOURCE_NAME = r"^[A-Za-z0-9_.-]+$"


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic would take a text or a truth value for a number."""
        kind = cls.model_fields[str(info.field_name)].annotation
        kinds = {getattr(part, "__origin__", part) for part in (kind, *get_args(kind))}
        if not {int, float} & kinds or not isinstance(value, (bool, str)):
            return value
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            return float(value) if set(value) & set(".eE") else int(value)
        raise ValueError("Input should be a valid number in decimal digits, as 100, 0.5 or 1e-4")


class ModelConfig(_Section):
    """Which towers, and how they compute."""

    weights: str = ""
    """Bundle, or a folder with the original's own files; `toy:weights` is the shipped toy."""
    projector: str | None = None
    """Start `llama_proj` from here: RUN, RUN@STEP, a checkpoint, or `pretrained_minigpt4.pth`."""
    variant: Literal["any", "vicuna7b", "vicuna13b", "llama2-7b"] = "any"
    """Published model that these settings are for; weights of another published one are refused."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """The frozen towers' type; `auto` is bf16 on a GPU that has it, else fp16; fp32 on a CPU."""
    vision_precision: Literal["same", "bf16", "fp16", "fp32"] = "same"
    """The vision side's matrix products, if they differ from it; residuals stay in float32."""
    ln_vision: Literal["bundle", "identity"] = "bundle"
    """Without Q-Former: the bundle's `ln_vision`, or the identity that the original trains with."""
    llm_8bit: bool = False
    """Round the language model's matrices to 8 bits: half the memory. Needs `mgpt4-hpc[int8]`."""
    attention: Literal["packed", "sdpa", "eager"] = "packed"
    """The language model's attention: without padding, or padded with one of two kernels."""
    activation_checkpointing: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Part of the language model's layers recomputed in the backward pass, to save memory."""
    compile: bool = False
    """Fuse the layers' small operations with torch.compile; takes a minute at every start."""
    shard_llm: bool = False
    """Spread the language model over the run's GPUs, for a 13B on 40 GiB; same bits, slower."""
    read_once_per_node: Literal["auto", "yes", "no"] = "auto"
    """One rank of each node reads the language model for the others; `auto` is yes on GPUs."""
    cuda_graphs: bool = True
    """Launch the frozen towers as one CUDA graph; same bits, about a GiB of memory."""


class SourceConfig(_Section):
    """One dataset."""

    name: Annotated[str, Field(pattern=_SOURCE_NAME)]
    """Name in logs and indexes: laion, cc_sbu, cc_sbu_align."""
    path: str = ""
    """Folder of tar shards, brace pattern, list file, or a `cc_sbu_align` folder."""
    weight: Positive = 1
    """Share in the mixture: 115 and 14 mean 115 of every 129 samples."""
    index: str | None = None
    """Index made by `mgpt4 data index`; made inside the run at its first start if not given."""


class DataConfig(_Section):
    """What is read, in which order, by how many workers."""

    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]
    """The datasets, mixed by weight."""
    paths: dict[str, str] = {}
    """Where the sources lie, by name, as a site knows it; stands above a source's own path."""
    shares: dict[str, Positive] = {}
    """Shares of the sources, by name; stands above a source's own weight."""
    granularity: Positive = 1
    """Samples taken from one source before the next draw; the original changes source per batch."""
    val_fraction: Fraction = 0.0
    """Part of each source that is never trained on and serves `val/loss`."""
    num_workers: NonNegative = 4
    """Decoding processes per rank."""
    resize: Literal["squash", "border"] = "squash"
    """Images of another size: stretched as the original does, or letterboxed."""
    feature_cache: str | None = None
    """Folder that `mgpt4 data encode` made for this run: no image is read or encoded again."""
    stage_to: str | None = None
    """Folder on the node's own disk, as `$TMPDIR`, to which samples are copied ahead of need."""
    stage_gib: Annotated[float, Field(gt=0)] = 16.0
    """Most space that these copies take on a node, in GiB."""
    max_bad_fraction: Fraction = 0.01
    """Unreadable samples beyond this part of those read stop the run."""


def _is_template(name: str) -> str:
    known = (*TEMPLATES, MODEL_TEMPLATE.name)
    if name not in known:
        raise ValueError(
            f"must be one of {', '.join(known)}, or your own as text.prompt and text.end_symbol"
        )
    return name


class TextConfig(_Section):
    """How captions become tokens."""

    template: Annotated[str, AfterValidator(_is_template)] = "vicuna_v0"
    """Conversation format: vicuna_v0, llama2, llama3, qwen, mistral, gemma, or `model`'s own."""
    system: str = ""
    """System prompt of conversations that have none of their own, in training and in chat."""
    prompt: str | None = None
    """Conversation format of another model, `{}` for image and instruction; above the template."""
    end_symbol: str | None = None
    """What ends an answer; a line break in stage 1, in stage 2 the template's."""
    instructions: tuple[str, ...] = ()
    """Stage 2 asks one of these per sample; empty means the original's four."""
    prompt_per: Literal["sample", "batch"] = "sample"
    """Draw the instruction for each sample, or once per batch as the original does."""
    max_answer_tokens: Positive | None = None
    """Longest answer including its end symbol; 32 in stage 1, 160 in stage 2."""
    max_tokens: Positive = 2048
    """Longest conversation, images included, at most the model's context; it loses last turns."""
    max_words: Positive | None = None
    """Longest caption in words; 50 in stage 1, unlimited in stage 2."""
    keep_end_symbol: bool = True
    """A truncated answer keeps its end symbol; the original cuts it off, and so never stops."""
    learn_padding_token: bool = True
    """Learn the padding token (`$$`) where a caption contains it; the original leaves it out."""
    parse_control_tokens: bool = False
    """Read `</s>` and `###` in a caption as the tokens of that name, as the original does."""


class LoraConfig(_Section):
    """Small matrices trained beside the language model's own; off unless a rank is given."""

    rank: NonNegative = 0
    """Rank of the added matrices; 0 is off. Needs `pip install 'mgpt4-hpc[lora]'`."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """What they add is scaled by alpha / rank."""
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = ("q_proj", "v_proj")
    """Names of the layers that get them."""


class TrainConfig(_Section):
    """The optimisation, and how often things happen."""

    global_batch_size: Positive
    """Samples per optimizer step over all ranks."""
    micro_batch_size: Positive
    """Samples per rank and forward pass; accumulation is derived."""
    max_steps: Positive
    """Optimizer steps of the whole run."""
    max_epochs: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """The same in passes over all sources, converted at submission; each needs an index."""
    lr_steps: Positive | None = None
    """Steps of the cosine; none is `max_steps`. Beyond them the rate stays at `min_lr`."""
    lr: Annotated[float, Field(gt=0, le=1)]
    """Peak learning rate."""
    min_lr: _Rate = 0.0
    """Learning rate at the end of the cosine."""
    warmup_start_lr: _Rate = 1e-6
    """Learning rate of step 0."""
    warmup_steps: NonNegative = 0
    """Steps of linear warm-up. The cosine is not shifted by it, as in the original."""
    weight_decay: _Rate = 0.05
    """AdamW's decay, on matrices only."""
    beta1: Fraction = 0.9
    """AdamW's first moment."""
    beta2: Fraction = 0.999
    """AdamW's second moment."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 0.0
    """Clip threshold; 0 is off, as in the original."""
    loss_reduction: Literal["global_tokens", "rank_mean"] = "global_tokens"
    """Mean over all answer tokens of the batch, or the original's mean of the ranks' means."""
    log_every_steps: Positive = 10
    """The loss is read from the device only this often."""
    eval_every_steps: NonNegative = 0
    """Held-out loss this often; 0 is never. Needs `data.val_fraction`."""
    eval_samples: Positive = 512
    """Held-out samples per evaluation."""
    eval_suites: tuple[Literal["failure", "caption"], ...] = ()
    """Suites of `mgpt4 eval` asked with each held-out loss, about images never trained on."""
    early_stop: NonNegative = 0
    """Held-out losses in a row without a new lowest after which the run is finished; 0 is never."""
    eval_images: Positive = 8
    """Images that they ask about, over all ranks; shown in TensorBoard with the answers."""
    eval_answer_tokens: Positive = 160
    """Longest of those answers."""
    save_every_s: _Seconds = 30.0
    """Most seconds of work that a kill without warning can cost."""
    hang_timeout_s: Annotated[float, Field(ge=0, le=1e9)] = 600.0
    """A step that takes longer is a hang: stacks into the logs, end, requeue; 0 is never."""
    slow_timeout_s: _Seconds = 3600.0
    """The same for each part of the start-up, the first step, a validation and the last save."""
    max_nonfinite_steps: NonNegative = 20
    """Steps skipped for a NaN or infinite gradient before the run stops as hopeless."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto` is the GPU where there is one."""
    num_threads: NonNegative = 0
    """CPU threads per rank; 0 shares the cores that the job may use among its ranks."""

    @property
    def cosine_steps(self) -> int:
        """Length of the learning rate's cosine in steps."""
        return self.lr_steps if self.lr_steps is not None else self.max_steps


class CheckpointConfig(_Section):
    """Which steps are saved, beside `train.save_every_s`, and how many checkpoints stay."""

    save_every_steps: NonNegative = 0
    """Save at multiples of this too; 0 saves by the clock alone."""
    keep_last: Positive = 3
    """Newest checkpoints kept."""
    keep_every_steps: NonNegative = 0
    """Each multiple of this is saved and stays for ever; 0 keeps none."""
    keep_best: Literal["val/loss", "failure", "caption"] | None = None
    """The checkpoint of the lowest held-out loss is saved and stays, or that of the best score of a
    suite in `train.eval_suites`: fewest failing answers, highest CIDEr; none keeps none."""


_LINE = r"^[^\x00-\x1f\x7f]+$"
_Line = Annotated[str, Field(pattern=_LINE)]
"""Text for one line of a batch script: a line break in it would begin a command of its own."""


def _is_command(line: str) -> str:
    shlex.split(line)  # its ValueError is the fault
    return line


_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
_Variable = Annotated[str, Field(pattern=_VARIABLE)]


class LaunchConfig(_Section):
    """What the job asks Slurm for, and how often it may come back; no part of the result."""

    gpus: Positive = 1
    """GPUs of the whole job; one task each."""
    nodes: Positive = 1
    """Nodes; the GPUs are spread evenly."""
    partition: _Line | None = None
    """Slurm partition; none is the site's default."""
    account: _Line | None = None
    """Slurm account."""
    qos: _Line | None = None
    """Slurm quality of service."""
    constraint: _Line | None = None
    """Node features, as `a100_80g`."""
    exclude: _Line | None = None
    """Nodes to keep away from."""
    gpu_type: _Line | None = None
    """Type of GPU, as the site's gres has it: `a100` asks for `gpu:a100:N`."""
    gpu_request: Literal["auto", "gres", "gpus-per-node", "none"] = "auto"
    """How GPUs are asked for; `auto` is gres with a type, else gpus-per-node; `none` is not."""
    exclusive: bool = False
    """Whole nodes, shared with no other job."""
    cpus_per_gpu: Positive = 8
    """CPU cores per task; data workers need most of them."""
    mem_gib_per_gpu: Positive | None = None
    """Memory per task; none is the site's default."""
    time_min: Positive = 1440
    """Time limit of one attempt; the run continues in the next."""
    signal_before_s: Positive = 120
    """Slurm warns this long before the time limit."""
    stop_signals: tuple[StopSignal, ...] = ("TERM", "USR2", "USR1")
    """Signals after which a run saves and stops; TERM and USR2, which Slurm sends, always do."""
    modules: tuple[_Line, ...] = ()
    """Modules that the job loads, in this order, as `cuda/12.4`."""
    env: dict[_Variable, _Line] = {}
    """Environment variables of the job, as `NCCL_SOCKET_IFNAME: ib0`; taken literally."""
    setup: tuple[_Line, ...] = ()
    """Further shell lines before srun."""
    stage_env: _Line | None = None
    """Folder on the node's disk, as `$TMPDIR`, for a copy of the Python environment."""
    runs_dir: str | None = None
    """Folder of the run directories, on storage that all nodes share; `--runs-dir` stands above."""
    mail_type: _Line | None = None
    """When Slurm mails: BEGIN, END, FAIL, REQUEUE, TIME_LIMIT or ALL, with commas between."""
    mail_user: _Line | None = None
    """Recipient of Slurm's mail; by default the user who submits."""
    on_event: tuple[Annotated[_Line, AfterValidator(_is_command)], ...] = ()
    """Commands that get finished, failed, preempted and similar events as JSON on their stdin."""
    on_event_timeout_s: Annotated[float, Field(gt=0, le=20)] = 10.0
    """Each of these commands is killed after this; a job being killed has little longer."""
    sbatch: dict[_Line, _Line] = {}
    """Further sbatch options, as `reservation: maintenance`."""
    max_timeouts: NonNegative = 100
    """Requeues after a time limit."""
    max_crashes: NonNegative = 5
    """Requeues after a crash, a killed rank or a lost node."""
    max_hangs: NonNegative = 5
    """Requeues after a hang, that is no step within `train.hang_timeout_s`."""
    max_bad_nodes: NonNegative = 3
    """Nodes that a job may leave out as unfit; beyond, rather the check or the site is at fault."""
    max_stalled_attempts: Positive = 3
    """Attempts in a row that may end without a new checkpoint."""


class ContainerConfig(_Section):
    """In which container the ranks run, if in one; no part of the result."""

    runtime: Literal["none", "pyxis", "apptainer", "singularity"] = "none"
    """Pyxis is an option of srun, the others are commands around each rank."""
    image: str = ""
    """File, or what the runtime can fetch, as `nvcr.io#nvidia/pytorch:25.01-py3`."""
    mounts: tuple[_Line, ...] = ()
    """Folders seen inside, as `/data` or `/data:/data:ro`; the run's own always is."""
    python: _Line = "python3"
    """The interpreter inside, which has this package's dependencies."""
    options: tuple[_Line, ...] = ()
    """Further options: of srun for Pyxis, else of `exec`, as `--cleanenv`."""


ALONE = {"each setting": "by itself"}
"""Validation context in which settings may contradict each other."""


class RunConfig(_Section):
    """The whole configuration of one run."""

    stage: Literal[1, 2]
    """1 aligns on image-text pairs, 2 fine-tunes on conversations."""
    name: Annotated[str, Field(pattern=_NAME)] = "run"
    """Name of the run and of its Slurm job."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Seed of the sample order, the prompts and the projector's initial values."""
    deterministic: bool = True
    """Same hardware, versions and world size give the same bits."""
    faithful: bool = False
    """Do everything as the original does, quirks included; docs/fidelity.md lists them."""
    model: ModelConfig = ModelConfig()
    data: DataConfig
    text: TextConfig = TextConfig()
    lora: LoraConfig = LoraConfig()
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    launch: LaunchConfig = LaunchConfig()
    container: ContainerConfig = ContainerConfig()

    @model_validator(mode="after")
    def _agree(self, info: ValidationInfo) -> RunConfig:
        if info.context is not ALONE and (faults := consistency_faults(self)):
            raise ValueError("\n".join(faults))
        return self

    @property
    def max_answer_tokens(self) -> int:
        """Longest answer in tokens; the original's limit of the stage unless set."""
        return self.text.max_answer_tokens or (32 if self.stage == 1 else 160)

    @property
    def max_words(self) -> int | None:
        """Longest caption in words; the original cuts at 50 in stage 1 only."""
        return self.text.max_words or (50 if self.stage == 1 else None)

    @property
    def end_symbol(self) -> str:
        """What ends an answer."""
        if self.text.end_symbol is not None:
            return self.text.end_symbol
        return STAGE1_END_SYMBOL if self.stage == 1 else self.template.end_symbol

    @property
    def template(self) -> Template:
        """How the language model is spoken to in stage 2."""
        if self.text.prompt is not None:
            return Template(CUSTOM, self.text.prompt, self.text.end_symbol or "")
        template = get_template(self.text.template)
        if self.stage == 2 and self.text.end_symbol is not None:
            return replace(template, end_symbol=self.text.end_symbol)
        return template

    @property
    def instructions(self) -> tuple[str, ...]:
        """What captions answer, to draw from; stage 1 has none."""
        return () if self.stage == 1 else self.text.instructions or STAGE2_INSTRUCTIONS

    @property
    def prompts(self) -> tuple[str, ...]:
        """The same as full prompts, in a format of text."""
        return tuple(self.template.render(instruction) for instruction in self.instructions)


PATTERNS_IN_WORDS = {
    _NAME: "must be at most 100 letters, digits, `_`, `.` and `-`, the first a letter or digit",
    _SOURCE_NAME: "must be letters, digits, `_`, `.` and `-`",
    _LINE: "must be one line of text, and not empty",
    _VARIABLE: "must be the name of an environment variable: letters, digits and `_`",
}
"""What a text that was refused should have been, for people who read no regular expressions."""
