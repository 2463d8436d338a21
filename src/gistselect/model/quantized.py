"""Base weights in 8 or 4 bits: how they are asked for, and what lets gradients flow through them exactly."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from gistselect.errors import MissingDependencyError, ModelError
from gistselect.model.config import ModelConfig

LARGEST_CODE = 127
"""Of an 8-bit weight; a row's scale is its largest absolute value."""


def placement(config: ModelConfig, stored: dict[str, Any] | None, dtype: torch.dtype, device: Any) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a quantized model; none for one in full precision.

    Raises `ModelError` if it is stored in another number of bits than asked for, `MissingDependencyError` without
    bitsandbytes.
    """
    if stored is None and config.quantization == "none":
        return {}
    bits = _bits(stored) if stored else None
    if stored and config.quantization not in ("none", bits):
        raise ModelError(
            f"{config.path!r} is stored quantized ({bits or stored.get('quant_method')}); leave --quantization out, or "
            f"name the model it was made from to hold that in {config.quantization}."
        )
    if (bits or not stored) and find_spec("bitsandbytes") is None:
        what = f"a model in {bits}" if stored else f"quantization={config.quantization!r}"
        raise MissingDependencyError(f"{what} needs bitsandbytes; pip install 'gistselect[quant]'.")
    asked = {} if stored else {"quantization_config": _bitsandbytes(config.quantization, dtype)}
    return {**asked, "device_map": {"": device}}


def is_quantized(model: Any) -> bool:
    """Whether a live model, adapted or not, holds quantized weights."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(base, "hf_quantizer", None) is not None or bool(getattr(base, "is_quantized", False))


def keep_differentiable(model: Any) -> None:
    """Make quantized layers give the same output, with a gradient, whatever else is in the batch.

    4 bits: on CPUs with bfloat16 instructions bitsandbytes repacks a layer for good at its first forward pass in
    evaluation mode; no gradient flows through it then, and nothing says so. Raises `ModelError` if that has happened.
    8 bits: bitsandbytes keeps the columns in 16 bits where any token of the batch exceeds a threshold, so the loss of
    an example hangs on its neighbours. Here every layer multiplies by its dequantized weight.
    """
    for name, module in model.named_modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
                raise ModelError(f"the 4-bit layer {name!r} was repacked for inference; load the model again.")
        elif hasattr(module, "init_8bit_state") and not module.state.has_fp16_weights:
            if module.weight.SCB is not None:
                module.init_8bit_state()
            module.forward = partial(_dequantized_forward, module)


def compute_in(model: Any, dtype: torch.dtype) -> None:
    """Let 4-bit layers compute in `dtype` instead of the number format that they were stored to compute in."""
    for module in model.modules():
        if hasattr(module, "compute_type_is_set"):
            module.compute_dtype, module.compute_type_is_set = dtype, True


def quantization_state(model: Any) -> list[tuple[str, Tensor]]:
    """Scales of quantized weights by name: with the integer codes they are the weights."""
    found = []
    for name, module in model.named_modules():
        weight: Any = getattr(module, "weight", None)
        if (state := getattr(weight, "quant_state", None)) is not None:
            found += [(f"{name}.{part}", value) for part, value in sorted(state.as_dict(packed=True).items())]
        elif hasattr(module, "init_8bit_state"):
            scales = module.state.SCB if module.state.SCB is not None else weight.SCB
            found.append((f"{name}.SCB", scales))
    return found


def _dequantized_forward(layer: Any, inputs: Tensor) -> Tensor:
    outputs = _DequantizedProduct.apply(inputs, layer.state.CB, layer.state.SCB)
    return outputs if layer.bias is None else outputs + layer.bias.to(outputs.dtype)


class _DequantizedProduct(torch.autograd.Function):
    """x Wᵀ for W = codes · scale / 127 per row; W is formed anew in the backward pass instead of kept."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.dtype = inputs.dtype
        return torch.nn.functional.linear(inputs, _dequantized(codes, scales, inputs.dtype))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        (grad,) = grad_outputs
        codes, scales = ctx.saved_tensors
        return (grad @ _dequantized(codes, scales, grad.dtype)).to(ctx.dtype), None, None


def _dequantized(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return codes.to(dtype).mul_(scales[:, None].to(dtype) / LARGEST_CODE)


def _bits(stored: dict[str, Any]) -> str | None:
    """4bit or 8bit, for what bitsandbytes stored."""
    return next((bits for bits in ("4bit", "8bit") if stored.get(f"load_in_{bits}")), None)


def _bitsandbytes(quantization: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
