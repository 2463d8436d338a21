"""Frozen weights that the processes of a training hold together (FSDP2), where one card does not hold them all.

An adapter is small: each process holds all of it, and its gradients are averaged as without sharding. So checkpoints,
moments and a resume are what they always are; only what is frozen lies in pieces, and is gathered a layer at a time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gistselect.errors import ConfigError
from gistselect.model.config import ModelConfig
from gistselect.training.recipe import TrainingConfig

if TYPE_CHECKING:
    import torch

    from gistselect.model.loading import LanguageModel


def check_sharding(model: ModelConfig | LanguageModel, config: TrainingConfig) -> None:
    """Raise `ConfigError` for a training whose weights cannot be shared out."""
    from gistselect.model.loading import stored_quantization

    if not isinstance(model, ModelConfig):
        raise ConfigError("fsdp=true is for a model of a folder or hub id, which every process can load.")
    if config.full:
        raise ConfigError("fsdp=true shares out frozen weights, and full=true freezes none; leave one of the two out.")
    if model.quantization != "none" or stored_quantization(model):
        raise ConfigError(
            "fsdp=true cannot share out quantized weights; leave it out (in 4 bits 70 B fit on one card), or give the "
            "model in full precision."
        )


def before_sharding(model: ModelConfig) -> ModelConfig:
    """The model as a process loads it: on the host, from which its part goes to its card."""
    from gistselect.model.loading import resolved_precision

    return model.model_copy(update={"device": "cpu", "dtype": resolved_precision(model)["dtype"]})


def sharded(adapted: LanguageModel, device: torch.device) -> LanguageModel:
    """The model with its frozen weights in pieces over all processes, and its adapter whole on the device."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from gistselect.model.adapters import adapter_parameters

    own = adapter_parameters(adapted.model)
    for value in own.values():
        value.data = value.data.to(device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    whole = set(getattr(adapted.causal, "_no_split_modules", None) or ())
    kept = set(own.values())
    for module in list(adapted.causal.modules()):
        if type(module).__name__ in whole:
            fully_shard(module, mesh=mesh, ignored_params=kept)
    fully_shard(adapted.causal, mesh=mesh, ignored_params=kept)
    names = [name for name, _ in adapted.model.named_parameters() if name not in own]
    # Averaging gradients is for the adapter alone; the rest has none, and is no plain tensor.
    adapted.model._ddp_params_and_buffers_to_ignore = names + [name for name, _ in adapted.model.named_buffers()]
    return replace(adapted, device=device)
