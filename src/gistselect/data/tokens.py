"""Text to ids and labels, from character spans of the one tokenised string.

No piece is tokenised on its own to find where an answer begins, since merges across the seam would move it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gistselect.data.reader import Reader
from gistselect.data.templates import Rendered, Span, Template
from gistselect.errors import ConfigError, DataError
from gistselect.types import Example, Record, Rejected

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_BATCH = 256
"""Texts a tokenizer call: character offsets are Python objects, a hundred bytes a token."""


def encode(
    records: Sequence[Record], template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Example | Rejected]:
    """Token ids and labels of each record, cut at `max_length` tokens, in the order given.

    A token is supervised if it holds at least one supervised character: a token merged across the seam of
    prompt and answer counts as answer, a token of the prompt alone never does. A record left without a
    supervised token after the first position is rejected. Raises `ConfigError` for a tokenizer without
    character offsets.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            f"the tokenizer {tokenizer.name_or_path!r} is not a fast one and has no character offsets; "
            "convert it to a tokenizer.json (AutoTokenizer does so for most models)."
        )
    if max_length < 2:
        raise ConfigError(f"max_length={max_length} leaves no token to predict; use at least 2.")
    results: dict[int, Example | Rejected] = {}
    rendered: dict[int, Rendered] = {}
    for i, record in enumerate(records):
        try:
            rendered[i] = template.render(record)
        except DataError as error:
            results[i] = _rejected(record, str(error))
    reader = Reader(tokenizer)
    for complete in (False, True):
        chosen = [i for i in rendered if rendered[i].complete == complete]
        for start in range(0, len(chosen), TOKENIZER_BATCH):
            batch = chosen[start : start + TOKENIZER_BATCH]
            for i, outcome in zip(batch, reader.read([rendered[i] for i in batch]), strict=True):
                if isinstance(outcome, DataError):
                    results[i] = _rejected(records[i], str(outcome))
                else:
                    results[i] = _example(records[i], rendered[i], *outcome, max_length)
    return [results[i] for i in range(len(records))]


def _example(
    record: Record, rendered: Rendered, ids: list[int], offsets: list[Span], max_length: int
) -> Example | Rejected:
    supervised = _supervised_tokens(offsets, rendered.supervised)
    if not supervised[1:max_length].any():
        if not supervised[1:].any():
            return _rejected(record, "the tokenizer leaves no token of its answer to predict")
        first = 1 + int(supervised[1:].argmax())
        return _rejected(
            record,
            f"no supervised token is left after truncation: it has {len(ids)} tokens, its answer begins at "
            f"token {first + 1}, max_length is {max_length}; raise --max-length to at least {first + 1}",
        )
    return Example(
        id=record.id,
        input_ids=np.asarray(ids[:max_length], dtype=np.int32),
        supervised=supervised[:max_length],
        n_cut=max(0, len(ids) - max_length),
        unshown=rendered.unshown,
    )


def _supervised_tokens(offsets: list[Span], spans: tuple[Span, ...]) -> NDArray[np.bool_]:
    """(t,) True for tokens that share a character with one of the spans.

    A tokenizer that trims offsets reports a token of white space alone as empty; it is taken to reach back to
    the end of the token before. Special tokens that the tokenizer adds itself stay empty, at (0, 0).
    """
    flat = np.fromiter(chain.from_iterable(offsets), dtype=np.int64, count=2 * len(offsets))
    start, end = flat[::2], flat[1::2]
    previous_end = np.concatenate([[0], np.maximum.accumulate(end)[:-1]]) if len(end) else end
    start = np.where(start == end, np.minimum(start, previous_end), start)
    supervised = np.zeros(len(end), dtype=np.bool_)
    for first, last in spans:
        supervised |= (start < last) & (end > first) & (start < end)
    return supervised


def _rejected(record: Record, reason: str) -> Rejected:
    return Rejected(id=record.id, source=record.source, row=record.row, reason=reason, place=record.place)
