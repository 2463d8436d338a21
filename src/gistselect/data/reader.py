"""Texts to token ids, where control tokens are the template's alone and never read from what a row says."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gistselect.data.templates import Rendered, Span, control_tokens
from gistselect.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = tuple[list[int], list[Span]]
"""(t,) ids and the characters that each stands for."""


class Reader:
    """Reads rendered texts with a fast tokenizer, each as one string.

    A text in which a control token stands in the row's own words is read by a copy of the tokenizer that spells its
    control tokens otherwise: the template's are respelled in the text, the row's are words like any other.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._control = control_tokens(tokenizer)
        self._control_ids = np.asarray(tokenizer.convert_tokens_to_ids(list(self._control)), dtype=np.int64)
        self._known = frozenset(self._control_ids.tolist())

    def read(self, batch: Sequence[Rendered]) -> list[Tokens | DataError]:
        """Ids and offsets of each text, all of which are complete or none; a `DataError` says why there are none."""
        encoding = self._tokenizer(
            [rendered.text for rendered in batch],
            add_special_tokens=not batch[0].complete,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        found = zip(batch, encoding["input_ids"], encoding["offset_mapping"], strict=True)
        return [
            self._respelled(rendered) if self._takes_words(rendered, ids, offsets) else (ids, offsets)
            for rendered, ids, offsets in found
        ]

    def _takes_words(self, rendered: Rendered, ids: list[int], offsets: list[Span]) -> bool:
        """Whether a control token shares a character with what the row says."""
        if not rendered.content or self._known.isdisjoint(ids):
            return False
        for position, id in enumerate(ids):
            if id in self._known:
                first, last = offsets[position]
                if first < last and any(start < last and end > first for start, end in rendered.content):
                    return True
        return False

    def _respelled(self, rendered: Rendered) -> Tokens | DataError:
        text, edges = self._respell(rendered)
        encoding = self._copy.encode(text, add_special_tokens=not rendered.complete)
        ids: list[int] = [self._original.get(id, id) for id in list[int](encoding.ids)]
        offsets = [(int(edges[start]), int(edges[end])) for start, end in encoding.offsets]
        if self._takes_words(rendered, ids, offsets):
            words = next(token for token in self._control if token in rendered.text)
            return DataError(f"this tokenizer reads {words!r} in its text as a control token and as nothing else")
        return ids, offsets

    def _respell(self, rendered: Rendered) -> tuple[str, NDArray[np.int64]]:
        """The text in which the template's control tokens are respelled, and where its characters come from."""
        pieces: list[str] = []
        edges: list[NDArray[np.int64]] = []

        def keep(start: int, end: int) -> None:
            pieces.append(rendered.text[start:end])
            edges.append(np.arange(start, end))

        position = 0
        for start, end in [*rendered.content, (len(rendered.text), len(rendered.text))]:
            for token in self._pattern.finditer(rendered.text, position, max(position, start)):
                keep(position, token.start())
                spelling = self._spelling(token[0])
                pieces.append(spelling)
                edges.append(np.full(len(spelling), token.start()))
                position = token.end()
            keep(position, max(position, end))
            position = max(position, end)
        return "".join(pieces), np.concatenate([*edges, [len(rendered.text)]])

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._control)))

    def _spelling(self, token: str) -> str:
        return f"\U000ffffe{self._control.index(token)}\U000fffff"

    @cached_property
    def _copy(self) -> Any:
        from tokenizers import Tokenizer

        backend: Any = self._tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
        described = json.loads(backend.to_str())
        for added in described["added_tokens"]:
            if added["special"]:
                added["content"] = self._spelling(added["content"])
        copy = Tokenizer.from_str(json.dumps(described))
        copy.no_padding()
        copy.no_truncation()
        return copy

    @cached_property
    def _original(self) -> dict[int, int]:
        """Ids of the copy's control tokens to those of the tokenizer."""
        spelled = (self._copy.token_to_id(self._spelling(token)) for token in self._control)
        return {int(spelling): int(id) for spelling, id in zip(spelled, self._control_ids, strict=True)}
