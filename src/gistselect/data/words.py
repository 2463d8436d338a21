"""What a row says, and its words: shared by all that read text instead of tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from gistselect.types import Record

_WORD = re.compile(r"[^\W_]+")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
"""Scripts written without spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""


def text_of(record: Record) -> str:
    """What a row says: all of its turns."""
    return "\n".join([*(message.content for message in record.messages), record.prefix])


def words(text: str) -> Iterator[str]:
    """Words in lower case; in scripts without spaces, pairs of neighbouring characters."""
    found = _WORD.findall(text.casefold())
    return _pairs(found) if _UNSPACED.search(text) else iter(found)


def _pairs(found: Iterable[str]) -> Iterator[str]:
    for word in found:
        if _UNSPACED.search(word) and len(word) > 2:
            yield from (word[start : start + 2] for start in range(len(word) - 1))
        else:
            yield word
