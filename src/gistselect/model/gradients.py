"""Per-example gradients of a LoRA adapter at the cost of one batched backward pass."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gistselect.errors import ArtifactMismatchError, DataError, ModelError
from gistselect.model.adapters import adapter_parameters, prepare_for_gradients
from gistselect.model.basis import Basis, room_for_bases
from gistselect.model.batches import Batch, trimmed_lengths
from gistselect.model.capture import checkpointed_layers, choose_capture, without_hooks
from gistselect.model.columns import ColumnPass, column_passes
from gistselect.model.engine_config import EngineConfig, SketchConfig
from gistselect.model.factors import ParameterBlock
from gistselect.model.fan import Fan
from gistselect.model.forward import Forward, example_means
from gistselect.model.live import state_of
from gistselect.model.loading import LanguageModel
from gistselect.model.sinks import (
    BasisSink,
    Collector,
    DenseSink,
    GramSink,
    NormSink,
    ProjectionSink,
    Sink,
    Site,
    SketchSink,
    parameter_groups,
)
from gistselect.types import Example

__all__ = ["Basis", "EngineConfig", "GradientEngine", "GradientFeatures", "ParameterBlock", "SketchConfig"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a pass says of every example, whatever it collects; (n,) each, in their order."""

    loss: NDArray[np.float32]
    """Mean loss of the supervised tokens."""
    n_supervised: NDArray[np.int64]
    gradient_norm: NDArray[np.float32]
    """Length of the whole gradient."""


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

    The model is put in evaluation mode and frozen; `close` (or leaving a `with` block) gives it back as it came.
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
        self.device = language_model.device
        self.dtype = torch.promote_types(language_model.dtype, torch.float32)
        narrow = language_model.dtype == torch.bfloat16 and self.device.type == "cuda"
        auto = torch.bfloat16 if narrow else self.dtype
        self.basis_dtype = {"auto": auto, "float32": self.dtype, "bfloat16": torch.bfloat16}[self.config.basis_dtype]
        self._give_back = state_of(self.model)
        parameters = adapter_parameters(self.model)
        if not parameters:
            raise ModelError("the model has no adapter; use attach_adapter or load_adapter first.")
        prepare_for_gradients(language_model)
        self._capture, self._capture_reason = choose_capture(self.model, self.config.capture)
        self._fallback: list[Tensor] = []
        forward_by = partial(
            Forward,
            language_model,
            batch_tokens=self.config.batch_tokens,
            within=self._capturing,
            on_tokens=on_tokens,
        )
        if self._capture is not None:
            self.forward = forward_by(self.config.packing)
            if misfit := self._capture.misfit(*self._probe()):
                self._capture, self._capture_reason = None, without_hooks(misfit, self.config.capture)
        if self._capture is None:
            self._fallback = list(parameters.values())
            self.forward = forward_by("single")
        self.parameters: tuple[ParameterBlock, ...] = (
            tuple(self._capture.blocks)
            if self._capture is not None
            else tuple(ParameterBlock(name, _as_matrix(value).shape) for name, value in parameters.items())  # pyright: ignore[reportArgumentType]
        )
        self._devices = tuple(parameters[block.name].device for block in self.parameters)
        self._room = room_for_bases(self.config.basis_memory_gb, self.parameters, self._devices)
        log.info("gradient engine: %s", self.mode)

    def collect(self, examples: Sequence[Example], sinks: Sequence[Collector]) -> Measured:
        """One backward pass that feeds every sink; each then has its `result()`, (n, width) in the examples' order.

        What a sink gets does not depend on the others. Raises `DataError` for an example without a supervised token,
        `ArtifactMismatchError` for a sink of another adapter.
        """
        norm = NormSink()
        passes = column_passes(sinks, len(examples), self.site)
        measured = [self._column_pass(examples, norm, one) for one in passes]
        loss, n_supervised = measured[0]
        return Measured(
            loss=loss.cpu().numpy(), n_supervised=n_supervised, gradient_norm=norm.values.sqrt().flatten().cpu().numpy()
        )

    def gradients(self, examples: Sequence[Example]) -> NDArray[np.float32]:
        """All gradients (n, p), for a few examples; parameters in the order of `parameters`."""
        sink = DenseSink()
        self._pass(examples, [sink])
        return sink.result()

    def gram_passes(self, n: int) -> int:
        """Times that `gram` goes through n examples."""
        return len(self._groups(n))

    def gram(self, examples: Sequence[Example]) -> NDArray[np.float64]:
        """Inner products (n, n) of the gradients; one pass per group of parameters that fits in memory."""
        self._check(examples)
        n = len(examples)
        total = torch.zeros(n, n, dtype=torch.float64)
        for group in self._groups(n):
            sink = GramSink(group)
            self._pass(examples, [sink])
            total += sink.gram()
        return total.numpy()

    def basis_passes(self, rank: int) -> int:
        """Times that `basis_parts` goes through its examples for a basis of this rank."""
        return len(self._basis_groups(rank))

    def stream(self, examples: Sequence[Example], sinks: Sequence[Sink]) -> None:
        """One backward pass that feeds sinks of any kind."""
        self._pass(examples, sinks)

    def basis_parts(
        self,
        examples: Sequence[Example],
        weights: NDArray[np.float64],
        adjust: Callable[[ParameterBlock, Tensor], Tensor] = lambda _, directions: directions,
    ) -> Iterator[Basis]:
        """V = Gᵀ W (p, r) for weights W (n, r), as much of it at a time as `gradient_memory_gb` allows.

        Each part streams the examples once. `adjust` gets each block's directions (p_b, r) before they are stored.
        """
        if len(weights) != len(examples):
            raise ArtifactMismatchError(f"{len(weights)} rows of weights for {len(examples)} examples.")
        tensor = torch.from_numpy(np.ascontiguousarray(weights)).to(self.device)
        for group in self._basis_groups(weights.shape[1]):
            sink = BasisSink(tensor, group)
            self._pass(examples, [sink])
            yield Basis(
                names=tuple(self.parameters[block].name for block in group),
                blocks=tuple(
                    adjust(self.parameters[block], sink.values[block]).to(self.basis_dtype) for block in group
                ),
            )

    def basis(self, examples: Sequence[Example], weights: NDArray[np.float64]) -> Basis:
        """The whole of V."""
        return Basis.join(self.basis_parts(examples, weights))

    def features(self, examples: Sequence[Example], basis: Basis) -> GradientFeatures:
        """Coordinates of every gradient in a basis, with loss and norm; one pass for any number of columns.

        Raises `ArtifactMismatchError` if the basis was fitted on another adapter.
        """
        sink = ProjectionSink(basis)
        measured = self.collect(examples, [sink])
        return GradientFeatures(features=sink.result(), **vars(measured))

    def sketch(self, examples: Sequence[Example], sketch: SketchConfig) -> GradientFeatures:
        """Sketches of every gradient (n, d), d = Σ over parameters of the product of the projected sides."""
        sink = SketchSink(sketch)
        loss, n_supervised = self._pass(examples, [sink])
        return GradientFeatures(
            features=sink.result(),
            loss=loss.cpu().numpy(),
            n_supervised=n_supervised,
            gradient_norm=torch.linalg.vector_norm(sink.values, dim=1).cpu().numpy(),
        )

    def close(self) -> None:
        """Give the model back as it came."""
        self._give_back()

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

    def _probe(self) -> tuple[Callable[[], object], tuple[int, ...]]:
        """A forward pass over a batch, and the batch's shape."""
        batch = self.forward.probe_batch()

        def read() -> None:
            with self.forward.running(), torch.no_grad():
                self.forward.token_losses(batch)

        return read, tuple(batch.input_ids.shape)

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

    @property
    def site(self) -> Site:
        """Where this engine's sinks work."""
        return Site(
            blocks=self.parameters,
            dtype=self.dtype,
            gradient_dtype=torch.bfloat16 if self.basis_dtype == torch.bfloat16 else self.dtype,
            device=self.device,
            gradient_bytes=self.config.gradient_memory_gb * 1e9,
            devices=self._devices,
            basis_bytes=self._room and self._room.together,
            piece_bytes=self._room and self._room.piece,
        )

    def _column_pass(
        self, examples: Sequence[Example], norm: NormSink, one: ColumnPass
    ) -> tuple[Tensor, NDArray[np.int64]]:
        parts = [ProjectionSink(sink.basis.columns(columns)) for sink, columns in one.parts]
        measured = self._pass(examples, [norm, *one.sinks, *parts])
        for (sink, columns), part in zip(one.parts, parts, strict=True):
            if columns.start == 0:
                sink.reserve(len(examples), self.site)
            sink.values[:, columns] = part.values
        return measured

    def _pass(self, examples: Sequence[Example], sinks: Sequence[Sink]) -> tuple[Tensor, NDArray[np.int64]]:
        """Send the gradients of all examples to sinks: losses (n,) on the device, label counts (n,).

        When memory runs out the pass starts again with half the tokens per batch.
        """
        self._check(examples)
        lengths = trimmed_lengths(examples)
        n_supervised = np.array([example.n_supervised for example in examples], dtype=np.int64)
        attempt = partial(self._attempt, examples, lengths, sinks)
        remedy = "activation_checkpointing=true, a smaller rank, a sketch or a shorter max_length"
        return self.forward.retried(int(lengths.max()), attempt, remedy), n_supervised

    def _attempt(self, examples: Sequence[Example], lengths: NDArray[np.int64], sinks: Sequence[Sink]) -> Tensor:
        fan = Fan(sinks, len(examples), self.site)
        losses = torch.empty(len(examples), dtype=self.dtype, device=self.device)
        with self.forward.running():
            for batch in self.forward.batches(examples, lengths):
                self._backward(batch, fan, losses)
            fan.finish()
            if self.forward.layout == "packed":
                self._repeat_broken(examples, lengths, fan, losses)
        return losses

    def _repeat_broken(self, examples: Sequence[Example], lengths: NDArray[np.int64], fan: Fan, losses: Tensor) -> None:
        """Run the broken examples again, alone: in a packed row NaN spreads through masked attention (0 · NaN)."""
        broken = fan.broken()
        for row in [] if broken is None else broken.nonzero().flatten().tolist():
            self._backward(self.forward.single(examples, row, lengths), fan, losses)
        fan.finish()

    def _check(self, examples: Sequence[Example]) -> None:
        if not examples:
            raise DataError("there are no examples to take gradients of.")
        self.forward.check(examples)

    def _backward(self, batch: Batch, fan: Fan, losses: Tensor) -> None:
        fan.begin(batch)
        batch_losses = example_means(self.forward.token_losses(batch), batch)
        total = batch_losses.sum()
        if self._capture is None:
            # An expert that no token went to has a gradient of zero.
            found = torch.autograd.grad(total, self._fallback, allow_unused=True, materialize_grads=True)
            for block, gradient in enumerate(found):
                # The gradient of one example, as the product of the identity and itself.
                matrix = _as_matrix(gradient)[None]
                fan(block, torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)[None], matrix)
        else:
            self._capture.take = fan
            try:
                total.backward()
            finally:
                self._capture.take = None
        losses[batch.rows] = batch_losses.detach()


def _as_matrix(value: Tensor) -> Tensor:
    return value.reshape(1, -1) if value.dim() < 2 else value.flatten(1)
