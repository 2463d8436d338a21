"""What the last thing is that a model learns to say: the token that ends its turn, or something else."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from gistselect.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def last_learned(example: Example, tokenizer: PreTrainedTokenizerBase, stops: Collection[int]) -> tuple[str, bool]:
    """The last supervised token that is more than white space, as text, and whether generation stops at it.

    `stops` are the ids at which generation ends. Where none of them is supervised a model learns answers without end:
    the trap of chat templates whose mask leaves the closing token out.
    """
    for token, supervised in zip(example.input_ids[::-1].tolist(), example.supervised[::-1].tolist(), strict=True):
        text = str(tokenizer.decode([token]))
        if supervised and text.strip():
            return text, token in stops
    return "", False
