"""torch.compile for the repeated layers, so that their small operations become few."""

from __future__ import annotations

from mgpt4_hpc.model.nn.attention import exclude_from_compilation
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4


def compile_layers(model: MiniGPT4) -> int:
    """Compile every block of the towers and every layer of the language model; returns how many.

    Layer by layer, since equal layers share one compilation: whole models take many times as long
    and gain nothing, as matrix products fill the time between layers anyway. The language model's
    layers take any number of tokens, which differs from step to step.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    exclude_from_compilation()
    blocks = [*model.vision.get_submodule("blocks").children()]
    layers = [
        module
        for tower in (model.connector, model.language_model)
        for module in tower.modules()
        if isinstance(module, GradientCheckpointingLayer)
    ]
    for block in blocks:
        block.compile()
    for layer in layers:
        layer.compile(dynamic=True)
    return len(blocks) + len(layers)
