"""A model's own loss, read many examples at a time: for gradients, hidden states and target losses alike.

No list of architectures says how a model may be read. Output head, layout and what keeps packed examples apart are
chosen by a probe: the first that give the model's own losses, and let no example move another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import product
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gistselect.errors import DataError, ModelError
from gistselect.model.attention import SegmentAttention
from gistselect.model.batches import Batch, Layout, build_batch, plan_batches, trimmed_lengths
from gistselect.model.engine_config import PackingChoice
from gistselect.model.loading import LanguageModel
from gistselect.model.loss import OutputHead, label_losses, supervised_cross_entropy
from gistselect.model.soundness import refuse_broken_loss, refuse_look_ahead
from gistselect.types import Example

log = logging.getLogger(__name__)
Packing = Literal["none", "segments", "positions", "mask"]
"""What keeps packed examples apart: our attention function, the model's own reading of positions, or a 4-D mask."""
Result = TypeVar("Result")

DEFAULT_BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
PREFETCH = 2
GROW_AFTER = 8
"""Pieces of work that fit in memory before batches grow again."""
PROBE_LENGTHS = (5, 12, 9)
PROBE_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Allowed relative difference between our loss and the model's own."""


class Forward:
    """Forward passes over examples that give the model's own supervised loss, with or without an adapter."""

    def __init__(
        self,
        language_model: LanguageModel,
        packing: PackingChoice = "auto",
        batch_tokens: int | None = None,
        within: Callable[[], AbstractContextManager[None]] = nullcontext,
        on_tokens: Callable[[int], None] | None = None,
    ) -> None:
        """Choose head and layout by comparing with the model's own loss on a tiny probe.

        `batch_tokens` is chosen for the device by default. Every pass, the probe too, runs inside the context that
        `within` makes, and in evaluation mode; the modules' modes are restored after it. `on_tokens` is told how many
        tokens each batch has read, once more if a pass has to start again.
        Raises `ModelError` if nothing reproduces the model's own loss.
        """
        self.language_model, self.causal = language_model, language_model.causal
        self.device = language_model.device
        self.precise = torch.promote_types(language_model.dtype, torch.float32)
        """Number format of losses."""
        self.batch_tokens = batch_tokens or DEFAULT_BATCH_TOKENS.get(self.device.type, DEFAULT_BATCH_TOKENS["cuda"])
        self._budget = self._room = self.batch_tokens
        """Tokens a batch as they should be, and as memory has allowed of late."""
        self._calm = 0
        self.vocabulary: int = self.causal.get_input_embeddings().weight.shape[0]
        self._within, self._on_tokens = within, on_tokens
        self._attention = SegmentAttention()
        self._candidates = candidates(packing, str(getattr(self.causal.config, "_attn_implementation", "")))
        self.head: OutputHead | None
        """None: the model's own logits."""
        self.layout: Layout
        self.packing: Packing
        self.head, self.layout, self.packing = self._choose()

    @property
    def fell_back(self) -> bool:
        """Whether the fastest layout does not give this model's loss, or lets one example move another."""
        return self.layout != self._candidates[0][0]

    @property
    def mode(self) -> str:
        """What was chosen, and why."""
        logits = "logits of all tokens by the model's own head" if self.head is None else "logits of labels only"
        rows = f"{self.layout} rows" + (f" by {self.packing}" if self.layout == "packed" else "")
        if self.fell_back:
            rows += f" ({self._candidates[0][0]} rows do not give this model's loss)"
        return f"{rows}, {self.batch_tokens} tokens a batch; {logits}"

    def losses(self, examples: Sequence[Example], done: Callable[[int], None] | None = None) -> NDArray[np.float64]:
        """Mean loss (n,) of each example's supervised tokens; NaN stays NaN.

        `done` hears the number of examples of each batch, once more if memory ran out and the pass starts again.
        Raises `DataError` for an example without a supervised token or with tokens that the model does not embed,
        `ModelError` if the longest example does not fit in memory.
        """
        self.check(examples)
        lengths = trimmed_lengths(examples)

        def attempt() -> Tensor:
            found = torch.empty(len(examples), dtype=torch.float64, device=self.device)
            with self.running(), torch.no_grad():
                for batch in self.batches(examples, lengths):
                    found[batch.rows] = example_means(self.token_losses(batch).double(), batch)
                    if done is not None:
                        done(len(batch.lengths))
            return found

        return self.retried(int(lengths.max(initial=0)), attempt, "a shorter max_length").cpu().numpy()

    def check(self, examples: Sequence[Example]) -> None:
        """Raise `DataError` for the first example with a token id that the model does not embed."""
        for example in examples:
            if int(example.input_ids.max(initial=0)) >= self.vocabulary:
                raise DataError(
                    f"example {example.id!r} has token id {int(example.input_ids.max())}, the model embeds "
                    f"{self.vocabulary} tokens; tokenize with this model's tokenizer."
                )

    @contextmanager
    def running(self) -> Iterator[None]:
        """The context in which `token_losses` and `hidden` may be called."""
        with ExitStack() as stack:
            stack.enter_context(evaluation_mode(self.language_model.model))
            stack.enter_context(loss_of_tokens(self.causal.config))
            stack.enter_context(self._within())
            if self.packing == "segments":
                stack.enter_context(self._attention.installed(self.causal))
            yield

    def batches(self, examples: Sequence[Example], lengths: NDArray[np.int64]) -> Iterator[Batch]:
        """Batches on the device, of examples cut to `lengths` (n,), prepared ahead of their turn."""

        def build(rows: NDArray[np.int64]) -> Batch:
            batch = build_batch(examples, rows, lengths, self.layout, self._pad_id)
            return batch.pinned() if self.device.type == "cuda" else batch

        for batch in prefetched(build, plan_batches(lengths, self.batch_tokens, self.layout)):
            yield batch.to(self.device)
            self.tell(int(batch.lengths.sum()))

    def tell(self, tokens: int) -> None:
        """Say that so many tokens more have been read with this model."""
        if self._on_tokens is not None:
            self._on_tokens(tokens)

    def single(self, examples: Sequence[Example], row: int, lengths: NDArray[np.int64]) -> Batch:
        """A batch on the device with one example alone."""
        return build_batch(examples, np.array([row]), lengths, "single", self._pad_id).to(self.device)

    def token_losses(self, batch: Batch, hidden: Tensor | None = None) -> Tensor:
        """Loss (m,) of each label of a batch; from its last hidden states where they are at hand and suffice."""
        if hidden is not None and self.head is not None:
            return supervised_cross_entropy(hidden[batch.predictors], batch.labels, self.head)
        return label_losses(self.causal, self.head, batch, **self._inputs(batch))

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states (positions, width) of a batch, after the model's final norm, at its flat positions."""
        inputs = {"input_ids": batch.input_ids, "use_cache": False, **self._inputs(batch)}
        return self.causal.base_model(**inputs)[0].flatten(0, 1).to(self.device)

    def retried(self, longest: int, attempt: Callable[[], Result], remedy: str) -> Result:
        """`attempt()`, again with half the tokens a batch whenever memory runs out (see `begin`).

        Raises `ModelError` with the remedy if batches of the longest example, in tokens, are too large already.
        """
        while True:
            try:
                return attempt()
            except torch.OutOfMemoryError as error:
                if self.batch_tokens <= longest:
                    raise ModelError(f"not enough memory for one example of {longest} tokens; use {remedy}.") from error
            torch.cuda.empty_cache()
            self.batch_tokens //= 2
            self._room, self._calm = self.batch_tokens, 0
            log.warning("out of memory: batches of at most %d tokens from here on", self.batch_tokens)

    def begin(self, share: float = 1.0) -> None:
        """A new piece of work, which may use a part of the token budget.

        After memory ran out batches stay small for `GROW_AFTER` pieces of work, and are then twice as large again.
        """
        self._calm += 1
        if self._calm > GROW_AFTER and self._room < self._budget:
            self._room, self._calm = min(self._budget, 2 * self._room), 0
        self.batch_tokens = max(1, min(self._room, int(self._budget * share)))

    # --- choosing how -------------------------------------------------------------------------------------

    def _choose(self) -> tuple[OutputHead | None, Layout, Packing]:
        probe, tolerance = self._probe_examples(), PROBE_TOLERANCE[self.language_model.dtype]
        with evaluation_mode(self.language_model.model), loss_of_tokens(self.causal.config):
            expected = np.array([self._own_loss(example) for example in probe])
            refuse_broken_loss(self.language_model.model, expected, self.language_model.dtype)
            ids = torch.from_numpy(probe[1].input_ids.astype(np.int64))[None].to(self.device)
            refuse_look_ahead(self.causal, ids, tolerance)
        found = ""
        heads = dict.fromkeys([OutputHead.of(self.causal), None])
        for head, (layout, packing) in product(heads, self._candidates):
            self.head, self.layout, self.packing = head, layout, packing
            try:
                losses = self._probe_losses(probe)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
                # Whatever a model makes of inputs that are not for it; the next layout may be.
                log.info("%s rows by %s cannot be used: %s", layout, packing, error)
                found = f"{type(error).__name__}: {error}"
                continue
            found = str(losses)
            if np.allclose(losses, expected, rtol=tolerance) and not self._leaks(probe, losses):
                return head, layout, packing
        raise ModelError(
            f"no batch layout reproduces the loss of {type(self.causal).__name__} ({found} against "
            f"{expected}); the model may not be a causal language model with a plain adapter."
        )

    def _probe_examples(self) -> list[Example]:
        rng = np.random.default_rng(0)
        return [
            Example(
                id=f"probe {length}",
                input_ids=rng.integers(0, self.vocabulary, length, dtype=np.int32),
                supervised=np.arange(length) >= length // 2,
            )
            for length in PROBE_LENGTHS
        ]

    def _own_loss(self, example: Example) -> float:
        ids = torch.from_numpy(example.input_ids.astype(np.int64))[None].to(self.device)
        labels = ids.masked_fill(~torch.from_numpy(example.supervised).to(self.device), -100)
        with torch.no_grad():
            return float(self.causal(input_ids=ids, labels=labels, use_cache=False).loss)

    def probe_batch(self) -> Batch:
        """The probe in the chosen layout, as one batch; a single example of it where rows are single."""
        probe = self._probe_examples()
        lengths = trimmed_lengths(probe)
        rows = np.arange(1 if self.layout == "single" else len(probe))
        return build_batch(probe, rows, lengths, self.layout, self._pad_id).to(self.device)

    def _probe_losses(self, examples: Sequence[Example]) -> NDArray[np.float64]:
        lengths = trimmed_lengths(examples)
        losses = np.empty(len(examples))
        with self.running(), torch.no_grad():
            for rows in plan_batches(lengths, int(lengths.sum()) * len(lengths), self.layout):
                batch = build_batch(examples, rows, lengths, self.layout, self._pad_id).to(self.device)
                losses[rows] = example_means(self.token_losses(batch), batch).cpu().numpy()
        return losses

    def _leaks(self, probe: list[Example], losses: NDArray[np.float64]) -> bool:
        """Whether changing one example moves the loss of another."""
        if self.layout == "single":
            return False
        for row, example in enumerate(probe):
            changed = list(probe)
            other = (example.input_ids + 1 + self.vocabulary // 2) % self.vocabulary
            changed[row] = Example(id=example.id, input_ids=other, supervised=example.supervised)
            moved = np.abs(self._probe_losses(changed) - losses) > 1e-6 * losses
            if moved[np.arange(len(probe)) != row].any():
                return True
        return False

    # --- what the model gets ------------------------------------------------------------------------------

    @property
    def _pad_id(self) -> int:
        return int(getattr(self.language_model.tokenizer, "pad_token_id", None) or 0)

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        """What the model gets beside token ids."""
        self._attention.batch = batch
        inputs: dict[str, Any] = {}
        if batch.position_ids is not None:
            inputs["position_ids"] = batch.position_ids
        if self.packing == "mask" and batch.packed:
            inputs["attention_mask"] = self._block_mask(batch)
        return inputs

    def _block_mask(self, batch: Batch) -> Tensor:
        """Additive mask (1, 1, t, t): causal within each packed example, closed between examples."""
        owners = np.repeat(np.arange(len(batch.lengths)), batch.lengths)
        open_to = np.tril(owners[:, None] == owners[None, :])
        lowest = torch.finfo(self.language_model.dtype).min
        mask = torch.from_numpy(np.where(open_to, 0.0, lowest))
        return mask.to(self.device, self.language_model.dtype)[None, None]


def candidates(packing: PackingChoice, attention: str) -> list[tuple[Layout, Packing]]:
    """Layouts to try, best first, for a model that attends by `attention`."""
    ways: list[Packing] = ["segments", "positions", "mask"]
    if "flash" in attention:
        ways = ["positions", "segments", "mask"]
    choices: dict[PackingChoice, list[tuple[Layout, Packing]]] = {
        "auto": [("packed", ways[0]), ("padded", "none"), ("single", "none")],
        "packed": [*(("packed", way) for way in ways), ("single", "none")],
        "padded": [("padded", "none"), ("single", "none")],
        "single": [("single", "none")],
    }
    return choices[packing]


def example_means(token_losses: Tensor, batch: Batch) -> Tensor:
    """Mean (n,) of the losses (m,) of each example's labels."""
    weighted = token_losses / batch.n_supervised[batch.owners]
    return weighted.new_zeros(len(batch.lengths)).index_add_(0, batch.owners, weighted)


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Dropout off within this context; after it every module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def loss_of_tokens(config: Any) -> Iterator[None]:
    """Within this context a mixture of experts leaves the loss of its router, which is of no token, out of its loss."""
    text = config.get_text_config()
    before = getattr(text, "output_router_logits", False)
    if before:
        text.output_router_logits = False
    try:
        yield
    finally:
        if before:
            text.output_router_logits = before


def prefetched(build: Callable[[NDArray[np.int64]], Batch], items: Iterator[NDArray[np.int64]]) -> Iterator[Batch]:
    """Results of `build` in order, prepared a little ahead in a thread."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = [pool.submit(build, item) for _, item in zip(range(PREFETCH), items, strict=False)]
        while waiting:
            result = waiting.pop(0).result()
            waiting += [pool.submit(build, item) for _, item in zip(range(1), items, strict=False)]
            yield result
