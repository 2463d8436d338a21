"""A model that belongs to the caller: given back as it came, and known by its adapter."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

FLAGS = (
    "training",
    "gradient_checkpointing",
    "active_adapter",
    "_active_adapter",
    "_disable_adapters",
    "support_avx512bf16_for_cpu",
    "forward",
)
"""Attributes of modules that our passes, PEFT and Trainer set."""
CONFIG_FLAGS = ("_attn_implementation_internal", "use_cache")
_ABSENT = object()


@contextmanager
def restored(model: Any) -> Iterator[None]:
    """Whatever happens in this context, afterwards the model is as it came, as `state_of` describes."""
    restore = state_of(model)
    try:
        yield
    finally:
        restore()


def state_of(model: Any) -> Callable[[], None]:
    """A function that puts the model back to what it is now.

    That is, for the modules and parameters it has now: training mode, module by module; which parameters are
    trainable; the active adapter of every layer; gradient checkpointing and its hooks; the attention implementation.
    """
    states = [(vars(module), _flags(vars(module), FLAGS)) for module in model.modules()]
    states += [(vars(config), _flags(vars(config), CONFIG_FLAGS)) for config in _configs(model)]
    hooks = [(module._forward_hooks, set(module._forward_hooks)) for module in model.modules()]
    parameters = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore() -> None:
        for attributes, before in states:
            for name, value in before.items():
                if value is _ABSENT:
                    attributes.pop(name, None)
                else:
                    attributes[name] = value
        for held, known in hooks:
            for key in held.keys() - known:
                del held[key]
        for parameter, trainable in parameters:
            # Integer weights of a quantized layer never were trainable, and may not even be told so.
            if parameter.requires_grad != trainable:
                parameter.requires_grad_(trainable)

    return restore


def live_adapter_digest(model: Any) -> str:
    """SHA-256 of the adapter at which a live `PeftModel` stands: what is active, its scaling, types and values."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    active = sorted(set(model.active_adapters))
    layers = [
        [name, list(module.active_adapters), list(module.merged_adapters), bool(module.disable_adapters)]
        + [_scaling(module, adapter) for adapter in active]
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]
    settings = [model.peft_config[name].to_dict() for name in active]
    digest = hashlib.sha256(json.dumps([active, layers, settings], sort_keys=True, default=_plain).encode())
    for name, value in model.named_parameters():
        if "lora_" in name and any(f".{adapter}" in name for adapter in active):
            digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _flags(attributes: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Copies, so that a list that is changed in place does not change with it."""
    found = {name: attributes.get(name, _ABSENT) for name in names}
    return {name: list(value) if isinstance(value, list) else value for name, value in found.items()}


def _configs(model: Any) -> list[Any]:
    """Every configuration that a part of the model holds, once."""
    held = (getattr(module, "config", None) for module in model.modules())
    return list({id(config): config for config in held if hasattr(config, "__dict__")}.values())


def _scaling(module: Any, adapter: str) -> float | None:
    scaling = getattr(module, "scaling", {})
    return float(scaling[adapter]) if adapter in scaling else None


def _plain(value: Any) -> Any:
    """Sets in one order, whatever the process; the rest by name."""
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)
