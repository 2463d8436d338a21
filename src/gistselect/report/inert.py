"""Text of a data set as text: it may hold markup, control characters, or marks that turn the direction of reading."""

from __future__ import annotations

import re
from html import escape

_HIDDEN = re.compile(
    "[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
"""Characters that cannot be seen, or that turn the direction of what follows."""


def visible(text: str) -> str:
    """Text with hidden and direction-turning characters written out, so that what is read is what is there."""
    return _HIDDEN.sub(lambda found: f"\u27e8U+{ord(found.group()):04X}\u27e9", text)


def inert(text: str) -> str:
    """Visible text for markup."""
    return escape(visible(text))
