"""Texts to vectors by any transformers encoder: the mean of its last hidden states."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gistselect.errors import ModelError
from gistselect.model.batches import plan_batches
from gistselect.model.config import ModelConfig
from gistselect.model.loading import (
    TOKENIZER_FILES,
    files_digest,
    load_tokenizer,
    model_digest,
    resolve_device,
    resolve_dtype,
    why_not,
)

log = logging.getLogger(__name__)
BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
UNBOUNDED = 1_000_000
"""A tokenizer's `model_max_length` above this says that it does not know one."""


class TextEncoder:
    """An encoder with its tokenizer, on its device, in evaluation mode.

    Whatever `AutoModel` loads will do: a sentence encoder, a masked or a causal language model, the encoder of an
    encoder-decoder. There is no pooling layer and no prompt of its own to read: the mean is ours.
    """

    def __init__(self, config: ModelConfig, max_tokens: int) -> None:
        """Texts are cut at `max_tokens`, or where the model's positions end.

        Raises `ModelError` if files are missing or the model cannot be read.
        """
        from transformers import AutoModel

        from gistselect.model.hush import hushed

        self._path = config.path
        self._tokenizer = load_tokenizer(config)
        device = resolve_device(config.device)
        try:
            with hushed():
                model: Any = AutoModel.from_pretrained(
                    config.path,
                    dtype=resolve_dtype(config.dtype, device),
                    use_safetensors=True,
                    revision=config.revision or "main",
                    trust_remote_code=config.trust_remote_code,
                )
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(f"cannot load the encoder {config.path!r}: {why_not(config.path, error)}") from error
        if getattr(model.config, "is_encoder_decoder", False):
            model = model.get_encoder()
        self._model = model.to(device).eval()
        self._device = device
        self._batch_tokens = BATCH_TOKENS.get(device.type, BATCH_TOKENS["cuda"])
        self.max_tokens = min(max_tokens, *_limits(model, self._tokenizer))

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Means (n, d) over the tokens of each text, in the order of the texts; NaN for one without a token.

        Raises `ModelError` if one text does not fit in memory, or the model has no hidden states of text.
        """
        tokens = self._tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"] if texts else []
        lengths = np.array([len(one) for one in tokens], dtype=np.int64)
        found: NDArray[np.float32] | None = None
        filled = np.flatnonzero(lengths)
        todo = list(plan_batches(lengths[filled], self._batch_tokens, "padded"))[::-1]
        while todo:
            rows = filled[batch := todo.pop()]
            try:
                means = self._means([tokens[row] for row in rows])
            except torch.OutOfMemoryError as error:
                if len(rows) == 1:
                    raise ModelError(
                        f"not enough memory for one text of {lengths[rows[0]]} tokens; use fewer (tokens=…)."
                    ) from error
                torch.cuda.empty_cache()
                self._batch_tokens = max(1, self._batch_tokens // 2)
                log.warning("out of memory: batches of at most %d tokens from here on", self._batch_tokens)
                todo += [batch[len(batch) // 2 :], batch[: len(batch) // 2]]
                continue
            if found is None:
                found = np.full((len(tokens), means.shape[1]), np.nan, dtype=np.float32)
            found[rows] = means
        return np.full((len(tokens), self._width), np.nan, dtype=np.float32) if found is None else found

    @property
    def _width(self) -> int:
        return self._model.get_input_embeddings().embedding_dim

    def _means(self, tokens: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        longest = max(map(len, tokens))
        padding = self._tokenizer.pad_token_id or 0
        ids = torch.tensor([[*one, *[padding] * (longest - len(one))] for one in tokens])
        mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in tokens])
        with torch.no_grad():
            output = self._model(input_ids=ids.to(self._device), attention_mask=mask.to(self._device))
            if (states := getattr(output, "last_hidden_state", None)) is None:
                raise ModelError(f"{self._path!r} gives no hidden states of text; use a text encoder.")
            weights = mask.to(self._device)[:, :, None]
            # What stands at padding may be anything, NaN too, so it is left out rather than weighed with 0.
            total = torch.where(weights > 0, states.float(), 0.0).sum(dim=1)
            return (total / weights.sum(dim=1)).cpu().numpy()


def encoder_digest(config: ModelConfig) -> str:
    """SHA-256 that changes with the encoder's configuration, weights or tokenizer, or with its hub commit."""
    weights = model_digest(config)
    folder = Path(config.path)
    names = (*TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
    files = [folder / name for name in names if (folder / name).is_file()]
    return f"{weights}-{files_digest(files)}" if folder.is_dir() else weights


def _limits(model: Any, tokenizer: Any) -> list[int]:
    """Most tokens that the tokenizer and the model's positions allow."""
    limits = [tokenizer.model_max_length] if tokenizer.model_max_length < UNBOUNDED else []
    positions = getattr(model.config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        # Models of RoBERTa's kind count positions from one after the padding token's.
        table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
        first = getattr(table, "padding_idx", None)
        limits.append(positions - (0 if first is None else first + 1))
    return limits or [UNBOUNDED]
