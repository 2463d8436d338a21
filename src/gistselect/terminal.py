"""Text on terminals: what a data set or a file name holds is shown, never obeyed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but for tab and line feed, marks that turn the direction of text, and half surrogate pairs."""


IN_A_FILE = 400
"""Characters of a line where nobody's screen ends it."""


def printable(text: str) -> str:
    """The text with every character that a terminal would obey written out, such as `\\x1b`."""
    return _OBEYED.sub(lambda found: repr(found[0])[1:-1], text)


class Terminal(Console):
    """A rich console whose text is shown as it is, and printable whatever it holds: no markup, no `:train:` that
    becomes a picture, and only rich itself writes control codes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def say(self, text: str | Text, style: str | None = None) -> None:
        """Lines of any length, which the screen may break but no file."""
        self.print(text, style=style, soft_wrap=True)

    def render(self, *arguments: Any, **options: Any) -> Iterable[Segment]:
        for segment in super().render(*arguments, **options):
            if segment.control or not _OBEYED.search(segment.text):
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


def print_table(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """A table on standard output; cell text is never markup. In a file lines are as long as the table wants."""
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in rows[0]:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row.values()))
    terminal = Terminal()
    if not terminal.is_terminal:
        terminal.width = IN_A_FILE
    terminal.print(table)
