"""Per-example gradients of a LoRA adapter at the cost of one batched backward pass."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gistselect.errors import ArtifactMismatchError, DataError, ModelError
from gistselect.model.adapters import adapter_parameters, prepare_for_gradients
from gistselect.model.batches import Batch, trimmed_lengths
from gistselect.model.capture import Capture, LoraCapture, ParameterBlock, Sink, checkpointed_layers
from gistselect.model.engine_config import EngineConfig, SketchConfig
from gistselect.model.forward import Forward, example_means
from gistselect.model.loading import LanguageModel
from gistselect.model.sinks import (
    Basis,
    BasisSink,
    DenseSink,
    GramSink,
    ProjectionSink,
    SketchSink,
    parameter_groups,
)
from gistselect.types import Example

__all__ = ["Basis", "EngineConfig", "GradientEngine", "GradientFeatures", "ParameterBlock", "SketchConfig"]

log = logging.getLogger(__name__)
AnySink = TypeVar("AnySink", bound=Sink)

HELD_ROWS = 64
"""Gradients projected together: fewer would cost reading the basis more often than the arithmetic."""


@dataclass(frozen=True, kw_only=True)
class GradientFeatures:
    """What one pass over examples yields, in their order. Rows of a broken example hold NaN or infinity."""

    features: NDArray[np.float32]
    """(n, r) coordinates of the gradient in the basis, or (n, d) its sketch."""
    loss: NDArray[np.float32]
    """(n,) mean loss of the supervised tokens."""
    n_supervised: NDArray[np.int64]
    """(n,)"""
    gradient_norm: NDArray[np.float32]
    """(n,) length of the whole gradient; estimated from the sketch in a sketch pass."""


class GradientEngine:
    """Gradients d/dθ of each example's mean supervised cross-entropy, θ the adapter (METHOD section 1).

    The model is put in evaluation mode and frozen; `close` (or leaving a `with` block) restores its flags.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        config: EngineConfig | None = None,
        on_tokens: Callable[[int], None] | None = None,
    ) -> None:
        """Choose loss, layout and capture by comparing with the model's own loss on a tiny probe.

        `on_tokens` is told how many tokens each batch has read, once more if a pass has to start again.
        Raises `ModelError` if the model has no adapter, or nothing reproduces its own loss.
        """
        self.language_model, self.model = language_model, language_model.model
        self.config = config or EngineConfig()
        self._on_tokens = on_tokens
        self.device = language_model.device
        self.dtype = torch.promote_types(language_model.dtype, torch.float32)
        narrow = language_model.dtype == torch.bfloat16 and self.device.type == "cuda"
        auto = torch.bfloat16 if narrow else self.dtype
        self.basis_dtype = {"auto": auto, "float32": self.dtype, "bfloat16": torch.bfloat16}[self.config.basis_dtype]
        self._flags = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        self._training = self.model.training
        parameters = adapter_parameters(self.model)
        if not parameters:
            raise ModelError("the model has no adapter; use attach_adapter or load_adapter first.")
        prepare_for_gradients(language_model)
        self._capture, self._capture_reason = self._choose_capture()
        self._fallback = list(parameters.values()) if self._capture is None else []
        self.parameters: tuple[ParameterBlock, ...] = (
            tuple(self._capture.blocks)
            if self._capture is not None
            else tuple(ParameterBlock(name, _as_matrix(value).shape) for name, value in parameters.items())  # pyright: ignore[reportArgumentType]
        )
        packing = "single" if self._capture is None else self.config.packing
        self.forward = Forward(language_model, packing, self.config.batch_tokens, within=self._capturing)
        log.info("gradient engine: %s", self.mode)

    def gradients(self, examples: Sequence[Example]) -> NDArray[np.float32]:
        """All gradients (n, p), for a few examples; parameters in the order of `parameters`."""
        n = len(examples)
        sink, _, _ = self._pass(examples, lambda: DenseSink(n, self.parameters, self.dtype, self.device))
        return sink.values.cpu().numpy()

    def gram_passes(self, n: int) -> int:
        """Times that `gram` goes through n examples."""
        return len(self._groups(n))

    def gram(self, examples: Sequence[Example]) -> NDArray[np.float64]:
        """Inner products (n, n) of the gradients; one pass per group of parameters that fits in memory."""
        self._check(examples)
        n = len(examples)
        total = torch.zeros(n, n, dtype=torch.float64)
        for group in self._groups(n):
            make = partial(GramSink, n, group, self.parameters, self.dtype, self.device)
            total += self._pass(examples, make)[0].gram()
        return total.numpy()

    def basis_passes(self, rank: int) -> int:
        """Times that `basis_parts` goes through its examples for a basis of this rank."""
        return len(self._basis_groups(rank))

    def basis_parts(self, examples: Sequence[Example], weights: NDArray[np.float64]) -> Iterator[Basis]:
        """V = Gᵀ W (p, r) for weights W (n, r), as much of it at a time as `gradient_memory_gb` allows.

        Each part streams the examples once.
        """
        if len(weights) != len(examples):
            raise ArtifactMismatchError(f"{len(weights)} rows of weights for {len(examples)} examples.")
        tensor = torch.from_numpy(np.ascontiguousarray(weights)).to(self.device)
        for group in self._basis_groups(weights.shape[1]):
            sink, _, _ = self._pass(examples, partial(BasisSink, tensor, group, self.parameters, self.dtype))
            yield Basis(
                names=tuple(self.parameters[block].name for block in group),
                blocks=tuple(sink.values[block].to(self.basis_dtype) for block in group),
            )

    def basis(self, examples: Sequence[Example], weights: NDArray[np.float64]) -> Basis:
        """The whole of V."""
        return Basis.join(self.basis_parts(examples, weights))

    def features(self, examples: Sequence[Example], basis: Basis) -> GradientFeatures:
        """Coordinates of every gradient in a basis, with loss and norm; one pass for any number of columns.

        Raises `ArtifactMismatchError` if the basis was fitted on another adapter.
        """
        names = tuple(block.name for block in self.parameters)
        sizes = tuple(block.size for block in self.parameters)
        if basis.names != names or tuple(len(block) for block in basis.blocks) != sizes:
            raise ArtifactMismatchError("the basis was fitted on another adapter; fit it again on this one.")
        held = int(min(HELD_ROWS, self.config.gradient_memory_gb * 1e9 / (sum(sizes) * self.dtype.itemsize)))
        make = partial(ProjectionSink, len(examples), basis, max(held, 1), self.dtype, self.device)
        sink, loss, n_supervised = self._pass(examples, make)
        return _gradient_features(sink.features, loss, n_supervised, sink.squares.sqrt())

    def sketch(self, examples: Sequence[Example], sketch: SketchConfig) -> GradientFeatures:
        """Sketches of every gradient (n, d), d = Σ over parameters of the product of the projected sides."""
        make = partial(SketchSink, len(examples), sketch, self.parameters, self.dtype, self.device)
        sink, loss, n_supervised = self._pass(examples, make)
        return _gradient_features(sink.values, loss, n_supervised, torch.linalg.vector_norm(sink.values, dim=1))

    def close(self) -> None:
        """Give the model back as it came: training mode and trainable parameters."""
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        self.model.train(self._training)

    def __enter__(self) -> GradientEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _groups(self, rows: int) -> list[list[int]]:
        return parameter_groups(self.parameters, self.config.gradient_memory_gb * 1e9 / (rows * self.dtype.itemsize))

    def _basis_groups(self, rank: int) -> list[list[int]]:
        """Two parts fit in memory: one may still be in use while the next is summed."""
        return self._groups(2 * rank)

    # --- choosing how -------------------------------------------------------------------------------------

    def _choose_capture(self) -> tuple[LoraCapture | None, str]:
        if self.config.capture == "autograd":
            return None, "as configured"
        reason = LoraCapture.obstacle(self.model)
        if reason is None:
            return LoraCapture(self.model), "plain LoRA"
        if self.config.capture == "hooks":
            raise ModelError(f"capture='hooks' needs plain LoRA, but {reason}; use capture='auto'.")
        return None, reason

    @property
    def mode(self) -> str:
        """What was chosen, and why."""
        capture = "hooks on" if self._capture is not None else "one autograd call per example:"
        recompute = ", activations recomputed" if self.config.activation_checkpointing else ""
        return f"{capture} {self._capture_reason}; {self.forward.mode}{recompute}"

    # --- running ------------------------------------------------------------------------------------------

    @contextmanager
    def _capturing(self) -> Iterator[None]:
        """What a forward pass runs within, so that its backward pass yields gradients."""
        with ExitStack() as stack:
            if self._capture is not None:
                stack.enter_context(self._capture.installed())
            if self.config.activation_checkpointing:
                stack.enter_context(checkpointed_layers(self.model))
            for parameter in self._fallback:
                stack.callback(parameter.requires_grad_, False)
                parameter.requires_grad_(True)
            yield

    def _pass(
        self, examples: Sequence[Example], make_sink: Callable[[], AnySink]
    ) -> tuple[AnySink, Tensor, NDArray[np.int64]]:
        """Send the gradients of all examples to a new sink: sink, losses (n,) on the device, label counts (n,).

        When memory runs out the pass starts again with half the tokens per batch.
        """
        self._check(examples)
        lengths = trimmed_lengths(examples)
        n_supervised = np.array([example.n_supervised for example in examples], dtype=np.int64)
        attempt = partial(self._attempt, examples, lengths, make_sink)
        remedy = "activation_checkpointing=true, a smaller rank, a sketch or a shorter max_length"
        return *self.forward.retried(int(lengths.max()), attempt, remedy), n_supervised

    def _attempt(
        self, examples: Sequence[Example], lengths: NDArray[np.int64], make_sink: Callable[[], AnySink]
    ) -> tuple[AnySink, Tensor]:
        sink = make_sink()
        losses = torch.empty(len(examples), dtype=self.dtype, device=self.device)
        with self.forward.running():
            for batch in self.forward.batches(examples, lengths):
                self._backward(batch, sink, losses)
                if self._on_tokens is not None:
                    self._on_tokens(int(batch.lengths.sum()))
            sink.finish()
            if self.forward.layout == "packed":
                self._repeat_broken(examples, lengths, sink, losses)
        return sink, losses

    def _repeat_broken(
        self, examples: Sequence[Example], lengths: NDArray[np.int64], sink: Sink, losses: Tensor
    ) -> None:
        """Run the broken examples again, alone: in a packed row NaN spreads through masked attention (0 · NaN)."""
        broken = sink.broken()
        for row in [] if broken is None else broken.nonzero().flatten().tolist():
            self._backward(self.forward.single(examples, row, lengths), sink, losses)
        sink.finish()

    def _check(self, examples: Sequence[Example]) -> None:
        if not examples:
            raise DataError("there are no examples to take gradients of.")
        self.forward.check(examples)

    def _backward(self, batch: Batch, sink: Sink, losses: Tensor) -> None:
        sink.begin(batch.rows)
        batch_losses = example_means(self.forward.token_losses(batch), batch)
        total = batch_losses.sum()
        if self._capture is None:
            gradients = torch.autograd.grad(total, self._fallback)
            self._emit(gradients, batch, sink)
        else:
            self._capture.current = Capture(sink, batch)
            try:
                total.backward()
            finally:
                self._capture.current = None
        losses[batch.rows] = batch_losses.detach()

    def _emit(self, gradients: Sequence[Tensor], batch: Batch, sink: Sink) -> None:
        """Hand on gradients of one example as the product of the identity and themselves."""
        capture = Capture(sink, batch)
        for block, gradient in enumerate(gradients):
            matrix = _as_matrix(gradient)[None]
            identity = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)[None]
            capture(block, identity, matrix)


def _as_matrix(value: Tensor) -> Tensor:
    return value.reshape(1, -1) if value.dim() < 2 else value.flatten(1)


def _gradient_features(
    features: Tensor, loss: Tensor, n_supervised: NDArray[np.int64], norm: Tensor
) -> GradientFeatures:
    return GradientFeatures(
        features=features.cpu().numpy(),
        loss=loss.cpu().numpy(),
        n_supervised=n_supervised,
        gradient_norm=norm.cpu().numpy(),
    )
