"""MiniGPT-4: a frozen vision tower and a frozen language model, joined by one trainable layer.

Shapes: B batch, T tokens, N images of all rows, C channels, H height, W width, I image
tokens, Q projector's input width, D language width; of packed batches N tokens, M image
embeddings, A predicted tokens, R rows (see ``performance/packing.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.bundle.bundle import Bundle
from mgpt4_hpc.model.nn.attention import packed_arguments
from mgpt4_hpc.model.nn.image_encoder import encode_with, load_image_towers
from mgpt4_hpc.model.nn.language import (
    load_language_model,
    load_shared_language_model,
    runs_packed,
    trunk,
)
from mgpt4_hpc.model.nn.loss import answer_loss_sum
from mgpt4_hpc.model.nn.performance.activation_checkpointing import recompute_layers
from mgpt4_hpc.model.nn.performance.cuda_graphs import ReplayedTowers
from mgpt4_hpc.model.nn.performance.node_broadcast import LocalRunner
from mgpt4_hpc.model.nn.performance.packing import IGNORED, Packed, pack
from mgpt4_hpc.model.nn.precision import autocast, compute_dtype

Projector = Callable[[torch.Tensor], torch.Tensor]


class MiniGPT4(nn.Module):
    """The whole model; only ``llama_proj`` has parameters that require gradients.

    Attributes:
        architecture: sizes.
        vision, connector, language_model: frozen, always in eval mode.
        llama_proj: (Q -> D), float32 whatever the rest computes in.
        dtype: what matrix multiplications of projector and language model compute in.
        vision_dtype: the same of vision tower and connector.
        sharded: whether every rank must compute the language model as often as any (fsdp.py).
    """

    def __init__(
        self,
        architecture: Architecture,
        vision: nn.Module,
        connector: nn.Module,
        language_model: nn.Module,
        dtype: torch.dtype,
        vision_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        assert architecture.llm_dim is not None
        self.architecture = architecture
        self.dtype = dtype
        self.vision_dtype = dtype if vision_dtype is None else vision_dtype
        self.vision = vision
        self.connector = connector
        self.language_model = language_model
        for tower in (vision, connector, language_model):
            tower.requires_grad_(False)
        self.llama_proj = nn.Linear(architecture.projector_in, architecture.llm_dim)
        self._replayed: ReplayedTowers | None = None
        self.sharded = False
        self.eval()

    def train(self, mode: bool = True) -> MiniGPT4:
        """Sets the projector's mode only: the frozen parts have dropout that must stay off."""
        self.training = mode
        self.llama_proj.train(mode)
        return self

    def eval(self) -> MiniGPT4:
        """Everything in eval mode."""
        for tower in (self.vision, self.connector, self.language_model):
            tower.eval()
        return self.train(False)

    @property
    def device(self) -> torch.device:
        """Where the projector, and with it everything else, is."""
        return self.llama_proj.weight.device

    def replay_towers(self, wanted: bool = True) -> None:
        """Run the frozen towers as a CUDA graph where there is a GPU; see ``cuda_graphs.py``."""
        self._replayed = ReplayedTowers(self._encode) if wanted else None

    def forget_replays(self) -> None:
        """After the towers' weights were put elsewhere in memory."""
        if self._replayed is not None:
            self._replayed.forget()

    def _apply(self, *args: Any, **kwargs: Any) -> MiniGPT4:
        """Every way of moving or casting a module's parameters comes by here."""
        self.forget_replays()
        moved: MiniGPT4 = super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return moved

    @torch.no_grad()
    def encode_images(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        """Features (N, I, Q) of normalised pixels; no gradient, as both towers are frozen.

        Not in inference mode: its tensors could not enter the projector's backward pass.
        """
        if not len(pixels_NCHW):  # kernels need not take an empty batch
            arch = self.architecture
            return pixels_NCHW.new_empty(0, arch.num_image_tokens, arch.projector_in)
        if self._replayed is not None and pixels_NCHW.is_cuda:
            return self._replayed(pixels_NCHW)
        return self._encode(pixels_NCHW)

    def _encode(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        return encode_with(self.vision, self.connector, self.vision_dtype, pixels_NCHW)

    def project(
        self, features_NIQ: torch.Tensor, projector: Projector | None = None
    ) -> torch.Tensor:
        """Image embeddings (N, I, D) in the language model's space and type."""
        with autocast(self.device, self.dtype):
            projected = (projector or self.llama_proj)(features_NIQ)
        return projected.to(self.dtype)

    def embed(
        self, input_ids_BT: torch.Tensor, image_mask_BT: torch.Tensor, images_NID: torch.Tensor
    ) -> torch.Tensor:
        """Token embeddings (B, T, D) with image embeddings in the slots that the mask marks.

        Slots are filled row by row, so the N images belong to rows in order; there must be N x I.
        """
        embeds_BTD = self.language_model.get_input_embeddings()(input_ids_BT)  # type: ignore[operator]
        return embeds_BTD.to(self.dtype).masked_scatter(image_mask_BT.unsqueeze(-1), images_NID)

    def answer_loss(
        self,
        pixels_NCHW: torch.Tensor,
        input_ids_BT: torch.Tensor,
        image_mask_BT: torch.Tensor,
        labels_BT: torch.Tensor,
        projector: Projector | None = None,
    ) -> torch.Tensor:
        """Sum of the answer tokens' cross entropies, float32; divide by their number for the mean.

        Args:
            pixels_NCHW: normalised images of all rows, row by row as their slots stand.
            input_ids_BT: BOS, text and image slots, padded on the right.
            image_mask_BT: True in image slots.
            labels_BT: the token where it is learned, -100 elsewhere; not shifted.
            projector: stands in for ``llama_proj``, for instance wrapped in DDP.

        The token tensors may be on the CPU, and then nothing here waits for a GPU.
        """
        features_NIQ = self.encode_images(pixels_NCHW)
        return self.answer_loss_of_features(
            features_NIQ, input_ids_BT, image_mask_BT, labels_BT, projector
        )

    def answer_loss_of_features(
        self,
        features_NIQ: torch.Tensor,
        input_ids_BT: torch.Tensor,
        image_mask_BT: torch.Tensor,
        labels_BT: torch.Tensor,
        projector: Projector | None = None,
    ) -> torch.Tensor:
        """As ``answer_loss``, from features that were encoded (and perhaps stored) before."""
        packed = pack(input_ids_BT, image_mask_BT, labels_BT).to(self.device)
        images_MD = self.project(features_NIQ, projector).flatten(0, 1)
        if not packed.num_tokens:
            return self._no_loss(images_MD)
        if not packed.all_images:
            images_MD = images_MD.index_select(0, packed.images_S)
        embedding = self.language_model.get_input_embeddings()  # type: ignore[operator]
        embeds_ND = embedding(packed.token_ids_N).to(self.dtype)
        embeds_ND = embeds_ND.index_copy(0, packed.slots_S, images_MD)
        hidden_AD = self._hidden(packed, embeds_ND).index_select(0, packed.predicts_A)
        output_layer = self.language_model.get_output_embeddings()  # type: ignore[operator]
        return answer_loss_sum(hidden_AD, packed.labels_A, output_layer)

    def _no_loss(self, images_MD: torch.Tensor) -> torch.Tensor:
        """Zero, for a batch that teaches nothing: DDP expects a gradient of every parameter."""
        added = [p for p in self.language_model.parameters() if p.requires_grad]
        nothing = sum((p.sum() for p in added), images_MD.sum().float()) * 0.0
        if not self.sharded:
            return nothing
        token_1D = (nothing + torch.zeros_like(images_MD[:1])).to(self.dtype)
        row, column = torch.tensor([[0]]), torch.tensor([[False]])
        longer = torch.cat([row, row], dim=1), torch.cat([column, column], dim=1)
        packed = pack(*longer, torch.tensor([[IGNORED, 0]])).to(self.device)
        return self._hidden(packed, token_1D).sum().float() * 0.0

    def idle_loss(self, projector: Projector | None = None) -> torch.Tensor:
        """Zero, by way of the language model: a rank without work keeps up with the others."""
        arch = self.architecture
        shape = (1, arch.num_image_tokens, arch.projector_in)
        images_NID = self.project(torch.zeros(shape, device=self.device), projector)
        return self._no_loss(images_NID.flatten(0, 1))

    def _hidden(self, packed: Packed, embeds_ND: torch.Tensor) -> torch.Tensor:
        """Hidden states (N, D) of packed embeddings."""
        llm = trunk(self.language_model)
        if runs_packed(self.language_model):
            arguments = packed_arguments(packed, embeds_ND.device)
            output = llm(inputs_embeds=embeds_ND.unsqueeze(0), use_cache=False, **arguments)
            hidden_ND: torch.Tensor = output[0].squeeze(0)
            return hidden_ND
        # Padding stands on the right and attention is causal, so no token that matters ever sees
        # it: a padding mask would only cost the fast attention kernels.
        table_XD = embeds_ND.new_zeros(packed.num_rows * packed.longest, embeds_ND.shape[1])
        table_XD = table_XD.index_copy(0, packed.padded_N, embeds_ND)
        embeds_RTD = table_XD.unflatten(0, (packed.num_rows, packed.longest))
        hidden_RTD = llm(inputs_embeds=embeds_RTD, use_cache=False)[0]
        return hidden_RTD.flatten(0, 1).index_select(0, packed.padded_N)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How a bundle's model computes.

    Attributes:
        precision: ``fp32``, ``bf16`` or ``fp16`` (see ``precision.py``).
        vision_precision: another one for vision tower and connector, or ``same``.
        ln_vision: without Q-Former: the ``bundle``'s, or ``identity`` as the original has it.
        llm_8bit: round the language model's matrices to 8 bits (see ``int8.py``).
        attention: ``packed`` computes no padding in the language model (families that cannot do
            that are padded); ``sdpa`` and ``eager`` pad.
        activation_checkpointing: part of the language model's layers, 0 to 1, that are recomputed
            in the backward pass; all of them cost half as much again of the language model's
            compute for a fraction of the memory.
    """

    precision: str = "fp32"
    vision_precision: str = "same"
    ln_vision: str = "bundle"
    llm_8bit: bool = False
    attention: str = "packed"
    activation_checkpointing: float = 0.0


def build_model(
    bundle: Bundle,
    options: ModelOptions | None = None,
    *,
    device: torch.device | str = "cpu",
    readers: Ranks | None = None,
    run_locally: LocalRunner = lambda read: read(),
) -> MiniGPT4:
    """The model of a bundle on one device, frozen but for ``llama_proj``.

    The projector starts from the bundle's; without one, from torch's default initialisation under
    the caller's seed, as stage 1 does.

    Args:
        bundle: the weights.
        options: how it computes; the defaults of ``ModelOptions`` if None.
        device: one device for everything.
        readers: all ranks (each makes this call) if one per node is to read the language
            model for its neighbours (not in 8 bits); by default every process reads for itself.
        run_locally: does each part of the reading for which no other rank is needed.

    Raises:
        WeightsError: if weights are missing, broken or do not fit each other.
    """
    options = options or ModelOptions()
    dtype, target = compute_dtype(options.precision), torch.device(device)
    vision_precision = options.vision_precision
    vision_dtype = dtype if vision_precision == "same" else compute_dtype(vision_precision)
    how: dict[str, Any] = {"attention": options.attention, "device": target}
    # First what the ranks do together: no rank waits for one that is interrupted afterwards.
    if readers is None or options.llm_8bit:
        language_model = run_locally(
            lambda: load_language_model(
                bundle.llm_dir, dtype=dtype, **how, eight_bit=options.llm_8bit
            )
        )
    else:
        language_model = load_shared_language_model(
            bundle.llm_dir, dtype=dtype, **how, ranks=readers, run_locally=run_locally
        )
    vision, connector = run_locally(
        lambda: load_image_towers(bundle, vision_dtype, ln_vision=options.ln_vision, **how)
    )
    recompute_layers(language_model, float(options.activation_checkpointing))
    model = MiniGPT4(bundle.architecture, vision, connector, language_model, dtype, vision_dtype)
    if (start := bundle.projector_state()) is not None:
        model.llama_proj.load_state_dict(start, strict=True)
    model.llama_proj.to(target)
    return model
