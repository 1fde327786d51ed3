"""Which tensors the towers consist of, and their shapes, without building a model.

Keys are those of the modules in ``nn/vision.py`` and ``nn/connector.py``; importer and bundle
check compare files with these tables.
"""

from __future__ import annotations

from mgpt4_hpc.model.architecture import Architecture

Shapes = dict[str, tuple[int, ...]]


def vision_shapes(arch: Architecture, *, grid: int | None = None) -> Shapes:
    """Tensors of the ViT (timm's ``Eva`` names, which are the original's).

    Args:
        arch: sizes.
        grid: patches along one side for ``pos_embed``, where a file was made for another size.
    """
    width, hidden = arch.vision_width, arch.vision_mlp_width
    grid = arch.grid if grid is None else grid
    shapes: Shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, grid * grid + 1, width),
        "patch_embed.proj.weight": (width, 3, arch.patch_size, arch.patch_size),
        "patch_embed.proj.bias": (width,),
    }
    for index in range(arch.vision_depth):
        block = f"blocks.{index}"
        shapes |= _affine(f"{block}.norm1", width)
        shapes |= {f"{block}.attn.q_bias": (width,), f"{block}.attn.v_bias": (width,)}
        shapes[f"{block}.attn.qkv.weight"] = (3 * width, width)
        shapes |= _linear(f"{block}.attn.proj", width, width) | _affine(f"{block}.norm2", width)
        shapes |= _linear(f"{block}.mlp.fc1", hidden, width)
        shapes |= _linear(f"{block}.mlp.fc2", width, hidden)
    return shapes


def connector_shapes(arch: Architecture) -> Shapes:
    """Tensors between the ViT and the projector: ``ln_vision`` and, if any, the Q-Former."""
    shapes: Shapes = _affine("ln_vision", arch.vision_width)
    if not arch.qformer:
        return shapes
    width, hidden = arch.qformer_width, arch.qformer_mlp_width
    shapes["query_tokens"] = (1, arch.num_query_tokens, width)
    shapes.update(_affine("qformer.layernorm", width))
    for index in range(arch.qformer_layers):
        layer = f"qformer.encoder.layer.{index}"
        shapes.update(_attention(f"{layer}.attention", width, width))
        if index % arch.cross_attention_frequency == 0:
            shapes.update(_attention(f"{layer}.crossattention", width, arch.vision_width))
        shapes.update(_linear(f"{layer}.intermediate_query.dense", hidden, width))
        shapes.update(_linear(f"{layer}.output_query.dense", width, hidden))
        shapes.update(_affine(f"{layer}.output_query.LayerNorm", width))
    return shapes


def projector_shapes(arch: Architecture, llm_dim: int) -> Shapes:
    """Tensors of ``llama_proj``, without its name in front."""
    return {"weight": (llm_dim, arch.projector_in), "bias": (llm_dim,)}


def _affine(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, out_width: int, in_width: int) -> Shapes:
    return {f"{name}.weight": (out_width, in_width), f"{name}.bias": (out_width,)}


def _attention(name: str, width: int, key_width: int) -> Shapes:
    return (
        _linear(f"{name}.attention.query", width, width)
        | _linear(f"{name}.attention.key", width, key_width)
        | _linear(f"{name}.attention.value", width, key_width)
        | _linear(f"{name}.output.dense", width, width)
        | _affine(f"{name}.output.LayerNorm", width)
    )
