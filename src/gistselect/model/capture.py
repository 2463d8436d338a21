"""Per-example gradients of LoRA factors, caught in the middle of one batched backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gistselect.errors import ModelError
from gistselect.model.adapters import adapter_parameters, shared_weights
from gistselect.model.factors import ParameterBlock


class LoraCapture:
    """Runs LoRA layers with one fused update each, whose backward pass also emits per-example gradients.

    For y = Wx + s·B(Ax): with δ = ∂loss/∂y, the gradients are ∂B = δᵀ(s·Ax) and ∂A = (s·δB)ᵀx, summed over
    the tokens of an example. Adapter weights need no gradient, so autograd never forms a batch-summed one.
    """

    def __init__(self, model: Any) -> None:
        """Raises nothing: ask `obstacle` first whether the model can be captured."""
        self.layers = list(lora_layers(model))
        self.shared = shared_weights(model)
        self.blocks = [
            ParameterBlock(f"{name}.lora_{factor}.{adapter}.weight", tuple(weight.shape))
            for name, layer, adapter in self.layers
            for factor, weight in (("A", layer.lora_A[adapter].weight), ("B", layer.lora_B[adapter].weight))
        ]
        self.take: Callable[[int, Tensor, Tensor], None] | None = None
        """Gets the two factors of each block's gradients, (n_rows, width, out) and (n_rows, width, in)."""
        self._seen: dict[int, list[tuple[int, ...]]] = {}

    def misfit(self, read: Callable[[], object], shape: tuple[int, ...]) -> str | None:
        """Which layer does not see every token of a batch (n_rows, width) once and at its place, or None.

        `read` is a forward pass over such a batch. Experts get some tokens in an order of their own, layers that are
        shared see each several times: what is caught there is no example's gradient.
        """
        self._seen = {index: [] for index in range(len(self.layers))}
        read()
        seen, self._seen = self._seen, {}
        for index, shapes in seen.items():
            if shapes != [shape]:
                return f"{self.layers[index][0]} does not see each token once (a shared layer, or an expert)"
        return None

    @staticmethod
    def obstacle(model: Any) -> str | None:
        """Why the adapter of this model is not plain LoRA on linear layers, or None if it is."""
        covered = set()
        for name, layer, adapter in lora_layers(model):
            if layer.lora_variant.get(adapter) is not None:
                return f"{name} uses {type(layer.lora_variant[adapter]).__name__}"
            if layer.merged or layer.disable_adapters or len(layer.active_adapters) != 1:
                return f"{name} is merged, disabled or has several active adapters"
            for factor in (layer.lora_A[adapter], layer.lora_B[adapter]):
                if type(factor) is not torch.nn.Linear or factor.bias is not None:
                    return f"{name} has a factor that is not a linear map without bias"
            covered |= {f"{name}.lora_{factor}.{adapter}.weight" for factor in "AB"}
        if rest := adapter_parameters(model).keys() - covered:
            return f"{min(rest)} is not a LoRA factor"
        return None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within this context the LoRA layers emit their gradients; after it they are as before.

        Where the base weight is as precise as the sum, W + s·BA takes its place: one product instead of three
        forward and backward, and the gradients are the same function of x and δ.
        """
        with ExitStack() as stack:
            for index, (_, layer, adapter) in enumerate(self.layers):
                merged = _is_mergeable(layer) and id(layer.base_layer.weight) not in self.shared
                if merged:
                    stack.enter_context(_merged(layer, adapter))
                forward = self._forward(index, layer, adapter, _MergedTap if merged else _LoraUpdate)
                stack.enter_context(replaced_forward(layer, forward))
            yield

    def _forward(self, index: int, layer: Any, adapter: str, update: type[torch.autograd.Function]) -> Any:
        scale = layer.scaling[adapter]
        down, up = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
        factors = _Factors(down, down * scale, up, up * scale)
        anchor = torch.zeros((), device=down.device, requires_grad=True)
        emit = partial(self._emit, 2 * index)

        def forward(inputs: Tensor, *args: Any, **kwargs: Any) -> Any:
            if index in self._seen:
                self._seen[index].append(tuple(inputs.shape[:-1]))
            base = layer.base_layer(inputs, *args, **kwargs)
            cast = _Factors(*(factor.to(base.dtype) for factor in factors))
            return update.apply(base, inputs.to(base.dtype), anchor, cast, emit)

        return forward

    def _emit(self, block: int, grad_inner: Tensor, inputs: Tensor, grad: Tensor, inner: Tensor) -> None:
        if self.take is not None:
            self.take(block, grad_inner, inputs)
            self.take(block + 1, grad, inner)


def choose_capture(model: Any, wanted: Literal["auto", "hooks", "autograd"]) -> tuple[LoraCapture | None, str]:
    """Hooks if the adapter is plain LoRA, and why. Raises as `without_hooks`."""
    if wanted == "autograd":
        return None, "as configured"
    reason = LoraCapture.obstacle(model)
    return (LoraCapture(model), "plain LoRA") if reason is None else (None, without_hooks(reason, wanted))


def without_hooks(reason: str, wanted: str) -> str:
    """Why there are no hooks. Raises `ModelError` where nothing else is wanted."""
    if wanted == "hooks":
        raise ModelError(f"capture='hooks' needs plain LoRA, but {reason}; use capture='auto'.")
    return reason


class _Factors(NamedTuple):
    """A (r, in), s·A, B (out, r) and s·B."""

    down: Tensor
    scaled_down: Tensor
    up: Tensor
    scaled_up: Tensor


class _LoraUpdate(torch.autograd.Function):
    """base + (x (sA)ᵀ) Bᵀ. `anchor` makes the output need a gradient where nothing below it does."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, inputs: Tensor, anchor: Tensor, factors: _Factors, emit: Any) -> Tensor:
        inner = inputs @ factors.scaled_down.T
        ctx.save_for_backward(inputs, inner)
        ctx.factors, ctx.emit = factors, emit
        return torch.addmm(base.flatten(0, -2), inner.flatten(0, -2), factors.up.T).view_as(base)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        (grad,) = grad_outputs
        inputs, inner = ctx.saved_tensors
        grad_inner = grad @ ctx.factors.scaled_up
        ctx.emit(grad_inner, inputs, grad, inner)
        return grad, grad_inner @ ctx.factors.down if ctx.needs_input_grad[1] else None, None, None, None


class _MergedTap(torch.autograd.Function):
    """The output of a layer whose weight already holds the update, unchanged."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, inputs: Tensor, anchor: Tensor, factors: _Factors, emit: Any) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.factors, ctx.emit = factors, emit
        return base.view_as(base)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        (grad,) = grad_outputs
        (inputs,) = ctx.saved_tensors
        ctx.emit(grad @ ctx.factors.scaled_up, inputs, grad, inputs @ ctx.factors.scaled_down.T)
        return grad, None, None, None, None


def _is_mergeable(layer: Any) -> bool:
    weight = layer.base_layer.weight
    return type(layer.base_layer) is torch.nn.Linear and weight.dtype in (torch.float32, torch.float64)


@contextmanager
def _merged(layer: Any, adapter: str) -> Iterator[None]:
    weight = layer.base_layer.weight
    before = weight.data
    weight.data = before + layer.get_delta_weight(adapter).detach().to(before.dtype)
    try:
        yield
    finally:
        weight.data = before


def lora_layers(model: Any) -> Iterator[tuple[str, Any, str]]:
    """Name, layer and active adapter of every PEFT LoRA layer, in the model's order."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            for adapter in module.active_adapters:
                if adapter in module.lora_A:
                    yield name, module, adapter


@contextmanager
def replaced_forward(module: Any, forward: Any) -> Iterator[None]:
    """Let `module` run `forward` within this context."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


@contextmanager
def checkpointed_layers(model: Any) -> Iterator[None]:
    """Recompute each layer's activations in the backward pass; unlike the model's own, in evaluation mode."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                forward = partial(checkpoint, module.forward, use_reentrant=False)
                stack.enter_context(replaced_forward(module, forward))
        yield
